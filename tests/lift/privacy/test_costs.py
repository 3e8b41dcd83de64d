"""What a plan costs before it starts: its releases, two hospitals, noise for an epsilon."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from lift.config.plan import FederationPlan, Plan, TaskPlan, TrainingPlan
from lift.config.privacy import NoPrivacy, PatientGradients, SiteLevel, StartRelease
from lift.errors import ConfigError
from lift.privacy.accounting import Mechanism, epsilon
from lift.privacy.costs import (
    START,
    STEPS,
    describe_privacy,
    epsilon_after,
    planned_releases,
    public_patients,
    releases_in_two_hospitals,
    summary,
)

DELTA = 1e-4
LOCAL = PatientGradients(
    mode="patient-local",
    delta=DELTA,
    public_patients={"east": 100, "west": 60},
    clip_norm=0.1,
    noise_multiplier=3.0,
    sampling_rate=0.16,
    start=StartRelease(noise_multiplier=10.0, clip_norm=0.01),
)


def plan(
    privacy: PatientGradients | NoPrivacy | SiteLevel, *, rounds: int = 10, steps: int = 30
) -> Plan:
    return Plan(
        task=TaskPlan(source=("t1n",), target="t2f"),
        training=TrainingPlan(steps=steps),
        federation=FederationPlan(rounds=rounds),
        privacy=privacy,
    )


def central(**changes: object) -> PatientGradients:
    return LOCAL.model_copy(update={"mode": "patient-central", "start": None, **changes})


def test_a_plan_releases_its_start_once_and_every_step() -> None:
    start, steps = planned_releases(plan(LOCAL))
    assert (start.purpose, start.q, start.steps) == (START, 1.0, 1)
    assert (steps.purpose, steps.q, steps.steps, steps.noise_multiplier) == (STEPS, 0.16, 300, 3.0)
    expected = epsilon([Mechanism(10.0), Mechanism(3.0, 0.16, 300)], DELTA)
    told = describe_privacy(plan(LOCAL), ["east", "west"])
    assert told["epsilon"] == pytest.approx(expected, abs=1e-4)
    assert float(str(told["epsilon"])) >= expected
    assert told["epsilon_by_site"] == {"east": told["epsilon"], "west": told["epsilon"]}
    assert told["public_patients"] == {"east": 100, "west": 60}


def test_epsilon_grows_by_round_up_to_that_of_the_plan() -> None:
    chosen = plan(LOCAL)
    grown = [epsilon_after(chosen, index) for index in (0, 1, 5, 10)]
    assert all(value is not None for value in grown)
    assert grown == sorted(grown, key=lambda value: value or 0)
    whole = epsilon([r.mechanism(r.steps) for r in planned_releases(chosen)], DELTA)
    assert grown[-1] == pytest.approx(whole)
    assert epsilon_after(plan(NoPrivacy(mode="none")), 3) is None


def test_a_patient_in_two_hospitals_pays_for_both() -> None:
    for privacy in (LOCAL, central()):
        told = describe_privacy(plan(privacy, steps=1), ["east", "west"])
        assert float(str(told["epsilon_of_a_patient_in_two_hospitals"])) > float(
            str(told["epsilon"])
        )


def _delta(one: NDArray[np.float64], other: NDArray[np.float64], at: float, width: float) -> float:
    """The hockey-stick divergence of two densities on a grid."""
    return float(np.maximum(one - np.exp(at) * other, 0).sum() * width)


@pytest.mark.parametrize(("noise", "q"), [(1.0, 0.1), (2.0, 0.3), (0.7, 0.02)])
def test_one_step_of_the_two_hospital_bound_covers_the_true_mechanism(
    noise: float, q: float
) -> None:
    # drawn by neither, by one or by both hospitals: 0, 1 or 2 clip norms in the same sum
    x, width = np.linspace(-12 * noise, 12 * noise + 2, 200_001, retstep=True)

    def density(mean: float) -> NDArray[np.float64]:
        normal = np.exp(-0.5 * ((x - mean) / noise) ** 2)
        return np.asarray(normal / (noise * np.sqrt(2 * np.pi)))

    without = density(0)
    true = (1 - q) ** 2 * without + 2 * q * (1 - q) * density(1) + q**2 * density(2)
    either = 1 - (1 - q) ** 2
    (bound,) = releases_in_two_hospitals(
        plan(central(noise_multiplier=noise, sampling_rate=q), steps=1)
    )
    assert bound.noise_multiplier == noise / 2
    assert bound.q == pytest.approx(either)
    claimed = (1 - either) * without + either * density(2)
    for at in (0.0, 0.2, 0.5, 1.0, 2.0):
        assert _delta(true, without, at, width) <= _delta(claimed, without, at, width) + 1e-9
        assert _delta(without, true, at, width) <= _delta(without, claimed, at, width) + 1e-9
    # forgetting the second hospital would not cover it: this test can fail
    naive = (1 - q) * without + q * density(1)
    assert _delta(true, without, 0.2, width) > _delta(naive, without, 0.2, width)


def test_the_noise_for_an_epsilon_keeps_the_whole_run_at_it() -> None:
    told = describe_privacy(plan(LOCAL), ["east"], target=2.0)
    found = told["noise_multiplier_for"]
    assert isinstance(found, dict)
    louder = LOCAL.model_copy(update={"noise_multiplier": found["noise_multiplier"]})
    reached = [r.mechanism(r.steps) for r in planned_releases(plan(louder))]
    assert 1.98 < epsilon(reached, DELTA) <= 2.0


def test_a_site_without_a_public_number_is_named() -> None:
    with pytest.raises(ConfigError, match="missing: north"):
        public_patients(plan(LOCAL), ["east", "north"])


def test_a_plan_without_noise_says_so_and_has_no_noise_to_choose() -> None:
    chosen = plan(NoPrivacy(mode="none"))
    told = describe_privacy(chosen, ["east"])
    assert summary(told) == "privacy: none - no noise is added: no privacy guarantee"
    with pytest.raises(ConfigError, match="no noise to choose"):
        describe_privacy(chosen, ["east"], target=8.0)


def test_site_level_counts_rounds() -> None:
    site = SiteLevel(mode="site", delta=DELTA, clip_norm=1.0, noise_multiplier=5.0)
    told = describe_privacy(plan(site), ["east"])
    assert told["unit"] == "site"
    assert told["epsilon"] == pytest.approx(epsilon([Mechanism(5.0, steps=10)], DELTA), abs=1e-4)
    assert "delta 0.0001" in summary(told)


def test_whoever_sees_times_is_told_an_epsilon_without_sampling() -> None:
    told = describe_privacy(plan(LOCAL), ["east", "west"])
    # the start and every step, as if everybody took part
    expected = epsilon([Mechanism(10.0), Mechanism(3.0, 1.0, 300)], DELTA)
    seen = float(str(told["epsilon_where_times_are_seen"]))
    assert seen == pytest.approx(expected, abs=1e-4)
    assert seen > 5 * float(str(told["epsilon"]))
    assert "who was drawn" in str(told["times"])
    assert f"; {seen} for observers of answer times" in summary(told)
    # where all take part there is nothing to be told
    whole = describe_privacy(plan(central(sampling_rate=1.0), steps=1), ["east", "west"])
    assert whole["epsilon_where_times_are_seen"] == whole["epsilon"]
    nobody_is_drawn = SiteLevel(mode="site", delta=DELTA, clip_norm=1.0, noise_multiplier=2.0)
    for privacy in (nobody_is_drawn, NoPrivacy(mode="none")):
        assert "epsilon_where_times_are_seen" not in describe_privacy(plan(privacy), ["east"])
