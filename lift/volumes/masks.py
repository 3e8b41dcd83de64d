"""Which voxels count: the plan's mask rules."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu

Bools = NDArray[np.bool_]
_SMOOTHING_MM: Final = 2.0
_CLOSING_MM: Final = 6.0


def nonzero_mask(sources: list[NDArray[Any]], plane_axis: int) -> Bools:
    """Voxels that are non-zero in all sources: largest component, holes filled slice by slice."""
    inside = np.logical_and.reduce([voxels != 0 for voxels in sources])
    return _filled(_largest(inside), plane_axis)


def body_mask(
    sources: list[NDArray[np.float32]], spacing_mm: tuple[float, float, float], plane_axis: int
) -> Bools:
    """Voxels of the body, by Otsu's threshold on the mean of the normalised sources.

    For volumes with noise or skull around the brain as well as for stripped ones: half of
    Otsu's threshold, so that dark tissue stays inside; gaps up to 6 mm are closed.

    Args:
        sources: (x, y, z) each, normalised to [0, 1].
        spacing_mm: voxel size.
        plane_axis: the axis across the slices.

    Source: Otsu 1979, as in scikit-image.
    """
    mean = np.mean(sources, axis=0)
    sigma = [_SMOOTHING_MM / size / 2.355 for size in spacing_mm]
    smooth = ndimage.gaussian_filter(mean, sigma)
    inside = smooth > threshold_otsu(smooth) * 0.5
    reach = [
        max(1, round(_CLOSING_MM / 2 / size)) if size < _CLOSING_MM else 0 for size in spacing_mm
    ]
    # padding: closing must not eat the volume's border
    pad = [(r, r) for r in reach]
    closed = _closed(np.pad(_largest(inside), pad), [2 * r + 1 for r in reach])
    middle = tuple(slice(r, r + n) for r, n in zip(reach, inside.shape, strict=True))
    return _filled(_largest(closed[middle]), plane_axis)


def _closed(inside: Bools, box: list[int]) -> Bools:
    """Binary closing by a box, one axis after the other: seconds less than by its voxels."""
    grown = ndimage.maximum_filter(inside.view(np.uint8), box, mode="constant")
    return np.asarray(ndimage.minimum_filter(grown, box, mode="constant")).astype(np.bool_)


def _largest(inside: Bools) -> Bools:
    labels, count = ndimage.label(inside)
    if count <= 1:
        return inside
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(labels == sizes.argmax())


def _filled(inside: Bools, plane_axis: int) -> Bools:
    """Holes that no path within the slice joins to its border are inside too."""
    flat = ndimage.generate_binary_structure(3, 1)
    np.moveaxis(flat, plane_axis, 0)[[0, 2]] = False
    # all slices at once; the frame of air lies around each of them
    pad = [(0, 0) if axis == plane_axis else (1, 1) for axis in range(3)]
    labels, _ = ndimage.label(np.pad(~inside, pad, constant_values=True), flat)
    corner = np.moveaxis(labels, plane_axis, 0)[:, :1, :1]
    outside = np.moveaxis(np.moveaxis(labels, plane_axis, 0) == corner, 0, plane_axis)
    middle = tuple(slice(low, n - high) for (low, high), n in zip(pad, outside.shape, strict=True))
    return np.ascontiguousarray(~outside[middle])
