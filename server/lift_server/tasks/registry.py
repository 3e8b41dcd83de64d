"""The server's side of every task, by its kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from lift.config.plan import Plan, TaskKind
from lift.generator.base import Generator
from lift.tasks.paired.building import start_values
from lift.tasks.paired.task import slice_generator
from lift.tasks.unconditional.task import decoder_of
from lift_server.rounds.task import RunTask
from lift_server.tasks.paired import PairedRun
from lift_server.tasks.unconditional import UnconditionalRun


def _paired(plan: Plan, generator: Generator) -> PairedRun:
    frozen = slice_generator(plan, generator)
    return PairedRun(plan, lambda taps: start_values(plan, frozen, taps))


def _unconditional(plan: Plan, generator: Generator) -> UnconditionalRun:
    return UnconditionalRun(plan, decoder_of(plan, generator))


_RUNS: Final[Mapping[TaskKind, Callable[[Plan, Generator], RunTask]]] = {
    "paired": _paired,
    "unconditional": _unconditional,
}


def run_task(plan: Plan, generator: Generator) -> RunTask:
    """The server's side of the plan's task, around its frozen generator.

    Raises:
        ConfigError: the generator is that of another task.
    """
    return _RUNS[plan.task.kind](plan, generator)
