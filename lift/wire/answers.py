"""The form of every answer under a plan and its generator."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from lift.assembly import trained_part
from lift.config.plan import Plan
from lift.config.privacy import PatientGradients
from lift.curves import KNOTS
from lift.drifting.release import compact_shapes
from lift.mixer.differences import SHIFTS
from lift.protocol.messages import Kind
from lift.unconditional.bundle import AnyGenerator
from lift.unconditional.decoder import FrozenDecoder
from lift.unconditional.learning import noise_of, sends_drifting, sends_moments, settings_of
from lift.unconditional.moments import sent_shapes
from lift.unconditional.public_gaussian import sent_form
from lift.wire.form import AnswerForm, Part, TensorForm
from lift.wire.groups import (
    CLIPPED_SUM,
    CURVES,
    MOMENTS,
    MOMENTS_WITH_STYLE,
    STATISTICS,
    UPDATE,
    Z_FILTER,
)
from lift.wire.names import CURVE_SUMS, Z_FILTER_SUMS

Forms = Callable[[Kind, Plan], AnswerForm | None]
"""The form of an answer to a kind of request under a plan; None: not around this generator."""


def answer_forms(generator: AnyGenerator) -> Forms:
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


def answer_form(kind: Kind, plan: Plan, generator: AnyGenerator) -> AnswerForm:
    """All that a site may send in answer to a request of this kind.

    Args:
        kind: of the request.
        plan: of the run.
        generator: of the plan.
    """
    if kind is Kind.GUARD:
        return AnswerForm(kind, ())
    if kind is Kind.TRAIN:
        return update_form(trained_part(plan, generator).values(), plan)
    if isinstance(generator, FrozenDecoder):
        return unconditional_statistics_form(plan, generator)
    return paired_statistics_form(plan)


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


def unconditional_statistics_form(plan: Plan, decoder: FrozenDecoder) -> AnswerForm:
    """Round 0 of an unconditional task: moments, and drifting statistics where there are rounds.

    A site with few patients leaves either out, unless noise protects them.
    """
    parts: list[Part] = []
    optional = noise_of(plan) is None
    if sends_moments(plan):
        shapes = sent_shapes(sent_form(plan, decoder))
        published = settings_of(plan).site_styles
        group = MOMENTS_WITH_STYLE if published else MOMENTS
        parts.append(Part(group, _int64(shapes), optional=optional))
    if sends_drifting(plan):
        shapes = compact_shapes(decoder.public.projection)
        parts.append(Part(STATISTICS, _int64(shapes), optional=optional))
    return AnswerForm(Kind.STATISTICS, tuple(parts))


def _equations(names: tuple[str, str], size: int) -> dict[str, TensorForm]:
    matrix, vector = names
    return _int64({matrix: (size, size), vector: (size,)})


def _int64(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, TensorForm]:
    return {name: TensorForm("int64", shape) for name, shape in shapes.items()}
