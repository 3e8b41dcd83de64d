"""One exchange's outcome, and what the records of rounds say when a run resumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lift.protocol.messages import Kind


@dataclass
class Tally:
    """One exchange: who answered what, who was refused why."""

    asked: list[str]
    counted: dict[str, float] = field(default_factory=dict)
    answered: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    size_bytes: dict[str, int] = field(default_factory=dict)
    sent_again: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def record(
        self, round_index: int, kind: Kind, *, epsilon: float | None, **more: object
    ) -> dict[str, object]:
        """The line of `rounds.jsonl`."""
        return {
            "round": round_index,
            "kind": kind.value,
            "asked": self.asked,
            "answered": self.answered,
            "counted": self.counted,
            "refused": self.refused,
            "bytes": self.size_bytes,
            "sent_again": self.sent_again,
            "seconds": round(self.seconds, 3),
            **more,
            "epsilon": epsilon,
        }


def slowest_round_s(records: Sequence[Mapping[str, object]]) -> float:
    """The longest round that a site expects, as round 0 recorded it."""
    found = records[0]["statistics"]
    assert isinstance(found, dict)  # noqa: S101  # our own checkpoint wrote it
    return max((float(reply["round_estimate_s"]) for reply in found.values()), default=0.0)


def patients_of(records: Sequence[Mapping[str, object]]) -> dict[str, int]:
    """Training patients by site: those of round 0, and of each round's late joiners."""
    patients: dict[str, int] = {}
    for key, record in zip(["counted"] + ["joined"] * len(records), records, strict=False):
        found = record[key]
        assert isinstance(found, dict)  # noqa: S101  # our own checkpoint wrote it
        patients |= {str(site): int(n) for site, n in found.items()}
    return patients
