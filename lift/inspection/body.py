"""The body in one channel, found by brightness, for the checks.

Training has its own rule in the plan (`lift.volumes.masks`); this one also has to hold for series
that nobody has looked at yet.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lift.volumes.masks import body_mask

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

MOST_LOST: Final = 4
"""Neighbouring slices that may lose their signal: more of them are a gap in the body."""

LEAST_KEPT: Final = 0.6
"""A slice darker than this share of the slices on both sides of it lost signal: gain errors of
slices that did not lie within 10%, anatomy changes brightness over centimetres."""

FINE_MM: Final = 1.25
"""Voxels smaller than this are looked at two by two: an eighth of the time, and the rule smooths by
2 mm and closes gaps of 6 mm anyway."""

_COARSER: Final = 1.1
_LONG: Final = 64
_BRIGHTNESS: Final = (0.5, 99.5)
_UPPER: Final = 98
_FEWEST_BRIGHT: Final = 0.02


def depth_axis(spacing_mm: tuple[float, float, float]) -> int:
    """The axis across the slices: 1.1 times as coarse as the next one, or else z."""
    order = np.argsort(spacing_mm)
    return int(order[-1]) if spacing_mm[order[-1]] > _COARSER * spacing_mm[order[-2]] else 2


def find_body(
    voxels: NDArray[Any], spacing_mm: tuple[float, float, float], *, axis: int = 2
) -> Bools:
    """Voxels of the body; slices that lost their signal stay part of it.

    Args:
        voxels: (x, y, z), finite.
        spacing_mm: voxel size.
        axis: the axis across the slices.

    Raises:
        ValueError: not 3D.
    """
    if voxels.ndim != 3:
        raise ValueError("a volume is 3D")
    steps = [
        2 if size < FINE_MM and n >= _LONG else 1
        for size, n in zip(spacing_mm, voxels.shape, strict=True)
    ]
    values = _thinned(voxels, steps)
    low, high = np.percentile(values, _BRIGHTNESS)
    values -= np.float32(low)
    values /= np.float32(max(float(high - low), 1e-6))
    np.clip(values, 0.0, 1.0, out=values)
    slices = np.moveaxis(values, axis, 0)
    # a view of a twentieth of each slice is enough for its brightness
    sampled = np.ascontiguousarray(slices.reshape(len(slices), -1)[:, ::20])
    bright = np.percentile(sampled, _UPPER, axis=1)
    for index, kept in enumerate(kept_signal(np.maximum(bright, _FEWEST_BRIGHT))):
        if kept < LEAST_KEPT:
            np.clip(slices[index] / np.float32(kept), 0.0, 1.0, out=slices[index])
    x, y, z = (size * step for size, step in zip(spacing_mm, steps, strict=True))
    inside = body_mask([values], (x, y, z), axis)
    for one, (step, n) in enumerate(zip(steps, voxels.shape, strict=True)):
        if step > 1:
            inside = np.repeat(inside, step, axis=one)
            # an odd number of voxels: the last one is as the one before it
            inside = np.take(inside, np.minimum(np.arange(n), inside.shape[one] - 1), axis=one)
    return inside


def _thinned(voxels: NDArray[Any], steps: list[int]) -> NDArray[np.float32]:
    """Means of two neighbours along the axes whose step is 2; a last odd voxel is left out."""
    values: NDArray[np.float32] = voxels.astype(np.float32)
    for axis, step in enumerate(steps):
        if step > 1:
            pairs = np.moveaxis(values, axis, 0)
            last = len(pairs) - len(pairs) % step
            means = (pairs[:last:2] + pairs[1:last:2]) * np.float32(0.5)
            values = np.moveaxis(means, 0, axis)
    return np.ascontiguousarray(values)


def kept_signal(brightness: NDArray[Any]) -> Floats:
    """What share of its signal each slice kept, at most 1.

    A slice is held against the brighter ones on both sides, at most `MOST_LOST` away: where the
    body ends it is dark on one side, and nothing is called lost.

    Args:
        brightness: of each slice, positive.
    """
    values = np.asarray(brightness, dtype=np.float64)
    # beyond the ends it is dark: the last slices have one side only
    closed = ndimage.grey_closing(values, size=(MOST_LOST + 1,), mode="constant", cval=0.0)
    return np.asarray(values / np.maximum(values, closed), dtype=np.float64)
