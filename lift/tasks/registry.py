"""The registry of tasks by kind, and the loading of their generators and plans."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch

from lift.config.generator import GeneratorChoice
from lift.config.plan import Plan, TaskKind
from lift.generator.base import Generator
from lift.generator.card import bundle_folder, check_task, read_card
from lift.tasks.base import Task
from lift.tasks.paired.task import PairedTask
from lift.tasks.unconditional.task import UnconditionalTask

TASKS: Final[Mapping[TaskKind, Task]] = {
    task.kind: task for task in (PairedTask(), UnconditionalTask())
}
"""Every task that a plan can name."""


def task_of(plan: Plan) -> Task:
    """The task of a plan."""
    return TASKS[plan.task.kind]


def load_generator(
    folder: Path, *, expected_fingerprint: str | None, device: torch.device
) -> Generator:
    """The frozen generator of a bundle, of whichever task; see `Task.load`."""
    task = TASKS[read_card(folder).task_kind]
    return task.load(folder, expected_fingerprint=expected_fingerprint, device=device)


def with_generator(plan: Plan, generator: Generator) -> Plan:
    """The plan with the fingerprint and the digests of the generator that it will run with.

    Raises:
        ConfigError: the plan does not fit the generator, or names other public files.
    """
    completed = task_of(plan).completed(plan, generator)
    return completed.model_copy(update={"generator_fingerprint": generator.fingerprint})


def open_generator(
    plan: Plan, choice: GeneratorChoice, *, device: torch.device
) -> tuple[Generator, Plan]:
    """The chosen generator, and the plan completed for it: see `with_generator`.

    Raises:
        ConfigError: plan and generator do not fit.
        GeneratorError: the bundle is damaged, or not the one that the plan names.
    """
    generator = load_generator(
        bundle_folder(choice), expected_fingerprint=plan.generator_fingerprint, device=device
    )
    completed = with_generator(plan, generator)
    check_task(generator.card, completed.task, completed.preprocessing)
    return generator, completed
