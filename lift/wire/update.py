"""The form of a round's answer."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lift.config.plan import Plan
from lift.protocol.messages import Kind
from lift.wire.form import AnswerForm, Part, TensorForm
from lift.wire.groups import CLIPPED_SUM, UPDATE


def update_form(mixer: Mapping[str, Tensor], plan: Plan) -> AnswerForm:
    """A round's answer: one tensor for each of the mixer's, and no other.

    Args:
        mixer: parameters by name.
        plan: gives the number format.
    """
    summed = plan.privacy.mode == "patient-central"
    dtype = "int64" if summed else plan.federation.update_dtype
    tensors = {name: TensorForm(dtype, tuple(value.shape)) for name, value in mixer.items()}
    return AnswerForm(Kind.TRAIN, (Part(CLIPPED_SUM if summed else UPDATE, tensors),))
