"""Figures of an attack: brute force over all pairs, hand-made thresholds, coverage, refusals."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from lift.audit.scores import (
    CAVEAT,
    AttackFigures,
    attack_figures,
    auc,
    rounded_count,
    tpr_at_fpr,
)
from lift.errors import DataError
from tests.lift.small_world import assert_four_parts

# few distinct values: ties must be frequent
scores = st.lists(st.integers(-4, 4).map(lambda i: i / 3), min_size=5, max_size=25)


def brute_auc(members: list[float], others: list[float]) -> float:
    pairs = [(a, b) for a in members for b in others]
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)


def brute_tpr(members: list[float], others: list[float], fpr: float) -> float:
    """The best of all thresholds, each tried."""
    best = 0.0
    for threshold in [*members, *others, math.inf]:
        false_alarms = sum(score >= threshold for score in others)
        if false_alarms <= fpr * len(others):
            best = max(best, sum(score >= threshold for score in members) / len(members))
    return best


@given(scores, scores, st.integers(0, 2**63 - 1))
def test_auc_and_tpr_equal_brute_force_over_pairs_and_thresholds(
    members: list[float], others: list[float], seed: int
) -> None:
    found = attack_figures(members, others, seed=seed)
    assert found.auc == pytest.approx(brute_auc(members, others), abs=0.005 + 1e-9)
    assert found.tpr == pytest.approx(brute_tpr(members, others, 0.01), abs=0.005 + 1e-9)
    assert 0 <= found.auc_low <= found.auc_high <= 1
    assert found.fpr_of_tpr == 0  # fewer than 100 others allow nothing else
    own, rest = np.asarray(members), np.asarray(others)
    assert auc(own, rest) == pytest.approx(1 - auc(rest, own))
    for allowed in (0.0, 0.1, 0.25, 1.0):
        tpr, fpr = tpr_at_fpr(own, rest, largest_fpr=allowed)
        assert tpr == pytest.approx(brute_tpr(members, others, allowed))
        assert fpr <= allowed


@given(scores, scores, st.integers(0, 100))
def test_the_order_of_patients_does_not_matter(
    members: list[float], others: list[float], seed: int
) -> None:
    again = attack_figures(members[::-1], sorted(others), seed=seed)
    assert again == attack_figures(members, others, seed=seed)


def test_the_threshold_lies_above_every_other_when_none_may_be_wrong() -> None:
    found = attack_figures([9, 8, 7, 6, 1], [7, 5, 5, 5, 5], seed=0)
    # the member at 7 is tied with an other and not counted
    assert (found.tpr, found.fpr_of_tpr) == (0.4, 0.0)


def test_one_of_a_hundred_may_be_wrong_and_not_one_of_ninety_nine() -> None:
    members = [10.0, 5.0, 5.0, 0.0, 0.0]
    many = [7.0] + [1.0] * 99
    found = attack_figures(members, many, seed=0)
    assert (found.tpr, found.fpr_of_tpr) == (0.6, 0.01)
    found = attack_figures(members, many[:-1], seed=0)
    assert (found.tpr, found.fpr_of_tpr) == (0.2, 0.0)


def test_two_others_tied_at_the_top_leave_no_threshold_between_them() -> None:
    members = [7.0, 7.0, 7.0, 7.0, 7.0]
    found = attack_figures(members, [7.0, 7.0] + [1.0] * 98, seed=0)
    assert (found.tpr, found.fpr_of_tpr) == (0.0, 0.0)
    found = attack_figures(members, [7.0] + [1.0] * 99, seed=0)
    assert (found.tpr, found.fpr_of_tpr) == (1.0, 0.01)


def test_an_allowance_that_brings_nothing_is_not_used() -> None:
    # 200 others allow 2 false alarms, and the third is tied with the second
    found = attack_figures([9.0] * 5, [8.0, 7.0, 7.0] + [0.0] * 197, seed=0)
    assert (found.tpr, found.fpr_of_tpr) == (1.0, 0.0)


def test_the_rate_of_false_alarms_has_three_decimals() -> None:
    found = attack_figures([5.0] * 5, [7.0] + [1.0] * 139, seed=0)
    assert found.fpr_of_tpr == 0.007


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_the_interval_holds_the_true_auc_as_often_as_it_says(shift: float) -> None:
    # for two normal distributions a deviation of 1 each: Phi(shift / sqrt 2)
    truth = float(norm.cdf(shift / math.sqrt(2)))
    rng = np.random.default_rng(8)
    trials, held, width = 200, 0, 0.0
    for trial in range(trials):
        members, others = rng.normal(shift, 1, 40), rng.normal(0, 1, 30)
        found = attack_figures(members.tolist(), others.tolist(), seed=trial)
        held += found.auc_low <= truth <= found.auc_high
        width += (found.auc_high - found.auc_low) / trials
    # 95% asked; 200 trials have a standard error of 1.5%
    assert 0.89 <= held / trials <= 0.99
    assert 0.15 < width < 0.35


def test_the_seed_decides_the_interval_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    members, others = rng.normal(0.5, 1, 12).tolist(), rng.normal(0, 1, 12).tolist()
    several = [attack_figures(members, others, seed=seed) for seed in (1, 1, 2, 3, 4)]
    assert several[0] == several[1]
    assert len({(one.auc_low, one.auc_high) for one in several}) > 1
    assert len({(one.auc, one.tpr, one.fpr_of_tpr) for one in several}) == 1


@pytest.mark.parametrize(("count", "told"), [(5, 5), (9, 5), (10, 10), (137, 135)])
def test_numbers_of_patients_are_rounded_down(count: int, told: int) -> None:
    assert rounded_count(count) == told
    found = attack_figures([1.0] * count, [0.0] * (count + 5), seed=0)
    assert (found.members, found.others) == (told, told + 5)


@pytest.mark.parametrize(("members", "others"), [(4, 50), (50, 4), (0, 0)])
def test_fewer_than_five_of_either_kind_are_refused(members: int, others: int) -> None:
    with pytest.raises(DataError) as caught:
        attack_figures([0.5] * members, [0.5] * others, seed=0)
    assert_four_parts(caught.value)
    # the exact number stays untold
    assert "fewer than 5" in caught.value.seen


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        attack_figures([0.0] * 5, [0.0] * 4 + [bad], seed=0)


def test_the_figures_are_frozen_rounded_and_carry_the_caveat() -> None:
    rng = np.random.default_rng(1)
    found = attack_figures(rng.normal(size=13).tolist(), rng.normal(size=17).tolist(), seed=0)
    assert found.CAVEAT == AttackFigures.CAVEAT == CAVEAT
    assert "no proof" in CAVEAT
    assert all(value == round(value, 2) for value in asdict(found).values())
    with pytest.raises(FrozenInstanceError):
        found.auc = 0.5  # type: ignore[misc]  # that it cannot be set is the test
