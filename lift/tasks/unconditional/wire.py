"""Round 0 of an unconditional task: the tensors that a site sends."""

from __future__ import annotations

from lift.config.plan import Plan
from lift.protocol.messages import Kind
from lift.tasks.unconditional.decoder import FrozenDecoder
from lift.tasks.unconditional.drifting.release import compact_shapes
from lift.tasks.unconditional.learning import noise_of, sends_drifting, sends_moments, settings_of
from lift.tasks.unconditional.moments import sent_shapes
from lift.tasks.unconditional.public_gaussian import sent_form
from lift.wire.form import AnswerForm, Part, whole_numbers
from lift.wire.groups import MOMENTS, MOMENTS_WITH_STYLE, STATISTICS


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
        parts.append(Part(group, whole_numbers(shapes), optional=optional))
    if sends_drifting(plan):
        shapes = compact_shapes(decoder.public.projection)
        parts.append(Part(STATISTICS, whole_numbers(shapes), optional=optional))
    return AnswerForm(Kind.STATISTICS, tuple(parts))
