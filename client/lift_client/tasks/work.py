"""The site's side of a task: one interface, with an implementation for each kind of task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from lift.cohort.patients import Patient
from lift.cohort.split import Part
from lift.mixer.trained import TrainedPart
from lift.protocol.messages import GuardReply, GuardRequest
from lift.tasks.steps import TrainedRound

StepReport = Callable[[int], None]


@dataclass(frozen=True)
class Counts:
    """Numbers of the site's cohort. They are rounded before they leave.

    Attributes:
        train: persons in training, however many examinations each has; likewise `validation`
            and `test`.
        refused: examinations that could not be used.
        slice_spacings_mm: through-plane spacing of every usable volume.
        data_version: how often the training data changed.
    """

    train: int
    validation: int
    test: int
    refused: int
    slice_spacings_mm: tuple[float, ...]
    data_version: int = 0


class SiteWork(Protocol):
    """One site's side of one task."""

    @property
    def part(self) -> TrainedPart:
        """The part that is trained here."""
        ...

    @property
    def parts(self) -> Mapping[Part, Sequence[Patient]]:
        """The patients of each part of the split; they never leave the site."""
        ...

    @property
    def counts(self) -> Counts:
        """What the cohort holds."""
        ...

    def statistics(self) -> dict[str, np.ndarray]:
        """Return the sums of round 0, in the form in which they leave."""
        ...

    def start(self) -> dict[str, Tensor]:
        """Return placeholder parameters of the right form, for a timed dry run."""
        ...

    def train(
        self,
        start: dict[str, Tensor],
        shared: Mapping[str, np.ndarray],
        *,
        round_index: int,
        steps: int | None = None,
        report: StepReport | None = None,
    ) -> TrainedRound:
        """One round of local training.

        Args:
            start: the received numbers.
            shared: what all sites together know, as the server sent it.
            round_index: 1 for the first training round.
            steps: fewer than the plan's, for a dry run.
            report: called after each step with its number (from 1).
        """
        ...

    def validation_psnr_db(
        self, values: dict[str, Tensor], shared: Mapping[str, np.ndarray]
    ) -> float | None:
        """Of the received numbers on validation patients; None where there is no such figure."""
        ...

    def guard(self, body: GuardRequest, tensors: Mapping[str, np.ndarray]) -> GuardReply:
        """The site's verdict on the finished mixer."""
        ...

    def gain(self, values: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Return the noisy sums of the finished mixer's gain, if the plan pays for them."""
        ...

    def keep_final(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Store what was just evaluated, for the site's own commands.

        Args:
            tensors: of the request for the verdict.
        """
        ...
