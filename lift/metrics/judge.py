"""How well generated volumes can be told from real ones: `auc_content` and `auc_texture`.

Content is a thumbnail, 12 x 10 x 8 of the box: what is where, and how bright. Texture is how
neighbouring voxels differ along the three axes, at one gain (`lift.metrics.descriptors`). .5:
cannot be told apart; 1: every volume betrays where it is from. Real volumes of one source are
about .5, whatever their numbers: put that figure beside (`real_split_classifier`, or real training
volumes as a set of their own).

There is no figure with fewer than 20 volumes on either side, and none of texture where spacings
differ by more than a twentieth along an axis: the classifier would find the spacing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from scipy.spatial.distance import cdist

from lift.metrics.classifier import FEWEST, REPEATS, classifier_auc
from lift.metrics.reference import Reference
from lift.metrics.synthrad import Floats
from lift.metrics.table import MetricValue
from lift.metrics.volume_sets import MeasuredSet
from lift.randomness import derive_seed

SAME_SPACING: Final = 0.05
"""Share by which spacings may differ along an axis where textures are compared."""

LEAST_SPREAD: Final[Mapping[str, float]] = {"auc_content": 0.02, "auc_texture": 0.0}
"""Of thumbnails, in grey values: a background of .002 for 0 is no content."""

_SPLITS: Final = 20


def classifier_figures(
    generated: MeasuredSet, real: MeasuredSet, *, seed: int, repeats: int = REPEATS
) -> dict[str, MetricValue]:
    """`auc_content` and `auc_texture` with 95% intervals; `n` volumes of either set.

    The order of volumes within the sets does not matter.

    Args:
        generated: the set that is judged.
        real: volumes that neither it nor its generator saw.
        seed: of all random choices.
        repeats: divisions into folds that are averaged.
    """
    one, other = generated.sorted(), real.sorted()
    if min(len(one), len(other)) < FEWEST:
        return {}
    thumbnails = np.concatenate([one.thumbnails, other.thumbnails])
    distances = cdist(thumbnails, thumbnails)
    table = {}
    for name, rows in _descriptors(one, other).items():
        found = classifier_auc(
            *rows,
            seed=derive_seed(seed, name),
            least_spread=LEAST_SPREAD[name],
            distances=distances,
            repeats=repeats,
        )
        if found is not None:
            table[name] = MetricValue(found.value, found.n, found.low, found.high, unit="")
    return table


def real_split_classifier(reference: Reference, *, seed: int) -> dict[str, MetricValue]:
    """The same of one random half of the real volumes against the other.

    The mean over 20 random splits, and as interval the middle 95% of them. Empty with fewer than
    40 real volumes.
    """
    real, half = reference.real, len(reference.real) // 2
    rng = np.random.default_rng(derive_seed(seed, "classifier splits"))
    draws = []
    for split in range(_SPLITS if half >= FEWEST else 0):
        order = rng.permutation(len(real)).astype(np.int64)
        one, other = real.take(order[:half]), real.take(order[half : 2 * half])
        own = derive_seed(seed, "split", split)
        draws.append(classifier_figures(one, other, seed=own, repeats=1))
    table = {}
    for name in draws[0] if draws else ():
        values = np.asarray([draw[name].value for draw in draws])
        low, high = (float(q) for q in np.quantile(values, (0.025, 0.975)))
        table[name] = MetricValue(float(values.mean()), half, low, high, unit="")
    return table


def same_spacing(*sets: MeasuredSet) -> bool:
    """Whether all volumes have one spacing, to a twentieth, along every axis."""
    spacing = np.concatenate([one.spacing_mm for one in sets])
    return bool((spacing.max(axis=0) <= spacing.min(axis=0) * (1 + SAME_SPACING)).all())


def _descriptors(one: MeasuredSet, other: MeasuredSet) -> dict[str, tuple[Floats, Floats]]:
    rows = {"auc_content": (one.thumbnails, other.thumbnails)}
    if same_spacing(one, other):
        rows["auc_texture"] = (one.textures, other.textures)
    return rows
