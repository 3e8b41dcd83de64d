"""The one-run canary audit: a lower bound on epsilon, to compare with the claim.

Canaries are invented patients whose gradients are far above the clip norm and point in different
directions. Each takes part or not by a fair coin of its own; the pipeline runs once; from what it
releases an auditor, who knows all canaries, guesses coins and may abstain. Under (epsilon, delta)
differential privacy only so many guesses can be right. The auditor is any function of the release:
a poor one makes the bound small, never false.

What is audited is the output of the mechanism itself: the noisy gradients of all steps, taken at
a mixer that is held where it started, so that a canary's direction is the same in every step. What
training makes of these gradients is post-processing, which can only make guessing harder.

Where the standard deviation of the noise is claimed too, what is released outside the canaries'
span is held against it (`lift.audit.residual`): half the noise is found, which the bound lets pass.

A correct pipeline fails with a probability of at most 1 - confidence, and of `residual.LEVEL` more
where its noise is measured. A pipeline that passes is not proven private: the bound of one run is
far below the true epsilon. See the unit tests of noise and clipping.

Source: Steinke, Nasr and Jagielski 2023, "Privacy auditing with one (1) training run",
arXiv:2305.08846.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import binom
from torch import Tensor

from lift.audit.residual import ResidualNoise, residual_noise
from lift.generator.features import Features
from lift.privacy.noise import SecureStream, poisson_sample

LARGEST_AUDITABLE_EPSILON: Final = 4.0
"""Claims above it cannot fail: with 220 guesses, all of them right, the bound is 4.3."""
CONFIDENCE: Final = 0.95
"""Of the lower bound."""

Floats = NDArray[np.float64]

_LARGEST_BOUND: Final = 64.0
_LARGEST_RIDGE: Final = 1e6


class Pipeline(Protocol):
    """The audited pipeline, from patients to what leaves, with all of its own randomness."""

    def __call__(self, patients: Sequence[Sequence[Features]]) -> Sequence[Mapping[str, Tensor]]:
        """What is released about these patients, one noisy gradient (or sum of them) by step.

        Args:
            patients: the volumes of each: real patients first, then the canaries that are in.

        Returns:
            Parameter -> numbers, in any scale that does not depend on the patients.
        """
        ...  # pragma: no cover


@dataclass(frozen=True)
class Canaries:
    """Invented patients, and where each would pull a mixer.

    Attributes:
        patients: the volumes of each canary.
        directions: each one's clipped gradient over the clip norm, parameters in the order of
            their names, (canaries, parameters).
        shortest: the smallest gradient norm among them before clipping, over the clip norm.
    """

    patients: tuple[tuple[Features, ...], ...]
    directions: Floats
    shortest: float


@dataclass(frozen=True)
class CanaryAudit:
    """The result of one audit.

    Attributes:
        what: the pipeline that was audited, with its numbers, for a person.
        canaries: how many coins were thrown.
        guesses: how many of them were guessed; the others were abstained from.
        correct: how many guesses were right.
        delta: of the claim and of the bound, add/remove one patient.
        claimed_epsilon: what accounting says that the pipeline costs.
        epsilon_lower_bound: the pipeline's epsilon at `delta` is at least this, unless something
            happened whose probability is at most 1 - `confidence`.
        confidence: of the bound.
        noise: how large the noise was; None if no standard deviation was claimed.
    """

    what: str
    canaries: int
    guesses: int
    correct: int
    delta: float
    claimed_epsilon: float
    epsilon_lower_bound: float
    confidence: float = CONFIDENCE
    noise: ResidualNoise | None = None

    @property
    def passed(self) -> bool:
        """Whether neither claim is refuted. If not `meaningful`, the bound proves nothing."""
        enough = self.noise is None or self.noise.enough
        return enough and self.epsilon_lower_bound <= self.claimed_epsilon

    @property
    def largest_bound(self) -> float:
        """The bound if every guess had been right: no larger claim can be refuted."""
        return epsilon_lower_bound(
            self.canaries, self.guesses, self.guesses, self.delta, confidence=self.confidence
        )

    @property
    def meaningful(self) -> bool:
        """Whether this audit could have failed at all."""
        limit = min(LARGEST_AUDITABLE_EPSILON, self.largest_bound)
        return self.claimed_epsilon < limit


def audit_pipeline(
    pipeline: Pipeline,
    canaries: Canaries,
    *,
    what: str,
    claimed_epsilon: float,
    delta: float,
    noise_std: float | None = None,
    patients: Sequence[Sequence[Features]] = (),
    guess_in: int | None = None,
    guess_out: int | None = None,
    step_weights: Floats | None = None,
    guessed_steps: int | None = None,
    confidence: float = CONFIDENCE,
    stream: SecureStream | None = None,
) -> CanaryAudit:
    """Run a pipeline once on `patients` and about half of the canaries, and guess which half.

    Args:
        pipeline: what is audited.
        canaries: invented patients with their directions.
        what: a description for the result.
        claimed_epsilon: what it is said to cost, at `delta`.
        delta: of the claim, add/remove one patient.
        noise_std: claimed standard deviation of the noise of one released number; None: it is
            not measured.
        patients: others that take part in any case; they hide the canaries and change no bound.
            They would be taken for noise: none together with `noise_std`.
        guess_in: how many of the highest scores are guessed to be in; None: a quarter of the
            canaries. Fixed before the outcome is known, as is the next.
        guess_out: how many of the lowest scores are guessed to be out; None: a quarter. Where
            many canaries that are in are never sampled, no guess of "out" is safe: 0 is better.
        step_weights: what is publicly known of the steps in which a canary takes part, if it is
            in: the weight of each step in its score, (canaries, steps). None: all alike.
        guessed_steps: how many of the first steps the guesses look at, those that `claimed_epsilon`
            is of; the others only measure noise. None: all.
        confidence: of the bound, between 0 and 1.
        stream: source of the coins; None: the operating system.

    Raises:
        ValueError: a number is out of its range.
    """
    count = len(canaries.patients)
    highest = count // 4 if guess_in is None else guess_in
    lowest = count // 4 if guess_out is None else guess_out
    if min(highest, lowest) < 0 or not 0 < highest + lowest <= count:
        raise ValueError(
            f"from 1 to {count} guesses are needed in all (seen: {highest} in, {lowest} out)"
        )
    if noise_std is not None and patients:
        raise ValueError("noise can be measured where nobody but canaries takes part")
    heads = poisson_sample(count, 0.5, stream or SecureStream())
    releases = pipeline([*patients, *(canaries.patients[int(index)] for index in heads)])
    scores = canary_scores(releases[:guessed_steps], canaries.directions, step_weights)
    order = np.argsort(scores, kind="stable")
    is_in = np.isin(np.arange(count), heads)
    correct = int(is_in[order[count - highest :]].sum() + (~is_in[order[:lowest]]).sum())
    number = highest + lowest
    return CanaryAudit(
        what=what,
        canaries=count,
        guesses=number,
        correct=correct,
        delta=delta,
        claimed_epsilon=claimed_epsilon,
        epsilon_lower_bound=epsilon_lower_bound(
            count, number, correct, delta, confidence=confidence
        ),
        confidence=confidence,
        noise=None
        if noise_std is None
        else residual_noise(
            [flat(release) for release in releases], canaries.directions, noise_std
        ),
    )


def canary_scores(
    releases: Sequence[Mapping[str, Tensor]],
    directions: Floats,
    step_weights: Floats | None = None,
) -> Floats:
    """Strength of each canary's direction in the release, (canaries,).

    In every step the inner products with all directions are taken. Directions are not quite
    orthogonal, so each product also holds a little of the other canaries: it is removed by ridge
    regression, with a ridge that is the ratio of noise to signal in the release itself (noise is
    what lies outside the span of the directions). With much noise this is the plain inner
    product, with none it is exact. What all canaries share on average is taken away.

    Args:
        releases: by step, parameter -> numbers.
        directions: (canaries, parameters), fewer canaries than parameters.
        step_weights: weight of each step in each canary's sum, (canaries, steps); None: 1.
    """
    seen = np.stack([flat(release) for release in releases], axis=1)
    count, parameters = directions.shape
    products = directions @ seen
    gram = directions @ directions.T
    inside = float(np.sum(products * (np.linalg.pinv(gram, hermitian=True) @ products)))
    whole = float(np.sum(seen * seen))
    steps = seen.shape[1]
    noise = max(whole - inside, 0.0) / (steps * max(parameters - count, 1))
    signal = inside / (steps * count) - noise
    ridge = _LARGEST_RIDGE if signal <= 0 else min(max(noise / signal, 1e-9), _LARGEST_RIDGE)
    everybody = directions.sum(0)
    average = (everybody @ seen) / float(everybody @ everybody)
    centred = products - np.outer(gram.sum(1), average)
    present = np.linalg.solve(gram + ridge * np.eye(count), centred)
    weighted = present if step_weights is None else present * step_weights
    result: Floats = weighted.sum(1)
    return result


def flat(values: Mapping[str, Tensor]) -> Floats:
    """All numbers in one float64 vector, by the order of their names."""
    parts = [values[name].detach().double().cpu().flatten() for name in sorted(values)]
    joined: Floats = torch.cat(parts).numpy()
    return joined


def p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """The largest probability of so many right guesses under (epsilon, delta)-DP; an upper bound.

    Let B be the number of right guesses of an auditor who is right with probability
    e^epsilon / (1 + e^epsilon), each time independently: what epsilon-randomised response
    allows. With delta = 0 no auditor does better than B, whatever the pipeline, so the bound
    is P[B >= correct]. With delta > 0 it is

        P[B >= correct] + 2 m delta * max over i = 1 .. m of P[correct > B >= correct - i] / i

    for m canaries: a total probability of m delta of guesses that delta gives away may be spent
    where it lifts B over `correct`, and is spent best where the fewest guesses are missing.

    Args:
        canaries: m, how many coins were thrown.
        guesses: how many were guessed.
        correct: how many guesses were right.
        epsilon: of the hypothesis, >= 0.
        delta: of the hypothesis, 0 to 1; add/remove one patient.

    Raises:
        ValueError: a number is out of its range.

    Source: Steinke et al. 2023, arXiv:2305.08846, theorem 5.2 and appendix D.
    """
    if not 0 <= correct <= guesses <= canaries:
        raise ValueError(
            "0 <= correct <= guesses <= canaries is needed "
            f"(seen: {correct}, {guesses}, {canaries})"
        )
    if not (epsilon >= 0 and 0 <= delta <= 1):
        raise ValueError(
            f"epsilon >= 0 and a delta in [0, 1] are needed (seen: {epsilon}, {delta})"
        )
    right = float(expit(epsilon))
    by_chance = float(binom.sf(correct - 1, guesses, right))
    if delta == 0 or correct == 0:
        return min(by_chance, 1.0)
    # beyond i = correct the probability grows no more, and the divisor does
    missing = np.arange(1, correct + 1)
    almost = np.cumsum(binom.pmf(correct - missing, guesses, right))
    given = 2 * canaries * delta * float(np.max(almost / missing))
    return min(by_chance + given, 1.0)


def epsilon_lower_bound(
    canaries: int, guesses: int, correct: int, delta: float, *, confidence: float = CONFIDENCE
) -> float:
    """Return the largest epsilon that this number of correct guesses refutes, or 0.

    Whatever (epsilon, delta)-DP pipeline was audited: the probability that the result is above
    its epsilon is at most 1 - `confidence`. Every smaller epsilon is refuted as well.

    Args:
        canaries: how many coins were thrown.
        guesses: how many were guessed.
        correct: how many guesses were right.
        delta: add/remove one patient.
        confidence: between 0 and 1.

    Raises:
        ValueError: a number is out of its range.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1 (seen: {confidence})")

    def refuted(epsilon: float) -> bool:
        return p_value(canaries, guesses, correct, epsilon, delta) < 1 - confidence

    if not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while refuted(high) and high < _LARGEST_BOUND:
        low, high = high, 2 * high
    while high - low > 1e-6:
        middle = math.fsum((low, high)) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low
