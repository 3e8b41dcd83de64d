"""Bootstrap intervals: laws, coverage, and scipy's bootstrap as an independent source."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap

from lift.metrics.intervals import Interval, bootstrap_mean, paired_difference

figure = st.floats(-1e6, 1e6)


@given(st.lists(figure, min_size=2, max_size=20), st.integers(0, 2**63 - 1))
def test_the_interval_is_ordered_bounded_and_blind_to_order(values: list[float], seed: int) -> None:
    found = bootstrap_mean(values, seed=seed, samples=50)
    shuffled = list(values)
    np.random.default_rng(seed).shuffle(shuffled)
    assert bootstrap_mean(shuffled, seed=seed, samples=50) == found
    assert found.low is not None
    assert found.high is not None
    slack = 1e-12 * max(abs(value) for value in values)
    assert min(values) - slack <= found.low <= found.high <= max(values) + slack
    assert found.value == pytest.approx(sum(values) / len(values), abs=1e-9 + slack)
    assert found.n == len(values)


def test_a_single_patient_has_no_interval() -> None:
    assert bootstrap_mean([3.5], seed=0) == Interval(value=3.5, low=None, high=None, n=1)


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert bootstrap_mean([0.25] * 6, seed=0) == Interval(value=0.25, low=0.25, high=0.25, n=6)


def test_the_seed_decides_the_interval() -> None:
    values = list(np.random.default_rng(0).normal(size=12))
    assert bootstrap_mean(values, seed=1) == bootstrap_mean(values, seed=1)
    assert bootstrap_mean(values, seed=1) != bootstrap_mean(values, seed=2)


@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_the_interval_equals_scipys_percentile_bootstrap(confidence: float) -> None:
    values = np.random.default_rng(1).gamma(2.0, size=25)
    found = bootstrap_mean(values.tolist(), seed=3, samples=100_000, confidence=confidence)
    expected = bootstrap(
        (values,),
        np.mean,
        method="percentile",
        n_resamples=100_000,
        confidence_level=confidence,
        rng=np.random.default_rng(4),
    ).confidence_interval
    # two such tail quantiles differ by .012 deviations of the mean (one standard error)
    tolerance = 0.06 * values.std() / np.sqrt(len(values))
    assert found.low == pytest.approx(expected.low, abs=tolerance)
    assert found.high == pytest.approx(expected.high, abs=tolerance)


def test_the_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    random = np.random.default_rng(2)
    covered = {0.5: 0, 0.95: 0}
    for trial in range(400):
        values = random.normal(1.0, 2.0, 40).tolist()
        for confidence in covered:
            found = bootstrap_mean(values, seed=trial, samples=200, confidence=confidence)
            assert found.low is not None
            assert found.high is not None
            covered[confidence] += found.low <= 1.0 <= found.high
    # four standard errors of 400 trials, and the bootstrap's own slight optimism
    assert 0.88 < covered[0.95] / 400 < 0.985
    assert 0.38 < covered[0.5] / 400 < 0.6


def test_pairing_removes_what_patients_share() -> None:
    random = np.random.default_rng(3)
    patient = random.normal(20.0, 5.0, 16)
    better = (patient + 0.5 + random.normal(0, 0.05, 16)).tolist()
    paired = paired_difference(better, patient.tolist(), seed=0)
    alone = bootstrap_mean(better, seed=0)
    assert paired.interval.low is not None
    assert paired.interval.high is not None
    assert alone.low is not None
    assert alone.high is not None
    assert 0.4 < paired.interval.low < paired.interval.high < 0.6
    assert alone.high - alone.low > 1.0
    assert paired.wins == paired.interval.n == 16


@given(st.lists(st.tuples(figure, figure), min_size=1, max_size=12))
def test_exchanging_the_methods_turns_the_difference_around(
    pairs: list[tuple[float, float]],
) -> None:
    a, b = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    forth = paired_difference(a, b, seed=0, samples=20)
    back = paired_difference(b, a, seed=0, samples=20)
    assert forth.interval.value == pytest.approx(-back.interval.value, abs=1e-6)
    ties = sum(x == y for x, y in pairs)
    assert forth.wins + back.wins + ties == len(pairs)


def test_wins_follow_what_is_better() -> None:
    a, b = [0.5, 2.0, 1.0, 0.0], [1.5, 4.0, 1.0, 0.1]
    assert paired_difference(a, b, seed=0, better="higher").wins == 0
    assert paired_difference(a, b, seed=0, better="lower").wins == 3
    # on a log scale .5 is farther from 1 than 1.5, 2 is nearer than 4, 0 is infinitely far
    assert paired_difference(a, b, seed=0, better="nearer_one").wins == 1
    assert paired_difference([0.5, 2.0], [2.0, 0.5], seed=0, better="nearer_one").wins == 0


def test_values_that_have_no_mean_are_refused() -> None:
    for values in ([], [1.0, float("nan")], [float("inf")]):
        with pytest.raises(ValueError, match="one finite value per patient"):
            bootstrap_mean(values, seed=0)
    with pytest.raises(ValueError, match="equally many"):
        paired_difference([1.0, 2.0], [1.0], seed=0)
    with pytest.raises(ValueError, match="confidence"):
        bootstrap_mean([1.0, 2.0], seed=0, confidence=95.0)


def test_examinations_of_one_person_are_one_value() -> None:
    values = np.random.default_rng(2).normal(size=6)
    # three examinations each, which say the same but for a little
    seen = np.repeat(values, 3) + np.tile([-0.01, 0.0, 0.01], 6)
    persons = [f"person {index}" for index in range(6) for _ in range(3)]
    found = bootstrap_mean(seen.tolist(), seed=5, persons=persons)
    alone = bootstrap_mean(values.tolist(), seed=5)
    assert found.n == 6
    assert (found.value, found.low, found.high) == pytest.approx(
        (alone.value, alone.low, alone.high), abs=1e-12
    )
    # the same rows as so many persons: an interval that is far too narrow
    rows = bootstrap_mean(seen.tolist(), seed=5)
    assert rows.n == 18
    assert None not in (rows.low, rows.high, found.low, found.high)
    assert (rows.high or 0) - (rows.low or 0) < 0.8 * ((found.high or 0) - (found.low or 0))


def test_an_interval_over_persons_covers_where_one_over_examinations_does_not() -> None:
    rng = np.random.default_rng(8)
    persons = [index for index in range(12) for _ in range(5)]
    missed = {"persons": 0, "examinations": 0}
    for seed in range(200):
        means = np.repeat(rng.normal(size=12), 5)
        values = (means + rng.normal(0, 0.1, 60)).tolist()
        for kind, whose in (("persons", persons), ("examinations", None)):
            found = bootstrap_mean(values, seed=seed, persons=whose, samples=400)
            assert found.low is not None
            assert found.high is not None
            missed[kind] += not found.low <= 0 <= found.high
    assert missed["persons"] < 40
    assert missed["examinations"] > 80


def test_a_person_counts_once_however_many_examinations_there_are() -> None:
    found = bootstrap_mean([1.0, 1.0, 1.0, 3.0], seed=0, persons=["a", "a", "a", "b"])
    assert (found.value, found.n) == (2.0, 2)
    paired = paired_difference(
        [1.0, 1.0, 4.0, 3.0], [0.0, 3.0, 3.0, 1.0], seed=0, persons=["a", "a", "a", "b"]
    )
    assert paired.interval.n == 2
    assert paired.interval.value == pytest.approx(1.0)
    # in the mean of its three, "a" is no better
    assert paired.wins == 1


@given(st.lists(figure, min_size=1, max_size=12), st.integers(0, 2**32))
def test_persons_with_one_examination_change_no_bit(values: list[float], seed: int) -> None:
    persons = list(range(len(values)))
    assert bootstrap_mean(values, seed=seed, persons=persons, samples=20) == bootstrap_mean(
        values, seed=seed, samples=20
    )


def test_a_value_without_a_person_is_refused() -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        bootstrap_mean([1.0, 2.0], seed=0, persons=["a"])
