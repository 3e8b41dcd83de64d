"""Volumes on another grid, by trilinear interpolation or, for labels, by the nearest voxel.

Along an axis that becomes coarser a Gaussian comes first, so that detail which the new grid cannot
hold does not fold into it: of two box-like slice profiles with full widths s < t at half maximum,
sigma = sqrt((t^2 - s^2) / (8 ln 2)) makes the one of the other (Cardoso et al., "Scale factor point
spread function matching", MICCAI 2015). One plane of the new grid is made at a time: memory for the
whole is that of input and output, and, with a Gaussian, of one copy of the input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lift.errors import VolumeError
from lift.volumes.formats import checks
from lift.volumes.formats.parts import Spacings

Floats = NDArray[np.float32]
_EDGE: Final = 0.5 + 1e-3
"""Half a voxel beyond the outermost centres a volume ends (and float32 headers round)."""
_WHOLE: Final = 1e-3
_TRUNCATE: Final = 3.0
_FEWEST: Final = 2


@dataclass(frozen=True)
class Grid:
    """Where voxels lie.

    Attributes:
        shape: (x, y, z).
        affine: voxel -> mm, (4, 4).
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between voxel centres along each axis."""
        x, y, z = (float(np.linalg.norm(self.affine[:3, axis])) for axis in range(3))
        return x, y, z


def with_spacing(grid: Grid, spacing_mm: Spacings, name: str) -> Grid:
    """The grid with the same axes, centre and (at least) extent, and this spacing.

    Args:
        grid: the volume's own.
        spacing_mm: along the same axes; None keeps the volume's own along that axis.
        name: what a message calls the volume.

    Raises:
        VolumeError: it would have more voxels than any volume that is read.
    """
    wanted_mm = [
        own if new is None else new for own, new in zip(grid.spacing_mm, spacing_mm, strict=True)
    ]
    shape = tuple(
        max(_FEWEST, math.ceil(count * own / new - _WHOLE))
        for count, own, new in zip(grid.shape, grid.spacing_mm, wanted_mm, strict=True)
    )
    if math.prod(shape) * 8 > checks.LARGEST_VOLUME_BYTES:
        raise VolumeError(
            f"cannot resample volume '{name}'",
            where="preprocessing.grid.spacing_mm",
            seen=f"it would have {' x '.join(map(str, shape))} voxels; at most "
            f"{checks.LARGEST_VOLUME_BYTES >> 30} GiB are held in memory",
            remedy="Use a plan with a larger spacing, or crop the volume.",
        )
    affine = np.eye(4)
    affine[:3, :3] = grid.affine[:3, :3] * (np.array(wanted_mm) / np.array(grid.spacing_mm))
    centre = grid.affine @ [*((np.array(grid.shape) - 1) / 2), 1.0]
    affine[:3, 3] = centre[:3] - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    x, y, z = shape
    return Grid((x, y, z), affine)


def resample(voxels: NDArray[Any], source: Grid, onto: Grid, *, background: float = 0.0) -> Floats:
    """A volume on another grid, trilinear, float32; `background` outside its field of view.

    Args:
        voxels: (x, y, z) on `source`.
        source: where they lie.
        onto: where they are wanted.
        background: value half a voxel and more beyond the outermost voxels.
    """
    if _same(source, onto):
        return voxels.astype(np.float32)
    sigma = _smoothing(source, onto)
    if any(sigma):
        voxels = ndimage.gaussian_filter(
            voxels.astype(np.float32), sigma, mode="nearest", truncate=_TRUNCATE
        )
    made = np.empty(onto.shape, dtype=np.float32)
    _fill(made, voxels, source, onto, order=1, background=background)
    return made


def resample_labels(voxels: NDArray[Any], source: Grid, onto: Grid) -> NDArray[Any]:
    """Labels on another grid: each voxel's is that of the nearest one, in the same number format.

    Args:
        voxels: (x, y, z) on `source`.
        source: where they lie.
        onto: where they are wanted; 0 outside the field of view.
    """
    if _same(source, onto):
        return voxels.copy()
    made = np.empty(onto.shape, dtype=voxels.dtype)
    _fill(made, voxels, source, onto, order=0, background=0.0)
    return made


def _same(one: Grid, other: Grid) -> bool:
    """Whether there is nothing to do: interpolation would give the same bits, later."""
    return one.shape == other.shape and np.array_equal(one.affine, other.affine)


def _fill(
    made: NDArray[Any],
    voxels: NDArray[Any],
    source: Grid,
    onto: Grid,
    *,
    order: Literal[0, 1],
    background: float,
) -> None:
    """One plane of the new grid after another, in double precision until it is stored."""
    to_source = np.linalg.inv(source.affine) @ onto.affine
    x, y = np.meshgrid(*(np.arange(n, dtype=np.float64) for n in onto.shape[:2]), indexing="ij")
    last = np.array(source.shape, dtype=np.float64)[:, None, None] - 1
    for z in range(onto.shape[2]):
        places = (
            to_source[:3, 0, None, None] * x
            + to_source[:3, 1, None, None] * y
            + (to_source[:3, 2] * z + to_source[:3, 3])[:, None, None]
        )
        # inverse of an affine: whole places are whole again
        whole = np.rint(places)
        places = np.where(np.abs(places - whole) < 1e-6, whole, places)
        outside = ((places < -_EDGE) | (places > last + _EDGE)).any(axis=0)
        plane = ndimage.map_coordinates(
            voxels, np.clip(places, 0, last), output=made.dtype, order=order, mode="nearest"
        )
        plane[outside] = background
        made[:, :, z] = plane


def _smoothing(source: Grid, onto: Grid) -> tuple[float, float, float]:
    """Sigma of the Gaussian along each axis of the source, in its voxels; 0 for none."""
    steps = np.linalg.inv(source.affine[:3, :3]) @ onto.affine[:3, :3]
    # how long a voxel of the new grid is along each axis of the source, in voxels of the source
    x, y, z = (
        # a grid that is coarser by less than a percent needs none
        math.sqrt((wanted**2 - 1) / (8 * math.log(2))) if wanted > 1.01 else 0.0
        for wanted in (float(length) for length in np.linalg.norm(steps, axis=1))
    )
    return x, y, z
