"""The file of a privacy ledger: append-only, hash-chained, locked by one process.

`ledger.jsonl` holds the lines of :mod:`lift.privacy.book`; `ledger.head` beside it holds their
number and the last hash. Each append writes the line, waits for the disk, and then writes the
head. So after a crash

- bytes of an unfinished line *after* the one that the head names belong to an append that never
  returned: no step was taken, no byte sent, no cost taken back and no cap raised on its account.
  They are set aside in `ledger.torn-<n>` and cut off;
- an unfinished line that the head names *was* complete: somebody cut it off. It is refused;
- one complete line after the head's counts as it stands.

What these two files cannot reveal is that both were deleted or replaced by older copies. The
server therefore keeps the last head it was told and names it in every request: it must be one of
the chain's, as must the last one that this process has seen. The ledger may have grown since:
reservations of a crash are known here alone, as are those of another site with the same patients.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, sleep
from typing import Final

from pydantic import Field

from lift.config.base import Settings
from lift.config.plan import Digest
from lift.errors import ConfigError, PrivacyError, RecordError
from lift.files import write_atomically
from lift.privacy.book import START, Book, Entry, Note, Opened, next_line, read_book
from lift.strict_json import parse_model

_MODE: Final = 0o600
_LOOK_EVERY_S: Final = 0.05
Clock = Callable[[], datetime]


class _Head(Settings):
    count: int = Field(ge=1)
    last_hash: Digest


def begin_file(path: Path, opened: Opened, clock: Clock) -> None:
    """Create the ledger's file with its first line, atomically.

    Raises:
        RecordError: there is a ledger already, or a part of one; nothing was changed.
    """
    text, line = next_line(Book(), opened, _now(clock))
    whole = path.with_name(f".{path.name}.new")
    with _written(path):
        write_atomically(whole, text, mode=_MODE)
        try:
            if head_path(path).exists():
                raise FileExistsError
            # fails when the name is taken, which a rename would not
            os.link(whole, path)
        except FileExistsError:
            raise RecordError(
                "there is a privacy ledger already",
                where=str(path.parent),
                seen="a ledger is begun once for a cohort; a second one would forget the first",
                remedy="Nothing was changed. Use the ledger that is there; where the data do not "
                "name it yet, `lift-client ledger --adopt FILE` with its file marks them.",
            ) from None
        finally:
            whole.unlink()
        _write_head(path, _Head(count=1, last_hash=line.hash))


def read_file(path: Path, expected_head: str) -> Book:
    """Read and check the book. Safe while another process holds the ledger.

    Raises:
        RecordError: missing, damaged, cut off or rolled back.
    """
    with _readable(path):
        for _ in range(100):
            before, content = _head_bytes(path), path.read_bytes()
            if _head_bytes(path) == before:
                break
    return _checked(path, content, before, [expected_head])[0]


def head_path(path: Path) -> Path:
    """Return the path of the head file, which names the last line of a ledger."""
    return path.with_name(f"{path.stem}.head")


class LedgerFile:
    """A ledger's file, locked for appending by this process.

    Attributes:
        book: what the lines say; changed only by :meth:`append`.

    Raises:
        RecordError: missing, damaged, cut off or rolled back; nothing was changed.
        ConfigError: another process holds it, and still does after `wait_s`.
    """

    book: Book

    def __init__(
        self, path: Path, expected: Collection[str], clock: Clock, wait_s: float = 0.0
    ) -> None:
        self.path = path
        self._clock = clock
        self._process = os.getpid()
        self._usable = True
        with _readable(path):
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            self._lock(wait_s)
            self._take_over(expected)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the lock."""
        if self._file >= 0:
            os.close(self._file)
        self._file, self._usable = -1, False

    def check_usable(self) -> None:
        """Raise if the file was changed by another process, or this is a forked process.

        Raises:
            PrivacyError: it was closed, a write failed, or this is another process.
            RecordError: the file was changed from outside.
        """
        if not self._usable or self._process != os.getpid():
            raise PrivacyError(
                "this privacy ledger is closed",
                where=str(self.path),
                seen="it was closed, an earlier write failed, or this is another process",
                remedy="Nothing was computed. Start the command again.",
            )
        with suppress(FileNotFoundError):
            same = os.path.samestat(self.path.stat(), os.fstat(self._file))
            if same and hashlib.sha256(self._content()).digest() == self._seen:
                return
        self._usable = False
        raise _damage(self.path, len(self.book.lines), "the file was changed while it was in use")

    def append(self, entry: Entry) -> int:
        """Add a line and return its number; line and head are on the disk when this returns.

        When it raises, the caller must act as if the line counted and as if it did not,
        whichever costs more: nothing more is taken by this object.

        Raises:
            RecordError: the disk failed, or the file was changed from outside.
            PrivacyError: as in :meth:`check_usable`.
        """
        self.check_usable()
        objection = self.book.objection(entry)
        if objection is not None:
            raise AssertionError(objection)
        text, line = next_line(self.book, entry, _now(self._clock))
        self._usable = False
        with _written(self.path):
            if os.write(self._file, text) != len(text):
                raise OSError("the line was written in part")
            os.fsync(self._file)
            _write_head(self.path, _Head(count=line.seq, last_hash=line.hash))
        self.book.take(line)
        self._seen = hashlib.sha256(self._content()).digest()
        self._usable = True
        return line.seq

    def _lock(self, wait_s: float) -> None:
        end = monotonic() + wait_s
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if monotonic() < end:
                    sleep(_LOOK_EVERY_S)
                    continue
                raise ConfigError(
                    "another process uses this privacy ledger",
                    where=str(self.path),
                    seen="its lock is held",
                    remedy="Wait until it has ended, or stop it. Nothing was computed.",
                ) from None
            return

    def _take_over(self, expected: Collection[str]) -> None:
        content = self._content()
        head = _head_bytes(self.path)
        self.book, unfinished = _checked(self.path, content, head, expected)
        with _written(self.path):
            os.fchmod(self._file, _MODE)
            if unfinished:
                _set_aside(self.path, unfinished)
                os.ftruncate(self._file, len(content) - len(unfinished))
                os.fsync(self._file)
            _write_head(self.path, _Head(count=len(self.book.lines), last_hash=self.book.last_hash))
        self._seen = hashlib.sha256(self._content()).digest()
        if unfinished:
            digest = hashlib.sha256(unfinished).hexdigest()
            text = f"A crash cut off the line being written: {len(unfinished)} bytes, {digest}"
            self.append(Note(text=text))

    def _content(self) -> bytes:
        return os.pread(self._file, os.fstat(self._file).st_size, 0)


