"""The paired task for the programs: see `lift.tasks.base.Task`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from lift.config.plan import Plan, TaskKind
from lift.generator.base import Generator
from lift.generator.bundle import load_bundle
from lift.generator.networks import FrozenGenerator
from lift.mixer.base import Mixer
from lift.tasks.misfit import misfit
from lift.tasks.paired.building import plan_mixer
from lift.tasks.paired.wire import paired_statistics_form
from lift.wire.form import AnswerForm


class PairedTask:
    """A mixer around a slice generator, trained against registered targets."""

    kind: TaskKind = "paired"
    loss_falls = True

    def load(
        self, folder: Path, *, expected_fingerprint: str | None, device: torch.device
    ) -> FrozenGenerator:
        """See `Task`."""
        return load_bundle(folder, expected_fingerprint=expected_fingerprint, device=device)

    def check(self, plan: Plan, generator: Generator) -> None:
        """See `Task`."""
        slice_generator(plan, generator)

    def completed(self, plan: Plan, generator: Generator) -> Plan:
        """See `Task`; there are no public files beside the weights."""
        slice_generator(plan, generator)
        return plan

    def trained_part(self, plan: Plan, generator: Generator) -> Mixer:
        """See `Task`."""
        return plan_mixer(plan, slice_generator(plan, generator))

    def statistics_form(self, plan: Plan, generator: Generator) -> AnswerForm:
        """See `Task`."""
        slice_generator(plan, generator)
        return paired_statistics_form(plan)

    def noise_warnings(self, plan: Plan, generator: Generator, sites: Sequence[str]) -> list[str]:
        """None: what noise costs a mixer is in `lift-simulate`'s own tables."""
        del plan, generator, sites
        return []


def slice_generator(plan: Plan, generator: Generator) -> FrozenGenerator:
    """The generator of a paired plan.

    Raises:
        ConfigError: it is that of another task.
    """
    if not isinstance(generator, FrozenGenerator) or plan.task.kind != "paired":
        raise misfit(plan, generator)
    return generator
