"""The cost of releases in epsilon, and the noise for a given epsilon.

Everything here is about one neighbour relation, **add or remove one patient**, and one
mechanism: Gaussian noise on a sum whose every patient contributes at most `clip_norm`, taken
over patients that were drawn by Poisson sampling with probability `q` (q = 1: all of them).

Releases are composed, never added up. The privacy loss distribution (PLD) decides: it is a
rigorous upper bound, tight to about .01 (Koskela et al. 2020, arXiv:1906.03049; Doroshenko et
al. 2022, arXiv:2207.04380). Renyi DP (RDP) is looser by some 7 to 15% and serves as the filter
across runs whose parameters were chosen after earlier results (Mironov 2017, arXiv:1702.07476;
Feldman and Zrnic 2021, arXiv:2008.11193). Both come from dp-accounting.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final, Literal, Self

import numpy as np

from lift.errors import BudgetSpentError
from lift.logs import without_messages

Accountant = Literal["pld", "rdp"]
SMALLEST_DELTA: Final = 1e-9
"""Below it the convolutions' rounding (some 1e-13 of mass) would begin to show."""
SMALLEST_PLD_NOISE: Final = 0.3
"""With less noise in one release the PLD's grid outgrows the memory; RDP bounds it instead."""
LARGEST_PLD_EPSILON: Final = 50.0
"""Beyond it (by RDP) nothing is protected, and RDP's bound is returned."""
LARGEST_NOISE: Final = 1e4
"""No more noise than this is ever proposed."""
NOISE_TOLERANCE: Final = 1e-3
"""A proposed noise multiplier is at most this share above the smallest one that will do."""
_GRID: Final = 1e-4
_LEAST_NOISE: Final = SMALLEST_PLD_NOISE / 2
_NO_NOISE: Final = 1e-6
_ORDERS: Final = (
    *(1 + quarter / 4 for quarter in range(3, 40)),
    *range(11, 64),
    *(64, 80, 96, 128, 192, 256, 512, 1024),
)
_Setting = tuple[float, float, int]


@dataclass(frozen=True)
class Mechanism:
    """`steps` releases with the same Gaussian noise and the same sampling.

    Attributes:
        noise_multiplier: noise's standard deviation divided by one patient's largest
            contribution (its L2 norm); 0 means that the sum itself is released.
        q: probability with which each patient takes part in a step, independently of all
            others. 1 is the plain Gaussian mechanism. Shuffled batches are not Poisson samples
            and must be given as q = 1.
        steps: how many such releases; 0 costs nothing.

    Raises:
        ValueError: a number is not finite, negative, or q is above 1.
    """

    noise_multiplier: float
    q: float = 1.0
    steps: int = 1

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier >= 0):
            raise ValueError(
                f"noise_multiplier must be finite and at least 0 (seen: {self.noise_multiplier})"
            )
        if not 0 <= self.q <= 1:
            raise ValueError(f"q must lie between 0 and 1 (seen: {self.q})")
        if self.steps < 0:
            raise ValueError(f"steps must be at least 0 (seen: {self.steps})")

    @property
    def costs_nothing(self) -> bool:
        """Whether no patient takes part: no step, or a sampling probability of 0."""
        return self.q == 0 or self.steps == 0

    def of(self, steps: int) -> Self:
        """The same noise and sampling for another number of steps."""
        return replace(self, steps=steps)


def epsilon(mechanisms: Iterable[Mechanism], delta: float, accountant: Accountant = "pld") -> float:
    """The epsilon at `delta` of releasing everything in `mechanisms`; an upper bound.

    Guarantees: the order does not matter, and splitting a mechanism's steps over several
    entries changes nothing. Nothing at all costs 0; a release without noise costs infinity.
    With `pld`, a composition with less noise than SMALLEST_PLD_NOISE in one release, or beyond
    LARGEST_PLD_EPSILON, gets RDP's bound, which is larger.

    Takes about .1 s (epsilon 1) to 1 s (epsilon 8) for a new setting, half of it when only
    the number of steps has changed, and no time for what was asked before.

    Args:
        mechanisms: all releases about the same patients, of all runs.
        delta: of (epsilon, delta)-DP, add/remove one patient.
        accountant: `pld` (decides) or `rdp` (filter and cross-check).

    Raises:
        ValueError: delta is not in [SMALLEST_DELTA, 1), or the accountant has no such name.
    """
    if not SMALLEST_DELTA <= delta < 1:
        raise ValueError(f"delta must lie in [{SMALLEST_DELTA:g}, 1) (seen: {delta})")
    if accountant not in {"pld", "rdp"}:
        raise ValueError(f"accountant must be 'pld' or 'rdp' (seen: {accountant!r})")
    settings = _merged(mechanisms)
    if not settings:
        return 0.0
    if settings[0][0] == 0:
        return math.inf
    return _epsilon(settings, delta, accountant)


