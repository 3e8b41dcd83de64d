"""The frozen slice generator: a 2D network from source slices to a target slice.

Frozen means: `eval()` for ever, no gradient for any parameter, and a fingerprint over
parameters *and* buffers that is checked wherever a bundle is loaded. A slice's result never
depends on the other slices of its batch (normalisation is per slice).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lift.config.decoder import DecoderCard
from lift.config.generator import GeneratorCard


@dataclass(frozen=True)
class Tap:
    """A named feature of the frozen network: its channels and its in-plane stride."""

    channels: int
    stride: int


class Generator(Protocol):
    """The frozen network of any task, as seen by the programs.

    A task narrows it to its own class (`lift.tasks.base.Task`).
    """

    @property
    def card(self) -> GeneratorCard | DecoderCard:
        """What the weights are, and where they come from."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 over architecture, names, dtypes, shapes and bytes of all that is frozen."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        ...


class SliceGenerator(Protocol):
    """Source slice(s) -> target slice, in one forward pass, with named taps (method 5.1).

    Input `x` is (n, n_source * (2 * context_slices + 1), h, w), float32, normalised to [0, 1];
    n is any number of slices in any grouping; h and w any size >= 1 (padded inside to
    `stride`, and cropped back). Channels of a 2.5D generator are ordered by slice offset, then
    by source: all sources of slice d - c, ..., all sources of slice d + c.

    Attributes:
        taps: tap name -> channels and stride; `feat` is the last decoder feature at stride 1
            (the head is a linear 1x1 convolution on it), `enc0` the first encoder level at
            stride 1, `bottleneck` the deepest level. Empty for a network that exposes none.
        n_source: number of source channels.
        context_slices: neighbouring source slices on either side (0 = plain 2D; 2.5D else).
        crop_stride: a crop that holds the mask and starts at multiples of this gives the whole
            picture's result, to rounding, and everything outside the mask is 0. None: the whole
            picture has an influence, and the mask has none.
    """

    taps: Mapping[str, Tap]
    n_source: int
    context_slices: int
    crop_stride: int | None

    @property
    def device(self) -> torch.device:
        """Where the network is. The mixer and all that both take in go there too."""
        ...

    def predict(
        self, x: Tensor, tap_names: tuple[str, ...] = (), *, mask: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Prediction (n, 1, h, w) and the asked-for taps (n, c, ceil(h/stride), ceil(w/stride)).

        Runs without gradients. A generator with a `crop_stride` needs the `mask`, 0 or 1,
        (n, 1, h, w).
        """
        ...

    def decode(self, taps: Mapping[str, Tensor], mask: Tensor | None = None) -> Tensor:
        """Prediction from encoder taps, differentiable with respect to them, weights frozen.

        `taps` holds every encoder level (`encoder_tap_names`); `mask` is as in :meth:`predict`.
        """
        ...

    @property
    def encoder_tap_names(self) -> tuple[str, ...]:
        """The taps that :meth:`decode` needs, from full resolution to the bottleneck."""
        ...

    @property
    def head_weight(self) -> Tensor | None:
        """Weight of the linear head on `feat`, (channels,), or None when there is none."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 over architecture, names, dtypes, shapes and bytes of parameters and buffers."""
        ...
