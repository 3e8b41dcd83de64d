"""Local training: only the mixer learns, and everything random follows from the plan."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from lift.config.plan import MixerKind, Plan, TrainingPlan
from lift.errors import DataError
from lift.generator.features import Features, Person
from lift.mixer.base import Mixer
from lift.tasks.paired.building import plan_mixer
from lift.tasks.paired.training import batch_loss, draw_batches, train_round
from lift.tasks.steps import TrainedRound, learning_rate, take_steps
from tests.lift.mixer_cases import KINDS
from tests.lift.small_world import (
    SIZE,
    assert_four_parts,
    random_mixer,
    small_cohort,
    small_generator,
    small_plan,
)

GENERATOR = small_generator()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def patients() -> list[Features]:
    return small_cohort(GENERATOR)


def one_round(
    plan: Plan,
    patients: Sequence[Person],
    *,
    start: dict[str, Tensor] | None = None,
    round_index: int = 1,
    site: str = "north",
) -> TrainedRound:
    mixer = plan_mixer(plan, GENERATOR)
    return train_round(
        mixer,
        mixer.values() if start is None else start,
        patients,
        plan,
        round_index=round_index,
        site=site,
    )


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    squares = [float((one[n].double() - other[n].double()).square().sum()) for n in one]
    return math.sqrt(sum(squares))


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_mixer_changes_and_the_generator_stays_frozen(kind: MixerKind) -> None:
    plan, patients = small_plan(kind), small_cohort(GENERATOR, kind)
    before = {name: tensor.clone() for name, tensor in GENERATOR.state_dict().items()}
    fingerprint = GENERATOR.fingerprint
    mixer = random_mixer(plan, GENERATOR)
    start = mixer.values()
    buffers = {name: tensor.clone() for name, tensor in mixer.named_buffers()}
    kept = [feature.pred.tobytes() for feature in patients]
    trained = train_round(mixer, start, patients, plan, round_index=1, site="north")
    after = GENERATOR.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert GENERATOR.fingerprint == fingerprint == GENERATOR.card.fingerprint
    assert all(parameter.grad is None for parameter in GENERATOR.parameters())
    assert all(torch.equal(buffers[name], tensor) for name, tensor in mixer.named_buffers())
    assert [feature.pred.tobytes() for feature in patients] == kept
    # each tensor of the mixer learned
    assert all(not torch.equal(start[name], tensor) for name, tensor in trained.values.items())
    assert trained.loss is not None
    assert np.isfinite(trained.loss)


@pytest.mark.parametrize("kind", ["zrefine", "pyramid", "pooled_bigru"])
def test_the_same_round_gives_the_same_bits(kind: MixerKind) -> None:
    plan, patients = small_plan(kind), small_cohort(GENERATOR, kind)
    first = one_round(plan, patients)
    torch.manual_seed(123)
    np.random.seed(5)  # noqa: NPY002  # the global state is what must not matter
    second = one_round(plan, patients)
    assert same(first.values, second.values)
    assert first.loss == second.loss


def test_a_round_leaves_the_global_random_state_alone(patients: list[Features]) -> None:
    before = torch.get_rng_state()
    one_round(small_plan(), patients)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_the_mixer_held_before_does_not_matter(patients: list[Features]) -> None:
    plan = small_plan()
    start = plan_mixer(plan, GENERATOR).values()
    used = random_mixer(plan, GENERATOR, seed=9)
    again = train_round(used, start, patients, plan, round_index=1, site="north")
    assert same(again.values, one_round(plan, patients).values)


def windows_of(site: str, round_index: int, patients: list[Features]) -> list[object]:
    plan = small_plan()
    mixer = plan_mixer(plan, GENERATOR)
    seeds = [(plan.seed, round_index, site, step) for step in range(6)]
    batches = [next(draw_batches(mixer, patients, plan.training, seed)) for seed in seeds]
    return [batch.inputs.pred.numpy().tobytes() for batch in batches]


def test_sites_rounds_and_steps_draw_different_windows(patients: list[Features]) -> None:
    here = windows_of("north", 1, patients)
    assert here == windows_of("north", 1, patients)
    assert len(set(here)) == len(here)
    for other in (windows_of("south", 1, patients), windows_of("north", 2, patients)):
        assert not set(here) & set(other)
    one, other_site = (one_round(small_plan(), patients, site=site) for site in ("a", "b"))
    assert not same(one.values, other_site.values)


def marked(patients: list[Features]) -> list[Features]:
    """Each patient's spacing tells who it is."""
    return [
        dataclasses.replace(features, slice_spacing_mm=float(index))
        for index, features in enumerate(patients)
    ]


