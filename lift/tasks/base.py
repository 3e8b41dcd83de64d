"""The interface of a task, for all programs.

The halves that need more are registered by the same kind: `lift_client.tasks`, `lift_server.tasks`,
`lift_simulation.tasks`, and the pages of `lift.report`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch

from lift.config.plan import Plan, TaskKind
from lift.generator.base import Generator
from lift.mixer.trained import TrainedPart
from lift.wire.form import AnswerForm


class Task(Protocol):
    """One kind of task.

    Every method that takes a generator raises ConfigError where it is that of another kind.
    """

    @property
    def kind(self) -> TaskKind:
        """`task.kind` of its plans."""
        ...

    @property
    def loss_falls(self) -> bool:
        """Whether a training that works lets its loss fall: `run.json` then says so."""
        ...

    def load(
        self, folder: Path, *, expected_fingerprint: str | None, device: torch.device
    ) -> Generator:
        """The frozen generator of a bundle, fingerprint and files checked.

        Args:
            folder: of the bundle.
            expected_fingerprint: the plan's; None expects nothing.
            device: where the network goes.

        Raises:
            GeneratorError: a file is missing, damaged or another than expected.
            VersionMismatchError: another version of the format.
        """
        ...

    def check(self, plan: Plan, generator: Generator) -> None:
        """Raise ConfigError unless the plan fits the generator and its public files."""
        ...

    def completed(self, plan: Plan, generator: Generator) -> Plan:
        """The plan with the digests of the generator's public files.

        Raises:
            ConfigError: the plan names other files than the bundle has.
        """
        ...

    def trained_part(self, plan: Plan, generator: Generator) -> TrainedPart:
        """What the plan trains, with its initial parameters, the same on every machine."""
        ...

    def statistics_form(self, plan: Plan, generator: Generator) -> AnswerForm:
        """All tensors that a site may send in round 0."""
        ...

    def noise_warnings(self, plan: Plan, generator: Generator, sites: Sequence[str]) -> list[str]:
        """Return warnings before a run with noise at these sites. Empty if there are none."""
        ...