def _checked(
    path: Path, content: bytes, head_text: bytes | None, expected: Collection[str]
) -> tuple[Book, bytes]:
    book, unfinished, problem = read_book(content)
    count = len(book.lines)
    if problem is not None:
        raise _damage(path, count + 1, problem)
    try:
        if head_text is not None:
            head = parse_model(_Head, head_text)
        elif count == 1:
            # a crash between the very first line and its head
            head = _Head(count=1, last_hash=book.last_hash)
        else:
            raise _damage(path, count, "ledger.head is missing")
    except ValueError:
        raise _damage(path, count, "ledger.head is not readable: it was edited") from None
    if head.count > count:
        seen = f"it is cut off: ledger.head counts {head.count} lines, here are {count}"
        raise _damage(path, count + 1, seen)
    if head.count < count - 1 or head.last_hash != book.lines[head.count - 1].hash:
        raise _damage(path, head.count, "ledger.head names another line: one of them is older")
    for missing in set(expected) - {START, *book.heads}:
        raise _damage(
            path,
            count,
            f"the head {missing[:12]} that is known from before is none of this chain's: "
            "the ledger was rolled back, replaced or started again",
        )
    return book, unfinished


def _set_aside(path: Path, unfinished: bytes) -> None:
    number = 1
    while (torn := path.with_name(f"{path.stem}.torn-{number}")).exists():
        number += 1
    write_atomically(torn, unfinished, mode=_MODE)


def _write_head(path: Path, head: _Head) -> None:
    write_atomically(head_path(path), head.canonical_json().encode() + b"\n", mode=_MODE)
    # renames and new names are on the disk only when their folder is
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _head_bytes(path: Path) -> bytes | None:
    try:
        return head_path(path).read_bytes()
    except FileNotFoundError:
        return None


def _now(clock: Clock) -> str:
    return clock().astimezone(UTC).isoformat(timespec="milliseconds")


@contextmanager
def _written(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RecordError(
            "cannot write the privacy ledger",
            where=str(path),
            seen=error.strerror or str(error),
            remedy="Nothing was computed or sent on its account. Free the disk or fix the "
            "folder's permissions, then start again.",
        ) from error


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RecordError(
            "the privacy ledger is missing",
            where=str(path),
            seen=f"{error.strerror}; without it, earlier releases are unknown",
            remedy="Nothing was computed. Bring the ledger back; a new cohort's is begun "
            "explicitly.",
        ) from None


def _damage(path: Path, line: int, seen: str) -> RecordError:
    return RecordError(
        f"the privacy ledger is damaged at line {line}",
        where=str(path),
        seen=f"line {line}: {seen}",
        remedy="Nothing is computed while the ledger is damaged. Keep the folder as it is, and "
        "show it to the security officer.",
        line=line,
    )
