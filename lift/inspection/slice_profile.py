"""The acquired slice spacing of a volume, as opposed to the spacing of its stored grid.

A FLAIR acquired in 5 mm slices and resampled to 1 mm is not a 1 mm FLAIR. A mixer learns a slice
profile and can harm on another one, so the spacing in the file's header is not enough.

Three traces are looked for, in this order: slices that are an interpolation (nearest, linear,
cubic) between fewer slices; then, for other interpolations (Fourier, oblique, through a
deformation), detail that ends earlier along the axis than across it.

Slices that lost their signal are made as bright as their neighbours first, and single slices whose
brightness is wrong are left out of the search. Of 72 phantom series with slice gain errors and lost
slices (seeds it was not made with) none was called resampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from lift.inspection.body import LEAST_KEPT, kept_signal
from lift.inspection.finding import Finding, finding
from lift.inspection.interpolation import Fit, best_fit

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Confidence = Literal["high", "low", "none"]
Basis = Literal["interpolation", "spectrum", "as stored", "too few voxels"]

LEAST_CONTRAST: Final = 2.5
"""From here on slices count as interpolated. Real volumes on their own grid have 1.1 to 1.4, one
resampled *down* from 1.2 to 2 mm has 1.7; interpolated ones have 10 and more, with strong noise
added afterwards 1.3 to 2.5."""

LEAST_CONTRAST_SHORT: Final = 4.0
"""The same where only 24 slices or fewer can be looked at: there lost slices reach 2.8 by chance,
and a real series of 24 slices has 2.1."""

LOST_AT_END: Final = 0.16
"""Share of the power left at the highest frequency, against the other axes, that counts as an
early end: a box as thick as the slices are apart leaves 0.4 there, three real series of 3.3 mm
resampled to 2 mm left 0.06 to 0.13, isotropic ones 0.3 and more."""

DOUBTFUL_CONTRAST: Final = 1.35
"""From here on `as stored` is said with low confidence: noise may hide an interpolation."""

WINDOWS: Final = (48, 32, 24, 16)
"""Slices looked at, the first that enough columns lie in; a ratio needs 4 acquired slices."""

FEWEST_COLUMNS: Final = 60
"""Columns wholly inside the mask; with fewer, edges that happen to lie in one slice decide."""

_SHORT: Final = 24
_MOST_COLUMNS: Final = 20_000
_SAME: Final = 1.1


@dataclass(frozen=True)
class SliceProfile:
    """What the voxels say about the resolution along one axis.

    Attributes:
        stored_spacing_mm: of the grid.
        acquired_spacing_mm: of the slices behind it; the stored one where nothing else was
            found; None where too few voxels could be looked at.
        confidence: high: within about 3%; low: within about a third, or as stored unless noise
            hides an interpolation; none: not judged.
        basis: what it rests on.
        kernel: the interpolation found; empty without one.
        periodicity: how much better the best interpolation fits than the same one shifted; about
            1 without any.
        neighbour_dz_corr: correlation of the steps to the slices before and after; about -0.5 in
            noise, towards 1 in finely interpolated slices; None in constant columns.
    """

    stored_spacing_mm: float
    acquired_spacing_mm: float | None
    confidence: Confidence
    basis: Basis
    kernel: str
    periodicity: float
    neighbour_dz_corr: float | None

    @property
    def is_resampled(self) -> bool:
        """The slices behind the grid lie at least 1.1 times as far apart as the grid's."""
        acquired = self.acquired_spacing_mm
        return acquired is not None and acquired > _SAME * self.stored_spacing_mm

    def sentence(self) -> str:
        """The finding in words, for an operator."""
        stored = f"stored every {self.stored_spacing_mm:.2g} mm"
        if self.acquired_spacing_mm is None:
            return f"{stored}; too few voxels to say how they were acquired"
        if not self.is_resampled:
            return f"{stored}, as acquired"
        grade = "" if self.confidence == "high" else "roughly "
        means = f"{self.kernel} interpolation" if self.kernel else "detail ends early"
        return f"{stored}, acquired every {grade}{self.acquired_spacing_mm:.2g} mm ({means})"


