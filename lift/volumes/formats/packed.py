"""The bytes of one file, unpacked where gzip or zlib wrote them: never more than was asked for."""

from __future__ import annotations

import mmap
import stat
import zlib
from pathlib import Path
from typing import Final, cast

from lift.errors import VolumeError
from lift.volumes.formats import checks
from lift.volumes.formats.checks import COPY_AGAIN, Refusal

GZIP: Final = b"\x1f\x8b"
_WBITS_OF_EITHER: Final = 32 + zlib.MAX_WBITS
_BLOCK: Final = 1 << 16
_BEYOND: Final = "its voxels start beyond any file's end"
_TOO_MANY: Final = "it holds more voxels than its header claims"
_MOST_TIMES: Final = 1032
"""Deflate cannot make more bytes than this of one."""
_FREE_MEMBERS: Final = 64
LONGEST_START: Final = 540
"""The longest header of fixed size: that of NIfTI-2."""
_MOST_EXTRA: Final = 64 << 20
"""Bytes after the voxels that a format may have put there (a history, a footer)."""


def read_file(path: Path, refuse: Refusal, *, missing: VolumeError) -> bytes:
    """A regular file's bytes; mapped into memory where it is read in parts.

    Raises:
        VolumeError: `missing`, when it is not there; it is unreadable.
        TooLargeError: it is larger than any volume.
    """
    try:
        # asked before it is opened: a pipe would keep us waiting
        if not stat.S_ISREG(path.stat().st_mode):
            raise missing
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            if size > checks.most_bytes(refuse):
                limit = checks.most_bytes(refuse) >> 30
                raise refuse.too_large(f"the file is larger than {limit} GiB", checks.REALLY_LARGE)
            stream.seek(0)
            if refuse.in_parts and size:
                # bytes in all that is asked of it: slices, find, length, a view
                return cast("bytes", mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_READ))
            return stream.read(size)
    except FileNotFoundError:
        raise missing from None
    except OSError as error:
        raise refuse(
            error.strerror or type(error).__name__, "Check the file's permissions."
        ) from None


class Content:
    """One file from its first byte on, as it was before gzip.

    Attributes:
        start: the first bytes, for a header of fixed size.
        refuse: makes the error.
    """

    def __init__(self, stored: bytes, refuse: Refusal, *, packed: bool) -> None:
        self._stored = stored
        self.refuse = refuse
        if packed:
            check_may_unpack(refuse)
        self._inflater = Inflater(memoryview(stored), refuse) if packed else None
        if self._inflater is None:
            self.start = stored[:LONGEST_START]
        else:
            start = bytearray(LONGEST_START)
            self.start = bytes(start[: self._inflater.fill(memoryview(start))])

    def up_to(self, end: int) -> memoryview:
        """The first `end` bytes; compressed content is read to its end, where its checksum is.

        To be called once.

        Raises:
            VolumeError: there are fewer, `end` is beyond any file, or the content is damaged.
        """
        if end > checks.most_bytes(self.refuse):
            raise self.refuse(_BEYOND, COPY_AGAIN)
        if self._inflater is None:
            check_length(len(self._stored), end, self.refuse)
            return memoryview(self._stored)[:end]
        check_possible(len(self._stored), end, self.refuse)
        made = bytearray(end)
        known = min(end, len(self.start))
        made[:known] = self.start[:known]
        found = known + self._inflater.fill(memoryview(made)[known:])
        extra = min(_MOST_EXTRA, checks.LARGEST_VOLUME_BYTES)
        if self._inflater.rest(extra) > extra:
            raise self.refuse("it holds far more bytes than its header claims", COPY_AGAIN)
        check_length(found, end, self.refuse)
        return memoryview(made)


def plain(stored: memoryview, size: int, refuse: Refusal, *, skip: int) -> memoryview:
    """The `size` bytes after the skipped ones; with skip -1 the last ones.

    Raises:
        VolumeError: there are fewer or more: the header then describes other voxels.
    """
    skip = max(0, len(stored) - size) if skip == -1 else skip
    check_length(len(stored), skip + size, refuse)
    if len(stored) > skip + size:
        raise refuse(_TOO_MANY, COPY_AGAIN)
    return stored[skip:]


