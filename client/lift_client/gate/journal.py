"""The site's journal: one hash-chained line for everything that leaves the hospital.

A line is JSON whose last key is `hash`: the SHA-256 of the line's own bytes without that key.
`previous` is the hash of the line before, so an edited, deleted, inserted or reordered line
breaks the chain. `journal.head` beside it holds the number of lines and the last hash, so a
cut-off end is noticed too. Anybody can check it with a text editor and a SHA-256 tool.

What a chain alone cannot detect: somebody who may write into the folder and rewrites *both*
files from some line on, consistently, or puts back an older copy of both; and the loss of the
very last line while `journal.head` is one behind (a crash between the two writes). Against the
former, write down the last hash now and then (`lift-client journal --head`) outside this
machine, and compare later (`--expect`).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import Field

from lift.config.base import Settings
from lift.config.card import DataCard
from lift.config.plan import MOST_ROUNDS, Digest
from lift.errors import RecordError
from lift.files import write_atomically, write_json
from lift.strict_json import parse_model

if TYPE_CHECKING:
    import numpy as np

JOURNAL_FILE: Final = "journal.jsonl"
START: Final = "0" * 64
"""What the first line names as the hash of the line before it."""
_CLOSING: Final = re.compile(rb'(\{.*),"hash":"([0-9a-f]{64})"\}', re.DOTALL)
Sentence = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]+$", max_length=400)]


class TensorNote(Settings):
    """Name, number format and shape of one tensor that left."""

    name: Sentence
    dtype: Sentence
    shape: tuple[Annotated[int, Field(ge=0)], ...]

    @property
    def numbers(self) -> int:
        """How many numbers the tensor holds."""
        return math.prod(self.shape)


class Entry(Settings):
    """What is about to leave, and why."""

    run: Digest | Literal[""]
    """The plan's SHA-256; empty in a note."""
    round: int = Field(ge=0, le=MOST_ROUNDS)
    kind: Literal["statistics", "train", "guard", "failure", "card", "note"]
    tensors: tuple[TensorNote, ...]
    bytes: int = Field(ge=0)
    """Bytes of the tensors."""
    sha256: Digest
    """Of what is sent: text and tensors as they leave."""
    clip: float | None = None
    """L2 bound that the update was clipped to; None without clipping."""
    noise: float | None = None
    """Standard deviation of the noise that was added; None without noise."""
    receiver: Sentence
    """Receiver: the server's address; `nobody` in a note."""
    purpose: Sentence
    """One plain sentence."""
    card: DataCard | None = None
    """The data card, whole, where one is shared or sent."""

    @classmethod
    def note(cls, purpose: str, *, sha256: str) -> Entry:
        """An entry of something that happened here; nothing is sent."""
        return Entry(
            run="",
            round=0,
            kind="note",
            tensors=(),
            bytes=0,
            sha256=sha256,
            receiver="nobody",
            purpose=purpose,
        )


class Line(Entry):
    """One line of the journal."""

    number: int = Field(ge=1)
    time: Sentence
    """UTC, ISO 8601."""
    previous: Digest
    hash: Digest

    @property
    def numbers(self) -> int:
        """How many numbers left in tensors."""
        return sum(tensor.numbers for tensor in self.tensors)


class _Head(Settings):
    count: int = Field(ge=0)
    last_hash: Digest


@dataclass(frozen=True)
class Reading:
    """The content of a journal file, and its faults.

    Attributes:
        lines: the lines up to the first that is wrong.
        unfinished: bytes after the last complete line: what a crash cut off; normally empty.
        problem: what is wrong, or None when chain and head are whole.
    """

    lines: tuple[Line, ...]
    unfinished: bytes
    problem: RecordError | None

    @property
    def last_hash(self) -> str:
        """Hash of the last line."""
        return self.lines[-1].hash if self.lines else START


def describe_tensors(tensors: Mapping[str, np.ndarray]) -> tuple[TensorNote, ...]:
    """Name, number format and shape of each tensor, sorted by name."""
    return tuple(
        TensorNote(name=name, dtype=tensors[name].dtype.name, shape=tensors[name].shape)
        for name in sorted(tensors)
    )


