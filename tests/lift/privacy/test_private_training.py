"""Private rounds on small volumes: what a patient moves, what is fresh, what the server makes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from lift.config.plan import MixerKind, Plan
from lift.config.privacy import PatientGradients
from lift.generator.features import Features
from lift.mixer.update import difference, norm
from lift.privacy.noise import SecureStream
from lift.tasks.paired.building import plan_mixer
from lift.tasks.paired.private.training import (
    UNITS,
    clipped_sum,
    noisy_update,
    train_round_privately,
)
from lift.tasks.paired.training import batch_loss, draw_batches
from lift.tasks.steps import TrainedRound
from tests.lift.mixer_cases import KINDS
from tests.lift.privacy.streams import KnownStream
from tests.lift.small_world import small_cohort, small_generator, small_plan

GENERATOR = small_generator()
PRIVACY = PatientGradients(
    mode="patient-local",
    delta=1e-4,
    public_patients=4,
    clip_norm=0.01,
    noise_multiplier=1.0,
    sampling_rate=0.5,
    windows_per_volume=1,
)
EVERYBODY = PRIVACY.model_copy(update={"sampling_rate": 1.0})


def private_plan(kind: MixerKind = "zrefine", **training: object) -> Plan:
    plan = small_plan(kind, generator=GENERATOR, training=training)
    return plan.model_copy(update={"privacy": PRIVACY})


def one_round(
    patients: Sequence[Sequence[Features]],
    privacy: PatientGradients = PRIVACY,
    *,
    kind: MixerKind = "zrefine",
    stream: KnownStream | None = None,
    **training: object,
) -> tuple[dict[str, Tensor], TrainedRound]:
    plan = private_plan(kind, **training)
    mixer = plan_mixer(plan, GENERATOR)
    start = mixer.values()
    trained = train_round_privately(
        mixer,
        start,
        patients,
        plan,
        privacy,
        round_index=1,
        site="north",
        stream=stream or KnownStream(),
    )
    return start, trained


def sum_of(
    patients: Sequence[Sequence[Features]], privacy: PatientGradients, kind: MixerKind = "zrefine"
) -> dict[str, np.ndarray]:
    plan = private_plan(kind)
    mixer = plan_mixer(plan, GENERATOR)
    random = torch.Generator().manual_seed(4)
    start = {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=random)
        for name, tensor in mixer.values().items()
    }
    return clipped_sum(mixer, start, patients, plan, privacy, stream=KnownStream())


def _tensor(units: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(units)).double()


@pytest.mark.parametrize("kind", KINDS)
def test_every_mixer_takes_a_private_round_and_tells_no_loss(kind: MixerKind) -> None:
    cohort = [[features] for features in small_cohort(GENERATOR, kind)]
    start, trained = one_round(cohort, kind=kind)
    assert trained.loss is None
    assert trained.sums is None
    assert norm(difference(trained.values, start)) > 0


def test_a_site_without_a_patient_sends_noise_like_any_other() -> None:
    start, trained = one_round([])
    assert norm(difference(trained.values, start)) > 0


def test_noise_is_fresh_in_every_round_and_follows_from_no_seed() -> None:
    plan = private_plan()
    mixer = plan_mixer(plan, GENERATOR)
    start = mixer.values()
    found = [
        train_round_privately(
            mixer,
            start,
            [],
            plan,
            PRIVACY,
            round_index=1,
            site="north",
            stream=SecureStream(),
        ).values
        for _ in range(2)
    ]
    assert any(not torch.equal(found[0][name], found[1][name]) for name in start)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e6])
@pytest.mark.parametrize("volumes", [1, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_one_patient_moves_a_sum_by_at_most_the_clip_norm(
    kind: MixerKind, volumes: int, scale: float
) -> None:
    whole = small_cohort(GENERATOR, kind, depths=(6, 7, 6))
    big = [
        dataclasses.replace(
            whole[2],
            target=None if whole[2].target is None else whole[2].target * np.float32(scale),
        )
    ] * volumes
    nobody = sum_of([], EVERYBODY, kind)
    alone = sum_of([big], EVERYBODY, kind)
    assert all(not units.any() for units in nobody.values())
    length = sum(float((units / UNITS).square().sum()) for units in map(_tensor, alone.values()))
    length **= 0.5
    assert length <= 1.0
    assert scale < 1 or length > 0.9


def test_the_server_adds_noise_once_to_the_sum_over_sites() -> None:
    loud = PRIVACY.model_copy(update={"noise_multiplier": 3.0, "clip_norm": 0.5})
    zeros = {"w": np.zeros((40, 50), dtype=np.int64)}
    ones = {"w": np.full((40, 50), UNITS, dtype=np.int64)}
    found = noisy_update([ones, zeros, ones], loud, 10.0, KnownStream())["w"].double()
    # two sites of one clip norm in every number, over ten expected patients, downhill
    expected, std = -2 * 0.5 / 10, 3.0 * 0.5 / 10
    assert abs(float(found.mean()) - expected) < 5 * std / found.numel() ** 0.5
    tolerance = 5 / (2 * found.numel()) ** 0.5
    measured = float(found.std()) / std
    assert abs(measured - 1) < tolerance
    assert all(abs(measured * wrong - 1) > tolerance for wrong in (2 / 3, 3 / 2))


def test_with_hardly_any_noise_private_training_lowers_the_loss() -> None:
    quiet = EVERYBODY.model_copy(
        update={"noise_multiplier": 1e-6, "clip_norm": 1e3, "public_patients": 3}
    )
    cohort = [[features] for features in small_cohort(GENERATOR)]
    plan = private_plan(steps=30)
    mixer = plan_mixer(plan, GENERATOR)

    def loss(values: dict[str, Tensor]) -> float:
        mixer.load_values(values)
        flat = [volume for volumes in cohort for volume in volumes]
        with torch.no_grad():
            (batch,) = draw_batches(mixer, flat, plan.training, (1, 1, "x", 1))
            return float(batch_loss(mixer, batch, plan.training))

    start, trained = one_round(cohort, quiet, steps=30)
    assert loss(trained.values) < loss(start)


def test_the_pull_back_to_the_received_mixer_holds_it_there() -> None:
    moved = []
    for proximal in (0.0, 1e4):
        start, trained = one_round([], steps=20, proximal=proximal, gradient_clip=1e9)
        moved.append(norm(difference(trained.values, start)))
    assert moved[1] < moved[0]
