"""The form of a verdict's answer, and of the noisy gain in its place."""

from __future__ import annotations

from lift.config.plan import Plan
from lift.config.privacy import PatientGradients
from lift.protocol.messages import Kind
from lift.wire.form import AnswerForm, Part, TensorForm
from lift.wire.groups import GAIN
from lift.wire.names import GAIN_SUMS


def verdict_form(plan: Plan) -> AnswerForm:
    """The answer at the end: no tensor; of a plan that pays for a noisy gain its sums."""
    if not asks_gain(plan):
        return AnswerForm(Kind.GUARD, ())
    return AnswerForm(Kind.GUARD, (Part(GAIN, {GAIN_SUMS: TensorForm("float32", (2,))}),))


def asks_gain(plan: Plan) -> bool:
    """Whether the plan pays for a noisy gain of the finished mixer."""
    return isinstance(plan.privacy, PatientGradients) and plan.privacy.gain is not None
