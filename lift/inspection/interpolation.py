"""Spaces of interpolated columns: how well do slices fit an interpolation between fewer ones?

A column interpolated from slices that lie `ratio` stored slices apart is a sum of shifted copies
of one kernel: it lies in a space of few dimensions, known in advance for each kernel, ratio and
phase. What is left of the columns outside that space is 0 for the right one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Kernel = Literal["nearest", "linear", "cubic spline", "cubic convolution"]

LOWEST_RATIO: Final = 1.25
"""Below it the space has nearly as many dimensions as there are slices: nothing is left over."""

_RATIO_STEP: Final = 0.02
# knots at the window's ends then lie within a quarter of a stored slice of a tried place
_PHASE_STEP: Final = 0.25
_FEWEST_LEFT: Final = 4
_SHARE_LEFT: Final = 0.125
# the tried places are not exactly the right ones: more than this is not to be asked for
_CLEAR: Final = 36.0
# fits from here on are looked at slice by slice
_LOOKED_AT: Final = 1.35
# of the largest step between slices: what a repeated slice may differ by
_EQUAL: Final = 1e-9
# what rounding leaves of the columns' power
_FLOOR: Final = 1e-12


@dataclass(frozen=True)
class Fit:
    """One interpolation.

    Attributes:
        kernel: which one.
        ratio: acquired over stored spacing.
        contrast: what other phases leave over what this one leaves, at least 1; of columns that
            were never interpolated about 1.
    """

    kernel: Kernel
    ratio: float
    contrast: float


@dataclass(frozen=True)
class _Spaces:
    """The spaces of one kernel and ratio, a row per phase.

    Attributes:
        phases: place of a knot from the window's middle, stored slices.
        bases: orthonormal columns, filled up with zeros, (phase, slice, dimension).
        dimensions: of each space.
    """

    phases: Floats
    bases: Floats
    dimensions: NDArray[np.int64]


def best_fit(columns: Floats, *, least_contrast: float) -> Fit | None:
    """The interpolation with the widest spacing that explains the columns.

    Slices interpolated every 4 are interpolated every 2 as well: of all fits with a contrast
    of at least the root of the best one (6 is always enough), the widest counts.

    Args:
        columns: (slice, column), at least 16 slices.
        least_contrast: what counts as a fit.

    Returns:
        The fit, its contrast perhaps below `least_contrast`; None when no column varies.
    """
    power = _normalised_power(columns)
    if power is None:
        return None
    repeated = _repeated(columns)
    if repeated is not None:
        return Fit("nearest", repeated, 1 / _FLOOR)
    n = len(power)
    root = np.linalg.cholesky(power + _FLOOR * np.trace(power) / n * np.eye(n))
    total = float(np.square(root).sum())
    found: list[tuple[Fit, float]] = []
    for kernel in _KERNELS:
        for ratio in _ratios(n):
            spaces = _spaces(kernel, n, ratio)
            left = (n - spaces.dimensions).astype(np.float64)
            usable = left >= max(_FEWEST_LEFT, _SHARE_LEFT * n)
            if usable.sum() < 3:
                continue
            held = np.square(spaces.bases[usable].transpose(0, 2, 1) @ root).sum((1, 2))
            rest = np.maximum(total - held, _FLOOR * total) / left[usable]
            contrast = float(np.median(rest) / rest.min())
            if contrast >= _LOOKED_AT:
                contrast = min(contrast, _even_contrast(spaces.bases[usable], rest.argmin(), root))
            phase = float(spaces.phases[usable][rest.argmin()])
            found.append((Fit(kernel, ratio, contrast), phase))
    if not found:
        return None
    best = max(found, key=lambda one: one[0].contrast)
    wanted = max(least_contrast, min(best[0].contrast, _CLEAR) ** 0.5)
    fits = [one for one in found if one[0].contrast >= wanted]
    if not fits:
        return best[0]
    widest = max(one[0].ratio for one in fits)
    near = [one for one in fits if one[0].ratio >= widest * 0.85]
    fit, phase = max(near, key=lambda one: one[0].contrast)
    return Fit(fit.kernel, _refined(fit, phase, root), fit.contrast)


def _repeated(columns: Floats) -> float | None:
    """Mean length of runs of equal slices, when all inner runs are of one length or the next.

    The table's ratios are too coarse for runs of two lengths: a slice more or less in a run
    leaves much.
    """
    steps = np.square(np.diff(columns, axis=0)).mean(1)
    changes = np.flatnonzero(steps > _EQUAL * steps.max())
    runs = np.diff(changes)
    if len(runs) < 3 or runs.max() - runs.min() > 1 or runs.mean() < LOWEST_RATIO:
        return None
    return float(runs.mean())


def _even_contrast(bases: Floats, best: np.intp, root: Floats) -> float:
    """The contrast in the worse half of the slices, none counting for more than the median one.

    A lost slice, or an edge as wide as the volume, leaves much wherever no knot lies near it: by
    itself it would look like a phase.
    """
    rest = np.square(root - bases @ (bases.transpose(0, 2, 1) @ root)).sum(2)
    others = rest.mean(0)
    cap = float(np.median(others))
    floor = _FLOOR * float(np.square(root).sum())
    halves = (slice(None, len(root) // 2), slice(len(root) // 2, None))
    return min(
        float(
            np.minimum(others[half], cap).sum()
            / max(np.minimum(rest[best, half], cap).sum(), floor)
        )
        for half in halves
    )


def _normalised_power(columns: Floats) -> Floats | None:
    """Mean product of each two slices; every column counts by its shape, not by its contrast."""
    centred = columns - columns.mean(0)
    steps = np.square(np.diff(centred, axis=0)).sum(0)
    varies = steps > _FLOOR * max(float(np.square(columns).max()), 1e-300)
    if not varies.any():
        return None
    shapes = centred[:, varies] / np.sqrt(steps[varies])
    return np.asarray(shapes @ shapes.T / varies.sum())


def _refined(fit: Fit, phase: float, root: Floats) -> float:
    """The ratio that leaves least, within one step of the table's."""
    n = len(root)
    tried = []
    for ratio in fit.ratio * np.linspace(1 - _RATIO_STEP, 1 + _RATIO_STEP, 21):
        for shift in np.linspace(-_PHASE_STEP, _PHASE_STEP, 5):
            base = _basis(fit.kernel, n, float(ratio), phase + float(shift))
            left = n - base.shape[1]
            if left > 0:
                held = float(np.square(base.T @ root).sum())
                tried.append(((float(np.square(root).sum()) - held) / left, float(ratio)))
    return min(tried)[1] if tried else fit.ratio


