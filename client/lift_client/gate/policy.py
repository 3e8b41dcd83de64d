"""The site's policy, applied to the plan before any computation, and to what leaves.

The four parts of an error are for the site's own log; the server learns the class alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lift.config.kit import Kit
from lift.config.plan import Plan
from lift.config.privacy import PatientGradients
from lift.config.site import PolicySettings
from lift.errors import NonFiniteUpdateError, PolicyError
from lift.protocol.messages import Kind
from lift.wire.form import AnswerForm
from lift.wire.names import SHARED, without


def check_plan(
    plan: Plan, policy: PolicySettings, kit: Kit, *, forms: Sequence[AnswerForm] = ()
) -> None:
    """Raise PolicyError unless the site's policy allows the whole plan.

    Args:
        plan: what the server sent.
        policy: what the site allows; lists left empty allow what the kit names.
        kit: what the site agreed to when it joined.
        forms: of the answers that the plan asks for, where the site has its generator.

    Raises:
        PolicyError: names every key of the policy that the plan offends, not the first alone.
    """
    tasks = policy.tasks or (kit.task,)
    generators = policy.generators or (kit.generator_fingerprint,)
    offences: dict[str, str] = {}
    if all((rule.source, rule.target) != (plan.task.source, plan.task.target) for rule in tasks):
        allowed = "; ".join(_task(rule.source, rule.target) for rule in tasks)
        offences["tasks"] = (
            f"the plan makes {_task(plan.task.source, plan.task.target)}; allowed: {allowed}"
        )
    if plan.generator_fingerprint not in generators:
        allowed = ", ".join(f"{fingerprint[:12]}..." for fingerprint in generators)
        offences["generators"] = (
            f"the plan's generator is {_short(plan.generator_fingerprint)}; allowed: {allowed}"
        )
    if plan.federation.rounds > policy.most_rounds:
        offences["most_rounds"] = (
            f"the plan has {plan.federation.rounds} rounds; at most {policy.most_rounds}"
        )
    if plan.training.steps > policy.most_steps_per_round:
        offences["most_steps_per_round"] = (
            f"the plan has {plan.training.steps} steps a round; "
            f"at most {policy.most_steps_per_round}"
        )
    offences |= _beyond_bounds(plan, policy)
    if (
        not plan.protects_patients
        and plan.federation.patient_count_step < policy.least_patient_count_step
    ):
        offences["least_patient_count_step"] = (
            f"the plan rounds numbers of patients to {plan.federation.patient_count_step}; "
            f"at least {policy.least_patient_count_step}"
        )
    if plan.split.held_out:
        # sums with and without a patient of the server's choice would tell that patient's share
        offences["split"] = (
            f"the plan names {len(plan.split.held_out)} patients to hold out; only a simulation may"
        )
    if plan.privacy.mode not in policy.privacy_modes:
        offences["privacy_modes"] = (
            f"the plan's mode is {plan.privacy.mode}; allowed: {', '.join(policy.privacy_modes)}"
        )
    if plan.unconditional is not None and plan.unconditional.site_styles and not policy.site_styles:
        offences["site_styles"] = (
            "the plan makes each site's mean grey scale known, under its name, to everyone who has "
            "the mixer; allowed: no"
        )
    for form in forms:
        key, largest = _largest(policy, form.kind)
        if form.size_bytes > largest:
            offences[key] = f"an answer would have {form.size_bytes} bytes; at most {largest}"
    if offences:
        raise PolicyError(
            "the site's policy refuses the plan",
            where=", ".join(f"policy.{key}" for key in offences),
            seen="\n".join(f"{key}: {seen}" for key, seen in offences.items()),
            remedy="Nothing was computed or sent. If the site agrees to this plan, change the "
            "policy in its settings; else ask the coordinator for another plan.",
        )


def check_start(tensors: Mapping[str, np.ndarray], policy: PolicySettings) -> None:
    """Raise PolicyError unless training may start from these parameters.

    Args:
        tensors: of a request to train.
        policy: what the site allows.

    Raises:
        PolicyError: a number of the mixer is larger than `policy.largest_start_value`.
    """
    for name, tensor in sorted(without(tensors, SHARED).items()):
        largest = float(np.max(np.abs(tensor.astype(np.float64)), initial=0.0))
        # a mixer with NaN does not fit the plan, which is the session's to say
        if largest > policy.largest_start_value:
            raise PolicyError(
                "the site's policy refuses to train from this mixer",
                where="policy.largest_start_value",
                seen=f"tensor '{name}' holds {largest:g}; at most {policy.largest_start_value:g}",
                remedy="Nothing was computed or sent. Tell the coordinator: a mixer has no such "
                "numbers, unless its training diverged.",
            )


def check_outgoing(
    tensors: Mapping[str, np.ndarray], policy: PolicySettings, form: AnswerForm
) -> None:
    """Raise PolicyError unless these are exactly the tensors of the plan's answer.

    Args:
        tensors: what is about to be journaled and sent.
        policy: what the site allows.
        form: of the answer. Names and shapes carry information too: nothing else may leave, and
            nothing may be missing.

    Raises:
        NonFiniteUpdateError: a tensor holds NaN or infinity.
        PolicyError: too large, or a tensor that the answer does not have, lacks, or has in another
            shape or number format.
    """
    offence = form.offence(tensors)
    if offence is not None:
        raise _refusal(f"tensors.{offence.tensor}", offence.seen)
    size = sum(tensor.nbytes for tensor in tensors.values())
    key, largest = _largest(policy, form.kind)
    if size > largest:
        raise _refusal(f"policy.{key}", f"the answer has {size} bytes; at most {largest}")
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise NonFiniteUpdateError(
                "the answer is not finite",
                where=f"tensors.{name}",
                seen="it holds NaN or infinity",
                remedy="Nothing was sent. The local training diverged: tell the coordinator.",
            )


def _beyond_bounds(plan: Plan, policy: PolicySettings) -> dict[str, str]:
    """Of the numbers that training is steered by: the keys that the plan offends, and how."""
    training, loss = plan.training, plan.training.loss
    clips = []
    if isinstance(plan.privacy, PatientGradients):
        clips = [plan.privacy.clip_norm]
        if plan.privacy.start is not None:
            clips.append(plan.privacy.start.clip_norm)
    asked: dict[str, list[float]] = {
        "largest_learning_rate": [training.learning_rate],
        "largest_weight_decay": [training.weight_decay, training.proximal],
        "largest_gradient_clip": [training.gradient_clip],
        "largest_loss_weight": [loss.scale, loss.dz_weight, loss.ms_ssim_weight],
        "largest_clip_norm": clips,
    }
    found = {}
    for key, values in asked.items():
        bound: float = getattr(policy, key)
        if values and not max(values) <= bound:
            found[key] = f"the plan has {max(values):g}; at most {bound:g}"
    if clips and not min(clips) >= policy.least_clip_norm:
        found["least_clip_norm"] = (
            f"the plan has {min(clips):g}; at least {policy.least_clip_norm:g}"
        )
    return found


def _largest(policy: PolicySettings, kind: Kind) -> tuple[str, int]:
    """The key that bounds an answer of this kind, and its bytes."""
    if kind is Kind.STATISTICS:
        return "largest_statistics_bytes", policy.largest_statistics_bytes
    return "largest_update_bytes", policy.largest_update_bytes


def _refusal(where: str, seen: str) -> PolicyError:
    return PolicyError(
        "the site's policy refuses to send this",
        where=where,
        seen=seen,
        remedy="Nothing was sent. Check the policy in the site's settings against the plan.",
    )


def _task(source: tuple[str, ...], target: str) -> str:
    return f"{target} from {', '.join(source)}"


def _short(fingerprint: str | None) -> str:
    return "not named" if fingerprint is None else f"{fingerprint[:12]}..."
