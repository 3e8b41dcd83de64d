"""Tri-planar groups: which 2D images of a volume are compared with which.

A group is a plane and a bin of positions along the body. Volumes are (b, 1, d, h, w) with depth
from inferior to superior, height from posterior to anterior and width from left to right (see
`lift.volumes.slices`), so a coronal image is (d, w) and a sagittal one (d, h): both hold depth
themselves. An axial image does not, and comes in pairs of neighbouring slices.

A position is a fraction of the body's own extent along an axis, never an index: crops and
numbers of slices may differ between sites.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lift.errors import VolumeError

Plane = Literal["axial", "coronal", "sagittal"]
_AXIS: Final[dict[Plane, int]] = {"axial": 0, "coronal": 1, "sagittal": 2}


@dataclass(frozen=True)
class Group:
    """One group: positions from `low` to `high`, fractions of the body along the plane's axis."""

    plane: Plane
    low: float
    high: float

    @property
    def name(self) -> str:
        """For logs: "axial 0.10-0.26"."""
        return f"{self.plane} {self.low:.2f}-{self.high:.2f}"

    @property
    def blocks(self) -> int:
        """Encoded images behind one feature vector: 2 for a pair of axial slices, else 1."""
        return 2 if self.plane == "axial" else 1


@dataclass(frozen=True)
class GroupLayout:
    """Which groups there are; public, and part of every digest.

    Attributes:
        axial: number of bins along depth; likewise `coronal` and `sagittal`.
        windows: windows that a real volume gives to each group, evenly spread over the bin. Few
            of them leave most places of the bin unseen, and what stands between is not learned.
        margin: share of the body left out at either end, where slices are nearly empty.
        step_mm: distance between the two slices of an axial window, rounded to whole slices,
            at least one; 0: the next slice.
        pixel_mm: side of a pixel that every image is resampled to; 0: the smaller of an image's
            two spacings, which keeps proportions but lets sites differ in resolution.
    """

    axial: int = 5
    coronal: int = 4
    sagittal: int = 4
    windows: int = 2
    margin: float = 0.1
    step_mm: float = 0.0
    pixel_mm: float = 0.0

    def __post_init__(self) -> None:
        bins = (self.axial, self.coronal, self.sagittal)
        if min(bins) < 0 or sum(bins) == 0 or self.windows < 1:
            raise ValueError(f"a layout needs groups and windows: {self}")
        if not 0 <= self.margin < 0.5 or min(self.step_mm, self.pixel_mm) < 0:
            raise ValueError(f"margin in [0, 0.5) and lengths >= 0 are needed: {self}")

    @property
    def groups(self) -> tuple[Group, ...]:
        """All groups: axial, then coronal, then sagittal, each along its axis."""
        bins: dict[Plane, int] = {
            "axial": self.axial,
            "coronal": self.coronal,
            "sagittal": self.sagittal,
        }
        width = 1 - 2 * self.margin
        return tuple(
            Group(plane, self.margin + width * i / n, self.margin + width * (i + 1) / n)
            for plane, n in bins.items()
            for i in range(n)
        )

    def description(self) -> dict[str, float]:
        """Plain data for digests and files."""
        return asdict(self)

    def fewest_slices(self) -> tuple[int, int, int]:
        """Slices that a body must span along depth, height and width: one a bin and one more."""
        return self.axial + 1, self.coronal + 1, self.sagittal + 1


@dataclass(frozen=True)
class Windows:
    """Images of one group.

    Attributes:
        images: (n, blocks, h, w), n = volumes * windows, volume by volume.
        owner: index of each row's volume, (n,), int64.
    """

    images: Tensor
    owner: Tensor


@dataclass(frozen=True)
class RandomPlaces:
    """Windows at new random places, one in each of `count` equal shares of a bin.

    Attributes:
        count: windows that a volume gives to a group, >= 1.
        generator: on the CPU.
    """

    count: int
    generator: torch.Generator


def draw_groups(layout: GroupLayout, count: int, generator: torch.Generator) -> tuple[int, ...]:
    """`count` different groups (all of them when there are fewer), in ascending order."""
    order = torch.randperm(len(layout.groups), generator=generator, device=generator.device)
    return tuple(sorted(order[:count].tolist()))


def body_extent(mask: Tensor) -> Tensor:
    """First and last index of the body along depth, height and width, (b, 3, 2), int64.

    Args:
        mask: nonzero inside the body, (b, 1, d, h, w); without any body the whole grid counts,
            as for a generator that has not learned to draw one yet.
    """
    extents = []
    for axis in range(3):
        others = tuple(2 + other for other in range(3) if other != axis)
        inside = (mask != 0).any(1, keepdim=True).sum(others)[:, 0] > 0
        length = inside.shape[1]
        empty = ~inside.any(1)
        inside = inside | empty[:, None]
        first = inside.int().argmax(1)
        last = length - 1 - inside.flip(1).int().argmax(1)
        extents.append(torch.stack([first, last], dim=1))
    return torch.stack(extents, dim=1)


