"""Copies of training patients among generated volumes, against patients who were held out.

All volumes are averaged to one small grid. A distance is 1 minus the correlation of two volumes
over the union of their masks: gain and offset of a volume do not matter, what the background
looks like does not count. A patient with several volumes is as near as the nearest of them.

`lift.metrics.point_sets.nearest_ratios` asks the same of features, for the table of a generated
set; here the unit is the patient and the answer is an attack's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from lift.audit.scores import (
    CAVEAT,
    DECIMALS,
    FEWEST,
    AttackFigures,
    attack_figures,
    require_enough,
)
from lift.errors import DataError
from lift.metrics.intervals import bootstrap_mean
from lift.metrics.point_sets import expected_nearest
from lift.metrics.synthrad import Floats
from lift.randomness import derive_seed

GRID: Final = (16, 32, 32)
"""Depth, height and width of the grid on which volumes are compared."""

FLOOR: Final = 0.05
"""What is no brighter on the small grid is background; volumes are within [0, 1]."""

COPY_PERCENTILE: Final = 1.0
"""Of the distances from a held-out patient to the nearest training patient: nearer is a copy."""

_SHUFFLES: Final = 400
_TAIL: Final = 0.025
_TINY: Final = 1e-12

Volume = npt.NDArray[np.float32]
"""(z, h, w) in [0, 1]; volumes may differ in z."""

Volumes = Iterable[Volume]
"""Read once, one at a time and not kept: a thousand of them take some 130 MB on the grid."""

Patients = Mapping[str, Volumes]
"""Patient -> all volumes of that patient."""


@dataclass(frozen=True)
class CopyFigures:
    """Whether generated volumes are nearer to training patients than to held-out ones.

    Attributes:
        attack: of the attack that takes a patient for a member the nearer a generated volume is.
        nearer_training: share of generated volumes whose nearest training patient is nearer
            than their nearest held-out one, of equally many of both; .5 without copying.
        nearer_low: lower end of its 95% interval, over generated volumes, the patients being
            held fixed: that it leaves out .5 is no sign of copies (with 40 patients and none
            copied it does so in one of five cases).
        nearer_high: upper end.
        chance_low: lower end of the middle 95% of the same share when the patients are divided
            anew at random: a share within is what chance gives with these patients.
        chance_high: upper end.
        copies: share of generated volumes nearer to a training patient than 99% of the
            held-out patients are to theirs. Of n held-out patients (n below 100) the nearest
            decides, and about 1 / n of volumes that are no copies are nearer still.
        copies_of_held_out: the same with training and held-out patients exchanged: what is no
            copying, but for instance smoothness, which brings volumes near to everybody.
        generated: number of generated volumes.
    """

    CAVEAT: ClassVar[str] = CAVEAT

    attack: AttackFigures
    nearer_training: float
    nearer_low: float
    nearer_high: float
    chance_low: float
    chance_high: float
    copies: float
    copies_of_held_out: float
    generated: int


def copy_figures(
    generated: Volumes, training: Patients, held_out: Patients, *, seed: int
) -> CopyFigures:
    """Return the three figures on copies, each with its value without copies.

    Equally many patients of both kinds count in `nearer_training`: of the larger kind it is the
    exact mean over all subsets of the size of the smaller one. With many more training than
    held-out patients a subset seldom holds the original of a copy: `attack` and `copies`, which
    look at everybody, then say more.

    The order of volumes and patients does not matter.

    Args:
        generated: at least 5.
        training: what the generator saw.
        held_out: what it did not see, otherwise alike.
        seed: of intervals and of random divisions.

    Raises:
        DataError: too few volumes or patients, or a patient is on both sides.
        ValueError: a volume is not 3D, not finite, or of another slice shape; a patient has none.
    """
    require_enough(len(training), len(held_out))
    if set(training) & set(held_out):
        raise DataError(
            "cannot audit: patients are on both sides",
            where="training and held-out patients",
            seen="a patient who is both; each must be one of them",
            remedy="Give the split of the run that trained the generator.",
        )
    shapes: set[tuple[int, ...]] = set()
    own = _small(generated, shapes)
    if len(own) < FEWEST:
        raise DataError(
            "cannot look for copies among so few generated volumes",
            where="the generated volumes",
            seen=f"{len(own)}; at least {FEWEST} are needed",
            remedy="Generate more: each figure is a share of them. A hundred make a useful one.",
        )
    everyone = [training[name] for name in sorted(training)]
    everyone += [held_out[name] for name in sorted(held_out)]
    rows = [_small(volumes, shapes) for volumes in everyone]
    if not all(len(part) for part in rows):
        raise ValueError("each patient needs a volume")
    firsts = np.cumsum([0, *(len(part) for part in rows[:-1])])
    real = np.concatenate(rows)
    # both by patient: the nearest of a patient's volumes
    to_patients = np.minimum.reduceat(correlation_distances(own, real), firsts, axis=1)
    between = np.minimum.reduceat(correlation_distances(real, real), firsts, axis=1)
    between = np.minimum.reduceat(between, firsts, axis=0)
    count = len(training)
    to_training, to_held_out = to_patients[:, :count], to_patients[:, count:]
    nearest = -to_patients.min(axis=0)
    shares = nearer_shares(to_training, to_held_out)
    interval = bootstrap_mean(shares.tolist(), seed=derive_seed(seed, "nearer"))
    chance = _chance(to_patients, count, derive_seed(seed, "chance"))
    across = between[count:, :count]
    return CopyFigures(
        attack=attack_figures(
            nearest[:count].tolist(), nearest[count:].tolist(), seed=derive_seed(seed, "attack")
        ),
        nearer_training=round(interval.value, DECIMALS),
        nearer_low=round(_known(interval.low), DECIMALS),
        nearer_high=round(_known(interval.high), DECIMALS),
        chance_low=round(chance[0], DECIMALS),
        chance_high=round(chance[1], DECIMALS),
        copies=round(_copies(to_training, across), DECIMALS),
        copies_of_held_out=round(_copies(to_held_out, across.T), DECIMALS),
        generated=len(own),
    )


def correlation_distances(a: Floats, b: Floats) -> Floats:
    """1 minus the correlation over the union of two volumes' masks, (n, m), in [0, 2].

    A volume is 0 outside its mask and above 0 inside. 1 where a volume is constant over the
    union, which has no correlation.

    Args:
        a: (n, voxels), float64.
        b: (m, voxels), float64.
    """
    inside_a, inside_b = (a > 0).astype(np.float64), (b > 0).astype(np.float64)
    union = (
        inside_a.sum(axis=1)[:, None] + inside_b.sum(axis=1)[None, :] - inside_a @ inside_b.T
    ).clip(1.0)
    # outside the own mask a volume is 0: its sums over the union are those over everything
    mean_a, mean_b = a.sum(axis=1)[:, None] / union, b.sum(axis=1)[None, :] / union
    variance_a = np.square(a).sum(axis=1)[:, None] / union - mean_a**2
    variance_b = np.square(b).sum(axis=1)[None, :] / union - mean_b**2
    covariance = a @ b.T / union - mean_a * mean_b
    scale = np.sqrt(variance_a.clip(0.0) * variance_b.clip(0.0))
    alike = np.where(scale > _TINY, covariance / scale.clip(_TINY), 0.0)
    distances: Floats = (1.0 - alike).clip(0.0, 2.0)
    return distances


def nearer_shares(to_training: Floats, to_held_out: Floats) -> Floats:
    """Of each generated volume: in what share of subsets is the nearest training patient nearer?

    The subsets are all those of the larger kind that have the size of the smaller one; a tie
    counts half.

    Args:
        to_training: (generated, training) distances.
        to_held_out: (generated, held out).

    Returns:
        (generated,), in [0, 1].
    """
    if to_training.shape[1] < to_held_out.shape[1]:
        exchanged: Floats = 1.0 - nearer_shares(to_held_out, to_training)
        return exchanged
    nearest = to_held_out.min(axis=1, keepdims=True)
    # 1 where a training patient is farther: rises with the distance, so that the smallest of a
    # subset is that of the subset's nearest
    farther = (to_training > nearest) + 0.5 * (to_training == nearest)
    shares: Floats = (1.0 - expected_nearest(farther, to_held_out.shape[1])).clip(0.0, 1.0)
    return shares


def _chance(to_patients: Floats, count: int, seed: int) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(_SHUFFLES):
        order = rng.permutation(to_patients.shape[1])
        one, other = to_patients[:, order[:count]], to_patients[:, order[count:]]
        means.append(float(nearer_shares(one, other).mean()))
    low, high = np.quantile(means, [_TAIL, 1 - _TAIL])
    return float(low), float(high)


def _copies(to_patients: Floats, across: Floats) -> float:
    """Share of generated volumes nearer to a patient than 99% of real ones are.

    Args:
        to_patients: (generated, patients) distances.
        across: (patients of the other kind, patients).
    """
    threshold = np.percentile(across.min(axis=1), COPY_PERCENTILE)
    return float((to_patients.min(axis=1) < threshold).mean())


def _small(volumes: Volumes, shapes: set[tuple[int, ...]]) -> Floats:
    """Volumes on the small grid, 0 in the background: (volumes, voxels), float64.

    Args:
        volumes: (z, h, w) each.
        shapes: the slice shapes (h, w) seen so far; there must be one.
    """
    found: list[Floats] = [np.empty((0, math.prod(GRID)))]
    for volume in volumes:
        voxels = torch.from_numpy(np.array(volume, dtype=np.float32))
        if voxels.dim() != 3 or not voxels.numel() or not bool(torch.isfinite(voxels).all()):
            raise ValueError(f"a finite (z, h, w) volume is needed, not {tuple(voxels.shape)}")
        shapes.add(tuple(voxels.shape[1:]))
        if len(shapes) > 1:
            raise ValueError(f"slices of one shape are needed, not of {sorted(shapes)}")
        small = F.interpolate(voxels[None, None], size=GRID, mode="area").flatten().double()
        found.append(torch.where(small > FLOOR, small, 0.0).numpy()[None])
    return np.concatenate(found)


def _known(end: float | None) -> float:
    if end is None:  # pragma: no cover  # five generated volumes have an interval
        raise ValueError("an interval needs two generated volumes")
    return end
