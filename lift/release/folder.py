"""A folder against its manifest: plain files alone, each with the size and digest that is listed.

No link is followed, neither to a file nor to a folder: what is hashed is what lies here.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, Literal

from lift.release.manifest import (
    APPROVALS,
    CERTIFICATE_FILE,
    MANIFEST_FILE,
    SIGNATURE_FILE,
    ListedFile,
    Manifest,
)

Problem = Literal[
    "missing",
    "extra",
    "changed",
    "not a file",
    "unreadable",
    "not a manifest",
    "not signed",
    "wrong key",
    "not under the CA",
    "not a release certificate",
    "certificate not valid now",
    "wrong approval",
    "wrong notice",
]
_BLOCK: Final = 1 << 20
_MOST_FOUND: Final = 10_000


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with one file of a release."""

    file: str
    """Path below the folder, with `/`; characters that a terminal would act on are escaped."""
    problem: Problem
    detail: str = ""


class NotPlainError(OSError):
    """A path that is no plain file of this folder: a link, a folder, a device."""


def read_plain(path: Path, largest: int) -> bytes:
    """The bytes of one plain file.

    Raises:
        NotPlainError: it is a link, a folder or a device.
        OSError: it cannot be read, or holds more than `largest` bytes (EFBIG).
    """
    descriptor = _open_plain(path)
    with os.fdopen(descriptor, "rb") as stream:
        content = stream.read(largest + 1)
    if len(content) > largest:
        raise OSError(errno.EFBIG, f"larger than {largest} bytes")
    return content


def compare(folder: Path, manifest: Manifest) -> list[Finding]:
    """Return what does not match the manifest, by file. Empty if everything matches.

    The manifest, its signature, its certificate and `approvals/NAME.json` are not listed and no
    finding; anything else that is not listed is.
    """
    try:
        present = dict(_entries(folder))
    except OverflowError:
        return [Finding(".", "extra", f"the folder holds more than {_MOST_FOUND} files")]
    found: dict[str, Finding] = {}
    names = {listed.sha256: name for name, listed in manifest.files.items()}
    for name, listed in manifest.files.items():
        finding = _compare_one(folder / name, name, listed, names) if name in present else None
        if name not in present:
            finding = Finding(name, "missing")
        if finding is not None:
            found[name] = finding
    parents = {str(parent) for name in manifest.files for parent in PurePosixPath(name).parents}
    # a folder comes before what lies in it, which is then not told one by one
    for name, kind in sorted(present.items()):
        if name in manifest.files or (kind == "folder" and name in parents):
            continue
        inside = any(str(parent) in found for parent in PurePosixPath(name).parents)
        if not _may_be_unlisted(name):
            if not inside:
                found[name] = Finding(printable(name), "extra", f"a {kind} not in the manifest")
        elif kind != ("folder" if name == APPROVALS else "file"):
            found[name] = Finding(printable(name), "not a file", f"it is a {kind}")
    return [found[name] for name in sorted(found)]


def printable(name: str) -> str:
    """The name with what a terminal would act on, or cannot show, as escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


def _compare_one(
    path: Path, name: str, listed: ListedFile, names: Mapping[str, str]
) -> Finding | None:
    """What is wrong with a listed file; `names` tells whose bytes a digest is."""
    try:
        size, digest = _size_and_digest(path)
    except NotPlainError as error:
        return Finding(name, "not a file", str(error.strerror))
    except OSError as error:
        return Finding(name, "unreadable", error.strerror or type(error).__name__)
    if (size, digest) == (listed.size, listed.sha256):
        return None
    if digest in names:
        return Finding(name, "changed", f"it holds the bytes of {names[digest]}")
    return Finding(
        name,
        "changed",
        f"{size} bytes, SHA-256 {digest[:12]}...; the manifest says {listed.size} bytes, "
        f"{listed.sha256[:12]}...",
    )


def _may_be_unlisted(name: str) -> bool:
    if name in {MANIFEST_FILE, SIGNATURE_FILE, CERTIFICATE_FILE, APPROVALS}:
        return True
    parent, _, file = name.rpartition("/")
    return parent == APPROVALS and file.endswith(".json")


def _entries(folder: Path) -> Iterator[tuple[str, str]]:
    """Path below the folder and kind of everything in it; a link is not followed."""
    waiting = [(folder, "")]
    count = 0
    while waiting:
        where, prefix = waiting.pop()
        with os.scandir(where) as entries:
            for entry in entries:
                count += 1
                # no release has as many; some other folder may have millions
                if count > _MOST_FOUND:
                    raise OverflowError
                name = f"{prefix}{entry.name}"
                kind = _kind(entry.stat(follow_symlinks=False).st_mode)
                yield name, kind
                if kind == "folder":
                    waiting.append((Path(entry.path), f"{name}/"))


def _kind(mode: int) -> str:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "folder"
    return "symbolic link" if stat.S_ISLNK(mode) else "device, pipe or socket"


def _open_plain(path: Path) -> int:
    kind = _kind(path.lstat().st_mode)
    if kind != "file":
        raise NotPlainError(errno.EINVAL, f"it is a {kind}")
    # between the look and the opening it may have become something else
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotPlainError(errno.EINVAL, "it is no plain file")
    return descriptor


def _size_and_digest(path: Path) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    with os.fdopen(_open_plain(path), "rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()
