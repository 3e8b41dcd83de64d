"""The official drift field once more, in numpy: from the equations, pair by pair, float64.

Written apart from `lift.tasks.unconditional.drifting.field`: sums over i and j stand as they do on
paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def official_force(
    x: Array,
    negatives: Array,
    positives: Array,
    weights: tuple[Array, Array, Array],
    temperatures: Sequence[float],
    self_distance: float = 100.0,
) -> tuple[Array, Array, float]:
    """Force in the coordinates' units, RMS of each temperature, and the unit."""
    y = np.concatenate([x, negatives, positives])
    w = np.concatenate(weights)
    n, m, d = len(x), len(y), x.shape[1]
    is_positive = np.arange(m) >= n + len(negatives)
    distance = np.array([[math.dist(x[i], y[j]) for j in range(m)] for i in range(n)])
    scale = sum(w[j] * distance[i, j] for i in range(n) for j in range(m)) / (n * w.sum())
    unit = max(scale / math.sqrt(d), 1e-3)
    total, rms = np.zeros((n, d)), []
    for temperature in temperatures:
        weight_of = {}
        for i in range(n):
            for j in range(m):
                own = self_distance if i == j else 0.0
                logit = -(distance[i, j] / max(scale, 1e-3) + own) / temperature
                weight_of[i, j] = logit
        over_targets = [_log_sum([weight_of[i, j] for j in range(m)]) for i in range(n)]
        over_generated = [_log_sum([weight_of[i, j] for i in range(n)]) for j in range(m)]
        force = np.zeros((n, d))
        for i in range(n):
            a = np.array(
                [
                    w[j]
                    * math.sqrt(
                        max(
                            math.exp(2 * weight_of[i, j] - over_targets[i] - over_generated[j]),
                            1e-6,
                        )
                    )
                    for j in range(m)
                ]
            )
            mass_positive, mass_negative = a[is_positive].sum(), a[~is_positive].sum()
            for j in range(m):
                coefficient = a[j] * mass_negative if is_positive[j] else -a[j] * mass_positive
                force[i] += coefficient * (y[j] - x[i]) / unit
        size = math.sqrt(float((force**2).mean()))
        rms.append(size)
        total += force / max(size, 1e-4) * unit
    return total, np.array(rms), unit


def _log_sum(logits: Sequence[float]) -> float:
    top = max(logits)
    return top + math.log(sum(math.exp(value - top) for value in logits))
