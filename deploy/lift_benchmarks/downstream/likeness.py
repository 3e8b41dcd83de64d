"""How near generated volumes come to those of training, beside held-out ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.spatial.distance import cdist

from lift.config.plan import UnconditionalPlan
from lift.metrics.descriptors import thumbnail
from lift.metrics.synthrad import Floats
from lift.tasks.unconditional.grid import same_view
from lift_benchmarks.downstream.pairs import Pair


def nearest_distances(
    generated: Sequence[Pair],
    held_out: Sequence[Pair],
    training: Sequence[Pair],
    view: UnconditionalPlan,
) -> tuple[float, float]:
    """Mean thumbnail distance to the nearest training volume: of generated, of held-out volumes.

    Root mean squared difference in grey values, all in the plan's field of view. Generated volumes
    that are nearer than held-out ones come too near.
    """
    made, unseen, seen = (_thumbnails(pairs, view) for pairs in (generated, held_out, training))
    root = math.sqrt(seen.shape[1])
    return (
        float(cdist(made, seen).min(axis=1).mean() / root),
        float(cdist(unseen, seen).min(axis=1).mean() / root),
    )


def _thumbnails(pairs: Sequence[Pair], view: UnconditionalPlan) -> Floats:
    boxes = [same_view(p.body, view.slices, view.slice_spacing_mm).voxels[0, 0] for p in pairs]
    return np.stack([thumbnail(box) for box in boxes])
