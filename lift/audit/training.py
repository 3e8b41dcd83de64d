"""The audit of private training: runs the training functions on canaries, without data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from lift.audit.canary import (
    LARGEST_AUDITABLE_EPSILON,
    CanaryAudit,
    Pipeline,
    audit_pipeline,
)
from lift.audit.documents import TrainingAudit
from lift.audit.invented import invent_canaries, moved_values, window_of
from lift.audit.residual import NUMBERS
from lift.config.plan import LossPlan, Plan
from lift.config.privacy import PatientGradients
from lift.device import fix_threads
from lift.errors import ConfigError
from lift.generator.base import SliceGenerator
from lift.generator.bundle import load_bundle
from lift.generator.features import Features
from lift.mixer.base import Mixer
from lift.privacy.accounting import Mechanism, epsilon
from lift.privacy.noise import SecureStream
from lift.tasks.paired.building import plan_mixer
from lift.tasks.paired.private.training import clipped_sum, noisy_update, train_round_privately

CPU: Final = torch.device("cpu")
SITE: Final = "audit"
MOST_STEPS: Final = 200
"""Steps of an audit: more take long and show no more."""
CLAIMED: Final = 1.5
"""Epsilon up to which steps are audited: the bound of one run seldom comes near 4."""
STATEMENT: Final = (
    "A bound below the claim does not prove the claim: it finds missing clipping, and noise that "
    "is missing or divided by the batch. What lies outside the canaries' span is noise alone: "
    "measured, it finds noise that is a few percent too small, but not noise of the right size "
    "used twice."
)
_FEWEST_CANARIES: Final = 32
_SURE: Final = 0.8
_RARELY: Final = 0.02
_NO_MOVE: Final = 1e-30
_NO_LIMIT: Final = 1e30


def local_pipeline(
    mixer: Mixer,
    start: dict[str, Tensor],
    plan: Plan,
    privacy: PatientGradients,
    *,
    steps: int,
    stream: SecureStream | None = None,
) -> Pipeline:
    """`train_round_privately` with the optimiser held still; the noisy gradient of every step.

    Args:
        mixer: an instance to train in.
        start: the received mixer.
        plan: the plan; the optimiser's settings are replaced by ones that move nothing.
        privacy: its section, with one public number of patients for all sites.
        steps: of the one round.
        stream: source of masks and noise; None: the operating system.
    """
    held = plan.training.model_copy(
        update={
            "steps": steps,
            "learning_rate": _NO_MOVE,
            "weight_decay": 0.0,
            "proximal": 0.0,
            # what clips the noisy mean is post-processing, and would hide some of it
            "gradient_clip": _NO_LIMIT,
        }
    )
    still = plan.model_copy(update={"training": held})

    def pipeline(patients: Sequence[Sequence[Features]]) -> list[Mapping[str, Tensor]]:
        released: list[Mapping[str, Tensor]] = []

        def keep(step: int) -> None:
            del step
            released.append(
                {n: p.grad.clone() for n, p in mixer.named_parameters() if p.grad is not None}
            )

        train_round_privately(
            mixer,
            start,
            patients,
            still,
            privacy,
            round_index=1,
            site=SITE,
            stream=stream or SecureStream(),
            report=keep,
        )
        return released

    return pipeline


def central_pipeline(
    mixer: Mixer,
    start: dict[str, Tensor],
    plan: Plan,
    privacy: PatientGradients,
    *,
    steps: int,
    stream: SecureStream | None = None,
) -> Pipeline:
    """`clipped_sum` at two sites, then the server's `noisy_update`, once for each step.

    Args:
        mixer: an instance to take gradients in.
        start: the mixer of all rounds.
        plan: the plan.
        privacy: its section, with one public number of patients for all sites.
        steps: rounds of one step.
        stream: source of masks and noise; None: the operating system.
    """

    def pipeline(patients: Sequence[Sequence[Features]]) -> list[Mapping[str, Tensor]]:
        released: list[Mapping[str, Tensor]] = []
        used = stream or SecureStream()
        for _ in range(steps):
            sums = [
                clipped_sum(mixer, start, cohort, plan, privacy, stream=used)
                for cohort in (patients[::2], patients[1::2])
            ]
            expected = privacy.sampling_rate * 2 * privacy.patients_of(SITE)
            update = noisy_update(sums, privacy, expected, used)
            released.append({name: -tensor for name, tensor in update.items()})
        return released

    return pipeline


def audit_training(
    plan: Plan,
    generator: SliceGenerator,
    *,
    canaries: int = 200,
    claimed: float = CLAIMED,
    stream: SecureStream | None = None,
) -> CanaryAudit:
    """An audit of the plan's private training with its clip norm, noise, sampling and engine.

    No patient's data is read: all patients are canaries. The whole run may claim an epsilon that
    no audit can refute, so as many steps are audited as cost at most `claimed` (one, if that
    costs more; at most :data:`MOST_STEPS`); the result names them. Noise is measured over these
    and, where they hold fewer than `NUMBERS` numbers, over more steps of the same run: an audit
    has no patient, and its noise costs nothing. Loss and window, which the guarantee does not
    depend on, are replaced by ones that make strong canaries cheap.

    Args:
        plan: a plan with privacy mode `patient-local` or `patient-central`.
        generator: its generator, for the shapes of a mixer's inputs.
        canaries: how many at most; no more than half of the mixer's parameters are taken.
        claimed: largest epsilon of the audited steps, above 0, at most 4.
        stream: source of all randomness; None: the operating system.

    Raises:
        ConfigError: the plan has another privacy mode; one step alone costs more than an audit
            can refute; the mixer has too few parameters to tell canaries apart.
        ValueError: `claimed` is out of its range.
    """
    if not 0 < claimed <= LARGEST_AUDITABLE_EPSILON:
        raise ValueError(
            f"claimed must be above 0 and at most {LARGEST_AUDITABLE_EPSILON:g} (seen: {claimed})"
        )
    privacy = auditable(plan)
    steps, cost = audited_steps(plan, privacy, claimed)
    mixer = plan_mixer(plan, generator)
    count = min(canaries, mixer.parameter_count() // 2)
    if count < _FEWEST_CANARIES:
        raise ConfigError(
            "too few canaries for an audit",
            where="mixer",
            seen=f"{count} canaries; needed: at least {_FEWEST_CANARIES}, and twice as many "
            f"parameters as canaries (the mixer has {mixer.parameter_count()})",
            remedy="Ask for more canaries, or audit a plan with a larger mixer and the same "
            "privacy section.",
        )
    settings = plan.training.model_copy(
        update={"window": window_of(mixer, generator), "loss": LossPlan()}
    )
    small = plan.model_copy(update={"training": settings})
    # a public number: it scales what is released, and nothing else
    used = privacy.model_copy(update={"public_patients": count})
    start = moved_values(mixer, plan.seed)
    invented = invent_canaries(mixer, start, generator, small, used, count=count, volumes=2)
    guess_in, guess_out = _guesses(count, privacy.sampling_rate, steps)
    # canaries span at most `count` of a release's numbers
    measured = max(steps, math.ceil(NUMBERS / (mixer.parameter_count() - count)))
    local = privacy.mode == "patient-local"
    make = local_pipeline if local else central_pipeline
    # what a released sum is divided by: two sites' expected patients where the server adds noise
    expected = privacy.sampling_rate * count * (1 if local else 2)
    return audit_pipeline(
        make(mixer, start, small, used, steps=measured, stream=stream),
        invented,
        what=f"{privacy.mode}, {plan.mixer.kind}, engine {privacy.engine}: {steps} steps of the "
        f"run's {plan.total_steps}, noise multiplier {privacy.noise_multiplier:g}, sampling "
        f"rate {privacy.sampling_rate:g}, clip norm {privacy.clip_norm:g}; gradients of canaries "
        f"at least {invented.shortest:.0f} clip norms long; noise measured over {measured} steps",
        claimed_epsilon=cost,
        delta=privacy.delta,
        noise_std=privacy.noise_multiplier * privacy.clip_norm / expected,
        guess_in=guess_in,
        guess_out=guess_out,
        guessed_steps=steps,
        stream=stream,
    )


def auditable(plan: Plan) -> PatientGradients:
    """Return the plan's privacy section. Raise if canaries cannot audit it.

    Raises:
        ConfigError: it is of another mode.
    """
    privacy = plan.privacy
    if not isinstance(privacy, PatientGradients):
        raise ConfigError(
            "this plan's privacy cannot be audited with canaries",
            where="privacy.mode",
            seen=f"{privacy.mode}; needed: patient-local or patient-central",
            remedy="Audit a plan that trains under patient-level privacy.",
        )
    return privacy


def audited_steps(plan: Plan, privacy: PatientGradients, claimed: float) -> tuple[int, float]:
    """As many of the run's steps as cost at most `claimed`, at least one, and their epsilon.

    Raises:
        ConfigError: one step costs more than an audit can refute.
    """
    mechanism = Mechanism(privacy.noise_multiplier, privacy.sampling_rate)

    def cost(steps: int) -> float:
        return epsilon([mechanism.of(steps)], privacy.delta)

    if (one := cost(1)) > LARGEST_AUDITABLE_EPSILON:
        raise ConfigError(
            "one step of this plan costs more than an audit can refute",
            where="privacy.noise_multiplier",
            seen=f"epsilon {one:.2f} at delta {privacy.delta:g}; the bound of an audit ends at "
            f"about {LARGEST_AUDITABLE_EPSILON:g}",
            remedy="Audit a plan with more noise: the code that runs is the same.",
        )
    low, high = 1, min(plan.total_steps, MOST_STEPS) + 1
    if cost(high - 1) <= claimed:
        return high - 1, cost(high - 1)
    while high - low > 1:
        middle = math.isqrt(low * high)
        middle = min(max(middle, low + 1), high - 1)
        low, high = (middle, high) if cost(middle) <= claimed else (low, middle)
    return low, cost(low)


def _guesses(count: int, sampling_rate: float, steps: int) -> tuple[int, int]:
    """How many canaries to call "in" and "out": those that are never sampled look out."""
    missed = (1 - sampling_rate) ** steps
    surely_in = int(_SURE * (1 - missed) * count / 2)
    return max(1, min(count // 4, surely_in)), count // 4 if missed < _RARELY else 0


def training_audit(
    plan: Plan, bundle: Path, *, stream: SecureStream | None = None
) -> TrainingAudit:
    """:func:`audit_training` of a plan as a document.

    Args:
        plan: a plan with privacy mode `patient-local` or `patient-central`.
        bundle: folder of the plan's generator.
        stream: source of all randomness; None: the operating system.

    Raises:
        ConfigError: see :func:`audit_training`.
        GeneratorError: the bundle is damaged or not the plan's.
    """
    privacy = auditable(plan)
    generator = load_bundle(bundle, expected_fingerprint=plan.generator_fingerprint, device=CPU)
    # windows are tiny: more threads only wait for each other
    fix_threads(1)
    found = audit_training(plan, generator, stream=stream)
    noise = found.noise
    if noise is None:
        raise ValueError("a training whose noise was not measured")
    return TrainingAudit(
        plan_digest=plan.digest(),
        audited=found.what,
        steps=audited_steps(plan, privacy, CLAIMED)[0],
        canaries=found.canaries,
        guesses=found.guesses,
        correct=found.correct,
        confidence=found.confidence,
        delta=found.delta,
        claimed_epsilon=found.claimed_epsilon,
        epsilon_lower_bound=found.epsilon_lower_bound,
        noise_ratio=round(noise.ratio, 4),
        noise_numbers=noise.numbers,
        noise_steps=noise.steps,
        noise_p_value=noise.p_value,
        noise_p_more=noise.p_more,
        noise_smallest_found=round(noise.smallest_found, 4),
        passed=found.passed,
        meaningful=found.meaningful,
        statement=STATEMENT,
    )
