"""The privacy ledger of one site and cohort: every release is paid for before it is computed.

Order of a block of steps: :meth:`Ledger.reserve` (on the disk when it returns), compute,
:meth:`Ledger.sent` with the digest of the result (on the disk when it returns), send. Whatever
goes wrong in between, the reservation counts in full; only the process that made it can take it
back, and only while nothing of it has left (:meth:`Ledger.released_nothing`).

Every refusal comes before the data are touched. The file itself:
:mod:`lift_client.gate.ledger_file`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self

from lift.errors import BudgetSpentError, ConfigError, PrivacyError
from lift.privacy.book import (
    START,
    Book,
    CapChanged,
    Note,
    Opened,
    Planned,
    PlannedRun,
    Release,
    ReleasedNothing,
    Reserved,
    Sent,
)
from lift.privacy.costs import most_steps
from lift.protocol.heads import MOST_LINES
from lift_client.gate.ledger_file import Clock, LedgerFile, begin_file, read_file
from lift_client.gate.ledger_rows import Row, rows_of

LEDGER_FILE: Final = "ledger.jsonl"


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class Cost:
    """Epsilon at the ledger's delta, before a run and after all of it."""

    before: float
    after: float
    cap: float


@dataclass
class Memory:
    """State that a process keeps of a ledger between closing and reopening it."""

    head: str = START
    """The last one that it has seen."""
    mine: set[int] = field(default_factory=set)
    """Its own reservations: only of these it is known whether something left."""


def create_ledger(
    path: Path, *, cohort: str, delta: float, cap: float, clock: Clock = _utc_now
) -> None:
    """Create a ledger. The file appears complete, with its first line, readable only by its owner.

    Args:
        path: `ledger.jsonl`; the folder is made when missing.
        cohort: name of the cohort whose patients it protects.
        delta: of (epsilon, delta)-DP, add or remove one patient; never changes.
        cap: epsilon that all releases together never pass.
        clock: gives the present time, with its zone.

    Raises:
        ConfigError: a value is out of range.
        RecordError: there is a ledger already, or a part of one; nothing was changed.
    """
    opened = Opened.from_data({"cohort": cohort, "delta": delta, "cap": cap}, str(path))
    begin_file(path, opened, clock)


def verify(path: Path, *, expected_head: str = START) -> Book:
    """Return the book. Raise if a line was edited, deleted, reordered, cut off or rolled back.

    May run beside a trainer. Bytes after the last complete line are passed over.

    Args:
        path: `ledger.jsonl`.
        expected_head: a head that the chain must have had, such as the last one the server knows.

    Raises:
        RecordError: names the first line that is wrong, and what is wrong with it.
    """
    return read_file(path, expected_head)


