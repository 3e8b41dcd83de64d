"""The classifier test: its solver, its AUC of sets of one source, and what must not sway it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.spatial.distance import cdist
from scipy.stats import mannwhitneyu

from lift.metrics.classifier import (
    FEWEST,
    FOLDS,
    Auc,
    auc_interval,
    classifier_auc,
    grouped_folds,
    logistic_direction,
    mutual_nearest,
    within_auc,
)
from lift.metrics.synthrad import Floats


def rows(seed: int, count: int, width: int = 40, shift: float = 0.0) -> Floats:
    """Rows with columns that hang together, as those of volumes do."""
    common = np.random.default_rng(5).normal(size=(6, width))
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, 6)) @ common + 0.3 * rng.normal(size=(count, width)) + shift


def auc(one: Floats, other: Floats, **settings: object) -> Auc:
    found = classifier_auc(one, other, seed=1, **settings)  # type: ignore[arg-type]
    assert found is not None
    return found


@pytest.mark.parametrize(("count", "width"), [(30, 8), (20, 50)])
@pytest.mark.parametrize("penalty", [0.01, 3.0])
def test_the_direction_is_the_minimum_that_a_general_solver_finds(
    count: int, width: int, penalty: float
) -> None:
    rng = np.random.default_rng(count)
    x: Floats = rng.normal(size=(count, width)) / np.sqrt(width)
    y = np.repeat([0.0, 1.0], count // 2)
    x[y == 1] += 0.1

    def loss(values: Floats) -> float:
        scores = x @ values[:-1] + values[-1]
        fit = np.logaddexp(0, scores) - y * scores
        return float(fit.sum() + penalty / 2 * np.square(values[:-1]).sum())

    best = minimize(loss, np.zeros(width + 1), method="BFGS", options={"gtol": 1e-7})
    found = logistic_direction(x, y, penalty)
    assert found == pytest.approx(best.x[:-1], abs=2e-4)


def test_rows_that_do_not_differ_have_no_direction() -> None:
    labels = np.repeat([0.0, 1.0], 3)
    assert not logistic_direction(np.zeros((6, 4)), labels, 1.0).any()


def test_the_auc_is_mann_whitneys_share_of_pairs() -> None:
    one, other = np.array([0.1, 0.4, 0.4, 2.0]), np.array([0.4, 0.0, 1.0])
    assert within_auc(one, other) == pytest.approx(mannwhitneyu(one, other).statistic / 12)
    assert within_auc(one, one) == 0.5


@pytest.mark.parametrize(("n", "m"), [(30, 30), (24, 70)])
def test_sets_of_one_source_are_at_one_half_and_their_intervals_hold_it(n: int, m: int) -> None:
    found = [auc(rows(2 * i, n), rows(2 * i + 1, m), repeats=2) for i in range(40)]
    values = np.array([one.value for one in found])
    assert abs(values.mean() - 0.5) < 3 * values.std() / np.sqrt(len(values))
    assert values.std() < 0.15
    assert np.mean([one.low <= 0.5 <= one.high for one in found]) > 0.9


def test_a_shift_is_found_and_the_more_surely_the_larger_it_is() -> None:
    values = [auc(rows(0, 40), rows(1, 40, shift=shift)).value for shift in (0.0, 0.1, 1.0)]
    assert values[0] < values[1] < values[2]
    assert values[2] > 0.99


def test_rows_far_apart_have_an_interval_below_one() -> None:
    found = auc(rows(0, 40), rows(1, 40, shift=5.0))
    assert found.value == found.high == 1
    assert 0.8 < found.low < 0.95


def test_fewer_than_twenty_rows_have_no_figure() -> None:
    assert classifier_auc(rows(0, FEWEST - 1), rows(1, 90), seed=0) is None
    assert classifier_auc(rows(0, 90), rows(1, FEWEST - 1), seed=0) is None
    found = classifier_auc(rows(0, FEWEST), rows(1, 90), seed=0, repeats=1)
    assert found is not None
    assert found.n == FEWEST


def apart(one: Floats, other: Floats) -> Floats:
    both = np.concatenate([one, other])
    return np.asarray(cdist(both, both))


@pytest.mark.parametrize("kinship", [1.0, 0.95])
def test_relatives_across_the_sets_bring_no_auc_far_below_one_half(kinship: float) -> None:
    one = rows(0, 40)
    other = kinship * one + np.sqrt(1 - kinship**2) * rows(1, 40)
    other = other[np.random.default_rng(0).permutation(40)]
    assert auc(one, other).value < 0.4
    assert auc(one, other, distances=apart(one, other)).value == pytest.approx(0.5, abs=0.06)


def test_pairing_the_nearest_leaves_sets_of_one_source_at_one_half() -> None:
    values = []
    for i in range(40):
        one, other = rows(2 * i, 30), rows(2 * i + 1, 30)
        values.append(auc(one, other, distances=apart(one, other), repeats=2).value)
    assert abs(np.mean(values) - 0.5) < 3 * np.std(values) / np.sqrt(len(values))


def test_nearest_pairs_are_mutual_and_no_row_is_in_two() -> None:
    points = np.array([[0.0], [1.0], [1.4], [5.0], [5.1], [5.1]])
    found = mutual_nearest(apart(points[:2], points[2:]))
    assert found.tolist() == [[1, 2], [4, 5]]


def test_folds_hold_about_equally_many_of_either_set_and_every_pair() -> None:
    rng = np.random.default_rng(0)
    side = np.repeat([0, 1], 33)
    pairs = rng.permutation(66)[:48].reshape(24, 2).astype(np.intp)
    fold = grouped_folds(side, pairs, rng)
    assert (fold[pairs[:, 0]] == fold[pairs[:, 1]]).all()
    for which in (0, 1):
        assert np.ptp(np.bincount(fold[side == which], minlength=FOLDS)) <= 3
    alone = grouped_folds(side, np.empty((0, 2), dtype=np.intp), rng)
    for which in (0, 1):
        assert np.ptp(np.bincount(alone[side == which], minlength=FOLDS)) <= 1


def test_a_least_spread_makes_faint_differences_none() -> None:
    one, other = rows(0, 40), rows(1, 40)
    # a column that hardly varies, and differs between the sets by less than 1% of the others
    faint = [np.column_stack([x, 0.001 * i + 1e-6 * x[:, 0]]) for i, x in enumerate((one, other))]
    assert auc(*faint).value == 1
    assert auc(*faint, least_spread=0.1).value < 0.8


def test_the_same_seed_gives_the_same_bits_and_another_one_other_folds() -> None:
    one, other = rows(0, 30), rows(1, 45, shift=0.1)
    assert auc(one, other) == auc(one.copy(), other.copy())
    assert classifier_auc(one, other, seed=2) != auc(one, other)


def test_constant_columns_do_no_harm() -> None:
    one, other = (np.column_stack([rows(i, 25), np.ones(25)]) for i in (0, 1))
    assert auc(one, other).value == pytest.approx(auc(one[:, :-1], other[:, :-1]).value, abs=0.03)


def test_the_interval_is_newcombes() -> None:
    # by its definition: each end puts the value 1.96 of its own standard errors away
    for value, n, m in ((0.5, 30, 30), (0.8, 25, 60), (0.97, 12.5, 12.5)):
        for end in auc_interval(value, n, m):
            mean = (n + m) / 2
            inner = 1 + (mean - 1) * ((1 - end) / (2 - end) + end / (1 + end))
            error = np.sqrt(end * (1 - end) * inner / (n * m))
            assert abs(end - value) == pytest.approx(1.959964 * error, abs=1e-6)
    assert auc_interval(0.0, 20, 20)[0] == 0
    assert auc_interval(1.0, 20, 20)[1] == 1
    low, high = auc_interval(0.5, 40, 40)
    assert high - 0.5 == pytest.approx(0.5 - low)