def estimate_profile(
    voxels: NDArray[Any],
    mask: NDArray[Any] | None,
    spacing_mm: tuple[float, float, float],
    *,
    axis: int = 2,
) -> SliceProfile:
    """The acquired slice spacing along one axis.

    Only columns wholly inside the mask are read, over at most 48 slices in the middle of it:
    a background cut out after the resampling does not disturb. Ratios from 1.25 to 12 are
    found; a volume resampled to a coarser grid counts as stored.

    Args:
        voxels: (x, y, z), any number type, finite.
        mask: (x, y, z), non-zero inside, or None for all voxels.
        spacing_mm: stored spacing along x, y and z.
        axis: which of the three.

    Raises:
        ValueError: shapes differ, are not 3D, or a spacing is not positive.
    """
    if voxels.ndim != 3 or (mask is not None and mask.shape != voxels.shape):
        raise ValueError("voxels and mask must be 3D and of one shape")
    if not all(np.isfinite(s) and s > 0 for s in spacing_mm):
        raise ValueError(f"spacings must be positive, not {spacing_mm}")
    stored = float(spacing_mm[axis])
    inside = np.ones(voxels.shape, dtype=np.bool_) if mask is None else mask != 0
    columns = _columns(voxels, inside, axis)
    least = LEAST_CONTRAST
    if columns is not None and len(columns) <= _SHORT:
        least = LEAST_CONTRAST_SHORT
    if columns is not None:
        columns = _restored(columns, float(voxels.min()))
    fit = None if columns is None else best_fit(columns, least_contrast=least)
    if columns is None or fit is None:
        return SliceProfile(stored, None, "none", "too few voxels", "", 1.0, None)
    correlation = _neighbour_correlation(columns)
    if fit.contrast >= least:
        return _interpolated(stored, fit, correlation)
    rough = _spectral_spacing(voxels, inside, spacing_mm, axis)
    if rough is not None and rough > _SAME * stored:
        return SliceProfile(stored, rough, "low", "spectrum", "", fit.contrast, correlation)
    sure: Confidence = "high" if fit.contrast < DOUBTFUL_CONTRAST else "low"
    return SliceProfile(stored, stored, sure, "as stored", "", fit.contrast, correlation)


def estimate_profiles(
    voxels: NDArray[Any], mask: NDArray[Any] | None, spacing_mm: tuple[float, float, float]
) -> tuple[SliceProfile, SliceProfile, SliceProfile]:
    """:func:`estimate_profile` along x, y and z."""
    x, y, z = (estimate_profile(voxels, mask, spacing_mm, axis=axis) for axis in range(3))
    return x, y, z


def check_profile(profile: SliceProfile) -> Finding:
    """A warning when the slices behind the grid lie farther apart than the grid's."""
    return finding(
        "slice profile",
        "warn" if profile.is_resampled else "use",
        profile.sentence(),
        "slices stored as they were acquired",
        "Use the original series, or declare its acquired spacing: a mixer learned on another "
        "slice profile can harm.",
    )


def through_plane_axis(profiles: Sequence[SliceProfile]) -> int | None:
    """The axis with the coarsest acquired resolution; None when it is not 1.1 times the next."""
    sizes = [p.acquired_spacing_mm or p.stored_spacing_mm for p in profiles]
    order = np.argsort(sizes)
    return int(order[-1]) if sizes[order[-1]] > _SAME * sizes[order[-2]] else None


def _interpolated(stored: float, fit: Fit, correlation: float | None) -> SliceProfile:
    acquired = fit.ratio * stored
    return SliceProfile(
        stored, acquired, "high", "interpolation", fit.kernel, fit.contrast, correlation
    )


