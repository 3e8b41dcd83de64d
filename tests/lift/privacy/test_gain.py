"""The noisy gain: one patient moves it by at most 1, its noise is the claimed one, its interval
covers the truth, and plans without it are what they were.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from lift.config.plan import Plan
from lift.config.privacy import GainRelease, PatientGradients
from lift.errors import ConfigError
from lift.privacy.accounting import Mechanism, epsilon
from lift.privacy.costs import GAIN, STEPS, describe_privacy, planned_releases
from lift.privacy.gain import PooledGain, pooled_gain, release_gain
from lift.privacy.noise import SecureStream
from tests.lift.privacy.streams import KnownStream
from tests.lift.privacy.test_costs import DELTA, LOCAL, plan

RELEASE = GainRelease(noise_multiplier=4.0, clip_db=2.0)
SILENT = GainRelease(noise_multiplier=1e-6, clip_db=2.0)
gain = st.floats(-50, 50)


class NoNoise(SecureStream):
    def normals(self, count: int) -> np.ndarray:
        return np.zeros(count)


def exact(gains: list[float]) -> np.ndarray:
    return release_gain(gains, RELEASE, NoNoise()).astype(np.float64)


@given(st.lists(gain, max_size=20), gain)
def test_one_patient_moves_what_is_sent_by_at_most_one(gains: list[float], other: float) -> None:
    moved = exact([*gains, other]) - exact(gains)
    assert np.linalg.norm(moved) <= 1 + 1e-5


def test_a_patient_at_the_bound_moves_it_by_one() -> None:
    assert np.linalg.norm(exact([99.0]) - exact([])) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_gain_that_is_not_finite_adds_nothing(broken: float) -> None:
    assert np.array_equal(exact([1.0, broken]), exact([1.0]))


def test_the_noise_is_the_claimed_one() -> None:
    sums = [release_gain([1.0, -0.5], RELEASE, KnownStream(seed * 10)) for seed in range(600)]
    noise = (np.stack(sums) - exact([1.0, -0.5])) / RELEASE.noise_multiplier
    assert kstest(noise.ravel(), "norm").pvalue > 0.01
    # and half of it would be found
    assert kstest(0.67 * noise.ravel(), "norm").pvalue < 1e-6
    assert abs(np.corrcoef(noise.T)[0, 1]) < 0.15


def test_without_patients_two_numbers_are_sent_all_the_same() -> None:
    assert release_gain([], RELEASE, SecureStream()).shape == (2,)
    assert release_gain([], RELEASE, SecureStream()).dtype == np.float32


def test_the_mean_is_that_of_clipped_gains_over_all_sites() -> None:
    sites = [[0.5, 0.7, 5.0], [-0.2, -9.0], [1.0] * 40]
    sums = [release_gain(gains, SILENT, SecureStream()) for gains in sites]
    found = pooled_gain(sums, SILENT)
    clipped = np.clip(np.concatenate([np.array(gains) for gains in sites]), -2, 2)
    assert found.value_db == pytest.approx(clipped.mean(), abs=1e-3)
    assert found.sites == 3
    assert found.verdict == "helped"
    harmed = pooled_gain([release_gain([-1.0] * 40, SILENT, SecureStream())], SILENT)
    assert harmed.verdict == "harmed"


def test_the_interval_covers_the_truth_at_least_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    missed = verdicts = 0
    for run in range(400):
        sites = [rng.normal(0.6, 0.8, 60).clip(-2, 2) for _ in range(4)]
        sums = [
            release_gain(gains.tolist(), RELEASE, KnownStream(1000 * run + 10 * index))
            for index, gains in enumerate(sites)
        ]
        found = pooled_gain(sums, RELEASE)
        assert found.low_db is not None
        assert found.high_db is not None
        missed += not found.low_db <= 0.58 <= found.high_db
        verdicts += found.verdict == "helped"
    assert missed <= 20
    # it is of use: with 240 patients half a decibel is shown
    assert verdicts > 200


def test_a_mixer_without_effect_is_seldom_said_to_help() -> None:
    rng = np.random.default_rng(4)
    helped = 0
    for run in range(400):
        gains = rng.normal(0.0, 0.8, 240).clip(-2, 2)
        sums = [release_gain(gains.tolist(), RELEASE, KnownStream(1000 * run))]
        helped += pooled_gain(sums, RELEASE).verdict != "undecided"
    assert helped <= 20


def test_noise_that_hides_the_number_of_patients_gives_no_value() -> None:
    sums = [release_gain([2.0] * 5, RELEASE, KnownStream(seed)) for seed in range(3)]
    for found in (pooled_gain(sums, RELEASE), pooled_gain([], RELEASE)):
        assert found == PooledGain(None, None, None, found.sites)
        assert found.verdict == "undecided"


def test_the_gain_is_paid_for_and_plans_without_it_are_what_they_were() -> None:
    base = plan(LOCAL)
    base = base.model_copy(update={"mixer": base.mixer.model_copy(update={"contrast": "none"})})
    with_gain = LOCAL.model_copy(update={"gain": RELEASE})
    paid = base.model_copy(update={"privacy": with_gain})
    releases = planned_releases(paid)
    assert [one.purpose for one in releases] == ["start", GAIN, STEPS]
    cost = epsilon([Mechanism(10.0), Mechanism(4.0), Mechanism(3.0, 0.16, 300)], DELTA)
    told = describe_privacy(paid, ["east", "west"])
    assert told["epsilon"] == pytest.approx(cost, abs=1e-4)
    assert float(str(told["epsilon"])) > float(
        str(describe_privacy(base, ["east", "west"])["epsilon"])
    )
    assert "gain" not in base.canonical_json()
    assert paid.digest() != base.digest()
    assert Plan.model_validate_json(paid.canonical_json()).privacy == with_gain


@pytest.mark.parametrize(
    ("changes", "seen"),
    [
        ({"privacy": {"mode": "patient-central"}}, "patient-local"),
        ({"mixer": {"contrast": "curves"}}, "contrast: none"),
    ],
)
def test_a_gain_that_noise_would_not_cover_is_refused(
    changes: dict[str, dict[str, object]], seen: str
) -> None:
    data = {
        "task": {"source": ["t1n"], "target": "t2f"},
        "mixer": {"contrast": "none"},
        "federation": {"rounds": 1, "deadline_s": 60},
        "training": {"steps": 1},
        "privacy": {
            "mode": "patient-local",
            "delta": 1e-4,
            "public_patients": 10,
            "clip_norm": 0.1,
            "noise_multiplier": 3.0,
            "sampling_rate": 0.1,
            "gain": {"noise_multiplier": 4.0},
        },
    }
    fitting = Plan.from_data(data, "plan").privacy
    assert isinstance(fitting, PatientGradients)
    assert fitting.gain == GainRelease(noise_multiplier=4.0)
    for section, change in changes.items():
        data[section] = {**data[section], **change}  # type: ignore[dict-item]  # mixed values
    with pytest.raises(ConfigError) as refused:
        Plan.from_data(data, "plan")
    assert seen in refused.value.seen
