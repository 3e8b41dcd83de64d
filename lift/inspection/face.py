"""Detect a face in the volume of a head.

A face can be rendered from the skin's surface and recognised (Schwarz et al. 2019, NEJM
381:1684). What gives it away in the voxels is the nose: a narrow ridge in the front surface, not
behind the forehead, that ends below it. A stripped brain has ridges too, but behind its frontal
pole; a defaced head has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lift.inspection.body import find_body
from lift.inspection.finding import Finding, finding

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

LEAST_PROTRUSION_MM: Final = 11.0
"""Of the ridge over both cheeks, less that of the forehead: real noses have 12.7 and more (21
series of 13 patients, slices of 2 to 6.5 mm), phantom brains and heads without nose up to 5, one
10."""

LEAST_HEIGHT_MM: Final = 12.0
"""Of the ridge along z, unbroken: noise and single gyri are lower."""

MOST_BEHIND_MM: Final = 4.0
"""How far the ridge may lie behind the forehead: with the chin drawn in a nose lies level with
it; what lies farther back is the neck, or the underside of a brain."""

LEAST_WIDTH_MM: Final = 90.0
"""Of the slices that count: the top of any round thing is a narrow ridge."""

MOST_RIDGE_MM: Final = 40.0
"""Of the ridge over both cheeks, in a slice or up to 9 mm below it: no nose is that high (real ones
up to 33); the frontal lobes over the tips of the temporal ones, seen from below, 47 and more."""

_BELOW_MM: Final = 9.0
_TIP_MM: Final = 5.0
_CHEEK_MM: Final = (18.0, 26.0)
_OFF_MIDLINE_MM: Final = 25.0
_FOREHEAD_MM: Final = (20.0, 60.0)
"""Above the nose."""


@dataclass(frozen=True)
class Face:
    """Shape of the front surface.

    Attributes:
        finding: verdict and words.
        is_present: a ridge like a nose.
        protrusion_mm: of the ridge over cheeks and forehead, kept up over `LEAST_HEIGHT_MM`.
    """

    finding: Finding
    is_present: bool
    protrusion_mm: float


def has_face(
    voxels: NDArray[Any],
    spacing_mm: tuple[float, float, float],
    *,
    body: NDArray[np.bool_] | None = None,
) -> Face:
    """Whether a nose stands out of the front (y+) surface.

    A heuristic: it answers for heads lying within about 20 degrees of straight whose field of
    view holds the nose; a face without nose (cut off by the field of view) is not found.

    Args:
        voxels: (x, y, z), RAS+, MR or CT of a head.
        spacing_mm: voxel size.
        body: where it is (`lift.inspection.body`), when that is known already.

    Raises:
        ValueError: not 3D.
    """
    if voxels.ndim != 3:
        raise ValueError("a volume is 3D")
    if not voxels.min() < voxels.max():
        return _face(0.0)
    inside = find_body(voxels, spacing_mm) if body is None else body
    nose = _nose(inside, spacing_mm)
    run = max(1, round(LEAST_HEIGHT_MM / spacing_mm[2]))
    if len(nose) < run:
        return _face(0.0)
    # kept up: the smallest over every unbroken run of the least height
    kept = np.lib.stride_tricks.sliding_window_view(nose, run).min(1)
    return _face(max(0.0, float(kept.max())))


def _face(protrusion_mm: float) -> Face:
    is_present = protrusion_mm >= LEAST_PROTRUSION_MM
    words = finding(
        "face",
        "warn" if is_present else "use",
        f"a ridge like a nose, {protrusion_mm:.0f} mm high" if is_present else "no nose",
        "no face where volumes, or what is made from them, leave the hospital",
        "Deface or skull-strip the volume if your rules ask for it.",
    )
    return Face(words, is_present, protrusion_mm)


def _nose(inside: Bools, spacing_mm: tuple[float, float, float]) -> Floats:
    """Height of each slice's ridge over the forehead's, mm; 0 where it cannot be a nose's."""
    ridge = _ridge(inside, spacing_mm)
    front = np.where(inside, np.arange(inside.shape[1])[None, :, None], 0).max((0, 1))
    front = front * spacing_mm[1]
    wide: Bools = np.asarray(inside.any(1).sum(0) * spacing_mm[0] >= LEAST_WIDTH_MM)
    z_mm = np.arange(inside.shape[2]) * spacing_mm[2]
    nose = np.zeros(len(ridge))
    for index in np.flatnonzero(wide):
        above = z_mm - z_mm[index]
        if ridge[(above <= 0) & (above >= -_BELOW_MM)].max() > MOST_RIDGE_MM:
            continue
        forehead = wide & (above >= _FOREHEAD_MM[0]) & (above <= _FOREHEAD_MM[1])
        behind = wide & (above >= sum(_FOREHEAD_MM) / 2)
        if not behind.any():
            continue
        if front[index] >= front[behind].max() - MOST_BEHIND_MM:
            nose[index] = ridge[index] - float(np.median(ridge[forehead]))
    return nose


def _ridge(inside: Bools, spacing_mm: tuple[float, float, float]) -> Floats:
    """Height in mm of the front surface over both sides, at its best place of each slice."""
    width = inside.shape[0]
    y = np.arange(inside.shape[1], dtype=np.float32)[None, :, None]
    front = np.where(inside, y * np.float32(spacing_mm[1]), np.float32(-1)).max(1)
    taken: Bools = np.asarray(inside.any(axis=1))
    # sorted to the end, and left out of every mean
    front = np.where(taken, front, np.nan).astype(np.float64)
    x_mm = np.arange(width) * spacing_mm[0]
    first, last = taken.argmax(0), width - 1 - taken[::-1].argmax(0)
    middle = (x_mm[first] + x_mm[last]) / 2
    heights = np.zeros(inside.shape[2])
    whole = taken.any(0)
    for place in range(width):
        off = x_mm - x_mm[place]
        near = whole & (np.abs(x_mm[place] - middle) <= _OFF_MIDLINE_MM)
        sides = (off >= -_CHEEK_MM[1]) & (off <= -_CHEEK_MM[0])
        others = (off >= _CHEEK_MM[0]) & (off <= _CHEEK_MM[1])
        if not near.any() or not sides.any() or not others.any():
            continue
        left, right = _mean(front[sides][:, near]), _mean(front[others][:, near])
        top = _median(front[np.abs(off) <= _TIP_MM][:, near])
        # a turned head tilts the surface: the mean of both sides, but above each of them
        over = np.where(top > np.maximum(left, right), top - (left + right) / 2, 0.0)
        heights[near] = np.maximum(heights[near], over)
    return heights


def _mean(rows: Floats) -> Floats:
    """Mean over the rows that are numbers; NaN, which beats nothing, without one."""
    count = np.isfinite(rows).sum(0)
    total = np.nansum(rows, axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _median(rows: Floats) -> Floats:
    """Median over the rows that are numbers; NaN without one."""
    ordered = np.sort(rows, axis=0)
    count = np.isfinite(rows).sum(0)
    columns = np.arange(rows.shape[1])
    low = ordered[np.maximum(count - 1, 0) // 2, columns]
    high = ordered[np.minimum(count // 2, len(rows) - 1), columns]
    return np.where(count > 0, (low + high) / 2, np.nan)
