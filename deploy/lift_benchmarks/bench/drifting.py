"""What the drifting loss costs in a step, and what a site sends of its statistics."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import Final

import torch
from torch import Tensor

from lift.config.plan import MixerPlan, Plan, TaskPlan, TrainingPlan, UnconditionalPlan
from lift.config.privacy import NoPrivacy
from lift.device import resolve_device
from lift.generator.card import builtin_bundle
from lift.mixer.trajectory import slice_positions
from lift.tasks.registry import with_generator
from lift.tasks.unconditional.bundle import load_decoder
from lift.tasks.unconditional.drifting.release import to_arrays
from lift.tasks.unconditional.grid import BodyVolume
from lift.tasks.unconditional.learning import (
    features_of,
    plan_mapper,
    statistics_loss,
    sums_of,
    train_mapper_round,
)
from lift.triplanar.features import Rows
from lift_benchmarks.bench.figure import Figure

_BUNDLE: Final = "phantom-t1n-slices"
_PATIENTS: Final = 12
_STEPS: Final = 12


def drifting_figures() -> list[Figure]:
    """Share of the loss outside encoder and decoder in a training step; bytes of the sums.

    The real volumes are generated ones: a cost does not depend on what they show.
    """
    decoder = load_decoder(
        builtin_bundle(_BUNDLE), expected_fingerprint=None, device=resolve_device("cpu")
    )
    plan = with_generator(
        Plan(
            task=TaskPlan(kind="unconditional", target=decoder.card.target),
            mixer=MixerPlan(kind="trajectory_mapper"),
            unconditional=UnconditionalPlan(slice_spacing_mm=decoder.card.body_length_mm / 36),
            training=TrainingPlan(steps=_STEPS),
            privacy=NoPrivacy(mode="none"),
        ),
        decoder,
    )
    mapper = plan_mapper(plan, decoder)
    pixel = decoder.card.network.pixel_mm
    with torch.no_grad():
        noise = mapper.draw(_PATIENTS, torch.Generator().manual_seed(1))
        volumes = decoder(mapper(noise, slice_positions(36)))
    bodies = [
        BodyVolume(volume[None], (decoder.card.body_length_mm / 36, pixel, pixel))
        for volume in volumes
    ]
    sums = sums_of([features_of([body], decoder.public) for body in bodies], decoder.public)
    loss = statistics_loss(plan, decoder.public, sums)
    inside: list[float] = []
    ends: list[float] = []

    def timed(groups: Mapping[int, Rows]) -> tuple[Tensor, dict[str, float]]:
        began = perf_counter()
        found = loss(groups)
        inside.append(perf_counter() - began)
        return found

    train_mapper_round(
        mapper,
        mapper.values(),
        decoder,
        timed,
        plan,
        round_index=1,
        site="bench",
        report=lambda _: ends.append(perf_counter()),
    )
    steps = [after - before for before, after in pairwise(ends)]
    share = median(inside[1:]) / median(steps)
    size = sum(array.nbytes for array in to_arrays(sums, data_version=0).values())
    return [
        Figure(
            "drifting_loss_share",
            share,
            "< 0.1",
            "share of a training step that the drifting loss takes outside encoder and decoder "
            "(hybrid, 16 volumes, 4 groups a step)",
        ),
        Figure(
            "drifting_statistics_bytes",
            float(size),
            "<= 200,000",
            "bytes of the drifting statistics that a site sends once (anchors and random features)",
        ),
    ]
