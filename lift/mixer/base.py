"""The mixer interface: takes the generator's prediction and returns a better one.

Axes are (patient, slice, channel, height, width), written `b z c h w`: axis 0 is the
patient in every trainable layer, so that per-patient gradients are what they claim to be
(folding slices or pixels into axis 0 would make the protected unit a pixel column, without
any error being raised).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from lift.mixer.trained import TrainedPart


@dataclass(frozen=True)
class MixerInputs:
    """A batch of windows (or whole volumes) of contiguous slices, one per patient.

    Attributes:
        source: normalised source channels, (b, z, n_source, h, w), float32.
        pred: the frozen generator's prediction, (b, z, 1, h, w), float32.
        mask: 1 inside the patient's mask, else 0, (b, z, 1, h, w), float32.
        depth: number of valid slices of each patient, (b,), int64, always on the CPU: tensors
            are cut by it. Slices from there on are padding (mask 0) and must not influence
            anything.
        taps: frozen features by name, each (b, z, channels, h / stride, w / stride).
        pooled: for a mixer that sees the whole volume: tap name -> in-plane means of *all*
            slices, (b, z_all, channels); empty for the others.
        pooled_depth: valid slices in `pooled`, (b,), int64; None when `pooled` is empty.
        start: index of the window's first slice in the whole volume, (b,), int64.
        slice_spacing_mm: through-plane spacing, (b,), float32.
        wanted: slices whose results are used; the others are neighbours, whose results a mixer may
            leave as they are. None: all.
    """

    source: Tensor
    pred: Tensor
    mask: Tensor
    depth: Tensor
    start: Tensor
    slice_spacing_mm: Tensor
    taps: Mapping[str, Tensor] = field(default_factory=dict)
    pooled: Mapping[str, Tensor] = field(default_factory=dict)
    pooled_depth: Tensor | None = None
    wanted: slice | None = None


@dataclass(frozen=True)
class FrozenParts:
    """Parts of the generator that a mixer may use. They are never trained or sent.

    Attributes:
        tap_channels: tap name -> number of channels.
        tap_strides: tap name -> in-plane stride (1 = the slice's own resolution).
        n_source: source channels at one slice (a 2.5D generator's neighbours not counted).
        head_weight: weight of the generator's linear 1x1 head, (channels of `feat`,), or None.
        decode: taps (each (n, c, h', w')) and mask (n, 1, h, w) -> prediction (n, 1, h, w),
            differentiable with respect to the taps while every weight is frozen; or None.
    """

    tap_channels: Mapping[str, int]
    tap_strides: Mapping[str, int]
    n_source: int
    head_weight: Tensor | None = None
    decode: Callable[[Mapping[str, Tensor], Tensor], Tensor] | None = None


class Mixer(TrainedPart, ABC):
    """Couples the slices of a volume along depth around a frozen generator.

    Guarantees of every subclass: the output differs from `pred` only inside the mask; no
    normalisation runs over depth; any number of slices from 1 on; padding and voxels outside
    the mask have no influence; at initialisation the output is exactly the z-filter that
    :meth:`start_from` was given (or `pred` itself where a mixer has no z-filter).

    Class attributes:
        kind: the name in the plan.
        tap_names: taps that must be in `MixerInputs.taps` (known after construction).
        pooled_names: taps that must be in `MixerInputs.pooled`.
        halo: slices on either side that influence a slice's result (the pooled context apart):
            a chunk with this many neighbours gives the whole volume's result.
        has_z_filter: whether the mixer starts from a fitted z-filter.
    """

    kind: ClassVar[str]
    has_z_filter: ClassVar[bool]
    tap_names: tuple[str, ...] = ()
    pooled_names: tuple[str, ...] = ()
    halo: int

    @property
    def computed_halo(self) -> int:
        """Slices on either side of the wanted ones that are computed too; of the halo at most."""
        return self.halo

    @abstractmethod
    def forward(self, inputs: MixerInputs) -> Tensor:
        """The mixed prediction, (b, z, 1, h, w), in the range of `inputs.pred`."""

    def start_from(self, taps: Tensor) -> None:
        """Set the z-filter's taps, (6,) for shifts -3, -2, -1, 1, 2, 3; no effect without one."""
