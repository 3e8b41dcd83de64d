"""The unconditional task for the programs: see `lift.tasks.base.Task`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from lift.config.plan import Plan, TaskKind
from lift.generator.base import Generator
from lift.tasks.misfit import misfit
from lift.tasks.unconditional.bundle import check_public_files, load_decoder, with_public_files
from lift.tasks.unconditional.decoder import FrozenDecoder
from lift.tasks.unconditional.learning import Trajectory, plan_mapper
from lift.tasks.unconditional.private.worth import noise_warnings
from lift.tasks.unconditional.wire import unconditional_statistics_form
from lift.wire.form import AnswerForm


class UnconditionalTask:
    """New volumes: a Gaussian of trajectories, and a mapper drawn to the sites' statistics."""

    kind: TaskKind = "unconditional"
    # the drift's part of the loss is about constant by construction
    loss_falls = False

    def load(
        self, folder: Path, *, expected_fingerprint: str | None, device: torch.device
    ) -> FrozenDecoder:
        """See `Task`."""
        return load_decoder(folder, expected_fingerprint=expected_fingerprint, device=device)

    def check(self, plan: Plan, generator: Generator) -> None:
        """See `Task`."""
        check_public_files(plan, decoder_of(plan, generator))

    def completed(self, plan: Plan, generator: Generator) -> Plan:
        """See `Task`."""
        return with_public_files(plan, decoder_of(plan, generator))

    def trained_part(self, plan: Plan, generator: Generator) -> Trajectory:
        """See `Task`."""
        return plan_mapper(plan, decoder_of(plan, generator))

    def statistics_form(self, plan: Plan, generator: Generator) -> AnswerForm:
        """See `Task`."""
        return unconditional_statistics_form(plan, decoder_of(plan, generator))

    def noise_warnings(self, plan: Plan, generator: Generator, sites: Sequence[str]) -> list[str]:
        """See `Task`."""
        return noise_warnings(plan, decoder_of(plan, generator), sites)


def decoder_of(plan: Plan, generator: Generator) -> FrozenDecoder:
    """The decoder of an unconditional plan.

    Raises:
        ConfigError: the generator is that of another task.
    """
    if not isinstance(generator, FrozenDecoder) or plan.task.kind != "unconditional":
        raise misfit(plan, generator)
    return generator