def _columns(voxels: NDArray[Any], inside: Bools, axis: int) -> Floats | None:
    """Columns that lie inside over one window of slices, (slice, column); None with too few."""
    stack, within = np.moveaxis(voxels, axis, 0), np.moveaxis(inside, axis, 0)
    depth = len(stack)
    counted = np.int16 if depth <= np.iinfo(np.int16).max else np.int32
    counts = np.concatenate(
        [np.zeros((1, *within.shape[1:]), counted), np.cumsum(within, axis=0, dtype=counted)]
    )
    for n in WINDOWS:
        starts = range(max(0, depth - n + 1))
        whole = [int(np.count_nonzero(counts[s + n] - counts[s] == n)) for s in starts]
        if not whole or max(whole) < FEWEST_COLUMNS:
            continue
        # the middle one of equals: without a mask every window is as full
        fullest = np.flatnonzero(np.array(whole) == max(whole))
        start = int(fullest[len(fullest) // 2])
        chosen = np.flatnonzero((counts[start + n] - counts[start] == n).ravel())
        chosen = chosen[:: -(-len(chosen) // _MOST_COLUMNS)]
        return np.asarray(stack[start : start + n].reshape(n, -1)[:, chosen], dtype=np.float64)
    return None


def _restored(columns: Floats, air: float) -> Floats:
    """The columns with slices that lost their signal made as bright as those beside them.

    A lost slice is the largest step of all: a few of them, evenly spaced by chance, would decide
    where the knots of an interpolation lie.
    """
    kept = kept_signal(np.maximum(columns.mean(1) - air, 1e-12))
    gain = np.where(kept < LEAST_KEPT, kept, 1.0)[:, None]
    return np.asarray(air + (columns - air) / gain, dtype=np.float64)


def _neighbour_correlation(columns: Floats) -> float | None:
    steps = np.diff(columns, axis=0)
    before, after = steps[:-1].ravel(), steps[1:].ravel()
    norm = float(np.linalg.norm(before) * np.linalg.norm(after))
    return float(before @ after) / norm if norm > 0 else None


# a box of width a keeps a quarter of the power where a times the frequency is 0.603
_LOST: Final = 0.25
_BOX_TIMES_FREQUENCY: Final = 0.603
# cycles per mm below which every acquisition keeps its detail
_LOW_BAND: Final = 0.06


def _spectral_spacing(
    voxels: NDArray[Any], inside: Bools, spacing_mm: tuple[float, float, float], axis: int
) -> float | None:
    """Where detail along the axis ends, against that across it; None where it does not."""
    spectra = []
    for one in range(3):
        columns = _columns(voxels, inside, one)
        spectra.append(None if columns is None else _spectrum(columns, spacing_mm[one]))
    own, others = spectra[axis], [s for i, s in enumerate(spectra) if i != axis and s is not None]
    if own is None or not others:
        return None
    frequency, power = own
    reach = min(s[0][-1] for s in others)
    usable = frequency <= reach
    expected = np.mean([np.interp(frequency, f, p) for f, p in others], axis=0)
    ratio = (power - expected)[usable]
    frequency = frequency[usable]
    low = frequency <= max(_LOW_BAND, frequency[min(2, len(frequency) - 1)])
    ratio = ratio - ratio[low].mean()
    if ratio[-3:].mean() > np.log(LOST_AT_END):
        return None
    below = ratio < np.log(_LOST)
    # from where on it stays below
    ends = np.flatnonzero(~below)
    first = int(ends[-1]) + 1 if len(ends) else 0
    if first >= len(ratio) or first == 0:
        return None
    step = (np.log(_LOST) - ratio[first - 1]) / (ratio[first] - ratio[first - 1])
    cut = frequency[first - 1] + step * (frequency[first] - frequency[first - 1])
    return float(_BOX_TIMES_FREQUENCY / cut)


def _spectrum(columns: Floats, spacing_mm: float) -> tuple[Floats, Floats]:
    """Frequencies in cycles/mm without the lowest two, and the log of the mean power density."""
    n = len(columns)
    window = np.hanning(n + 2)[1:-1, None]
    power = np.square(np.abs(np.fft.rfft((columns - columns.mean(0)) * window, axis=0))).mean(1)
    density = power * spacing_mm / float(np.square(window).sum())
    frequency = np.asarray(np.fft.rfftfreq(n, spacing_mm)[2:], dtype=np.float64)
    return frequency, np.asarray(np.log(density[2:] + 1e-300), dtype=np.float64)
