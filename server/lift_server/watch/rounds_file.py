"""`rounds.jsonl` read again only when it has changed: for programs that poll a run every second."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from lift.errors import DataError
from lift.privacy.rounding import rounded_up
from lift.records.rounds import ROUNDS_FILE, Outcome, RoundRecord, outcome, reason
from lift.strict_json import parse_model

_MISSED: Final = frozenset({Outcome.REFUSED, Outcome.LATE, Outcome.UNCOUNTED})


@dataclass(frozen=True)
class SiteTally:
    """Totals for one site over all rounds so far.

    Attributes:
        counted: training rounds in which its update counted.
        missed: training rounds in which it was asked and did not count.
        last_refusal: the last of those, with the reason.
        loss: training loss of the last round in which it counted; None under privacy.
        validation_psnr_db: the same of its validation patients, before that round.
        received_bytes: everything that it sent in exchanges on record; None where the record has no
            sizes, as under patient-level privacy.
        epsilon: what its patients have met by the server's record, rounded up; None without noise.
    """

    counted: int = 0
    missed: int = 0
    last_refusal: str | None = None
    loss: float | None = None
    validation_psnr_db: float | None = None
    received_bytes: int | None = None
    epsilon: float | None = None


@dataclass(frozen=True)
class Rounds:
    """The record of a run's rounds.

    Attributes:
        lines: the same, checked.
    """

    lines: tuple[RoundRecord, ...] = ()

    @cached_property
    def trained(self) -> tuple[RoundRecord, ...]:
        """The training rounds alone."""
        return tuple(line for line in self.lines if line.kind == "train")

    @cached_property
    def tallies(self) -> dict[str, SiteTally]:
        """Each site that a line names; worked out once."""
        names = {site for line in self.lines for site in (*line.asked, *line.bytes, *line.counted)}
        return {name: self._tally(name) for name in sorted(names)}

    @cached_property
    def refusals(self) -> list[dict[str, str | int]]:
        """Return refusals and late answers with round and reason, latest first."""
        return [
            {
                "round": line.round,
                "kind": line.kind,
                "site": site,
                "outcome": outcome(line, site).value,
                "reason": reason(line, site),
            }
            for line in reversed(self.lines)
            for site in sorted({*line.asked, *line.refused})
            if outcome(line, site) in _MISSED
        ]

    def _tally(self, name: str) -> SiteTally:
        counted = [line for line in self.trained if name in line.counted]
        missed = [line for line in self.trained if outcome(line, name) in _MISSED]
        # what a round's line says of epsilon holds for a site that was asked in as many rounds
        by_round = {line.round: line.epsilon for line in self.lines}
        spent = by_round.get(sum(name in line.asked for line in self.lines[1:]))
        sizes = [line.bytes[name] for line in self.lines if name in line.bytes]
        return SiteTally(
            counted=len(counted),
            missed=len(missed),
            last_refusal=f"round {missed[-1].round}: {reason(missed[-1], name)}"
            if missed
            else None,
            loss=counted[-1].loss.get(name) if counted else None,
            validation_psnr_db=counted[-1].validation_psnr_db.get(name) if counted else None,
            received_bytes=sum(sizes) if sizes else None,
            epsilon=None if spent is None else rounded_up(spent),
        )


class RoundsFile:
    """Reads the record of one run's folder, and keeps what it read until the file changes."""

    def __init__(self, output: Path) -> None:
        self._path = output / ROUNDS_FILE
        self._seen: tuple[int, int, int] | None = None
        self._rounds = Rounds()

    def read(self) -> Rounds:
        """The rounds on record now; none before the first one.

        Raises:
            DataError: the file is damaged, or is not to be read.
        """
        try:
            found = self._path.stat()
            # the file is replaced at each round: another inode, or at least another time or size
            mark = (found.st_ino, found.st_mtime_ns, found.st_size)
            if mark != self._seen:
                self._rounds = _parsed(self._path.read_bytes())
                self._seen = mark
        except (FileNotFoundError, NotADirectoryError):
            self._rounds, self._seen = Rounds(), None
        except (OSError, ValueError, ValidationError):
            raise DataError(
                "cannot read the record of rounds",
                where=str(self._path),
                seen="it is not readable, or a line is not what a round leaves",
                remedy="Start the server again: it rebuilds this file from its checkpoints.",
            ) from None
        return self._rounds


def _parsed(content: bytes) -> Rounds:
    return Rounds(tuple(parse_model(RoundRecord, line) for line in content.decode().splitlines()))
