"""Normalisation of a volume's grey scale to [0, 1] by a rule of the plan, and its inverse.

Sources: Shinohara et al. 2014, NeuroImage: Clinical 6 (WhiteStripe); Reinhold et al. 2019,
arXiv:1812.04652 (peaks of a smoothed histogram); Nyul & Udupa 1999, Nyul, Udupa & Zhang 2000, IEEE
TMI 19(2) (standard histogram).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.signal import find_peaks

from lift.config.plan import AnyRule, NyulRule, PercentileRule, WhiteMatterRule, WindowRule
from lift.errors import DataError, VolumeError

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

_FEWEST_INSIDE: Final = 100
"""Voxels that a rule needs inside the mask."""
_WHERE: Final = "preprocessing.normalisation"
# the histogram of white matter, all in units of the median inside the mask
_AIR: Final = 0.25
"""Darker is air, bone or a hole that was filled: no tissue has its peak there."""
_BRIGHTEST: Final = 6.0
_BIN: Final = 0.01
_BANDWIDTH_BINS: Final = 5
_TALL: Final = 1 / 3
"""Of the tallest peak's height: lower ones (fat, vessels, enhancement) are not looked at."""
_PROMINENT: Final = 0.05
"""Of that height too: what a peak must rise above the valley beside it, or it is noise."""
_TIE: Final = 1e-6
"""Of the outer percentiles' distance: nearer ones count as one."""


@dataclass(frozen=True)
class Scale:
    """A continuous, increasing, piecewise linear map of a file's values onto [0, 1].

    Attributes:
        values: where it bends, in the file's units, increasing; what is beyond the ends is
            clipped to them.
        levels: what each becomes; increasing, the first 0 and the last 1.
    """

    values: tuple[float, ...]
    levels: tuple[float, ...] = (0.0, 1.0)

    def apply(self, voxels: NDArray[Any]) -> Floats:
        """Voxels of any shape, clipped and brought to [0, 1]."""
        # float64 until the end: an offset far larger than the scale must not eat the contrast
        clipped = np.clip(voxels.astype(np.float64), self.values[0], self.values[-1])
        if len(self.values) == 2:
            low, high = self.values
            return ((clipped - low) / (high - low)).astype(np.float32)
        levels = np.interp(clipped, self.values, self.levels)
        return np.clip(levels, 0.0, 1.0).astype(np.float32)

    def invert(self, normalised: NDArray[Any]) -> Doubles:
        """Normalised voxels in the file's units again, up to what was clipped."""
        return np.interp(np.asarray(normalised, np.float64), self.levels, self.values)


def looks_inside_the_mask(rule: AnyRule) -> bool:
    """Whether a rule needs a mask."""
    if isinstance(rule, PercentileRule):
        return rule.inside == "mask"
    return not isinstance(rule, WindowRule)


def scale_of(
    voxels: NDArray[Any],
    rule: AnyRule,
    name: str = "volume",
    *,
    inside: NDArray[np.bool_] | None = None,
) -> Scale:
    """The scale that a rule gives one volume.

    Args:
        voxels: the volume, any shape, in its own units.
        rule: the plan's.
        name: how messages call the volume.
        inside: the mask, of the same shape; for a rule that looks inside it.

    Raises:
        VolumeError: (nearly) all voxels that count have one value, they are too few, or they
            have no peak.
        ValueError: the rule looks inside the mask, and there is none.
    """
    if isinstance(rule, WindowRule):
        return Scale((rule.low, rule.high))
    counted = voxels
    if looks_inside_the_mask(rule):
        if inside is None:
            raise ValueError(f"the rule `{rule.rule}` looks inside the mask, and none was given")
        counted = voxels[inside]
        if counted.size < _FEWEST_INSIDE:
            raise _refusal(
                name,
                f"{counted.size} of its voxels lie inside the mask; the rule `{rule.rule}` needs "
                f"{_FEWEST_INSIDE}",
            )
    # float64: the same percentiles however the file stores its voxels
    counted = counted.astype(np.float64)
    if isinstance(rule, WhiteMatterRule):
        return Scale((0.0, _white_matter(counted, rule, name) / rule.level))
    if isinstance(rule, NyulRule):
        return _standard_scale(counted, rule, name)
    low, high = (float(q) for q in np.percentile(counted, (rule.low, rule.high)))
    _check_varies(low, high, name)
    return Scale((low, high))


