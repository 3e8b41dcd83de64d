"""A real volume as the decoder would have made it: its field of view, its pixels.

Slices are resampled to the decoder's pixels and cut, or continued with their own border, to its
image around the body's middle. Depth is left as it was acquired, from the body's first slice to
its last: the mapper knows positions along the body, not slices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lift.config.decoder import DecoderConfig
from lift.triplanar.groups import GroupLayout, check_extent

if TYPE_CHECKING:
    # reads volumes; a server has none
    from lift.cohort.preprocessing import Prepared

_SAME_SPACING: Final = 0.01
"""Spacings that differ by a smaller share are one: resampling would blur and tell nothing."""


@dataclass(frozen=True)
class BodyVolume:
    """A volume on the decoder's in-plane grid, from the body's first slice to its last.

    Attributes:
        voxels: (1, 1, d, h, w), float32 in [0, 1].
        spacing_mm: along depth, height and width.
    """

    voxels: Tensor
    spacing_mm: tuple[float, float, float]

    @property
    def extent(self) -> Tensor:
        """First and last index along every axis, (1, 3, 2): positions are shares of the grid."""
        return whole_extent(1, *self.voxels.shape[2:])


def whole_extent(volumes: int, depth: int, height: int, width: int) -> Tensor:
    """The extent of volumes that their body fills, (volumes, 3, 2), int64."""
    extent = torch.tensor([[0, depth - 1], [0, height - 1], [0, width - 1]])
    return extent.expand(volumes, -1, -1)


def body_volume(
    prepared: Prepared, decoder: DecoderConfig, layout: GroupLayout, name: str
) -> BodyVolume:
    """One prepared patient on the decoder's grid.

    Args:
        prepared: of an unconditional plan.
        decoder: its image and pixels.
        layout: the groups that the volume must have slices for.
        name: what to call the patient in an error.

    Raises:
        VolumeError: the body spans too few slices for the groups.
    """
    crop = prepared.crop
    _, rows, columns = (stop - start for start, stop in zip(crop.start, crop.stop, strict=True))
    # what was padded to a multiple is no part of the scan
    voxels = torch.from_numpy(np.ascontiguousarray(prepared.source[:, :1, :rows, :columns]))
    inside = np.asarray(prepared.mask[:, 0, :rows, :columns]).max(axis=0) > 0
    dz, *plane_mm = prepared.spacing_mm
    sides = [
        max(1, round(length * spacing / decoder.pixel_mm))
        for length, spacing in zip((rows, columns), plane_mm, strict=True)
    ]
    if sides != [rows, columns]:
        voxels = F.interpolate(
            voxels, size=sides, mode="bilinear", align_corners=False, antialias=True
        )
    for axis, (side, length) in enumerate(zip(sides, (rows, columns), strict=True)):
        places = np.flatnonzero(inside.any(axis=1 - axis))
        middle = (places[0] + places[-1] + 1) / 2 * side / length
        voxels = _centred(voxels, 2 + axis, decoder.image[axis], float(middle))
    pixel = decoder.pixel_mm
    volume = BodyVolume(voxels.movedim(1, 0)[None].contiguous(), (dz, pixel, pixel))
    check_extent(volume.extent, layout, [name])
    return volume


def same_view(volume: BodyVolume, slices: int, slice_spacing_mm: float) -> BodyVolume:
    """The volume as generated ones lie: so many slices of that spacing, around its body's middle.

    A body that is longer is cut, a shorter one goes on with its own border, as it does in-plane.
    Slices of another spacing are then brought to this one, averaged where it is coarser. Volumes
    with different fields of view are told apart by what they show, not by how they look.
    """
    dz, *plane_mm = volume.spacing_mm
    count = max(1, round(slices * slice_spacing_mm / dz))
    voxels = _centred(volume.voxels, 2, count, volume.voxels.shape[2] / 2)
    if abs(dz / slice_spacing_mm - 1) > _SAME_SPACING:
        _, _, _, height, width = voxels.shape
        lines = voxels.reshape(1, 1, count, height * width)
        brought = F.interpolate(
            lines,
            size=(slices, height * width),
            mode="bilinear",
            align_corners=False,
            antialias=True,
        )
        voxels = brought.reshape(1, 1, slices, height, width).clamp(0, 1)
    return BodyVolume(voxels.contiguous(), (slice_spacing_mm, plane_mm[0], plane_mm[1]))


def _centred(voxels: Tensor, axis: int, side: int, middle: float) -> Tensor:
    """`side` places along an axis around `middle`; the border goes on where there are none."""
    first = round(middle - side / 2)
    places = torch.arange(first, first + side).clamp(0, voxels.shape[axis] - 1)
    return voxels.index_select(axis, places)
