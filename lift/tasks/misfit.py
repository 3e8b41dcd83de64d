"""A plan and a generator of different kinds."""

from __future__ import annotations

from lift.config.plan import Plan
from lift.errors import ConfigError
from lift.generator.base import Generator


def misfit(plan: Plan, generator: Generator) -> ConfigError:
    """The error that says so."""
    made = "a target from sources" if generator.card.source else "new volumes"
    return ConfigError(
        "the generator bundle does not fit the plan",
        where="task.kind",
        seen=f"the plan is {plan.task.kind}; the bundle makes {made}",
        remedy="Correct the plan, or choose the bundle that was trained for it.",
    )