def _nearest(t: Floats) -> Floats:
    return ((t >= -0.5) & (t < 0.5)).astype(np.float64)


def _linear(t: Floats) -> Floats:
    return np.asarray(np.clip(1 - np.abs(t), 0, None))


def _spline(t: Floats) -> Floats:
    """The cubic B-spline: the span of scipy's order 3 and ITK's BSpline interpolation."""
    a = np.abs(t)
    return np.where(a < 1, 2 / 3 - a**2 + a**3 / 2, np.clip(2 - a, 0, None) ** 3 / 6)


def _convolution(t: Floats) -> Floats:
    """Keys 1981, IEEE TASSP 29:1153, with a = -1/2."""
    a = np.abs(t)
    outer = -0.5 * (a**3 - 5 * a**2 + 8 * a - 4)
    return np.where(a < 1, 1.5 * a**3 - 2.5 * a**2 + 1, np.where(a < 2, outer, 0.0))


_KERNELS: Final[dict[Kernel, Callable[[Floats], Floats]]] = {
    "nearest": _nearest,
    "linear": _linear,
    "cubic spline": _spline,
    "cubic convolution": _convolution,
}


def _ratios(n: int) -> list[float]:
    """Ratios to try with n slices: up to 4 knots in the window."""
    highest = min(12.0, n / 4)
    count = round(np.log(highest / LOWEST_RATIO) / _RATIO_STEP) + 1
    return [float(r) for r in np.geomspace(LOWEST_RATIO, highest, count)]


# a whole window's table of one kernel has about 115 ratios
@lru_cache(maxsize=1200)
def _spaces(kernel: Kernel, n: int, ratio: float) -> _Spaces:
    count = int(np.ceil(ratio / _PHASE_STEP))
    phases = ratio * np.arange(count) / count
    each = [_basis(kernel, n, ratio, float(phase)) for phase in phases]
    bases = np.zeros((count, n, max(base.shape[1] for base in each)))
    for index, base in enumerate(each):
        bases[index, :, : base.shape[1]] = base
    return _Spaces(phases, bases, np.array([base.shape[1] for base in each]))


def _basis(kernel: Kernel, n: int, ratio: float, phase: float) -> Floats:
    """Orthonormal columns that span what the kernel interpolates, (slice, dimension)."""
    places = (np.arange(n) - (n - 1) / 2 - phase) / ratio
    knots = np.arange(np.floor(places[0]) - 2, np.ceil(places[-1]) + 3)
    copies = _KERNELS[kernel](np.asarray(places[:, None] - knots, dtype=np.float64))
    # a knot that no slice feels would add a direction out of nothing
    felt = copies[:, np.abs(copies).max(0) > 1e-6]
    return np.asarray(np.linalg.qr(felt)[0])
