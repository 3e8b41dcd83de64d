"""The public extract of the rounds: numbers of sites only, without names or reasons.

`rounds.jsonl` is the coordinator's own record. It names who was refused and why, each site's loss
and what sites said of their cohorts. Whoever gets a release gets this extract in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from lift.records.metrics import Record
from lift.records.rounds import RoundRecord, mean_of

PUBLIC_ROUNDS_FILE: Final = "rounds-public.jsonl"
FEWEST_TOLD: Final = 3
"""Smallest number of sites for a mean loss. With two, each would know the other's."""
_DECIMALS: Final = 6


class PublicRound(Record):
    """One line of `rounds-public.jsonl`."""

    round: int
    kind: str
    asked: int
    """Number of sites that were asked."""
    counted: int
    """Number of sites that counted."""
    loss: float | None = None
    """Mean training loss over the sites that reported one; None if fewer than three did."""
    epsilon: float | None = None
    """Spent after this round; None without noise."""
    shipped: str | None = None
    """Of the line after the last round: what is released."""

    @classmethod
    def of(cls, line: RoundRecord) -> PublicRound:
        """What is public of one line of the coordinator's record."""
        told = [loss for loss in line.loss.values() if loss is not None]
        loss = mean_of(line.loss) if len(told) >= FEWEST_TOLD else None
        return cls(
            round=line.round,
            kind=line.kind,
            asked=len(line.asked),
            counted=len(line.counted),
            loss=None if loss is None else round(loss, _DECIMALS),
            epsilon=line.epsilon,
            shipped=line.shipped,
        )


def public_rounds(lines: Sequence[RoundRecord]) -> tuple[PublicRound, ...]:
    """The extract of a whole record, in its order."""
    return tuple(PublicRound.of(line) for line in lines)
