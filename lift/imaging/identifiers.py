"""Which texts of a file's header may name a patient: the fields by name, never what they say."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import nibabel
import numpy as np

_TEXTS: Final = ("data_type", "db_name", "descrip", "aux_file", "intent_name")
_EXTENSIONS: Final = "header extensions"
# what common software signs with; dcm2niix adds a time of day, which is not among them
_SIGNATURES: Final = re.compile(
    r"(FSL\d[\w.]*|\d+(\.\d+)+:[0-9a-f]+|spm ?-? ?[\w. -]{0,20}|SPM[\w .-]{0,20}"
    r"|FreeSurfer [A-Z][a-z]{2} \d{1,2} \d{4}|ITK[\w .-]{0,20}|AFNI[\w .-]{0,20}|NIfTI[\w .-]{0,20}"
    r"|TE=[\d.]+|PHANTOM, simulated, no patient|none|MNI152|affine transform)"
)


def identifying_fields(path: Path) -> tuple[str, ...]:
    """Names of the header fields of a NIfTI file that hold text nobody can vouch for, sorted.

    Fields that are empty or hold the signature of common software alone are left out. At the end
    stand header extensions, which may hold a whole DICOM header. A file that cannot be read has
    none: reading it says why.

    Args:
        path: .nii or .nii.gz.
    """
    start = _start(path)
    header = _header(start)
    if header is None:
        return ()
    flag = start[header.sizeof_hdr : header.sizeof_hdr + 4]
    extended = len(flag) == 4 and flag[0] != 0
    return (*sorted(_texts(header)), *((_EXTENSIONS,) if extended else ()))


def _texts(header: nibabel.Nifti1Header) -> Iterator[str]:
    for field in _TEXTS:
        if field not in header.structarr.dtype.names:
            continue
        text = bytes(np.asarray(header[field]).item() or b"").split(b"\0")[0]
        said = text.decode("latin-1").strip()
        if said and not _SIGNATURES.fullmatch(said):
            yield field


def _header(start: bytes) -> nibabel.Nifti1Header | None:
    for kind, magic, place in (
        (nibabel.Nifti1Header, (b"n+1\0", b"ni1\0"), 344),
        (nibabel.Nifti2Header, (b"n+2\0", b"ni2\0"), 4),
    ):
        if len(start) >= kind.sizeof_hdr and start[place : place + 4] in magic:
            try:
                return kind(start[: kind.sizeof_hdr], check=False)
            except (nibabel.spatialimages.HeaderDataError, ValueError):
                return None
    return None


def _start(path: Path) -> bytes:
    length = nibabel.Nifti2Header.sizeof_hdr + 4
    try:
        with path.open("rb") as stream:
            if stream.read(2) != b"\x1f\x8b":
                stream.seek(0)
                return stream.read(length)
        with gzip.open(path) as packed:
            return packed.read(length)
    except (OSError, EOFError, zlib.error):
        return b""