def read_journal(path: Path) -> Reading:
    """Read the journal and its faults. Only reads, so any account with read access can use it."""
    try:
        descriptor = os.open(_beside(path, "lock"), os.O_RDONLY)
    except OSError:
        # no writer has ever been here, or this account may not lock: read all the same
        return _read(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        return _read(path)
    finally:
        os.close(descriptor)


def verify(path: Path) -> Reading:
    """Return the journal. Raise if a line was edited, deleted, inserted, reordered or cut off.

    A head that is exactly one line behind is accepted: a crash between the two writes leaves
    that. Bytes of a line that a crash cut off are in `unfinished`.

    Raises:
        RecordError: names the first line that is wrong, and what is wrong with it.
    """
    reading = read_journal(path)
    if reading.problem is not None:
        raise reading.problem
    return reading


class Journal:
    """The journal of one site, open for appending; several processes may hold it open.

    Opening checks the whole chain. What a crash left of a last line is set aside in
    `journal.torn-<n>`, and a line of kind `note` says so.

    Args:
        path: `journal.jsonl`; the folder is made when missing.
        clock: gives the present time, with its zone.

    Raises:
        RecordError: the journal is damaged; nothing is appended to it.
    """

    def __init__(
        self, path: Path, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._path = path
        self._clock = clock
        # what the files were after this object's last look: another process may have written
        self._seen = (-1, b"")
        self._count = 0
        self._last_hash = START
        self._first_sent: dict[tuple[str, int, str, str], int] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked():
            self._load()

    def append(self, entry: Entry) -> str:
        """Add one line and return its hash; call it before the first byte leaves.

        Guarantee: when this returns, line and head are on the disk. When it raises, nothing may
        be sent; a line may then stand for something that never left, never the other way round.
        The same bytes for the same round get a line again, which says that it is a repetition.

        Raises:
            RecordError: the journal was damaged since it was opened.
            OSError: the disk is full, or the files may not be written.
        """
        with self._locked():
            if self._files() != self._seen:
                self._load()
            earlier = self._first_sent.get(_same(entry))
            if earlier is not None:
                note = f" (Repetition: the same bytes as in line {earlier}.)"
                entry = entry.model_copy(update={"purpose": entry.purpose + note})
            text, line = self._next(entry)
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            self._take(line)
            self._write_head()
            self._seen = self._files()
            return line.hash

    def _next(self, entry: Entry) -> tuple[bytes, Line]:
        now = self._clock().astimezone(UTC).isoformat(timespec="milliseconds")
        record = {"number": self._count + 1, "time": now, **_dumped(entry)}
        record["previous"] = self._last_hash
        body = json.dumps(record, separators=(",", ":"), allow_nan=False).encode()
        digest = hashlib.sha256(body).hexdigest()
        text = body[:-1] + f',"hash":"{digest}"}}'.encode()
        return text + b"\n", parse_model(Line, text)

    def _take(self, line: Line) -> None:
        self._count, self._last_hash = line.number, line.hash
        self._first_sent.setdefault(_same(line), line.number)

    def _load(self) -> None:
        reading = _read(self._path)
        if reading.problem is not None:
            raise reading.problem
        self._count, self._last_hash, self._first_sent = 0, START, {}
        for line in reading.lines:
            self._take(line)
        # before anything is added: a head two lines behind would count as damage
        if self._count:
            self._write_head()
        if reading.unfinished:
            self._set_aside(reading.unfinished)
        self._seen = self._files()

    def _set_aside(self, unfinished: bytes) -> None:
        number = 1
        while (torn := _beside(self._path, f"torn-{number}")).exists():
            number += 1
        with torn.open("xb") as stream:
            stream.write(unfinished)
            stream.flush()
            os.fsync(stream.fileno())
        text, line = self._next(
            Entry.note(
                f"A crash cut off the line that was being written; its {len(unfinished)} bytes "
                f"are kept in {torn.name}. Nothing had been sent for it.",
                sha256=hashlib.sha256(unfinished).hexdigest(),
            )
        )
        # in one step: a crash here leaves the torn line to be found again, never a missing note
        whole = self._path.read_bytes()[: -len(unfinished)]
        write_atomically(self._path, whole + text)
        self._take(line)
        self._write_head()

    def _write_head(self) -> None:
        head = _Head(count=self._count, last_hash=self._last_hash)
        if _read_head(self._path) != head:
            write_json(_beside(self._path, "head"), head.model_dump(mode="json"))
        # renamed and new files are on the disk only when their folder is
        descriptor = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _files(self) -> tuple[int, bytes]:
        try:
            return self._path.stat().st_size, _beside(self._path, "head").read_bytes()
        except FileNotFoundError:
            return -1, b""

    @contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(_beside(self._path, "lock"), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _dumped(entry: Entry) -> dict[str, object]:
    # a card is rare: no line says that it has none
    return entry.model_dump(mode="json", exclude={"card"} if entry.card is None else None)


def _same(entry: Entry) -> tuple[str, int, str, str]:
    # the same bytes in answer to another request are no repetition
    return entry.run, entry.round, entry.kind, entry.sha256


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(f"{path.stem}.{ending}")


def _read(path: Path) -> Reading:
    content = path.read_bytes() if path.exists() else b""
    *complete, unfinished = content.split(b"\n")
    lines: list[Line] = []
    for number, text in enumerate(complete, start=1):
        line = _parse(text, number, lines[-1].hash if lines else START)
        if isinstance(line, str):
            return Reading(tuple(lines), b"", _damage(path, number, line))
        lines.append(line)
    return Reading(tuple(lines), unfinished, _against_head(path, lines))


def _parse(text: bytes, number: int, previous: str) -> Line | str:
    """The line, or what is wrong with it."""
    parts = _CLOSING.fullmatch(text)
    if parts is None:
        return "it is not a line of a journal: it was edited or inserted"
    if hashlib.sha256(parts[1] + b"}").hexdigest().encode() != parts[2]:
        return "its content does not fit its hash: it was edited"
    try:
        line = parse_model(Line, text)
    except ValueError:
        return "it does not have the form of a journal's line: it was edited or inserted"
    if line.number != number:
        return f"it calls itself line {line.number}: lines were deleted, inserted or reordered"
    if line.previous != previous:
        return "it does not follow the line before it: a line was replaced, deleted or inserted"
    return line


def _against_head(path: Path, lines: list[Line]) -> RecordError | None:
    count = len(lines)
    try:
        head = _read_head(path)
    except ValueError:
        return _damage(path, count, "journal.head is not readable: it was edited")
    if head is None:
        # the crash between the very first line and its head
        if count <= 1:
            return None
        return _damage(path, count, "journal.head is missing: a cut-off end would go unnoticed")
    if head.count > count:
        seen = f"it is missing or cut off: journal.head counts {head.count} lines, here are {count}"
        return _damage(path, count + 1, seen)
    if head.count < count - 1:
        return _damage(
            path,
            head.count + 1,
            f"journal.head ends before it, at {head.count} lines, but here are {count}: "
            "lines were added or the head is an older one",
        )
    if head.last_hash != (lines[head.count - 1].hash if head.count else START):
        return _damage(path, head.count, "it is not the line that journal.head names")
    return None


def _read_head(path: Path) -> _Head | None:
    try:
        return parse_model(_Head, _beside(path, "head").read_bytes())
    except FileNotFoundError:
        return None


def _damage(path: Path, line: int, seen: str) -> RecordError:
    return RecordError(
        f"the journal is damaged at line {line}",
        where=str(path),
        seen=f"line {line}: {seen}",
        remedy="Nothing is sent while the journal is damaged. Keep the folder as it is, and show "
        "it to the security officer; start again with a new `folder` in the site's settings.",
        line=line,
    )
