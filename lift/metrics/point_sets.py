"""Distances between sets of points: Frechet, MMD, nearest neighbours, order.

Everything is float64 and deterministic. A *point set* is (groups, volumes, windows, d): the
standardised features of `lift.tasks.unconditional.drifting`, whose mean distance is about 1 in
every group.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from scipy.spatial.distance import cdist
from scipy.stats import rankdata

from lift.metrics.synthrad import Floats

KERNEL_WIDTHS: Final = (0.35, 0.5, 1.0)
"""Gaussian widths of the MMD, in mean distances of real features; the kernel is their mean."""

LARGEST_RATIO: Final = 100.0
"""Of nearest distances: a generated volume that is a held-out one has no finite ratio."""

_TINY: Final = 1e-12


def frechet_distance(a: Floats, b: Floats) -> Floats:
    """Squared Frechet distance of the two Gaussians fitted to a's and to b's rows.

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2), by symmetric eigen-decompositions:
    never complex, never below 0, whatever the rank.

    Biased upwards by the number of rows (about 1 / rows, and more in more dimensions): two sets of
    one source are not at 0. A figure means something only beside one of real against real of the
    same size.

    Args:
        a: (..., n, d), n >= 2.
        b: (..., m, d), m >= 2, the same leading axes.

    Returns:
        One distance for each of the leading axes.

    Source: Dowson and Landau 1982; Heusel et al. 2017, arXiv:1706.08500.
    """
    mean = np.square(a.mean(axis=-2) - b.mean(axis=-2)).sum(axis=-1)
    first, second = _covariance(a), _covariance(b)
    levels, axes = np.linalg.eigh(first)
    root = (axes * np.sqrt(np.maximum(levels, 0.0))[..., None, :]) @ axes.swapaxes(-1, -2)
    product = root @ second @ root
    shared = np.linalg.eigvalsh((product + product.swapaxes(-1, -2)) / 2)
    cross = np.sqrt(np.maximum(shared, 0.0)).sum(axis=-1)
    total = np.trace(first, axis1=-2, axis2=-1) + np.trace(second, axis1=-2, axis2=-1)
    distance: Floats = np.maximum(mean + total - 2 * cross, 0.0)
    return distance


def kernel_matrix(a: Floats, b: Floats) -> Floats:
    """Gaussian kernel between volumes, (n, m): the mean over groups, windows and widths.

    MMD is linear in the kernel, so that the MMD of this one is the mean over the groups.

    Args:
        a: point set (groups, n, windows, d).
        b: point set (groups, m, windows, d).
    """
    total = np.zeros((a.shape[1], b.shape[1]))
    for own, other in zip(a, b, strict=True):
        square = cdist(own.reshape(-1, own.shape[-1]), other.reshape(-1, other.shape[-1])) ** 2
        values = sum(np.exp(-square / (2 * width**2)) for width in KERNEL_WIDTHS)
        shape = (*own.shape[:2], *other.shape[:2])
        total += np.reshape(values, shape).mean(axis=(1, 3)) / len(KERNEL_WIDTHS)
    return total / len(a)


def mmd_squared(within_a: Floats, within_b: Floats, between: Floats) -> float:
    """Squared maximum mean discrepancy from three kernel matrices, the unbiased estimate.

    A volume is not compared with itself, nor one of its windows with another of them. Unbiased:
    for sets of one source the mean is 0 whatever their sizes, so that half the values are
    slightly below 0.

    Args:
        within_a: (n, n), n >= 2.
        within_b: (m, m), m >= 2.
        between: (n, m).

    Source: Gretton et al. 2012, equation 3.
    """
    return mean_off_diagonal(within_a) + mean_off_diagonal(within_b) - 2 * float(between.mean())


def mean_off_diagonal(matrix: Floats) -> float:
    """Mean of a square matrix without its diagonal, of finite entries only; NaN without any."""
    values = matrix[~np.eye(len(matrix), dtype=np.bool_)]
    held = values[np.isfinite(values)]
    return float(held.mean()) if len(held) else float("nan")


def descriptors(points: Floats) -> Floats:
    """One vector a volume: all its groups and windows, (volumes, groups * windows * d)."""
    return np.ascontiguousarray(points.transpose(1, 0, 2, 3)).reshape(points.shape[1], -1)


def expected_nearest(distances: Floats, candidates: int) -> Floats:
    """Mean distance to the nearest of `candidates` columns drawn without replacement, (rows,).

    The exact mean over all subsets, not a simulation; with all columns it is the row's minimum.

    Args:
        distances: (rows, n).
        candidates: 1 to n.
    """
    n = distances.shape[1]
    if not 1 <= candidates <= n:
        raise ValueError(f"{candidates} candidates of {n}")
    # the i-th nearest is a subset's nearest with probability C(n-1-i, k-1) / C(n, k)
    i = np.arange(n - candidates)
    steps = (n - candidates - i) / (n - 1 - i)
    weights = candidates / n * np.cumprod(np.concatenate([[1.0], steps]))
    nearest: Floats = np.sort(distances, axis=1)[:, : len(weights)] @ weights
    return nearest


def nearest_ratios(
    to_training: Floats, to_held_out: Floats, held_out_to_training: Floats
) -> Floats:
    """For each generated volume: nearest training volume's distance over nearest held-out one's.

    About 1 when training and held-out volumes are alike to the generator; well below 1 hints at
    copies of training volumes. The numbers of candidates are matched, since the nearest of more
    is nearer by chance:

    - fewer training than held-out volumes: the held-out distance is the mean over all subsets of
      as many held-out volumes;
    - more: the training distance is divided by what more candidates bring the *held-out* volumes
      by chance (their nearest of all training volumes over their nearest of a subset as large as
      the held-out set). Drawing a subset for the generated volumes themselves would leave most of
      the copied originals out, and the copies unseen.

    At most `LARGEST_RATIO`.

    Args:
        to_training: (generated, training) distances.
        to_held_out: (generated, held out).
        held_out_to_training: (held out, training).
    """
    candidates = min(to_training.shape[1], to_held_out.shape[1])
    near = to_training.min(axis=1)
    if to_training.shape[1] > candidates:
        of_all = float(held_out_to_training.min(axis=1).mean())
        of_few = float(expected_nearest(held_out_to_training, candidates).mean())
        near = near * (of_few / max(of_all, _TINY))
    far = expected_nearest(to_held_out, candidates)
    ratios: Floats = np.minimum(near / np.maximum(far, _TINY), LARGEST_RATIO)
    return ratios


def order_correlations(stacks: Floats, places: Floats) -> Floats:
    """Spearman correlation of slices' order with that of the places they resemble most, (n,).

    1: the slices go from the body's first place to its last; about 0: they are shuffled; below 0:
    reversed. Alike is what correlates over the slice's pixels, so that gain and offset of a
    volume do not matter. 0 when all slices resemble one place.

    Args:
        stacks: (n, k, pixels): k slices at equal steps along the body of each volume.
        places: (k, pixels): mean real slices at the same steps.
    """
    alike = _normalised(stacks) @ _normalised(places).T
    ranks = rankdata(alike.argmax(axis=2), axis=1)
    ranks = ranks - ranks.mean(axis=1, keepdims=True)
    order = np.arange(stacks.shape[1]) - (stacks.shape[1] - 1) / 2
    length = np.sqrt(np.square(ranks).sum(axis=1) * np.square(order).sum())
    found: Floats = np.clip(ranks @ order / np.maximum(length, _TINY), -1.0, 1.0)
    return found


def _covariance(rows: Floats) -> Floats:
    centred = rows - rows.mean(axis=-2, keepdims=True)
    covariance: Floats = centred.swapaxes(-1, -2) @ centred / (rows.shape[-2] - 1)
    return covariance


def _normalised(slices: Floats) -> Floats:
    centred = slices - slices.mean(axis=-1, keepdims=True)
    length = np.linalg.norm(centred, axis=-1, keepdims=True)
    scaled: Floats = centred / np.maximum(length, _TINY)
    return scaled
