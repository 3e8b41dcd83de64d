"""What this site lets a federation do: the plan before anything is computed, and what leaves.

The four parts of an error are for the site's own log; the server learns the class alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import numpy as np

from lift.config.kit import Kit
from lift.config.plan import Plan
from lift.config.site import PolicySettings
from lift.errors import NonFiniteUpdateError, PolicyError

_BYTES_PER_NUMBER: Final = {"float16": 2, "float32": 4}
_DTYPES: Final = frozenset({"float16", "float32", "float64", "int64"})
# names and shapes carry information too: both are kept narrow
_NAME: Final = re.compile(r"[A-Za-z0-9_.\-/]{1,128}")
_MOST_TENSORS: Final = 4096
_MOST_AXES: Final = 8


def check_plan(plan: Plan, policy: PolicySettings, kit: Kit, *, parameters: int | None) -> None:
    """Nothing, when the site's policy allows the whole plan.

    Args:
        plan: what the server sent.
        policy: what the site allows; lists left empty allow what the kit names.
        kit: what the site agreed to when it joined.
        parameters: numbers in one update, when the mixer is known; None leaves its size to
            :func:`check_outgoing`.

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
    size = (parameters or 0) * _BYTES_PER_NUMBER[plan.federation.update_dtype]
    if size > policy.largest_update_bytes:
        offences["largest_update_bytes"] = (
            f"an update would have {size} bytes; at most {policy.largest_update_bytes}"
        )
    if offences:
        raise PolicyError(
            "the site's policy refuses the plan",
            where=", ".join(f"policy.{key}" for key in offences),
            seen="\n".join(f"{key}: {seen}" for key, seen in offences.items()),
            remedy="Nothing was computed or sent. If the site agrees to this plan, change the "
            "policy in its settings; else ask the coordinator for another plan.",
        )


def check_outgoing(
    tensors: Mapping[str, np.ndarray],
    policy: PolicySettings,
    *,
    expected: Mapping[str, tuple[int, ...]] | None = None,
    once: bool = False,
) -> None:
    """Nothing, when these tensors may leave.

    Args:
        tensors: what is about to be journaled and sent.
        policy: what the site allows.
        expected: tensor name -> shape of the whole answer where it is known beforehand (the
            mixer's own parameters): nothing else may leave, nothing may be missing.
        once: they are the statistics, which are sent once and have a bound of their own.

    Raises:
        NonFiniteUpdateError: a tensor holds NaN or infinity.
        PolicyError: too large, or a name, shape or number format that no answer has.
    """
    if len(tensors) > _MOST_TENSORS:
        raise _refusal("tensors", f"{len(tensors)} tensors; at most {_MOST_TENSORS}")
    for name, tensor in tensors.items():
        if not _NAME.fullmatch(name):
            raise _refusal("tensors", f"a tensor has a name that is not allowed: {name[:40]!r}")
        if tensor.dtype.name not in _DTYPES:
            raise _refusal(f"tensors.{name}", f"its numbers are of type {tensor.dtype.name}")
        if tensor.ndim > _MOST_AXES:
            raise _refusal(f"tensors.{name}", f"it has {tensor.ndim} axes; at most {_MOST_AXES}")
    if expected is not None:
        seen = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        differing = sorted(
            name
            for name in {*seen, *expected}
            if name not in seen or name not in expected or seen[name] != tuple(expected[name])
        )
        if differing:
            name = differing[0]
            raise _refusal(
                f"tensors.{name}",
                f"shape {seen.get(name, 'missing')}; needed {expected.get(name, 'no such tensor')}",
            )
    size = sum(tensor.nbytes for tensor in tensors.values())
    key = "largest_statistics_bytes" if once else "largest_update_bytes"
    largest = policy.largest_statistics_bytes if once else policy.largest_update_bytes
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
