"""Nearest neighbours: precision and recall of a set, nearest training volumes, copies.

Distances between volumes come as matrices; a *thumbnail* distance is the root of the mean squared
difference of two thumbnails (`lift.metrics.descriptors`), in the volumes' own grey values.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist

from lift.metrics.synthrad import Floats
from lift.metrics.table import MetricValue
from lift.metrics.volume_sets import MeasuredSet

NEIGHBOURS: Final = 3
"""The k of precision and recall, as in the paper."""

NEAR: Final = 0.5
"""A near copy is within this share of the distance from its original to that one's own nearest."""

_Z: Final = 1.959963984540054


def precision_recall(between: Floats, within_a: Floats, within_b: Floats) -> tuple[float, float]:
    """Share of a's points that lie among b's, and share of b's that lie among a's.

    A point lies among the points of a set if it is within the distance of one of them to that
    one's third nearest other. The shares depend on the sizes of the sets, and of real sets alike
    they are not 1: put those beside them.

    Args:
        between: distances, (n, m).
        within_a: (n, n), n >= 2.
        within_b: (m, m), m >= 2.

    Source: Kynkaanniemi et al. 2019, arXiv:1904.06991, equation 1.
    """
    precision = (between <= _radii(within_b)[None, :]).any(axis=1).mean()
    recall = (between <= _radii(within_a)[:, None]).any(axis=0).mean()
    return float(precision), float(recall)


def thumbnail_distances(one: MeasuredSet, other: MeasuredSet) -> Floats:
    """Root mean squared difference of thumbnails, (n, m)."""
    root = math.sqrt(one.thumbnails.shape[1])
    distances: Floats = cdist(one.thumbnails, other.thumbnails) / root
    return distances


def near_copies(to_originals: Floats, within_originals: Floats) -> npt.NDArray[np.bool_]:
    """Which volume is a near copy of which original, (n, m).

    Args:
        to_originals: distances, (n, m).
        within_originals: (m, m).
    """
    near: npt.NDArray[np.bool_] = to_originals <= NEAR * _nearest_other(within_originals)[None, :]
    return near


def nearest_figures(volumes: MeasuredSet, training: MeasuredSet) -> dict[str, MetricValue]:
    """Distance of volumes to the training volumes: `nearest_distance` and `near_copies`.

    - `nearest_distance`: mean thumbnail distance to the nearest training volume;
    - `near_copies`: share of volumes that are near copies of a training volume.

    Each is a mean over the volumes, with the interval of its standard error. Both mean something
    beside those of held-out real volumes, against the same training volumes.

    Args:
        volumes: at least one.
        training: at least two; none of them is among `volumes`.
    """
    distances = thumbnail_distances(volumes, training)
    copies = near_copies(distances, thumbnail_distances(training, training))
    nearest = np.asarray(distances.min(axis=1), dtype=np.float64)
    copied = np.asarray(copies.any(axis=1), dtype=np.float64)
    return {
        "nearest_distance": _mean(nearest, math.inf),
        "near_copies": _mean(copied, 1.0),
    }


def _mean(values: Floats, highest: float) -> MetricValue:
    value, count = float(values.mean()), len(values)
    if count < 2:
        return MetricValue(value, count, None, None, unit="")
    reach = _Z * float(values.std(ddof=1)) / math.sqrt(count)
    low, high = max(value - reach, 0.0), min(value + reach, highest)
    return MetricValue(value, count, low, high, unit="")


def _radii(within: Floats) -> Floats:
    """Distance of each point to its third nearest other, or its farthest of fewer."""
    order = min(NEIGHBOURS, len(within) - 1)
    # the nearest of all is the point itself
    radii: Floats = np.sort(within, axis=1)[:, order]
    return radii


def _nearest_other(within: Floats) -> Floats:
    apart = np.where(np.eye(len(within), dtype=np.bool_), math.inf, within)
    nearest: Floats = apart.min(axis=1)
    return nearest