def test_a_step_takes_distinct_patients_while_there_are_enough(patients: list[Features]) -> None:
    plan = small_plan(training={"patients_per_step": 3})
    mixer = plan_mixer(plan, GENERATOR)
    for step in range(10):
        (batch,) = draw_batches(mixer, marked(patients), plan.training, (1, 1, "a", step))
        assert sorted(batch.inputs.slice_spacing_mm.tolist()) == [0.0, 1.0, 2.0]
    few = marked(patients)[:2]
    (batch,) = draw_batches(mixer, few, plan.training, (1, 1, "a", 0))
    assert batch.inputs.pred.shape == (3, 5, 1, 8, 8)


def test_every_patient_is_drawn_as_often(patients: list[Features]) -> None:
    plan = small_plan(training={"patients_per_step": 1})
    mixer = plan_mixer(plan, GENERATOR)
    drawn = [
        int(batch.inputs.slice_spacing_mm[0])
        for step in range(240)
        for batch in draw_batches(mixer, marked(patients), plan.training, (1, 1, "a", step))
    ]
    # 80 expected of each, standard deviation 7.3
    assert np.abs(np.bincount(drawn, minlength=3) - 80).max() < 30


def test_a_person_with_many_examinations_is_drawn_no_more_often(patients: list[Features]) -> None:
    plan = small_plan(training={"patients_per_step": 1})
    mixer = plan_mixer(plan, GENERATOR)
    first, second, third = marked(patients)
    people: list[Person] = [[first, second], third]
    drawn = [
        int(batch.inputs.slice_spacing_mm[0])
        for step in range(240)
        for batch in draw_batches(mixer, people, plan.training, (1, 1, "a", step))
    ]
    counts = np.bincount(drawn, minlength=3)
    # 120 expected of the other person and 60 of each examination, standard deviation 7.7 and less
    assert abs(counts[2] - 120) < 31
    assert np.abs(counts[:2] - 60).max() < 31
    # a step of both persons holds both
    plan = small_plan(training={"patients_per_step": 2})
    for step in range(10):
        (batch,) = draw_batches(mixer, people, plan.training, (1, 1, "a", step))
        assert 2 in batch.inputs.slice_spacing_mm.tolist()


def test_a_persons_only_examination_changes_no_bit_of_training(patients: list[Features]) -> None:
    plan = small_plan()
    alone = one_round(plan, patients)
    assert same(one_round(plan, [[features] for features in patients]).values, alone.values)


def test_a_mixer_with_pooled_context_gets_whole_slices_one_patient_at_a_time() -> None:
    plan = small_plan("pooled_bigru")
    patients = small_cohort(GENERATOR, "pooled_bigru")
    mixer = plan_mixer(plan, GENERATOR)
    batches = list(draw_batches(mixer, patients, plan.training, (1, 1, "a", 0)))
    assert len(batches) == 2
    for batch in batches:
        assert batch.target.shape == (1, 5, 1, *SIZE)
        assert batch.inputs.pooled["bottleneck"].shape[1] >= 6


def learnable(patients: list[Features]) -> list[Features]:
    """Targets that the through-plane neighbours of the prediction explain."""
    cases = []
    for features in patients:
        pred = features.pred
        above, below = np.roll(pred, -1, axis=0), np.roll(pred, 1, axis=0)
        target = pred + 0.3 * (above - pred) + 0.3 * (below - pred)
        cases.append(dataclasses.replace(features, target=target.astype(np.float32)))
    return cases