def check_extent(extent: Tensor, layout: GroupLayout, names: Sequence[str] = ()) -> None:
    """Refuse real volumes whose body is too short for the layout.

    Args:
        extent: (b, 3, 2), from :func:`body_extent`.
        layout: the groups.
        names: what to call each volume, relative to its data folder; may be empty.

    Raises:
        VolumeError: a body spans too few slices; names the volume and the axis.
    """
    spans = (extent[:, :, 1] - extent[:, :, 0] + 1).tolist()
    for row, span in enumerate(spans):
        for axis, (seen, needed) in enumerate(zip(span, layout.fewest_slices(), strict=True)):
            if seen < needed:
                name = f"volume '{names[row]}'" if names else "a volume"
                along = ("depth", "height", "width")[axis]
                raise VolumeError(
                    f"cannot use {name} for the drifting statistics",
                    seen=f"the body spans {int(seen)} slices along {along}; "
                    f"at least {needed} are needed",
                    remedy="Nothing was sent. Leave the volume out, or use fewer groups in the "
                    "plan.",
                )


def cut(
    volumes: Tensor,
    spacing_mm: tuple[float, float, float],
    extent: Tensor,
    layout: GroupLayout,
    group: int,
    places: RandomPlaces | None = None,
) -> Windows:
    """The group's windows of every volume, differentiable with respect to the volumes.

    Images are resampled to square pixels (see `GroupLayout.pixel_mm`); where they are square
    already, voxels are copied as they are.

    Args:
        volumes: (b, 1, d, h, w), normalised to [0, 1].
        spacing_mm: along depth, height and width, the same for all volumes.
        extent: (b, 3, 2), from :func:`body_extent`.
        layout: the groups.
        group: index into `layout.groups`.
        places: None takes the middle of each of the layout's shares of the bin: the same windows
            every time, as statistics need it.

    Raises:
        ValueError: shapes that do not fit, or a pair of axial slices in a volume of one.
    """
    b = volumes.shape[0]
    if volumes.dim() != 5 or volumes.shape[1] != 1 or extent.shape != (b, 3, 2):
        raise ValueError(
            f"volumes (b, 1, d, h, w) and extent (b, 3, 2) are needed: {tuple(volumes.shape)}, "
            f"{tuple(extent.shape)}"
        )
    chosen = layout.groups[group]
    axis = _AXIS[chosen.plane]
    step = 0
    if chosen.plane == "axial":
        step = max(1, round(layout.step_mm / spacing_mm[axis]))
    longest = volumes.shape[2 + axis] - 1 - step
    if longest < 0:
        raise ValueError(f"a window of {step + 1} slices in a volume of {volumes.shape[2 + axis]}")
    count = layout.windows if places is None else places.count
    generator = None if places is None else places.generator
    index = _positions(extent[:, axis], chosen, count, generator)
    index = index.clamp(0, longest).to(volumes.device)
    rows = torch.arange(b, device=volumes.device).repeat_interleave(count)
    along = volumes[:, 0].movedim(1 + axis, 1)
    images = along[rows, index][:, None]
    if step:
        images = torch.cat([images, along[rows, index + step][:, None]], dim=1)
    plane_mm = [spacing for other, spacing in enumerate(spacing_mm) if other != axis]
    return Windows(_resampled(images, plane_mm[0], plane_mm[1], layout.pixel_mm), rows)


def _positions(
    extent: Tensor, group: Group, windows: int, generator: torch.Generator | None
) -> Tensor:
    """Slice indices, (b * windows,): one in each of `windows` equal shares of the bin."""
    shape = (len(extent), windows)
    middle = torch.full(shape, 0.5)
    within = middle if generator is None else torch.rand(shape, generator=generator)
    share = (torch.arange(windows) + within) / windows
    position = group.low + (group.high - group.low) * share
    first, last = extent.cpu().float().unbind(1)
    # halves go up, counted from the body's start: where the body lies in the grid is no matter
    inside = (position * (last - first)[:, None] + 0.5).floor()
    return (first[:, None] + inside).long().flatten()


def _resampled(images: Tensor, height_mm: float, width_mm: float, pixel_mm: float) -> Tensor:
    side = pixel_mm or min(height_mm, width_mm)
    size = [
        max(1, round(length * spacing / side))
        for length, spacing in zip(images.shape[2:], (height_mm, width_mm), strict=True)
    ]
    if size == list(images.shape[2:]):
        return images
    # antialias: thinning without it would turn fine detail into noise of its own
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
