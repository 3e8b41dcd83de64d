"""Membership inference finds a mixer that learned its patients by heart, and no other."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from lift.audit.membership import (
    LOSSES,
    REFERENCE_STEPS,
    Cohort,
    complementary_halves,
    membership,
    patient_loss,
    reference_plan,
)
from lift.audit.scores import CAVEAT, AttackFigures, attack_figures
from lift.config.plan import Plan
from lift.errors import ConfigError, DataError
from lift.generator.features import Features
from lift.mixer.base import Mixer
from lift.randomness import derive_seed
from lift.tasks.paired.building import plan_mixer
from lift.tasks.paired.predictions import mixed
from lift.tasks.paired.training import train_round
from tests import wording
from tests.lift.small_world import (
    assert_four_parts,
    features_of,
    random_mixer,
    small_generator,
    small_plan,
    small_prepared,
)

GENERATOR = small_generator()
SLICES = 4
ATTACKS = {"loss_threshold", "start_mixer", "reference_models"}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def patient(seed: int, *, hardness: float = 1.0) -> Features:
    """Random slices with a random target, which nothing explains: it can be learned by heart."""
    features = features_of(small_prepared(SLICES, size=(8, 8), seed=seed), GENERATOR, "zrefine")
    assert features.target is not None
    target = features.pred + hardness * (features.target - features.pred)
    return dataclasses.replace(features, target=target)


def cohort(first: int, count: int, *, uneven: bool = False) -> Cohort:
    """Patients with one volume each; `uneven`: from very easy to very hard ones."""
    hardness = np.geomspace(0.3, 3, count) if uneven else np.ones(count)
    return {
        f"anna-{first + i:03d}": [patient(first + i, hardness=float(hardness[i]))]
        for i in range(count)
    }


MEMBERS, OTHERS, ELSEWHERE = cohort(0, 8), cohort(100, 8), cohort(200, 8)


def plan_of(*, steps: int = 100, rounds: int = 1, privacy: dict[str, object] | None = None) -> Plan:
    """Many steps at a high rate over whole small volumes."""
    training: dict[str, object] = {
        "steps": steps,
        "learning_rate": 2e-2,
        "gradient_clip": 10.0,
        "patients_per_step": 8,
        "window": [SLICES, 8, 8],
    }
    plan = small_plan(training=training, rounds=rounds)
    data = plan.model_dump(mode="json") | {"mixer": {"kind": "zrefine", "width": 8}}
    return Plan.from_data(data | ({"privacy": privacy} if privacy else {}), "test")


PLAN = plan_of()
START = plan_mixer(PLAN, GENERATOR).values()
PATIENT_CENTRAL: dict[str, object] = {
    "mode": "patient-central",
    "delta": 1e-3,
    "public_patients": 8,
    "clip_norm": 1.0,
    "noise_multiplier": 1.0,
    "sampling_rate": 0.5,
}


def trained_on(patients: Cohort, plan: Plan = PLAN) -> dict[str, Tensor]:
    return train_round(
        plan_mixer(plan, GENERATOR),
        START,
        [features for volumes in patients.values() for features in volumes],
        plan,
        round_index=1,
        site="north",
    ).values


@pytest.fixture(scope="module")
def by_heart() -> dict[str, Tensor]:
    """Of a mixer that learned its members by heart."""
    return trained_on(MEMBERS)


def audited(
    released: dict[str, Tensor],
    members: Cohort = MEMBERS,
    others: Cohort = OTHERS,
    *,
    plan: Plan = PLAN,
    references: int = 2,
    mixer: Mixer | None = None,
    steps: list[tuple[str, int, int]] | None = None,
) -> dict[str, AttackFigures]:
    def report(what: str, done: int, total: int) -> None:
        assert steps is not None
        steps.append((what, done, total))

    return membership(
        members,
        others,
        mixer or plan_mixer(plan, GENERATOR),
        released,
        START,
        plan,
        seed=3,
        references=references,
        report=None if steps is None else report,
    )


def test_a_mixer_that_knows_its_patients_by_heart_is_found(by_heart: dict[str, Tensor]) -> None:
    found = audited(by_heart)
    assert found.keys() == ATTACKS
    assert found["reference_models"].auc_low > 0.9
    assert found["reference_models"].tpr > 0.8
    assert found["loss_threshold"].auc_low > 0.5


def test_a_mixer_that_never_saw_them_is_not() -> None:
    for attack, found in audited(trained_on(ELSEWHERE)).items():
        assert found.auc_low <= 0.5 <= found.auc_high, attack
        assert found.tpr <= 0.25


def test_references_find_what_a_threshold_misses_among_easy_and_hard_patients() -> None:
    members, others = cohort(0, 16, uneven=True), cohort(100, 16, uneven=True)
    plan = plan_of(steps=40)
    found = audited(trained_on(members, plan), members, others, plan=plan, references=6)
    # how hard a patient is hides from the loss alone whether training saw it
    assert found["loss_threshold"].auc < 0.9
    assert found["reference_models"].auc > found["loss_threshold"].auc + 0.05
    assert found["reference_models"].auc_low > 0.8


def test_a_patient_is_compared_with_the_reference_that_did_not_see_it() -> None:
    plan = plan_of(steps=10, rounds=2)
    released = trained_on(ELSEWHERE, plan)
    everyone = [*MEMBERS.values(), *OTHERS.values()]
    mixer, loss = plan_mixer(plan, GENERATOR), plan.training.loss
    scores = np.zeros(len(everyone))
    halves = complementary_halves(len(everyone), 2, seed=derive_seed(3, "halves"))
    for index, half in enumerate(halves):
        own = plan.model_copy(update={"seed": derive_seed(3, "reference", index)})
        volumes, values = [everyone[i][0] for i in half], START
        for round_index in (1, 2):
            values = train_round(
                mixer,
                values,
                volumes,
                own,
                round_index=round_index,
                site="reference",
            ).values
        for i in halves[1 - index]:
            mixer.load_values(values)
            scores[i] = patient_loss(mixer, everyone[i], loss)
            mixer.load_values(released)
            scores[i] -= patient_loss(mixer, everyone[i], loss)
    members, others = scores[: len(MEMBERS)].tolist(), scores[len(MEMBERS) :].tolist()
    expected = attack_figures(members, others, seed=derive_seed(3, "reference_models"))
    assert audited(released, plan=plan)["reference_models"] == expected


def test_a_mixer_at_its_start_gains_nothing_for_anybody() -> None:
    found = audited(START, plan=plan_of(steps=1))
    assert (found["start_mixer"].auc, found["start_mixer"].tpr) == (0.5, 0.0)


def test_the_same_arguments_give_the_same_figures_whatever_the_mixer_held(
    by_heart: dict[str, Tensor],
) -> None:
    plan, steps = plan_of(steps=3, rounds=2), list[tuple[str, int, int]]()
    first = audited(by_heart, plan=plan, steps=steps, references=4)
    turned = {name: MEMBERS[name] for name in sorted(MEMBERS, reverse=True)}
    used = random_mixer(plan, GENERATOR)
    assert audited(by_heart, turned, plan=plan, mixer=used, references=4) == first
    # four references, two rounds of three steps each
    trained = [told for told in steps if told[0] == REFERENCE_STEPS]
    assert trained == [(REFERENCE_STEPS, done, 24) for done in range(1, 25)]
    # under the released mixer, the start, and the half of the references that did not see them
    known = [told for told in steps if told[0] == LOSSES]
    everybody = 4 * (len(MEMBERS) + len(OTHERS))
    assert known == [(LOSSES, done, everybody) for done in range(1, everybody + 1)]


@pytest.mark.parametrize("count", [10, 11])
@pytest.mark.parametrize("halves", [2, 4, 6])
def test_every_patient_is_outside_exactly_every_other_half(count: int, halves: int) -> None:
    found = complementary_halves(count, halves, seed=5)
    assert len(found) == halves
    for one, other in zip(found[::2], found[1::2], strict=True):
        assert sorted(one + other) == list(range(count))
        assert abs(len(one) - len(other)) <= 1
    outside = [sum(i not in half for half in found) for i in range(count)]
    assert outside == [halves // 2] * count
    assert complementary_halves(count, halves, seed=5) == found
    assert complementary_halves(count, halves, seed=6) != found


def test_a_patients_loss_is_the_mean_over_whole_volumes_and_their_masks() -> None:
    loss = PLAN.training.loss.model_copy(update={"dz_weight": 0.0})
    mixer, volumes = random_mixer(PLAN, GENERATOR), [patient(1), patient(2)]
    expected = []
    for features in volumes:
        inside = features.mask > 0
        assert features.target is not None
        error = (mixed(mixer, features) - features.target)[inside]
        expected.append(loss.scale * float(np.square(error, dtype=np.float64).mean()))
    found = patient_loss(mixer, volumes, loss)
    assert found == pytest.approx(np.mean(expected), rel=1e-6)
    assert patient_loss(mixer, volumes, loss) == found
    # MS-SSIM asks for larger slices than these
    assert patient_loss(mixer, volumes, loss.model_copy(update={"ms_ssim_weight": 1})) == found


def test_several_volumes_of_a_patient_count_as_one(by_heart: dict[str, Tensor]) -> None:
    plan = plan_of(steps=1)
    once = audited(by_heart, plan=plan)
    twice = {name: [*volumes, *volumes] for name, volumes in MEMBERS.items()}
    again = audited(by_heart, twice, plan=plan)
    assert again["loss_threshold"] == once["loss_threshold"]
    assert again["reference_models"].members == 5


def test_references_are_trained_without_privacy_and_by_as_many_steps() -> None:
    private = plan_of(steps=1, rounds=40, privacy=PATIENT_CENTRAL)
    alone = reference_plan(private)
    assert alone.privacy.mode == "none"
    assert alone.total_steps == private.total_steps == 40
    # steps of one optimiser, not forty optimisers of a step each
    assert (alone.federation.rounds, alone.training.steps) == (1, 40)
    local = plan_of(steps=4, rounds=3, privacy=PATIENT_CENTRAL | {"mode": "patient-local"})
    assert reference_plan(local) == plan_of(steps=4, rounds=3)
    assert reference_plan(PLAN) == PLAN


def test_the_mixer_of_a_private_run_can_be_audited(by_heart: dict[str, Tensor]) -> None:
    private = plan_of(steps=1, rounds=4, privacy=PATIENT_CENTRAL)
    assert audited(by_heart, plan=private).keys() == ATTACKS


def test_fewer_than_five_patients_of_a_kind_are_refused_before_anything_is_trained() -> None:
    steps: list[tuple[str, int, int]] = []
    for members, others in ((cohort(0, 4), OTHERS), (MEMBERS, cohort(100, 4))):
        with pytest.raises(DataError) as caught:
            audited(START, members, others, steps=steps)
        assert_four_parts(caught.value)
    assert not steps


def test_a_patient_on_both_sides_is_refused_without_a_name() -> None:
    with pytest.raises(DataError) as caught:
        audited(START, MEMBERS, {**OTHERS, **dict(list(MEMBERS.items())[:1])})
    assert_four_parts(caught.value)
    assert "anna" not in str(caught.value)


@pytest.mark.parametrize("references", [0, 1, 3, -2])
def test_an_odd_number_of_references_is_refused(references: int) -> None:
    with pytest.raises(ConfigError) as caught:
        audited(START, references=references)
    assert_four_parts(caught.value)


def test_a_mixer_whose_loss_is_not_finite_is_refused() -> None:
    broken = {name: torch.full_like(tensor, torch.nan) for name, tensor in START.items()}
    with pytest.raises(DataError) as caught:
        audited(broken, plan=plan_of(steps=1))
    assert_four_parts(caught.value)


def test_a_patient_without_a_volume_or_a_target_is_refused() -> None:
    with pytest.raises(ValueError, match=wording.EACH_NEEDS_A_VOLUME):
        audited(START, {**MEMBERS, "anna-099": []})
    blind = dataclasses.replace(patient(99), target=None)
    with pytest.raises(ValueError, match="with a target"):
        audited(START, {**MEMBERS, "anna-099": [blind]})


def test_nothing_of_a_patient_is_in_the_result(by_heart: dict[str, Tensor]) -> None:
    found = audited(by_heart, plan=plan_of(steps=1))
    table = {attack: dataclasses.asdict(figures) for attack, figures in found.items()}
    assert "anna" not in json.dumps(table)
    for figures in table.values():
        # 8 and 8 patients, told as 5 and 5; all else has two decimals
        assert (figures["members"], figures["others"]) == (5, 5)
        assert all(isinstance(value, float | int) for value in figures.values())
        assert all(value == round(value, 2) for value in figures.values())
    assert all(figures.CAVEAT == CAVEAT for figures in found.values())
