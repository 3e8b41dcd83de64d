"""File helpers: atomic writes, appended lines, digests."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

logger = logging.getLogger(__name__)
_BLOCK = 1 << 20
NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG})
"""Numbers of the errors of a disk, or a limit, that takes nothing more."""


def write_atomically(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Replace `path` by `content` atomically: a reader, or a crash, sees the old or the new file.

    The file has `mode`, less the process's umask, from its first moment.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def close_folder(path: Path) -> None:
    """Create a folder with mode 0700, or remove the rights of others from an existing one.

    What earlier versions left inside may be readable in itself: nobody else gets to it. Rights
    of somebody else's folder cannot be changed, and are left.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        try:
            path.chmod(mode & 0o700)
        except PermissionError:
            logger.warning("event=folder_open_to_others mode=%o", mode)


def write_json(path: Path, data: object) -> None:
    """Write `data` as indented JSON, atomically; NaN and infinity are refused (ValueError)."""
    write_atomically(path, (json.dumps(data, indent=2, allow_nan=False) + "\n").encode())


def write_json_lines(path: Path, records: Iterable[Mapping[str, object]]) -> None:
    """Replace `path` by one JSON object a line, atomically."""
    lines = [json.dumps(record, allow_nan=False) + "\n" for record in records]
    write_atomically(path, "".join(lines).encode())


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; the file is never in memory as a whole."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def held_alone(path: Path, refusal: Exception) -> Iterator[None]:
    """Hold an exclusive lock on `path` inside the block. It ends with the process.

    Raises:
        Exception: `refusal`, when another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise refusal from None
        yield