class Ledger:
    """A ledger held by one trainer; close it, or use it as a context manager.

    Every method writes to the disk before it returns. When one raises because the disk failed or
    the files were changed from outside, the ledger takes nothing more: open it again.

    Args:
        path: `ledger.jsonl`.
        cohort: the cohort that is going to be read; must be the ledger's own.
        expected_head: the last head that the server knows; START when it knows none.
        repeats: share of a run's planned steps that may be paid beyond them; see
            `lift.privacy.costs.most_steps`.
        memory: of an earlier opening by the same process; what it saw must still be there.
        wait_s: how long to wait for another process that holds it.
        clock: gives the present time, with its zone.

    Raises:
        RecordError: missing, damaged, cut off or rolled back; nothing was changed.
        ConfigError: another process holds it, or it belongs to another cohort.
    """

    def __init__(
        self,
        path: Path,
        *,
        cohort: str,
        expected_head: str = START,
        repeats: float = 0.1,
        memory: Memory | None = None,
        wait_s: float = 0.0,
        clock: Clock = _utc_now,
    ) -> None:
        self._memory = Memory() if memory is None else memory
        self._repeats = repeats
        self._file = LedgerFile(path, {expected_head, self._memory.head}, clock, wait_s)
        self._book = self._file.book
        self._path = path
        if self._book.cohort != cohort:
            self._file.close()
            raise ConfigError(
                "this privacy ledger belongs to another cohort",
                where=str(path),
                seen=f"it protects '{self._book.cohort}', not '{cohort}'",
                remedy="Each cohort has a ledger of its own. Nothing was computed.",
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the ledger. Open reservations stay and count."""
        self._memory.head = self._book.head
        self._file.close()

    @property
    def book(self) -> Book:
        """The content of the lines. It does not change once the ledger is closed."""
        return self._book

    @property
    def head(self) -> str:
        """The head that the server keeps. Send it with every answer."""
        return self._book.head

    def proof(self, known_head: str) -> tuple[str, ...]:
        """Hashes of the lines since a head that the server knows; none where it knows none.

        Raises:
            PrivacyError: they are more than a message takes.
            ValueError: the ledger never had that head.
        """
        lines = () if known_head == START else self._book.lines_since(known_head)
        if len(lines) > MOST_LINES:
            raise PrivacyError(
                "the privacy ledger cannot prove to the server that it continues its head",
                where=str(self._path),
                seen=f"it has grown by {len(lines)} lines since; a message takes {MOST_LINES}",
                remedy="Nothing was computed. Tell the coordinator, who may remove this site's "
                "line from ledger-heads.json when you have compared heads by telephone.",
            )
        return lines

    @property
    def cap(self) -> float:
        """Epsilon that all releases together may cost."""
        return self._book.cap

    @property
    def delta(self) -> float:
        """The one delta at which all releases are counted."""
        return self._book.delta

    @property
    def epsilon(self) -> float:
        """Epsilon of everything that was reserved and not taken back."""
        return self._book.epsilon()

    def rows(self) -> list[Row]:
        """All reservations, oldest first."""
        return rows_of(self._book)

    def planned_cost(self, run: PlannedRun) -> Cost:
        """Epsilon now, and after all that the run has not reserved yet; nothing is written.

        Raises:
            PrivacyError: the run began with other settings.
        """
        self._same_settings(run)
        after = self._book.epsilon(self._book.still_planned(run))
        return Cost(before=self.epsilon, after=after, cap=self.cap)

    def begin(self, run: PlannedRun) -> Cost:
        """Admit a whole run before its first step, or continue one after a restart.

        Raises:
            BudgetSpentError: the whole run, with all that was released before, passes the cap.
            PrivacyError: the run began with other settings.
        """
        cost = self.planned_cost(run)
        self._check_cap(cost.after, f"the whole run {run.run[:12]}")
        if run.run not in self._book.runs:
            self._file.append(Planned(run=run.run, releases=run.releases))
        return cost

    def check(self, run: str, round_: int, purpose: str, steps: int) -> Reserved:
        """What :meth:`reserve` would write down; it raises as that does, and nothing is written."""
        if steps < 1:
            raise ValueError(f"a block has at least one step (seen: {steps})")
        entry = self._book.reservation(run, round_, purpose, steps)
        if entry is None:
            planned = ", ".join(item.purpose for item in self._plan(run)) or "nothing"
            raise PrivacyError(
                f"the run {run[:12]} may not release for '{purpose}'",
                where=str(self._path),
                seen=f"its admitted plan releases for: {planned}",
                remedy="Nothing was computed. What a run releases is fixed at its start.",
            )
        begun = self._book.runs[run]
        self._check_plan(begun, purpose, steps)
        after = self._book.epsilon([(begun, purpose, steps)])
        self._check_cap(after, f"round {round_} of the run {run[:12]}")
        return entry

    def reserve(self, run: str, round_: int, purpose: str, steps: int) -> int:
        """Pay for a block of steps before its first one; returns the reservation's line number.

        Args:
            run: the plan's SHA-256, as given to :meth:`begin`.
            round_: the round that the block belongs to.
            purpose: one of the purposes that the run planned.
            steps: steps of the block, at least 1; empty Poisson batches count as well.

        Raises:
            BudgetSpentError: the block would pass the cap, or what the run was admitted for; no
                data may be touched.
            PrivacyError: the run has not begun, or did not plan this purpose.
        """
        entry = self.check(run, round_, purpose, steps)
        seq = self._file.append(entry)
        self._memory.mine.add(seq)
        return seq

    def sent(self, reservation: int, content: str) -> None:
        """Note the one result of a reservation; call it before the first byte leaves.

        The same content again is free and adds no line, also after a restart.

        Args:
            reservation: what :meth:`reserve` returned.
            content: SHA-256 of what is sent.

        Raises:
            PrivacyError: other content was sent for it, it was taken back, or another process
                made it: reserve again.
        """
        self._file.check_usable()
        if self._book.sent.get(reservation) == content:
            return
        self._check_open(reservation, "send")
        self._file.append(Sent(reservation=reservation, content=content))

    def may_resend(self, run: str, round_: int, content: str) -> bool:
        """Whether exactly these bytes were sent for this round, so that a repetition is free."""
        return any(
            digest == content and (item.run, item.round) == (run, round_)
            for seq, digest in self._book.sent.items()
            if (item := self._book.reservations[seq])
        )

    def released_nothing(self, reservation: int, reason: str) -> None:
        """Refund a reservation whose result has not left this process, and never will.

        Raises:
            PrivacyError: it was sent or taken back before, or another process made it; after a
                crash it is unknown what left, so it counts in full.
        """
        self._check_open(reservation, "take back")
        self._file.append(ReleasedNothing(reservation=reservation, reason=reason))

    def remark(self, text: str) -> None:
        """Record a note without cost."""
        self._file.append(Note.from_data({"text": text}, str(self._path)))

    def lower_cap(self, cap: float, reason: str) -> None:
        """Lower the cap. If it is below what is spent, nothing more is released.

        Raises:
            PrivacyError: `cap` is above the present one.
        """
        if cap > self.cap:
            raise PrivacyError(
                "the cap was not changed",
                where=str(self._path),
                seen=f"{cap} is above the present cap {self.cap}",
                remedy="To raise it, use --raise with a reason.",
            )
        self._file.append(CapChanged.from_data({"cap": cap, "reason": reason}, str(self._path)))

    def raise_cap(self, cap: float, reason: str) -> None:
        """Raise the cap, as decided by the hospital, and record the reason.

        Raises:
            PrivacyError: `cap` is not above the present one.
        """
        if not cap > self.cap:
            raise PrivacyError(
                "the cap was not raised",
                where=str(self._path),
                seen=f"{cap} is not above the present cap {self.cap}",
                remedy="Nothing was changed.",
            )
        self._file.append(CapChanged.from_data({"cap": cap, "reason": reason}, str(self._path)))

    def _plan(self, run: str) -> tuple[Release, ...]:
        return self._book.runs[run].releases if run in self._book.runs else ()

    def _same_settings(self, run: PlannedRun) -> None:
        begun = self._book.runs.get(run.run)
        if begun is not None and begun.releases != run.releases:
            raise PrivacyError(
                f"the run {run.run[:12]} began with other privacy settings",
                where=str(self._path),
                seen=f"on record: {_told(begun.releases)}\nnow: {_told(run.releases)}",
                remedy="Nothing was computed. New settings need a new run.",
            )

    def _check_cap(self, after: float, what: str) -> None:
        if not after <= self.cap:
            raise BudgetSpentError(
                f"the privacy budget does not cover {what}",
                where=str(self._path),
                seen=f"epsilon would be {after:.4f} at delta {self.delta:g}; "
                f"the cap is {self.cap:.4f}, and {self.epsilon:.4f} is spent",
                remedy="Nothing was computed. Plan more noise or fewer steps; only the hospital "
                "can raise the cap.",
            )

    def _check_plan(self, run: PlannedRun, purpose: str, steps: int) -> None:
        release = run.release(purpose)
        taken = self._book.steps()[run.run, purpose]
        most = 0 if release is None else most_steps(release, block=steps, repeats=self._repeats)
        if taken + steps > most:
            raise BudgetSpentError(
                f"the run {run.run[:12]} has taken all that it was admitted for",
                where=str(self._path),
                seen=f"{taken} steps for '{purpose}', and {steps} more are asked for; the plan has "
                f"{0 if release is None else release.steps}, with repeats at most {most}",
                remedy="Nothing was computed. Ask the coordinator why rounds are asked for again. "
                "`budget.repeats` in the settings allows more.",
            )

    def _check_open(self, reservation: int, action: str) -> None:
        self._file.check_usable()
        if reservation in self._book.reservations:
            state: str = self._book.state(reservation)
            if state == "reserved" and reservation in self._memory.mine:
                return
            seen = "another process made it" if state == "reserved" else f"it is closed: {state}"
        else:
            seen = "there is no such reservation"
        raise PrivacyError(
            f"cannot {action} reservation {reservation}",
            where=str(self._path),
            seen=seen,
            remedy="Its cost stays as it was. Reserve again for another result.",
        )


def _told(releases: tuple[Release, ...]) -> str:
    return "; ".join(
        f"{item.purpose}: noise multiplier {item.noise_multiplier}, q {item.q}, "
        f"clip norm {item.clip_norm}, {item.steps} steps"
        for item in releases
    )
