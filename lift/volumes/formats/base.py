"""What every format has: how its files are called and known, how they are read, what they tell."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from lift.volumes.formats.checks import Decoded, Refusal
from lift.volumes.formats.packed import Content
from lift.volumes.formats.texts import Beside


@dataclass(frozen=True)
class Stored:
    """One file that is read as a volume.

    Attributes:
        path: of the file; of two files, of the header.
        whole: its bytes as they are stored.
        content: the same, unpacked where gzip packed the whole file.
        beside: the bytes of a file in the same folder, by name.
        voxels: the file of the voxels that belongs to a header of its own; None where there is
            none.
        refuse: makes the error.
    """

    path: Path
    whole: bytes
    content: Content
    beside: Beside
    voxels: Path | None
    refuse: Refusal


@dataclass(frozen=True)
class Format:
    """One format of files. A new one is a module with such an object, and its line in `decode`.

    Attributes:
        suffixes: what its files are called; a pair by its header.
        claims: whether a file begins as this format does.
        decode: the volume, or VolumeError: every claim of a header is checked before memory is
            asked for.
        identifying: names of the header fields that hold text nobody can vouch for; never what
            they say. Of a file's first bytes, and its path where these are not enough.
        packed: gzip may pack the whole file: `claims` and `identifying` get what is inside.
    """

    suffixes: tuple[str, ...]
    claims: Callable[[bytes], bool]
    decode: Callable[[Stored], Decoded]
    identifying: Callable[[bytes, Path], Collection[str]]
    packed: bool
