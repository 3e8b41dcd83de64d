"""The form of every answer under a plan and its generator."""

from __future__ import annotations

from collections.abc import Callable

from lift.config.plan import Plan
from lift.generator.base import Generator
from lift.protocol.messages import Kind
from lift.tasks.registry import task_of
from lift.wire.form import AnswerForm
from lift.wire.gain import verdict_form
from lift.wire.update import update_form

Forms = Callable[[Kind, Plan], AnswerForm | None]
"""The form of an answer to a kind of request under a plan; None: not around this generator."""


def answer_forms(generator: Generator) -> Forms:
    """The forms of all answers that a site with this generator gives; each is worked out once."""
    known: dict[tuple[Kind, str], AnswerForm] = {}

    def form(kind: Kind, plan: Plan) -> AnswerForm | None:
        if plan.generator_fingerprint != generator.fingerprint:
            return None
        key = kind, plan.digest()
        if key not in known:
            known[key] = answer_form(kind, plan, generator)
        return known[key]

    return form


def answer_form(kind: Kind, plan: Plan, generator: Generator) -> AnswerForm:
    """All that a site may send in answer to a request of this kind.

    Args:
        kind: of the request.
        plan: of the run.
        generator: of the plan.
    """
    if kind is Kind.GUARD:
        return verdict_form(plan)
    task = task_of(plan)
    if kind is Kind.TRAIN:
        return update_form(task.trained_part(plan, generator).values(), plan)
    return task.statistics_form(plan, generator)
