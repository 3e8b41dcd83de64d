"""A classifier two-sample test: how well a trained classifier separates two sets.

A logistic regression with a quadratic penalty learns to tell the rows of one set from those of
the other, and its area under the ROC curve (AUC) is taken on rows that it did not see: .5, they
cannot be told apart; 1, each row betrays its set. No generator has been taught by it, and what it
looks for is found anew for every set: it cannot be pleased as one fixed distance can.

What makes the AUC fair:

- It is taken **within** each fold and then averaged: scores of different folds are of different
  classifiers and have no common scale. Its mean for sets of one source is .5.
- Both sets are equally large in each repeat: of the larger one rows are drawn.
- Rows that are each other's nearest, in one set or across the two, are in one fold. A copy, a
  reconstruction or a patient's other side would else teach the classifier the opposite of what
  it is asked: a set and its own copy would have an AUC far below .5. Who is paired is decided
  without regard to the sets, which leaves sets of one source at .5.
- The penalty was chosen once, on sets of one source and on planted differences of phantoms, never
  on generated volumes.

Source: Lopez-Paz and Oquab 2017, arXiv:1610.06545 (the test); Newcombe 2006, Nadeau
and Bengio 2003 (the interval).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import expit

from lift.metrics.synthrad import Floats
from lift.randomness import derive_seed

Indices = npt.NDArray[np.intp]

FEWEST: Final = 20
"""Rows of either set below which there is no figure: four of each in a fold."""

FOLDS: Final = 5
REPEATS: Final = 10

PENALTY: Final = 0.03
"""On the squared weights, for rows of mean square 1; the loss is the sum over the rows."""

FEWER: Final = 1 + FOLDS / (FOLDS - 1)
"""An interval is that of so many times fewer rows. The folds' classifiers share most of what they
learned from: with all rows it would hold the .5 of sets of one source in 90% of cases, not 95%."""

_STEPS: Final = 50
_TOLERANCE: Final = 1e-9
_Z: Final = 1.959963984540054
"""Of a two-sided 95% interval."""


@dataclass(frozen=True)
class Auc:
    """Area under the ROC curve of unseen rows, with its 95% interval; `n` rows of either set."""

    value: float
    low: float
    high: float
    n: int


def classifier_auc(
    one: Floats,
    other: Floats,
    *,
    seed: int,
    least_spread: float = 0.0,
    distances: Floats | None = None,
    repeats: int = REPEATS,
    fewest: int = FEWEST,
) -> Auc | None:
    """How well rows of `one` are separated from rows of `other`; None with fewer than `fewest` of
    either.

    For two sets of one source the mean is .5, whatever their sizes. The interval is Newcombe's,
    which has some width where the sets do not overlap at all, with the variance that Nadeau and
    Bengio give a cross-validated figure: of sets of one source it holds .5 in at least 95%.

    The result depends on the order of the rows only through the random choices: give them in an
    order of their own.

    Args:
        one: (n, d), float64, finite.
        other: (m, d).
        seed: of draws and folds.
        least_spread: added to each column's own standard deviation, by squares, where columns are
            brought to one scale: what differs by much less is no difference.
        distances: between all rows, those of `one` first, (n + m, n + m): rows that are each
            other's nearest are in one fold. None: each row is for itself.
        repeats: divisions into folds that are averaged.
        fewest: rows of either set below which there is no figure; twice the folds at least.
    """
    size = min(len(one), len(other))
    if size < fewest:
        return None
    found = []
    for repeat in range(repeats):
        rng = np.random.default_rng(derive_seed(seed, "division", repeat))
        first = np.sort(rng.permutation(len(one))[:size])
        second = np.sort(rng.permutation(len(other))[:size])
        rows = np.concatenate([first, len(one) + second])
        pairs = _none() if distances is None else mutual_nearest(distances[np.ix_(rows, rows)])
        fold = grouped_folds(np.repeat([0, 1], size), pairs, rng)
        own, others = fold[:size], fold[size:]
        found.append(_mean_within_folds(one[first], other[second], own, others, least_spread))
    value = float(np.mean(found))
    return Auc(value, *auc_interval(value, size / FEWER, size / FEWER), size)


def auc_interval(value: float, positives: float, negatives: float) -> tuple[float, float]:
    """95% interval of an AUC of so many rows; within [0, 1], of some width even at 0 and 1.

    Source: Newcombe 2006, method 5: the values whose own standard error puts them at the edge.
    """
    mean = (positives + negatives) / 2

    def excess(theta: float) -> float:
        inner = 1 + (mean - 1) * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        variance = theta * (1 - theta) * inner / (positives * negatives)
        return (theta - value) ** 2 - _Z**2 * variance

    # at 0 and 1 the value solves it too, and is not meant
    low = 0.0 if value <= 0 else float(brentq(excess, 0.0, min(value, 1 - _TOLERANCE)))
    high = 1.0 if value >= 1 else float(brentq(excess, max(value, _TOLERANCE), 1.0))
    return low, high


def logistic_direction(rows: Floats, labels: Floats, penalty: float) -> Floats:
    """Weights w, (d,), that minimise sum log(1 + exp(-t (x.w + c))) + penalty / 2 |w|^2.

    t is 1 or -1 and c is free. By Newton steps in the space that the rows span, which holds the
    minimum: exact to rounding, whatever d.

    Args:
        rows: (n, d).
        labels: (n,), 0 or 1, both of them present.
        penalty: above 0.
    """
    levels, axes = np.linalg.eigh(rows @ rows.T)
    kept = levels > levels[-1] * 1e-12
    if not kept.any() or levels[-1] <= 0:
        return np.zeros(rows.shape[1])
    roots = np.sqrt(levels[kept])
    # columns of a design matrix; the last one is the constant, without a penalty
    design = np.column_stack([axes[:, kept] * roots, np.ones(len(rows))])
    ridge = np.full(design.shape[1], penalty)
    ridge[-1] = 0.0
    weights = np.zeros(design.shape[1])
    value = _objective(design, labels, ridge, weights)
    for _ in range(_STEPS):
        chance = expit(design @ weights)
        slope = design.T @ (chance - labels) + ridge * weights
        curve = (design * (chance * (1 - chance))[:, None]).T @ design + np.diag(ridge)
        # the constant's own curvature may vanish where all rows are told apart
        curve[-1, -1] += _TOLERANCE
        step = np.linalg.solve(curve, slope)
        share = 1.0
        while share > _TOLERANCE:
            tried = weights - share * step
            reached = _objective(design, labels, ridge, tried)
            if reached <= value:
                break
            share /= 2
        else:
            break
        gained, weights, value = value - reached, tried, reached
        if gained <= _TOLERANCE * max(1.0, abs(value)):
            break
    direction: Floats = rows.T @ (axes[:, kept] @ (weights[:-1] / roots))
    return direction


def mutual_nearest(distances: Floats) -> Indices:
    """Pairs of rows that are each other's nearest, (pairs, 2); each row is in one at most.

    Args:
        distances: (n, n), n >= 2.
    """
    apart = np.where(np.eye(len(distances), dtype=np.bool_), math.inf, distances)
    nearest = apart.argmin(axis=1)
    rows = np.arange(len(nearest))
    mutual = (nearest[nearest] == rows) & (rows < nearest)
    return np.column_stack([rows[mutual], nearest[mutual]]).astype(np.intp)


def grouped_folds(side: Indices, pairs: Indices, rng: np.random.Generator) -> Indices:
    """The fold of each row, (n,): about equally many of either side in each, pairs together.

    Args:
        side: 0 or 1 for each row, (n,).
        pairs: (pairs, 2); each row is in one at most.
        rng: of the order in which rows are dealt.
    """
    single = np.setdiff1d(np.arange(len(side)), pairs)
    dealt = [*rng.permutation(pairs, axis=0), *rng.permutation(single)[:, None]]
    fold = np.empty(len(side), dtype=np.intp)
    held = np.zeros((FOLDS, 2))
    for rows in dealt:
        # the fold that has fewest of what these rows are, and among such ones any
        own = np.bincount(side[rows], minlength=2)
        load = held @ own + rng.uniform(0, 0.5, FOLDS)
        chosen = int(load.argmin())
        held[chosen] += own
        fold[rows] = chosen
    return fold


def within_auc(one: Floats, other: Floats) -> float:
    """Share of pairs in which the score of `one` is the higher; half of each tie.

    Args:
        one: scores, (n,).
        other: scores, (m,).
    """
    return float((np.sign(one[:, None] - other[None, :]) / 2 + 0.5).mean())


def _none() -> Indices:
    return np.empty((0, 2), dtype=np.intp)


def _objective(design: Floats, labels: Floats, ridge: Floats, weights: Floats) -> float:
    scores = design @ weights
    loss = np.logaddexp(0.0, scores) - labels * scores
    return float(loss.sum() + 0.5 * (ridge * weights**2).sum())


def _mean_within_folds(
    one: Floats, other: Floats, first: Indices, second: Indices, least_spread: float
) -> float:
    """The mean over folds of the AUC of the rows left out, by the pairs in each."""
    values, pairs = [], []
    for fold in range(FOLDS):
        out, away = first == fold, second == fold
        rows = np.concatenate([one[~out], other[~away]])
        labels = np.repeat([1.0, 0.0], [int((~out).sum()), int((~away).sum())])
        centre, spread = rows.mean(axis=0), np.hypot(rows.std(axis=0), least_spread)
        # rows of mean square 1, so that one penalty suits any number of columns
        scale = np.where(spread > _TOLERANCE, spread, math.inf) * math.sqrt(rows.shape[1])
        direction = logistic_direction((rows - centre) / scale, labels, PENALTY)
        scores = [((held - centre) / scale) @ direction for held in (one[out], other[away])]
        values.append(within_auc(*scores))
        pairs.append(int(out.sum()) * int(away.sum()))
    return float(np.average(values, weights=pairs))
