"""A site's own mixer: how it is trained, kept for nobody else, and read where curves name it."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lift.config.plan import Plan
from lift.errors import CheckpointError, DataError
from lift.generator.networks import FrozenGenerator
from lift.mixer.curves import ChosenCurves
from lift.mixer.finished import FinishedMixer, read_mixer, write_mixer
from lift.tasks.paired.building import plan_mixer, start_values
from lift.tasks.paired.choice import Use
from lift.tasks.paired.contrast import CURVES_FILE, read_site_model, write_site_curves
from lift.tasks.paired.local import (
    OWN_MIXER_FILE,
    local_steps,
    train_alone,
    with_own_mixer,
    write_own_mixer,
)
from lift.tasks.paired.training import train_round
from tests.lift.small_world import (
    SOURCES,
    assert_four_parts,
    random_mixer,
    small_cohort,
    small_generator,
    small_plan,
)

RATE = 2e-3


@pytest.fixture(scope="module")
def generator() -> FrozenGenerator:
    return small_generator()


@pytest.fixture(scope="module")
def plan(generator: FrozenGenerator) -> Plan:
    return small_plan(generator=generator)


def values_of(plan: Plan, generator: FrozenGenerator) -> dict[str, torch.Tensor]:
    return random_mixer(plan, generator).values()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_local_steps_are_the_same_again_and_leave_what_they_started_from(
    plan: Plan, generator: FrozenGenerator
) -> None:
    patients, start = small_cohort(generator), values_of(plan, generator)
    before = {name: tensor.clone() for name, tensor in start.items()}
    told: list[int] = []
    mixer = plan_mixer(plan, generator)
    first = local_steps(mixer, start, patients, plan, 4, RATE, "east", report=told.append)
    again = local_steps(plan_mixer(plan, generator), start, patients, plan, 4, RATE, "east")
    assert same(first, again)
    assert same(start, before)
    assert not same(first, start)
    assert told == [1, 2, 3, 4]
    assert not same(first, local_steps(mixer, start, patients, plan, 4, RATE, "west"))
    # their windows are not those of the run's first round
    settings = plan.training.model_copy(update={"steps": 4, "learning_rate": RATE})
    one = plan.model_copy(
        update={
            "training": settings,
            "federation": plan.federation.model_copy(update={"rounds": 1}),
        }
    )
    assert not same(
        first, train_round(mixer, start, patients, one, round_index=1, site="east").values
    )


def test_no_step_changes_nothing_and_fewer_are_no_number(
    plan: Plan, generator: FrozenGenerator
) -> None:
    start, mixer = values_of(plan, generator), plan_mixer(plan, generator)
    assert same(local_steps(mixer, start, small_cohort(generator), plan, 0, RATE, "east"), start)
    with pytest.raises(ValueError, match="-1 steps"):
        local_steps(mixer, start, small_cohort(generator), plan, -1, RATE, "east")
    with pytest.raises(DataError):
        local_steps(mixer, start, [], plan, 2, RATE, "east")


def test_the_rate_bounds_how_far_local_steps_go(plan: Plan, generator: FrozenGenerator) -> None:
    patients, start = small_cohort(generator), values_of(plan, generator)
    mixer = plan_mixer(plan, generator)

    def moved(rate: float) -> float:
        after = local_steps(mixer, start, patients, plan, 5, rate, "east")
        return max(float((after[name] - start[name]).abs().max()) for name in start)

    assert 0 < moved(1e-4) < moved(1e-2)
    # AdamW moves no number by much more than its rate a step
    assert moved(RATE) < 2 * 5 * RATE


def test_a_mixer_trained_alone_takes_the_runs_rounds(
    plan: Plan, generator: FrozenGenerator
) -> None:
    patients = small_cohort(generator)
    start = start_values(plan, generator, torch.zeros(6).double())
    told: list[tuple[int, int]] = []
    mixer = plan_mixer(plan, generator)
    found = train_alone(
        mixer, start, patients, plan, "east", report=lambda *place: told.append(place)
    )
    assert told == [(1, 2), (2, 2)]
    values = start
    for index in (1, 2):
        values = train_round(mixer, values, patients, plan, round_index=index, site="east").values
    assert same(found, values)


def finished_of(plan: Plan, generator: FrozenGenerator) -> FinishedMixer:
    return FinishedMixer(values_of(plan, generator), torch.zeros(6).double(), plan, (), True)


def test_what_is_kept_is_for_its_owner_and_no_command_takes_it_for_a_mixer(
    tmp_path: Path, plan: Plan, generator: FrozenGenerator
) -> None:
    path = tmp_path / OWN_MIXER_FILE
    kept = values_of(plan, generator)
    own = write_own_mixer(path, kept, plan, "mixer + 4 local steps")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert b"chosen at a site, never to leave" in path.read_bytes()
    with pytest.raises(CheckpointError):
        read_mixer(path)
    run = finished_of(plan, generator)
    zeros = replace(run, values={name: 0 * tensor for name, tensor in run.values.items()})
    assert same(dict(with_own_mixer(zeros, path, own).values), kept)


@pytest.mark.parametrize("damage", ["missing", "damaged", "another", "plan", "a run's"])
def test_a_file_that_was_not_chosen_is_refused(
    tmp_path: Path, plan: Plan, generator: FrozenGenerator, damage: str
) -> None:
    path, run = tmp_path / OWN_MIXER_FILE, finished_of(plan, generator)
    own = write_own_mixer(path, run.values, plan, "mixer + 4 local steps")
    match damage:
        case "missing":
            path.unlink()
        case "damaged":
            path.write_bytes(path.read_bytes()[:50])
        case "another":
            write_own_mixer(path, {n: t + 1 for n, t in run.values.items()}, plan, own.method)
        case "plan":
            own = write_own_mixer(path, run.values, small_plan(rounds=9), own.method)
        case _:
            write_mixer(path, run)
    with pytest.raises(CheckpointError) as caught:
        with_own_mixer(run, path, own)
    assert_four_parts(caught.value)
    assert "lift-client choose" in caught.value.remedy


def test_curves_name_an_own_mixer_or_none_and_older_software_reads_the_shared_one(
    tmp_path: Path, plan: Plan, generator: FrozenGenerator
) -> None:
    path = tmp_path / CURVES_FILE
    own = write_own_mixer(tmp_path / OWN_MIXER_FILE, values_of(plan, generator), plan, "own")
    write_site_curves(path, ChosenCurves(None, None, {}), Use(), {}, plan, own=own)
    model = read_site_model(path, len(SOURCES))
    assert model.own == own
    assert model.name == "own"
    assert model.use == Use()
    write_site_curves(path, ChosenCurves(None, None, {}), Use("curves"), {}, plan)
    model = read_site_model(path, len(SOURCES))
    assert model.own is None
    assert model.name == "curves"
