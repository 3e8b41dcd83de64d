"""The server's side of a task, as the round loop sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from torch import Tensor

from lift.config.privacy import GainRelease
from lift.protocol.messages import GuardReply, Parcel, StatisticsReply
from lift.records.shipped import Shipped


class Contribution:
    """What one site shares in round 0; each task has its own."""


class RunTask(Protocol):
    """One kind of task, as the round loop sees it."""

    @property
    def gain(self) -> GainRelease | None:
        """Bound and noise of the finished mixer's gain, if the plan pays for it."""
        ...

    @property
    def has_guard(self) -> bool:
        """Whether sites evaluate the finished mixer."""
        ...

    def review(self, parcel: Parcel, plan_digest: str) -> tuple[StatisticsReply, Contribution]:
        """One site's answer to round 0, or UpdateRejectedError."""
        ...

    def combine(self, contributions: Sequence[Contribution]) -> dict[str, Tensor]:
        """Combine the contributions of all sites, in checkpoint form, whatever their order."""
        ...

    def by_site(self, contributions: Mapping[str, Contribution]) -> dict[str, Tensor]:
        """What may be published about single sites, in checkpoint form. Usually empty.

        Args:
            contributions: those that were combined, by site.
        """
        ...

    def start(self, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The numbers that training starts from."""
        ...

    def sent(self, shared: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """What of it goes to the sites beside the mixer in every round."""
        ...

    def judged_with(self, shared: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """What of it is sent to the sites with the finished mixer, for its evaluation."""
        ...

    def shipped(self, guard: Mapping[str, GuardReply], *, asked: int) -> Shipped | None:
        """What is released after these verdicts. None: always what was trained.

        Where it is the Gaussian, :meth:`start` gives the numbers that leave it as it is.
        """
        ...