def learn_landmarks(
    found: Sequence[Doubles], *, low: float = 0.0, high: float = 0.8
) -> tuple[float, ...]:
    """The landmarks of a standard scale (Nyul & Udupa), for a plan; of public volumes alone.

    Each volume's percentiles are brought linearly to [low, high], the outer ones to its ends, and
    the mean over volumes is taken.

    Args:
        found: one array a volume: its values at the rule's percentiles, inside the mask.
        low: level of the first percentile.
        high: level of the last one; room is left above it for what few voxels reach.

    Returns:
        One level for each percentile, six decimals.

    Raises:
        DataError: there is no volume, one of them does not vary, or two landmarks coincide.
    """
    shares = []
    for index, values in enumerate(found):
        _check_varies(float(values[0]), float(values[-1]), f"number {index + 1}")
        shares.append((values - values[0]) / (values[-1] - values[0]))
    mean = np.mean(shares, axis=0) if shares else np.zeros(2)
    landmarks = tuple(round(float(low + (high - low) * share), 6) for share in mean)
    if any(above <= below for below, above in itertools.pairwise(landmarks)):
        raise DataError(
            "cannot learn landmarks",
            where="the public volumes",
            seen=f"{len(found)} volumes; landmarks {landmarks}, which must increase",
            remedy="Give more volumes, or fewer percentiles.",
        )
    return landmarks


def _white_matter(counted: Doubles, rule: WhiteMatterRule, name: str) -> float:
    """The value of white matter's peak, finer than a bin: a parabola through three of them."""
    low, high = (float(q) for q in np.percentile(counted, (1, 99)))
    _check_varies(low, high, name)
    tissue = counted[counted > 0]
    unit = float(np.median(tissue)) if 2 * tissue.size > counted.size else 0.0
    if unit <= 0:
        raise _refusal(
            name,
            f"{tissue.size} of the {counted.size} voxels inside the mask are above 0; the rule "
            "`white_matter` needs most of them to be",
        )
    edges = np.arange(round(_AIR / _BIN), round(_BRIGHTEST / _BIN) + 1) * _BIN
    counts, _ = np.histogram(tissue / unit, edges)
    density = gaussian_filter1d(counts.astype(np.float64), _BANDWIDTH_BINS)
    tallest = float(density.max())
    peaks, _ = find_peaks(density, height=_TALL * tallest, prominence=_PROMINENT * tallest)
    if not len(peaks):
        raise _refusal(
            name,
            "the histogram inside the mask has no peak: the rule `white_matter` cannot find tissue",
        )
    peak = int(peaks[-1] if rule.peak == "highest" else peaks[density[peaks].argmax()])
    left, middle, right = density[peak - 1 : peak + 2]
    bend = left - 2 * middle + right
    shift = float((left - right) / (2 * bend)) if bend < 0 else 0.0
    return unit * (float(edges[peak]) + (0.5 + shift) * _BIN)


def _standard_scale(counted: Doubles, rule: NyulRule, name: str) -> Scale:
    found = [float(q) for q in np.percentile(counted, rule.percentiles)]
    _check_varies(found[0], found[-1], name)
    values, levels = [found[0]], [rule.landmarks[0]]
    for value, level in zip(found[1:], rule.landmarks[1:], strict=True):
        # of landmarks that fall on one value the first counts: an increasing map has one level
        if value - values[-1] > _TIE * (found[-1] - found[0]):
            values.append(value)
            levels.append(level)
    # the outer segments go on to 0 and 1
    if levels[0] > 0:
        slope = (values[1] - values[0]) / (levels[1] - levels[0])
        values.insert(0, values[0] - slope * levels[0])
        levels.insert(0, 0.0)
    if levels[-1] < 1:
        slope = (values[-1] - values[-2]) / (levels[-1] - levels[-2])
        values.append(values[-1] + slope * (1 - levels[-1]))
        levels.append(1.0)
    return Scale(tuple(values), tuple(levels))


def _check_varies(low: float, high: float, name: str) -> None:
    if low < high:
        return
    raise _refusal(name, f"its percentiles are both {low:g}: nearly all of it is one value")


def _refusal(name: str, seen: str) -> VolumeError:
    return VolumeError(
        f"cannot normalise volume '{name}'",
        where=_WHERE,
        seen=seen,
        remedy="Check the volume, or take the patient out.",
    )
