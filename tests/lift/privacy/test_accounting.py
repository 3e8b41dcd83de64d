"""Epsilon: what independent accountants and closed forms say, and never less than is true."""

from __future__ import annotations

import math
import warnings
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from lift.errors import BudgetSpentError
from lift.privacy import accounting
from lift.privacy.accounting import Mechanism, epsilon, noise_multiplier_for

# (q, noise multiplier, steps, delta): cohorts of 100, 500 and 2000 patients at epsilon 1, 3, 8
SETTINGS = (
    (0.16, 7.2, 300, 1e-3),
    (0.16, 3.0, 300, 1e-3),
    (0.16, 1.5, 300, 1e-3),
    (0.064, 1.9, 500, 1e-4),
    (0.064, 1.06, 500, 1e-4),
    (0.032, 3.9, 1000, 1e-5),
    (0.032, 1.6, 1000, 1e-5),
    (0.032, 0.91, 1000, 1e-5),
)
MECHANISMS = st.builds(
    Mechanism,
    noise_multiplier=st.sampled_from([0.7, 1.0, 3.0, 20.0]),
    q=st.sampled_from([0.001, 0.03, 0.5, 1.0]),
    steps=st.integers(1, 400),
)


def prv(q: float, noise: float, steps: int, delta: float) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus.accountants import PRVAccountant

        accountant = PRVAccountant()
        accountant.history = [(noise, q, steps)]
        return float(accountant.get_epsilon(delta, eps_error=0.005, delta_error=delta / 1000))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Balle and Wang 2018, arXiv:1805.06530, theorem 8: one release with noise 1/mu."""

    def excess(eps: float) -> float:
        return float(
            norm.cdf(mu / 2 - eps / mu) - math.exp(eps) * norm.cdf(-mu / 2 - eps / mu) - delta
        )

    return float(brentq(excess, 0, 60)) if excess(0) > 0 else 0.0


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_epsilon_agrees_with_an_independent_accountant(
    setting: tuple[float, float, int, float],
) -> None:
    q, noise, steps, delta = setting
    ours = epsilon([Mechanism(noise, q, steps)], delta)
    other = prv(*setting)
    assert abs(ours - other) <= 0.02
    assert ours >= other - 0.01
    if steps == 300:
        # a twentieth more noise does not pass for the same
        assert epsilon([Mechanism(noise * 1.05, q, steps)], delta) < other - 0.02


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_rdp_is_an_upper_bound_that_is_looser_by_some_percent(
    setting: tuple[float, float, int, float],
) -> None:
    q, noise, steps, delta = setting
    mechanism = Mechanism(noise, q, steps)
    assert 1.04 < epsilon([mechanism], delta, "rdp") / epsilon([mechanism], delta) < 1.2


@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-9])
@pytest.mark.parametrize("mu", [0.1, 1.0, 2.0])
def test_plain_gaussian_releases_agree_with_the_closed_form(mu: float, delta: float) -> None:
    exact = gaussian_epsilon(mu, delta)
    assert epsilon([Mechanism(1 / mu)], delta) == pytest.approx(exact, abs=1e-4)
    many = [Mechanism(10 / mu, steps=75), Mechanism(20 / mu, steps=100)]
    assert epsilon(many, delta) == pytest.approx(exact, abs=1e-4)


def test_repeated_convolution_keeps_to_the_closed_form_at_the_smallest_delta() -> None:
    # so near to 1 that sampling changes nothing, yet the long way round is taken
    almost = Mechanism(20.0, q=1 - 1e-12, steps=400)
    assert epsilon([almost], 1e-9) == pytest.approx(gaussian_epsilon(1.0, 1e-9), abs=1e-3)


def test_order_and_splitting_of_entries_change_nothing() -> None:
    whole = [Mechanism(1.9, 0.064, 60), Mechanism(5.0), Mechanism(3.0, 0.064, 40)]
    split = [Mechanism(3.0, 0.064, 1)] * 40 + [Mechanism(5.0)] + [Mechanism(1.9, 0.064, 20)] * 3
    for accountant in ("pld", "rdp"):
        assert epsilon(whole, 1e-4, accountant) == epsilon(split, 1e-4, accountant)
        assert epsilon(whole, 1e-4, accountant) == epsilon(whole[::-1], 1e-4, accountant)


def test_composition_is_not_a_sum_of_epsilons() -> None:
    one, other = Mechanism(1.9, 0.064, 250), Mechanism(3.0, 0.064, 250)
    together = epsilon([one, other], 1e-4)
    assert together > max(epsilon([one], 1e-4), epsilon([other], 1e-4))
    assert together < epsilon([one], 1e-4) + epsilon([other], 1e-4) - 0.3


def test_composition_of_settings_agrees_with_an_independent_accountant() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus.accountants import PRVAccountant

        accountant = PRVAccountant()
        accountant.history = [(1.9, 0.064, 250), (3.0, 0.1, 100), (1.2, 0.03, 200)]
        other = float(accountant.get_epsilon(1e-4, eps_error=0.005, delta_error=1e-7))
    ours = epsilon([Mechanism(*row) for row in accountant.history], 1e-4)
    assert other - 0.01 <= ours <= other + 0.02


def test_nothing_costs_nothing_and_no_noise_costs_everything() -> None:
    for free in ([], [Mechanism(1.0, 0.0, 5)], [Mechanism(1.0, 0.5, 0)], [Mechanism(0.0, 0.0, 5)]):
        assert epsilon(free, 1e-5) == 0
        assert epsilon(free, 1e-5, "rdp") == 0
    for bare in (Mechanism(0.0), Mechanism(0.0, 0.01, 3)):
        for accountant in ("pld", "rdp"):
            assert epsilon([Mechanism(5.0), bare], 1e-5, accountant) == math.inf


def test_too_little_noise_gets_a_large_bound_in_bounded_time_and_memory() -> None:
    for noise, q in ((1e-200, 1.0), (1e-200, 0.5), (0.01, 1e-6), (0.29, 0.1)):
        cost = epsilon([Mechanism(noise, q, 1000)], 1e-5)
        assert cost > 30
        assert cost == epsilon([Mechanism(noise, q, 1000)], 1e-5, "rdp")
    # both sides of the border where RDP takes over
    below, above = (epsilon([Mechanism(s, 1e-4, 2)], 1e-5) for s in (0.299, 0.3))
    assert below >= above


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_epsilon_grows_with_steps_and_sampling_and_falls_with_noise_and_delta(
    accountant: accounting.Accountant,
) -> None:
    def rising(values: list[float]) -> bool:
        return all(first < second for first, second in pairwise(values))

    noises, rates, counts = (8.0, 4.0, 2.0, 1.0), (0.01, 0.05, 0.2, 1.0), (50, 51, 200, 400)
    assert rising([epsilon([Mechanism(s, 0.05, 200)], 1e-5, accountant) for s in noises])
    assert rising([epsilon([Mechanism(4.0, q, 200)], 1e-5, accountant) for q in rates])
    assert rising([epsilon([Mechanism(4.0, 0.05, n)], 1e-5, accountant) for n in counts])
    assert rising([epsilon([Mechanism(4.0, 0.05, 200)], d, accountant) for d in (1e-3, 1e-5, 1e-7)])


@given(st.lists(MECHANISMS, min_size=1, max_size=5), MECHANISMS)
def test_one_more_release_never_lowers_epsilon(
    mechanisms: list[Mechanism], more: Mechanism
) -> None:
    before, after = epsilon(mechanisms, 1e-5, "rdp"), epsilon([*mechanisms, more], 1e-5, "rdp")
    assert after >= before
    assert after >= epsilon([more], 1e-5, "rdp")


@pytest.mark.parametrize(
    ("target", "q", "steps", "expected"), [(1.0, 0.16, 300, 7.22), (2.0, 0.032, 1000, 2.183)]
)
def test_the_noise_found_keeps_the_target_and_is_hardly_more_than_needed(
    target: float, q: float, steps: int, expected: float
) -> None:
    delta = 1e-3 if q > 0.1 else 1e-5
    found = noise_multiplier_for(target, delta, q=q, steps=steps)
    assert found == pytest.approx(expected, rel=0.01)
    assert epsilon([Mechanism(found, q, steps)], delta) <= target
    assert epsilon([Mechanism(found / 1.002, q, steps)], delta) > target


def test_the_noise_found_by_rdp_keeps_the_target_by_rdp() -> None:
    found = noise_multiplier_for(2.0, 1e-4, q=0.064, steps=500, accountant="rdp")
    assert epsilon([Mechanism(found, 0.064, 500)], 1e-4, "rdp") <= 2.0
    assert epsilon([Mechanism(found / 1.002, 0.064, 500)], 1e-4, "rdp") > 2.0


def test_what_was_released_before_asks_for_more_noise() -> None:
    earlier = [Mechanism(6.0), Mechanism(4.0, 0.064, 100)]
    alone = noise_multiplier_for(1.0, 1e-4, q=0.064, steps=100)
    found = noise_multiplier_for(1.0, 1e-4, q=0.064, steps=100, already=earlier)
    assert found > 1.1 * alone
    assert epsilon([*earlier, Mechanism(found, 0.064, 100)], 1e-4) <= 1.0
    assert epsilon([*earlier, Mechanism(found / 1.002, 0.064, 100)], 1e-4) > 1.0


def test_no_noise_helps_when_the_budget_is_gone() -> None:
    with pytest.raises(BudgetSpentError, match="epsilon") as caught:
        noise_multiplier_for(1.0, 1e-4, q=0.01, steps=1, already=[Mechanism(2.0)])
    assert caught.value.exit_code == 5
    assert caught.value.seen
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("noise", "q", "steps"),
    [
        (-1.0, 0.5, 1),
        (math.nan, 0.5, 1),
        (math.inf, 0.5, 1),
        (1.0, -0.1, 1),
        (1.0, 1.1, 1),
        (1.0, math.nan, 1),
        (1.0, 0.5, -1),
    ],
)
def test_a_mechanism_that_cannot_be_is_refused(noise: float, q: float, steps: int) -> None:
    with pytest.raises(ValueError, match="seen"):
        Mechanism(noise, q, steps)


@pytest.mark.parametrize("delta", [0.0, 1e-10, 1.0, -1.0, math.nan])
def test_a_delta_out_of_range_is_refused(delta: float) -> None:
    with pytest.raises(ValueError, match="delta"):
        epsilon([Mechanism(1.0)], delta)


def test_other_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="accountant"):
        epsilon([], 1e-5, "gdp")  # type: ignore[arg-type]  # a name from outside
    for target in (0.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="target"):
            noise_multiplier_for(target, 1e-5, q=0.1, steps=1)
    for q, steps in ((0.0, 1), (0.1, 0)):
        with pytest.raises(ValueError, match="no release"):
            noise_multiplier_for(1.0, 1e-5, q=q, steps=steps)
