"""Text headers (NRRD, MetaImage): fields by name, read as exactly what they should be.

Only fields that a reader asks for are kept, and of them no message shows more than the name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lift.errors import VolumeError
from lift.volumes.formats.checks import COPY_AGAIN, Refusal

LONGEST_HEADER: Final = 1 << 20
Beside = Callable[[str], bytes]
"""Reads a file of the header's own folder, by the name that the header gives."""
_LONGEST_NUMBER: Final = 40
_WHOLE: Final = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER: Final = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")


@dataclass(frozen=True)
class Fields:
    """The fields of one header.

    Attributes:
        texts: name -> text without blanks around it.
        refuse: makes the error.
    """

    texts: Mapping[str, str]
    refuse: Refusal

    def __contains__(self, name: str) -> bool:
        return name in self.texts

    def text(self, name: str) -> str:
        """The text (VolumeError: there is no such field)."""
        if name not in self.texts:
            raise self.refuse(f"its header lacks the field '{name}'", COPY_AGAIN)
        return self.texts[name]

    def wholes(self, name: str, count: int | None = None) -> list[int]:
        """Whole numbers (VolumeError: other words, or another count)."""
        words = self.text(name).split()
        if len(words) != (count or len(words)) or not all(map(_WHOLE.fullmatch, words)):
            raise self.wrong(name)
        return [int(word) for word in words]

    def whole(self, name: str, default: int) -> int:
        """One whole number, or `default` where there is no such field."""
        return self.wholes(name, 1)[0] if name in self.texts else default

    def numbers(self, name: str, count: int) -> NDArray[np.float64]:
        """Finite numbers (VolumeError: other words, or another count)."""
        return self.numbers_of(name, self.text(name).split(), count)

    def numbers_of(self, name: str, words: list[str], count: int) -> NDArray[np.float64]:
        """These words of a field as finite numbers (VolumeError: they are none)."""
        plain = all(len(word) <= _LONGEST_NUMBER and _NUMBER.fullmatch(word) for word in words)
        if len(words) != count or not plain:
            raise self.wrong(name)
        values = np.array([float(word) for word in words])
        if not np.isfinite(values).all():
            raise self.wrong(name)
        return values

    def wrong(self, name: str) -> VolumeError:
        """The error of a field that does not hold what it should."""
        return self.refuse(f"its header's field '{name}' does not hold what it should", COPY_AGAIN)


def lines(stored: bytes, refuse: Refusal) -> Iterator[tuple[str, int]]:
    """Each line of a text header with the place after it (VolumeError: it does not end)."""
    place = 0
    while place < len(stored):
        end = stored.find(b"\n", place, LONGEST_HEADER)
        if end < 0:
            if len(stored) > LONGEST_HEADER:
                raise refuse("its header does not end", COPY_AGAIN)
            end = len(stored)
        line = stored[place:end].decode("utf-8", "replace")
        place = min(end + 1, len(stored))
        yield line.removesuffix("\r"), place


def detached(name: str, stored: bytes, beside: Beside, refuse: Refusal) -> bytes:
    """The bytes of the file that a header names.

    Raises:
        VolumeError: the name leads out of the header's folder or stands for several files, the
            file is not there, or the header goes on after its end.
    """
    if len(stored) > LONGEST_HEADER:
        raise refuse("its header is far too long", COPY_AGAIN)
    name = name.removeprefix("./")
    listed = name.split()[:1] == ["LIST"] or "%" in name
    if listed:
        raise refuse(
            "its voxels are in several files; one is read", "Store it with one file of voxels."
        )
    if name in {"", ".", ".."} or re.search(r"[/\\:\x00-\x1f\x7f\ufffd]", name):
        raise refuse(
            "its header names a file of voxels outside its own folder",
            "Put both files into one folder and the plain name into the header.",
        )
    return beside(name)
