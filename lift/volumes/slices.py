"""Volumes as stacks of slices, and back: depth is the through-plane axis."""

from __future__ import annotations

from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

Number = TypeVar("Number", bound=np.generic)
# plane -> the volume's axes (x, y, z) in the order depth, height, width
_AXES: Final = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}


def to_slices(voxels: NDArray[Number], plane: str) -> NDArray[Number]:
    """(x, y, z) RAS+ voxels as (depth, height, width): a view, never a copy.

    Depth runs from inferior to superior (axial), posterior to anterior (coronal) or left to
    right (sagittal).
    """
    return np.transpose(voxels, _AXES[plane])


def from_slices(slices: NDArray[Number], plane: str) -> NDArray[Number]:
    """The exact inverse of :func:`to_slices`."""
    return np.transpose(slices, tuple(int(i) for i in np.argsort(_AXES[plane])))


def slice_spacing(spacing_mm: tuple[float, float, float], plane: str) -> tuple[float, float, float]:
    """Spacing along depth, height and width, in mm, from spacing along x, y and z."""
    depth, height, width = _AXES[plane]
    return spacing_mm[depth], spacing_mm[height], spacing_mm[width]
