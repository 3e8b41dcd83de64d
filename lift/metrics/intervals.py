"""Bootstrap intervals of a mean over patients.

The patient is a person, and the unit: a person with several examinations has one value, the mean
over them, and counts once. Patients are drawn with replacement, as often as there are, and the
interval holds the middle of the means so obtained (percentile bootstrap, Efron 1979). Few
patients give an interval that is too narrow rather than too wide: below about ten, read it as
an indication.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
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


def person_means(values: Sequence[float], persons: Sequence[Hashable]) -> list[float]:
    """One value for each person: the mean over the person's own, in the order of their first one.

    A person with one value keeps it bit for bit. The order of a person's values does not matter.

    Args:
        values: of examinations.
        persons: whose each is.

    Raises:
        ValueError: the lengths differ.
    """
    own: dict[Hashable, list[float]] = {}
    for value, person in zip(values, persons, strict=True):
        own.setdefault(person, []).append(float(value))
    return [math.fsum(found) / len(found) for found in own.values()]


def bootstrap_mean(
    values: Sequence[float],
    *,
    seed: int,
    persons: Sequence[Hashable] | None = None,
    samples: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """The mean over persons with its bootstrap interval, in which persons are drawn.

    The same values in any order and the same seed give the same interval, which lies between
    the smallest and the largest value.

    Args:
        values: one for each examination.
        seed: of the draws.
        persons: whose each value is; None: each is a person of its own.
        samples: bootstrap samples.
        confidence: share of the means inside the interval.

    Raises:
        ValueError: no value, a value that is not finite, another number of persons than values, or
            `confidence` outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"the confidence lies between 0 and 1, not {confidence}")
    _check_finite(np.asarray(values, dtype=np.float64))
    ordered = np.sort(np.asarray(_of_persons(values, persons), dtype=np.float64))
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
    persons: Sequence[Hashable] | None = None,
    samples: int = 2000,
    confidence: float = 0.95,
    better: Better = "higher",
) -> PairedDifference:
    """The mean of `a[i] - b[i]` over patients with its interval, and in how many `a` is better.

    Pairs of one person (`persons`, as in :func:`bootstrap_mean`) are one patient: both sides are
    means over that person's pairs. Better is higher, lower, or (for a ratio whose ideal is 1)
    nearer to 1 on a log scale, where 2 is as far as 1/2. A tie is not a win.

    Raises:
        ValueError: the lengths differ, or as in :func:`bootstrap_mean`.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"pairs need equally many values: {first.shape} and {second.shape}")
    _check_finite(first)
    _check_finite(second)
    first, second = (
        np.asarray(_of_persons(side.tolist(), persons), dtype=np.float64)
        for side in (first, second)
    )
    interval = bootstrap_mean(
        (first - second).tolist(), seed=seed, samples=samples, confidence=confidence
    )
    wins = _merit(first, better) > _merit(second, better)
    return PairedDifference(interval=interval, wins=int(wins.sum()))


def _of_persons(values: Sequence[float], persons: Sequence[Hashable] | None) -> Sequence[float]:
    return values if persons is None else person_means(values, persons)


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
