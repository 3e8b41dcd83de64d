"""Header fields that may identify a patient, by name, never by content."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Final

from lift.errors import VolumeError
from lift.volumes.formats import dicom
from lift.volumes.formats.checks import Refusal
from lift.volumes.formats.decode import format_of
from lift.volumes.formats.dicom import series_files
from lift.volumes.formats.packed import GZIP

_LONGEST_HEADER: Final = 1 << 16


def identifying_fields(path: Path) -> tuple[str, ...]:
    """Return the names of header fields with free text that may identify a patient, sorted.

    NIfTI: its text fields, without those that are empty or hold the signature of common software
    alone, and header extensions, which may hold a whole DICOM header. NRRD and MetaImage: comments
    and fields that anybody may add, by kind, for their names are free text too. MGH has a footer of
    such texts, which common software fills with its own commands: it is not looked at. DICOM:
    keywords of the filled attributes that PS3.15 annex E would clear, of any file of the series,
    and that there are private tags. A file that cannot be read has none: reading it says why.

    Args:
        path: a file of one volume; of two files, the header; of a series, its folder.
    """
    if path.is_dir():
        try:
            files = series_files(path, Refusal(path.name, None))
        except VolumeError:
            return ()
        named = {name for file in files for name in dicom.FORMAT.identifying(b"", file)}
        return tuple(sorted(named))
    whole, inside = _start(path)
    found = format_of(whole, inside)
    if found is None:
        return ()
    return tuple(sorted(found.identifying(inside if found.packed else whole, path)))


def _start(path: Path) -> tuple[bytes, bytes]:
    """The first bytes as they are stored, and what gzip packed in them."""
    try:
        with path.open("rb") as stream:
            whole = stream.read(_LONGEST_HEADER)
        if whole[:2] != GZIP:
            return whole, whole
        with gzip.open(path) as packed:
            return whole, packed.read(_LONGEST_HEADER)
    except (OSError, EOFError, zlib.error):
        return b"", b""
