"""Round 0 of a paired task: the tensors that a site sends."""

from __future__ import annotations

from lift.config.plan import Plan
from lift.config.privacy import PatientGradients
from lift.mixer.curves import KNOTS
from lift.mixer.differences import SHIFTS
from lift.protocol.messages import Kind
from lift.wire.form import AnswerForm, Part, TensorForm, whole_numbers
from lift.wire.groups import CURVES, Z_FILTER
from lift.wire.names import CURVE_SUMS, Z_FILTER_SUMS


def paired_statistics_form(plan: Plan) -> AnswerForm:
    """Round 0 of a paired task: sums of the z-filter, and of the curves where a site shares them.

    Under patient-level privacy the noisy z-filter's alone, if the plan pays for them.
    """
    private = plan.privacy if isinstance(plan.privacy, PatientGradients) else None
    if private is not None and private.start is None:
        return AnswerForm(Kind.STATISTICS, ())
    parts = [Part(Z_FILTER, _equations(Z_FILTER_SUMS, len(SHIFTS)))]
    if plan.mixer.contrast != "none" and private is None:
        size = KNOTS * (1 + len(plan.task.source))
        parts.append(Part(CURVES, _equations(CURVE_SUMS, size), optional=True))
    return AnswerForm(Kind.STATISTICS, tuple(parts))


def _equations(names: tuple[str, str], size: int) -> dict[str, TensorForm]:
    matrix, vector = names
    return whole_numbers({matrix: (size, size), vector: (size,)})
