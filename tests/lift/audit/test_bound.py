"""The bound of the canary audit against counts by hand, simulations and exact distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import binom

from lift.audit.canary import CanaryAudit, canary_scores, epsilon_lower_bound, flat, p_value

counts = st.integers(1, 60).flatmap(
    lambda m: st.integers(1, m).flatmap(
        lambda r: st.tuples(st.just(m), st.just(r), st.integers(0, r))
    )
)
epsilons = st.floats(0, 5)
deltas = st.floats(0, 0.05)


def test_p_value_is_how_often_randomised_response_does_as_well() -> None:
    random = np.random.default_rng(3)
    m, epsilon, runs = 20, 1.0, 40_000
    coins = random.random((runs, m)) < 0.5
    told = coins ^ (random.random((runs, m)) > expit(epsilon))
    # the guess is what was told, of the first 15
    right = (told == coins)[:, :15].sum(1)
    for correct in range(16):
        seen = float((right >= correct).mean())
        expected = p_value(m, 15, correct, epsilon, 0.0)
        assert abs(seen - expected) < 5 * math.sqrt(expected * (1 - expected) / runs) + 1e-9


def test_p_values_by_hand() -> None:
    epsilon = math.log(3)  # a guess is right with probability 3/4
    assert p_value(1, 1, 1, epsilon, 0.01) == pytest.approx(3 / 4 + 2 * 0.01 / 4)
    # both right 9/16; one short 6/16, up to two short (6/16 + 1/16) / 2; m is 2
    assert p_value(2, 2, 2, epsilon, 0.01) == pytest.approx(9 / 16 + 2 * 2 * 0.01 * 6 / 16)
    # at epsilon 0: eight fair coins; one short 8/256, two short 36/512, three 92/768,
    # four 162/1024, five 218/1280, six 246/1536, seven 254/1792: five is the most
    expected = 1 / 256 + 2 * 10 * 0.001 * 218 / 1280
    assert p_value(10, 8, 8, 0.0, 0.001) == pytest.approx(expected)
    assert p_value(10, 8, 0, 0.0, 0.001) == 1.0


@given(counts, epsilons, deltas)
def test_no_randomised_response_that_sometimes_tells_all_beats_the_p_value(
    numbers: tuple[int, int, int], epsilon: float, delta: float
) -> None:
    # with probability delta the coin itself is shown: (epsilon, delta)-DP, and exactly known
    m, guesses, correct = numbers
    right = expit(epsilon)
    exact = binom.sf(correct - 1, guesses, delta + (1 - delta) * right)
    assert exact <= p_value(m, guesses, correct, epsilon, delta) + 1e-12


@given(counts, epsilons, deltas)
def test_p_value_grows_with_epsilon_and_delta_and_falls_with_right_guesses(
    numbers: tuple[int, int, int], epsilon: float, delta: float
) -> None:
    m, guesses, correct = numbers
    found = p_value(m, guesses, correct, epsilon, delta)
    pure = p_value(m, guesses, correct, epsilon, 0.0)
    assert 0 <= pure <= found <= 1
    assert found <= p_value(m, guesses, correct, epsilon, 2 * delta) + 1e-12
    assert pure <= p_value(m, guesses, correct, epsilon + 0.1, 0.0) + 1e-12
    assert pure <= p_value(m, guesses, max(0, correct - 1), epsilon, 0.0) + 1e-12


@given(counts, deltas)
def test_every_epsilon_below_the_bound_is_refuted_and_none_above(
    numbers: tuple[int, int, int], delta: float
) -> None:
    m, guesses, correct = numbers
    bound = epsilon_lower_bound(m, guesses, correct, delta)
    for share in (0.0, 0.3, 0.6, 0.99):
        if bound > 1e-3:
            assert p_value(m, guesses, correct, share * bound, delta) < 0.05
    for more in (1e-4, 0.1, 1.0, 3.0):
        assert p_value(m, guesses, correct, bound + more, delta) >= 0.05


def test_bound_when_all_guesses_are_right_is_where_that_has_probability_one_in_twenty() -> None:
    for guesses, about in ((50, 2.78), (100, 3.50), (220, 4.29)):
        right = 0.05 ** (1 / guesses)
        bound = epsilon_lower_bound(400, guesses, guesses, 0.0)
        assert bound == pytest.approx(math.log(right / (1 - right)), abs=1e-4)
        assert bound == pytest.approx(about, abs=0.01)
    assert epsilon_lower_bound(400, 100, 50, 0.0) == 0.0
    assert epsilon_lower_bound(400, 100, 100, 1e-3) < epsilon_lower_bound(400, 100, 100, 0.0)


@pytest.mark.parametrize("epsilon", [0.2, 1.0, 2.5])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_bound_passes_the_true_epsilon_no_more_often_than_it_says(
    epsilon: float, confidence: float
) -> None:
    # randomised response with 60 guesses, exactly: by the probability of each outcome
    bounds = [epsilon_lower_bound(80, 60, v, 0.0, confidence=confidence) for v in range(61)]
    chances = binom.pmf(np.arange(61), 60, expit(epsilon))
    passed = sum(c for c, b in zip(chances, bounds, strict=True) if b > epsilon + 1e-6)
    # and it is not far too careful
    assert 0.1 * (1 - confidence) < passed <= 1 - confidence


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="correct <= guesses <= canaries"):
        p_value(10, 11, 3, 1.0, 0.0)
    with pytest.raises(ValueError, match="correct <= guesses <= canaries"):
        p_value(10, 5, 6, 1.0, 0.0)
    with pytest.raises(ValueError, match="delta in"):
        p_value(10, 5, 3, 1.0, 1.5)
    with pytest.raises(ValueError, match="epsilon >= 0"):
        p_value(10, 5, 3, math.nan, 0.0)
    with pytest.raises(ValueError, match="confidence"):
        epsilon_lower_bound(10, 5, 3, 0.0, confidence=1.0)


def test_scores_without_noise_tell_apart_canaries_that_resemble_each_other() -> None:
    random = np.random.default_rng(0)
    directions = random.standard_normal((40, 200)) + 2 * random.standard_normal(200)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    is_in = random.random(40) < 0.5
    exact = torch.from_numpy(is_in @ directions)
    scores = canary_scores([{"a": exact[:50], "b": exact[50:].reshape(3, 50)}], directions)
    assert scores[is_in].min() > scores[~is_in].max() + 0.9


def test_scores_count_only_the_steps_that_have_weight() -> None:
    directions = np.eye(4, 10)
    releases = [{"w": torch.from_numpy(directions[step])} for step in range(4)]
    late = np.zeros((4, 4))
    late[:, 3] = 1.0
    scores = canary_scores(releases, directions, late)
    assert int(np.argmax(scores)) == 3
    assert np.allclose(scores[:3], scores[0])


def test_flat_orders_numbers_by_name() -> None:
    assert flat({"b": torch.ones(2), "a": torch.zeros(1, 2)}).tolist() == [0.0, 0.0, 1.0, 1.0]


def test_a_claim_that_no_guesses_could_refute_is_not_meaningful() -> None:
    small = CanaryAudit("", 100, 50, 50, 1e-5, 1.0, 2.7)
    assert small.meaningful
    assert not small.passed
    # 50 guesses refute nothing above 2.78; 400 could, but the claim is above 4
    assert not CanaryAudit("", 100, 50, 20, 1e-5, 3.0, 0.0).meaningful
    assert not CanaryAudit("", 1000, 400, 200, 0.0, 4.5, 0.0).meaningful
