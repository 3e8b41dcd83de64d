"""The outcome of one exchange, and what a resumed run reads from the record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lift.protocol.messages import Kind
from lift.records.rounds import RoundRecord


@dataclass
class Tally:
    """One exchange: all answers, and all refusals with their reasons.

    Attributes:
        size_bytes: by site, of the answer; empty where patients are protected.
        seconds: that the exchange took; None where patients are protected.
    """

    asked: list[str]
    counted: dict[str, float] = field(default_factory=dict)
    answered: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    size_bytes: dict[str, int] = field(default_factory=dict)
    sent_again: dict[str, int] = field(default_factory=dict)
    seconds: float | None = None

    def record(
        self, round_index: int, kind: Kind, *, epsilon: float | None, **more: Any
    ) -> RoundRecord:
        """The line of `rounds.jsonl`."""
        return RoundRecord(
            round=round_index,
            kind=kind.value,
            asked=tuple(self.asked),
            answered=tuple(self.answered),
            counted=self.counted,
            refused=self.refused,
            bytes=self.size_bytes,
            sent_again=self.sent_again,
            seconds=None if self.seconds is None else round(self.seconds, 3),
            epsilon=epsilon,
            **more,
        )


def slowest_round_s(records: Sequence[RoundRecord]) -> float:
    """The longest round that a site expects, as round 0 recorded it."""
    return max((said.round_estimate_s for said in records[0].statistics.values()), default=0.0)


def patients_of(records: Sequence[RoundRecord]) -> dict[str, int]:
    """Training patients by site: those of round 0, and of each round's late joiners."""
    patients = {site: int(n) for site, n in records[0].counted.items()}
    for record in records[1:]:
        patients |= record.joined
    return patients
