"""The result of a finished run, before it is written."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lift.privacy.gain import PooledGain
from lift.protocol.messages import GuardReply
from lift.records.rounds import RoundRecord
from lift.records.shipped import Shipped
from lift.wire.names import TAPS


@dataclass(frozen=True)
class FinishedRun:
    """The result of a finished run.

    Attributes:
        mixer: the released mixer; where the Gaussian ships, one that changes nothing of it.
        shared: what all sites together know: the z-filter's taps, or drifting statistics.
        guard: verdict by site; a site that did not answer is absent.
        records: the lines of `rounds.jsonl`.
        trained: what the rounds gave, whether it is released or not.
        shipped: which of Gaussian and mapper is released; None where there is no such choice.
        gain: under noise, what the mixer gains by all sites' noisy sums; None where the plan pays
            for none.
    """

    mixer: dict[str, Tensor]
    shared: dict[str, Tensor]
    guard: dict[str, GuardReply]
    records: list[RoundRecord]
    trained: dict[str, Tensor]
    shipped: Shipped | None
    gain: PooledGain | None = None

    @property
    def taps(self) -> Tensor:
        """The shared z-filter of a paired task, (6,), float64; empty for another one."""
        return self.shared.get(TAPS, torch.zeros(0, dtype=torch.float64))
