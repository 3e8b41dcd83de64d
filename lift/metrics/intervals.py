"""Bootstrap intervals of a mean over patients.

The patient is the unit: patients are drawn with replacement, as often as there are, and the
interval holds the middle of the means so obtained (percentile bootstrap, Efron 1979). Few
patients give an interval that is too narrow rather than too wide: below about ten, read it as
an indication.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lift.metrics.synthrad import Floats

Better = Literal["higher", "lower", "nearer_one"]


@dataclass(frozen=True)
class Interval:
    """A mean over `n` patients; `low` and `high` are None for a single patient."""

    value: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class PairedDifference:
    """Mean of the patients' own differences, and the number of patients who came out better."""

    interval: Interval
    wins: int


def bootstrap_mean(
    values: Sequence[float], *, seed: int, samples: int = 2000, confidence: float = 0.95
) -> Interval:
    """The mean of one value per patient with its bootstrap interval.

    The same values in any order and the same seed give the same interval, which lies between
    the smallest and the largest value.

    Raises:
        ValueError: no value, a value that is not finite, or `confidence` outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"the confidence lies between 0 and 1, not {confidence}")
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    _check_finite(ordered)
    mean = float(ordered.mean())
    if len(ordered) < 2:
        return Interval(value=mean, low=None, high=None, n=1)
    drawn = np.random.default_rng(seed).integers(0, len(ordered), size=(samples, len(ordered)))
    tail = (1 - confidence) / 2
    low, high = np.quantile(ordered[drawn].mean(axis=1), [tail, 1 - tail])
    return Interval(value=mean, low=float(low), high=float(high), n=len(ordered))


def paired_difference(
    a: Sequence[float],
    b: Sequence[float],
    *,
    seed: int,
    samples: int = 2000,
    confidence: float = 0.95,
    better: Better = "higher",
) -> PairedDifference:
    """The mean of `a[i] - b[i]` over patients with its interval, and in how many `a` is better.

    Better is higher, lower, or (for a ratio whose ideal is 1) nearer to 1 on a log scale, where
    2 is as far as 1/2. A tie is not a win.

    Raises:
        ValueError: the lengths differ, or as in :func:`bootstrap_mean`.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"pairs need equally many values: {first.shape} and {second.shape}")
    _check_finite(first)
    _check_finite(second)
    interval = bootstrap_mean(
        (first - second).tolist(), seed=seed, samples=samples, confidence=confidence
    )
    wins = _merit(first, better) > _merit(second, better)
    return PairedDifference(interval=interval, wins=int(wins.sum()))


def _merit(values: Floats, better: Better) -> Floats:
    if better == "higher":
        return values
    if better == "lower":
        return -values
    with np.errstate(divide="ignore"):  # a ratio of 0 is infinitely far from 1
        return -np.abs(np.log(values))


def _check_finite(values: Floats) -> None:
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError("an interval needs one finite value per patient, and a patient")
