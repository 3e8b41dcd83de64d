"""The lines of a privacy ledger and their total. Pure functions, without file access.

A line is JSON whose last key is `hash`: the SHA-256 of the line's own bytes without that key.
`previous` is the hash of the line before. Lines hold settings and digests, no patient data.

States: a reservation (`reserved`) covers a block of steps and costs from that moment; `sent`
says that its one result is about to leave; `released-nothing` takes the cost back.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Final, Literal, Self

from pydantic import Field, TypeAdapter, model_validator

from lift.config.base import Settings
from lift.config.plan import MOST_ROUNDS, Digest, Name
from lift.privacy.accounting import SMALLEST_DELTA, Mechanism, epsilon
from lift.protocol.heads import head_after
from lift.strict_json import parse_typed

START: Final = "0" * 64
"""What the first line names as the hash of the line before it; also the head of no line."""
_CLOSING: Final = re.compile(rb'(\{.*),"hash":"([0-9a-f]{64})"\}', re.DOTALL)
Sentence = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]+$", max_length=400)]
Cap = Annotated[float, Field(gt=0)]


class Release(Settings):
    """One kind of release of a run, whose settings stay the same for the whole run."""

    purpose: Name
    """What it is for: `train`, `statistics`, `metrics`."""
    noise_multiplier: float = Field(ge=0)
    """Noise's standard deviation divided by `clip_norm`; 0 costs infinity, hence is refused."""
    q: float = Field(gt=0, le=1)
    """Probability with which each patient takes part in a step (Poisson); 1: all take part."""
    clip_norm: float = Field(gt=0)
    """Largest L2 norm of one patient's contribution."""
    steps: int = Field(ge=1)
    """Steps of the whole planned run."""

    def mechanism(self, steps: int) -> Mechanism:
        """What `steps` of them cost."""
        return Mechanism(self.noise_multiplier, self.q, steps)


class PlannedRun(Settings):
    """Everything that a run is going to release about this cohort's patients."""

    run: Digest
    """The plan's SHA-256."""
    releases: tuple[Release, ...] = Field(min_length=1, max_length=16)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        purposes = [release.purpose for release in self.releases]
        if len(set(purposes)) != len(purposes):
            raise ValueError("each purpose has one entry in releases")
        return self

    def release(self, purpose: str) -> Release | None:
        """The release for a purpose; None when the run does not plan it."""
        return next((item for item in self.releases if item.purpose == purpose), None)


class Opened(Settings):
    """First line: whose patients, and how much may be released about them."""

    state: Literal["opened"] = "opened"
    cohort: Name
    unit: Literal["patient"] = "patient"
    relation: Literal["add or remove one"] = "add or remove one"
    delta: float = Field(ge=SMALLEST_DELTA, lt=1)
    cap: Cap
    """Epsilon, at `delta`, of everything that ever leaves."""


class CapChanged(Settings):
    """A new cap; every change gives its reason."""

    state: Literal["cap"] = "cap"
    cap: Cap
    reason: Sentence


class Planned(PlannedRun):
    """A run was admitted; its settings are fixed from here on. Costs nothing yet."""

    state: Literal["planned"] = "planned"


class Reserved(Settings):
    """A block of steps, written before its first step touches the data."""

    state: Literal["reserved"] = "reserved"
    run: Digest
    round: int = Field(ge=0, le=MOST_ROUNDS)
    purpose: Name
    mechanism: Literal["gaussian", "poisson-subsampled gaussian"]
    noise_multiplier: float = Field(ge=0)
    q: float = Field(gt=0, le=1)
    count: int = Field(ge=1)
    """Steps of this block."""
    clip_norm: float = Field(gt=0)
    unit: Literal["patient"] = "patient"
    relation: Literal["add or remove one"] = "add or remove one"