def validation_loss(mixer: Mixer, patients: list[Features], plan: Plan) -> float:
    seeds = [(plan.seed, 0, "validation", step) for step in range(6)]
    with torch.no_grad():
        losses = [
            float(batch_loss(mixer, batch, plan.training))
            for seed in seeds
            for batch in draw_batches(mixer, patients, plan.training, seed)
        ]
    return float(np.mean(losses))


def test_the_loss_falls_over_the_rounds(patients: list[Features]) -> None:
    plan = small_plan(
        training={"steps": 15, "learning_rate": 2e-2, "gradient_clip": 10.0}, rounds=3
    )
    cases = learnable(patients)
    mixer = plan_mixer(plan, GENERATOR)
    values = mixer.values()
    losses = [validation_loss(mixer, cases, plan)]
    for index in (1, 2, 3):
        values = train_round(mixer, values, cases, plan, round_index=index, site="north").values
        losses.append(validation_loss(mixer, cases, plan))
    assert losses[3] < losses[1] < losses[0]
    assert losses[3] < 0.3 * losses[0]


def test_a_stronger_proximal_term_keeps_the_update_smaller(patients: list[Features]) -> None:
    start = random_mixer(small_plan(), GENERATOR).values()
    norms = []
    for proximal in (0.0, 10.0, 1000.0):
        training: dict[str, object] = {"steps": 20, "proximal": proximal, "gradient_clip": 1e6}
        trained = one_round(small_plan(training=training, rounds=1), patients, start=start)
        norms.append(distance(trained.values, start))
    assert norms[2] < norms[1] < norms[0]
    assert norms[2] < 0.5 * norms[0]


def test_steps_are_reported_in_order_and_the_rounds_loss_is_their_mean(
    patients: list[Features],
) -> None:
    plan, reported, losses = small_plan(), list[int](), list[float]()
    mixer = plan_mixer(plan, GENERATOR)

    def step_losses(step: int, at_once: int) -> tuple[Tensor]:
        assert at_once == 1
        (batch,) = draw_batches(mixer, patients, plan.training, (0, 1, "north", step))
        loss = batch_loss(mixer, batch, plan.training)
        losses.append(loss.item())
        return (loss,)

    trained = take_steps(mixer, mixer.values(), plan, step_losses, 1, reported.append)
    assert reported == [1, 2, 3]
    assert len(set(losses)) == 3
    assert trained.loss == pytest.approx(np.mean(losses))


def test_no_patient_is_a_data_error() -> None:
    with pytest.raises(DataError) as caught:
        one_round(small_plan(), [])
    assert_four_parts(caught.value)


def test_a_patient_alone_is_enough_and_may_be_thinner_than_the_window() -> None:
    thin = small_cohort(GENERATOR, depths=(1,))
    trained = one_round(small_plan(), thin)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in trained.values.values())


def test_the_rate_warms_up_in_a_line_and_ends_near_0() -> None:
    settings = TrainingPlan(learning_rate=0.1, warmup_steps=4)
    total = 1000
    rates = [learning_rate(settings, position, total) for position in range(total)]
    # 1/5, 2/5, ... of the full rate while the cosine has hardly begun
    assert rates[:5] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1], rel=1e-3)
    assert all(later < earlier for earlier, later in pairwise(rates[4:]))
    assert rates[500] == pytest.approx(0.05, rel=1e-9)
    assert 0 < rates[-1] < 1e-6
    assert learning_rate(settings, total, total) == pytest.approx(0.0, abs=1e-12)


def test_without_warm_up_the_first_rate_is_the_full_one() -> None:
    settings = TrainingPlan(learning_rate=0.1, warmup_steps=0)
    assert learning_rate(settings, 0, 10) == 0.1


def test_the_schedule_goes_on_where_the_round_before_ended(patients: list[Features]) -> None:
    # in the last round the rate is far below the first round's: so is the way that is walked
    plan = small_plan(training={"warmup_steps": 0}, rounds=8)
    start = random_mixer(plan, GENERATOR).values()
    early = one_round(plan, patients, start=start, round_index=1)
    late = one_round(plan, patients, start=start, round_index=8)
    assert distance(late.values, start) < 0.2 * distance(early.values, start)