def noise_multiplier_for(
    target: float,
    delta: float,
    *,
    q: float,
    steps: int,
    already: Iterable[Mechanism] = (),
    accountant: Accountant = "pld",
) -> float:
    """The noise multiplier with which `steps` more steps keep epsilon at most `target`.

    Guarantee: `epsilon([*already, Mechanism(result, q, steps)], delta) <= target`, and the
    result is at most NOISE_TOLERANCE (relative) above the smallest such number (and never
    below half of SMALLEST_PLD_NOISE). Takes about 2 s (epsilon 1) to 12 s (epsilon 8).

    Args:
        target: epsilon that must not be passed, everything in `already` included.
        delta: of (epsilon, delta)-DP, add/remove one patient.
        q: sampling probability of the new steps, above 0.
        steps: number of new steps, at least 1.
        already: what has been released about the same patients.
        accountant: as in :func:`epsilon`.

    Raises:
        ValueError: `target` is not positive and finite, or the new steps release nothing.
        BudgetSpentError: `already` alone reaches the target, or LARGEST_NOISE is too little.
    """
    if not (math.isfinite(target) and target > 0):
        raise ValueError(f"the target epsilon must be positive and finite (seen: {target})")
    if not (q > 0 and steps > 0):
        raise ValueError(f"no noise is needed for no release (seen: q {q}, steps {steps})")
    earlier = tuple(already)

    def cost(noise: float, by: Accountant = accountant) -> float:
        return epsilon([*earlier, Mechanism(noise, q, steps)], delta, by)

    if cost(LARGEST_NOISE) > target:
        raise BudgetSpentError(
            "no amount of noise keeps the privacy budget",
            seen=f"what was released before costs epsilon {epsilon(earlier, delta, accountant):.4f}"
            f" at delta {delta:g}; the target for everything is {target:.4f}",
            remedy="Raise the target, or take fewer steps. Nothing was computed.",
        )
    low, high = _bisect(lambda noise: cost(noise, "rdp") <= target, _LEAST_NOISE, LARGEST_NOISE)
    if accountant == "pld":
        # PLD needs some 8% less noise than RDP: look there first, every look takes a second
        if (cost_high := cost(high)) > target:
            return _bisect(lambda noise: cost(noise) <= target, low, LARGEST_NOISE)[1]
        while (cost_low := cost(low := max(high / 1.12, _LEAST_NOISE))) <= target:
            if low == _LEAST_NOISE:
                return low
            high, cost_high = low, cost_low
        if math.isfinite(cost_low) and cost_high > 0:
            share = math.log(cost_low / target) / math.log(cost_low / cost_high)
            guess = low * (high / low) ** share
            for probe in (guess * (1 + 0.4 * NOISE_TOLERANCE), guess / (1 + 0.4 * NOISE_TOLERANCE)):
                if low < probe < high:
                    low, high = (low, probe) if cost(probe) <= target else (probe, high)
    return _bisect(lambda noise: cost(noise) <= target, low, high)[1]


def _bisect(fits: Callable[[float], bool], low: float, high: float) -> tuple[float, float]:
    """Two noise multipliers within NOISE_TOLERANCE, the upper one of which fits as `high` does."""
    while high / low > 1 + NOISE_TOLERANCE:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if fits(middle) else (middle, high)
    return low, high


def _merged(mechanisms: Iterable[Mechanism]) -> tuple[_Setting, ...]:
    """(noise multiplier, q, steps) of each different setting, sorted; what is free is left out.

    Plain Gaussian releases become one: n of them with noise s are, exactly, one with s/sqrt(n).
    """
    steps: Counter[tuple[float, float]] = Counter()
    for mechanism in mechanisms:
        if not mechanism.costs_nothing:
            steps[mechanism.noise_multiplier, mechanism.q] += mechanism.steps
    settings = sorted((noise, q, count) for (noise, q), count in steps.items())
    plain = [(noise, count) for noise, q, count in settings if q == 1]
    if not plain or plain[0][0] == 0:
        return tuple(settings)
    least = plain[0][0]
    together = least / math.sqrt(math.fsum(count * (least / noise) ** 2 for noise, count in plain))
    return tuple(sorted([item for item in settings if item[1] < 1] + [(together, 1.0, 1)]))


@lru_cache(maxsize=256)
def _epsilon(settings: tuple[_Setting, ...], delta: float, accountant: Accountant) -> float:
    by_rdp = _rdp_epsilon(settings, delta)
    too_much = by_rdp > LARGEST_PLD_EPSILON or settings[0][0] < SMALLEST_PLD_NOISE
    if accountant == "rdp" or too_much:
        return by_rdp
    return float(_composed(settings).get_epsilon_for_delta(delta))


def _rdp_epsilon(settings: tuple[_Setting, ...], delta: float) -> float:
    # dp-accounting takes seconds to import, and only plans with noise need it
    from dp_accounting.rdp import compute_epsilon

    total = sum(count * _one_step_rdp(noise, q) for noise, q, count in settings)
    found = float(compute_epsilon(_ORDERS, total, delta)[0])
    return math.inf if math.isnan(found) else found


@lru_cache(maxsize=256)
def _one_step_rdp(noise: float, q: float) -> np.ndarray:
    if noise < _NO_NOISE:
        return np.full(len(_ORDERS), np.inf)
    from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(_ORDERS, NeighboringRelation.ADD_OR_REMOVE_ONE)
    # an order whose series does not converge is left out, which only loosens the bound
    with without_messages("absl", "_compute_log_a_frac"):
        accountant.compose(PoissonSampledDpEvent(q, GaussianDpEvent(noise)))
        rdp: np.ndarray = accountant.rdp
    # an order that did not converge bounds nothing
    return np.where(np.isnan(rdp), np.inf, rdp)


@lru_cache(maxsize=8)
def _composed(settings: tuple[_Setting, ...]) -> Any:
    """The PLD of all settings; each prefix is kept, so a ledger that grows is cheap."""
    last = _repeated(*settings[-1])
    return last if len(settings) == 1 else _composed(settings[:-1]).compose(last)


@lru_cache(maxsize=16)
def _repeated(noise: float, q: float, count: int) -> Any:
    once = _one_step(noise, q)
    return once if count == 1 else once.self_compose(count)


@lru_cache(maxsize=16)
def _one_step(noise: float, q: float) -> Any:
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(
        noise,
        sampling_prob=q,
        value_discretization_interval=_GRID,
        pessimistic_estimate=True,
        neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
    )