class Sent(Settings):
    """The result of one reservation is about to leave the process."""

    state: Literal["sent"] = "sent"
    reservation: int = Field(ge=1)
    content: Digest
    """SHA-256 of what is sent: the same bytes may be sent again without cost."""


class ReleasedNothing(Settings):
    """Nothing of a reservation has left the process that made it, and nothing will."""

    state: Literal["released-nothing"] = "released-nothing"
    reservation: int = Field(ge=1)
    reason: Sentence


class Note(Settings):
    """A remark, such as bytes that a crash cut off."""

    state: Literal["note"] = "note"
    text: Sentence


Entry = Annotated[
    Opened | CapChanged | Planned | Reserved | Sent | ReleasedNothing | Note,
    Field(discriminator="state"),
]


class Line(Settings):
    """One line of the ledger."""

    seq: int = Field(ge=1)
    time: Sentence
    """UTC, ISO 8601."""
    previous: Digest
    entry: Entry
    hash: Digest


_LINE: Final = TypeAdapter(Line)


@dataclass
class Book:
    """The state after all lines so far."""

    lines: list[Line] = field(default_factory=list)
    cohort: str = ""
    delta: float = 0.0
    cap: float = 0.0
    runs: dict[str, PlannedRun] = field(default_factory=dict)
    reservations: dict[int, Reserved] = field(default_factory=dict)
    sent: dict[int, str] = field(default_factory=dict)
    refunded: set[int] = field(default_factory=set)
    heads: list[str] = field(default_factory=list)
    """The head after each line."""

    @property
    def last_hash(self) -> str:
        """Hash of the last line."""
        return self.lines[-1].hash if self.lines else START

    @property
    def head(self) -> str:
        """The head that the server keeps; see `lift.protocol.heads`."""
        return self.heads[-1] if self.heads else START

    def lines_since(self, head: str) -> tuple[str, ...]:
        """Hashes of the lines after an earlier head; all of them after START.

        Raises:
            ValueError: this book never had that head.
        """
        first = 0 if head == START else self.heads.index(head) + 1
        return tuple(line.hash for line in self.lines[first:])

    def state(self, seq: int) -> Literal["reserved", "sent", "released-nothing"]:
        """State of one reservation."""
        if seq in self.sent:
            return "sent"
        return "released-nothing" if seq in self.refunded else "reserved"

    def steps(self) -> Counter[tuple[str, str]]:
        """Steps that cost, by run and purpose: all that were reserved, less the refunded ones."""
        steps: Counter[tuple[str, str]] = Counter()
        for seq, item in self.reservations.items():
            if seq not in self.refunded:
                steps[item.run, item.purpose] += item.count
        return steps

    def epsilon(self, more: Iterable[tuple[PlannedRun, str, int]] = ()) -> float:
        """Epsilon of all that costs, and of (run, purpose, steps) in `more`, at `delta`.

        PLD composes settings that were all fixed beforehand. With a second run, or with more
        steps than planned (a block repeated after a crash), the composition depended on what
        happened before, and the larger of RDP's filter and PLD counts.
        """
        steps, runs = self.steps(), dict(self.runs)
        for run, purpose, count in more:
            runs[run.run] = run
            steps[run.run, purpose] += count
        spent: list[Mechanism] = []
        as_planned = len({run for run, _ in steps}) <= 1
        for (run_digest, purpose), count in steps.items():
            release = runs[run_digest].release(purpose)
            if release is None:
                raise AssertionError("a reservation was taken for a purpose without a plan")
            spent.append(release.mechanism(count))
            as_planned = as_planned and count <= release.steps
        by_pld = epsilon(spent, self.delta)
        return by_pld if as_planned else max(by_pld, epsilon(spent, self.delta, "rdp"))

    def still_planned(self, run: PlannedRun) -> list[tuple[PlannedRun, str, int]]:
        """What a planned run has not reserved yet."""
        steps = self.steps()
        return [
            (run, release.purpose, left)
            for release in run.releases
            if (left := release.steps - steps[run.run, release.purpose]) > 0
        ]

    def objection(self, entry: Entry) -> str | None:
        """Return why this entry is not allowed next, or None."""
        if isinstance(entry, Opened) == bool(self.lines):
            return "only the first line opens a ledger"
        if isinstance(entry, Planned) and entry.run in self.runs:
            return "this run was planned before: its settings are fixed"
        if isinstance(entry, Reserved) and entry != self.reservation(
            entry.run, entry.round, entry.purpose, entry.count
        ):
            return "the reservation does not have the settings that its run fixed"
        if isinstance(entry, Sent | ReleasedNothing):
            if entry.reservation not in self.reservations:
                return f"line {entry.reservation} is not a reservation"
            if (state := self.state(entry.reservation)) != "reserved":
                return f"the reservation in line {entry.reservation} is closed: {state}"
        return None

    def reservation(self, run: str, round_: int, purpose: str, count: int) -> Reserved | None:
        """The reservation as the run's settings want it; None when the run does not plan it."""
        release = self.runs[run].release(purpose) if run in self.runs else None
        if release is None:
            return None
        return Reserved(
            run=run,
            round=round_,
            purpose=purpose,
            mechanism="gaussian" if release.q == 1 else "poisson-subsampled gaussian",
            noise_multiplier=release.noise_multiplier,
            q=release.q,
            count=count,
            clip_norm=release.clip_norm,
        )

    def take(self, line: Line) -> None:
        """Add a line that has no :meth:`objection`."""
        match line.entry:
            case Opened() as entry:
                self.cohort, self.delta, self.cap = entry.cohort, entry.delta, entry.cap
            case CapChanged() as entry:
                self.cap = entry.cap
            case Planned() as entry:
                self.runs[entry.run] = PlannedRun(run=entry.run, releases=entry.releases)
            case Reserved() as entry:
                self.reservations[line.seq] = entry
            case Sent() as entry:
                self.sent[entry.reservation] = entry.content
            case ReleasedNothing() as entry:
                self.refunded.add(entry.reservation)
            case Note():
                pass
        self.heads.append(head_after(self.head, [line.hash]))
        self.lines.append(line)