def unpacked(packed: memoryview, size: int, refuse: Refusal) -> memoryview:
    """The `size` bytes that gzip or zlib packed, checksum verified.

    Raises:
        VolumeError: they are damaged, there are fewer or more, or too many to be read.
    """
    check_may_unpack(refuse)
    if size > checks.LARGEST_VOLUME_BYTES:
        raise refuse(_BEYOND, COPY_AGAIN)
    check_possible(len(packed), size, refuse)
    made = bytearray(size)
    inflater = Inflater(packed, refuse)
    check_length(inflater.fill(memoryview(made)), size, refuse)
    if inflater.rest(0):
        raise refuse(_TOO_MANY, COPY_AGAIN)
    return memoryview(made)


def check_may_unpack(refuse: Refusal) -> None:
    """Raise TooLargeError if the file would have to be read in parts."""
    if refuse.in_parts:
        raise refuse.too_large(
            "it is larger than memory and compressed: it cannot be read in parts",
            "Unpack it (`gunzip`, or store it uncompressed): then it can.",
        )


def check_length(found: int, wanted: int, refuse: Refusal) -> None:
    """Raise VolumeError unless there are enough bytes."""
    if found < wanted:
        raise refuse(f"it ends early: {found} of {wanted} bytes that its header claims", COPY_AGAIN)


def check_possible(packed: int, wanted: int, refuse: Refusal) -> None:
    """Raise VolumeError if so few compressed bytes cannot hold the data."""
    if wanted > (packed + 1) * _MOST_TIMES:
        raise refuse(
            f"it ends early: {packed} compressed bytes cannot hold the {wanted} that its header "
            "claims",
            COPY_AGAIN,
        )


class Inflater:
    """Unpacks gzip or zlib bytes piece by piece; every checksum that it passes is verified."""

    def __init__(self, packed: memoryview, refuse: Refusal) -> None:
        self._packed = packed
        self._refuse = refuse
        self._engine = zlib.decompressobj(_WBITS_OF_EITHER)
        self._place = 0
        self._made = 0
        self._members = 1
        self._ended = False

    def fill(self, target: memoryview) -> int:
        """Unpack until `target` is full or the content ends: the number of bytes written."""
        done = 0
        while done < len(target):
            piece = self._next(len(target) - done)
            if not piece:
                break
            target[done : done + len(piece)] = piece
            done += len(piece)
        return done

    def rest(self, most: int) -> int:
        """How many bytes are left; reading stops where they are more than `most`."""
        count = 0
        while count <= most:
            piece = self._next(most + 1 - count)
            if not piece:
                break
            count += len(piece)
        return count

    def _next(self, most: int) -> bytes:
        """At least one byte and at most `most`, or none at the end (VolumeError: damaged)."""
        while True:
            if self._engine.eof and not self._begins_another_member():
                return b""
            feed: bytes | memoryview = self._engine.unconsumed_tail
            if not feed:
                feed = self._packed[self._place : self._place + _BLOCK]
                self._place += len(feed)
            try:
                piece = self._engine.decompress(feed, min(most, _BLOCK))
            except zlib.error:
                raise self._damaged() from None
            if piece:
                self._made += len(piece)
                return piece
            if not feed and not self._engine.eof:
                raise self._damaged()

    def _begins_another_member(self) -> bool:
        """Whether more gzip data follow; zeros may pad the end, anything else is damage."""
        if self._ended:
            return False
        self._place -= len(self._engine.unused_data)
        while block := bytes(self._packed[self._place : self._place + _BLOCK]):
            if block.strip(b"\0"):
                self._members += 1
                # members of almost nothing would keep us busy for hours
                too_many = self._members > _FREE_MEMBERS + (self._made >> 10)
                if too_many or not block.startswith(GZIP):
                    raise self._damaged()
                self._engine = zlib.decompressobj(_WBITS_OF_EITHER)
                return True
            self._place += len(block)
        self._ended = True
        return False

    def _damaged(self) -> VolumeError:
        return self._refuse("it ends early or is damaged inside", COPY_AGAIN)
