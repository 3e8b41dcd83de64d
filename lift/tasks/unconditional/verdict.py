"""A site's verdict on a trained mapper: whether it is closer to real than the Gaussian.

Both make as many volumes as there are real ones, from the same random numbers and in the field of
view that an evaluation uses, and `lift.metrics.closer` compares how well each set is told from the
real volumes by its content.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from lift.config.plan import Plan
from lift.guard import Verdict
from lift.metrics.closer import FEWEST_JUDGED, MOST_JUDGED, closer_verdict
from lift.metrics.descriptors import thumbnail
from lift.metrics.synthrad import Floats
from lift.randomness import derive_seed
from lift.tasks.unconditional.decoder import FrozenDecoder
from lift.tasks.unconditional.grid import BodyVolume, same_view
from lift.tasks.unconditional.learning import plan_mapper, settings_of
from lift.tasks.unconditional.sampling import generate_volume, latent_mapper

_SEED: Final = "verdict"


def content_of(volume: BodyVolume, plan: Plan) -> Floats:
    """The thumbnail of a real volume as generated ones lie, (960,), float64."""
    settings = settings_of(plan)
    seen = same_view(volume, settings.slices, settings.slice_spacing_mm)
    return thumbnail(seen.voxels[0, 0].clamp(0, 1))


def verdict_on_mapper(
    plan: Plan,
    decoder: FrozenDecoder,
    gaussian: Mapping[str, Tensor],
    trained: Mapping[str, Tensor],
    real: Sequence[Floats],
    *,
    site: str,
) -> Verdict:
    """Whether the mapper's volumes are harder (`helped`) or easier (`harmed`) to tell from real
    ones than those of the Gaussian that it is on top of.

    Of more than 60 real volumes some are drawn; fewer than 10 give `undecided`.

    Args:
        plan: of the run.
        decoder: of the plan.
        gaussian: its tensors under `gaussian/`.
        trained: the mapper's numbers by name.
        real: from :func:`content_of`, one of each person, in an order of their own.
        site: part of the seed: sites look at different new volumes.

    Raises:
        ConfigError: the tensors are not those of the plan's mapper.
    """
    start = plan_mapper(plan, decoder).values()
    pair = [latent_mapper(plan, decoder, {**gaussian, **own}) for own in (start, trained)]
    if len(real) < FEWEST_JUDGED:
        return "undecided"
    seed = derive_seed(plan.seed, _SEED, "site", site)
    rows = np.stack(real)
    if len(rows) > MOST_JUDGED:
        drawn = np.random.default_rng(derive_seed(seed, "patients")).permutation(len(rows))
        rows = rows[np.sort(drawn[:MOST_JUDGED])]
    settings = settings_of(plan)
    first, second = (
        np.stack(
            [
                thumbnail(
                    torch.from_numpy(
                        generate_volume(
                            mapper,
                            decoder,
                            seed=derive_seed(seed, "volumes"),
                            index=index,
                            slices=settings.slices,
                            slice_spacing_mm=settings.slice_spacing_mm,
                        )
                    ).clamp(0, 1)
                )
                for index in range(len(rows))
            ]
        )
        for mapper in pair
    )
    return closer_verdict(rows, first, second, seed=derive_seed(seed, "judge"))