def next_line(book: Book, entry: Entry, time: str) -> tuple[bytes, Line]:
    """The bytes of the line that comes next, end of line included, and the line."""
    record = {"seq": len(book.lines) + 1, "time": time, "previous": book.last_hash}
    record["entry"] = entry.model_dump(mode="json")
    body = json.dumps(record, separators=(",", ":"), allow_nan=False).encode()
    digest = hashlib.sha256(body).hexdigest()
    text = body[:-1] + f',"hash":"{digest}"}}'.encode()
    return text + b"\n", _LINE.validate_json(text)


def read_book(content: bytes) -> tuple[Book, bytes, str | None]:
    """The book up to the first wrong line, bytes after the last complete line, what is wrong."""
    *complete, unfinished = content.split(b"\n")
    book = Book()
    for text in complete:
        problem = _take(book, text)
        if problem is not None:
            return book, b"", problem
    return book, unfinished, None


def _take(book: Book, text: bytes) -> str | None:
    parts = _CLOSING.fullmatch(text)
    if parts is None:
        return "it is not a line of a ledger: it was edited or inserted"
    if hashlib.sha256(parts[1] + b"}").hexdigest().encode() != parts[2]:
        return "its content does not fit its hash: it was edited"
    try:
        line = parse_typed(_LINE, text)
    except ValueError:
        return "it does not have the form of a ledger's line: it was edited or inserted"
    if line.seq != len(book.lines) + 1:
        return f"it calls itself line {line.seq}: lines were deleted, inserted or reordered"
    if line.previous != book.last_hash:
        return "it does not follow the line before it: a line was replaced, deleted or inserted"
    objection = book.objection(line.entry)
    if objection is None:
        book.take(line)
    return objection
