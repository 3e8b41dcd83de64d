"""Which reader takes a file: its first bytes say so, and its name only where they cannot."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import Final

from lift.volumes.formats import dicom, metaimage, mgh, nifti, nrrd
from lift.volumes.formats.base import Format, Stored
from lift.volumes.formats.checks import COPY_AGAIN, Decoded, Refusal, check_fetched
from lift.volumes.formats.packed import GZIP, LONGEST_START, Content, read_file
from lift.volumes.formats.texts import Beside

FORMATS: Final = (
    dicom.FORMAT,
    nifti.PAIR,
    metaimage.FORMAT,
    nrrd.FORMAT,
    mgh.FORMAT,
    nifti.SINGLE,
)
"""Every format that is read; no two claim the same file."""
READ_SUFFIXES: Final = tuple(suffix for one in FORMATS for suffix in one.suffixes)
"""What volumes are called, once each: a pair by its header. The last ones are looked for first."""
_PACKED: Final = ".gz"
_HEADERS: Final = (".hdr", ".hdr.gz")
_VOXELS: Final = (".img", ".img.gz")
_TEXT_HEADERS: Final = (".nhdr", ".mhd")


def decode(path: Path, refuse: Refusal) -> tuple[Decoded, str]:
    """What a volume's file holds, and its digest.

    Formats: NIfTI-1 and NIfTI-2, in one file or as a pair, of which either may be named; MGH and
    MGZ; NRRD and MetaImage, attached, or detached with the voxels in the header's folder; DICOM, as
    the folder of a series or as one enhanced multi-frame file.

    The digest is SHA-256 of the file's bytes; of two files, of the header's and then of the
    other's; of a series, of its files' sorted digests.

    Raises:
        VolumeError: a file is missing, empty, truncated or damaged, is of no format that is read,
            is too large, 4D, colour or complex, or is thinner than 2 voxels.
        AffineError: it does not say where its voxels lie.
    """
    if _is_folder(path, refuse):
        dicom.check_whole(refuse)
        return dicom.decode_series(path, refuse)
    # voxels alone have no mark: of a pair, the names decide
    header = _partner(path, _VOXELS, _HEADERS, refuse) or path
    missing = refuse("there is no such file", "Restore it, or take the patient out.")
    stored = read_file(header, refuse, missing=missing)
    digest = hashlib.sha256(stored)

    def beside(name: str) -> bytes:
        gone = refuse(
            "the file of its voxels is not beside its header",
            "Restore it: both files are needed, in one folder.",
        )
        place = header.with_name(name)
        if _is_file(place) and place.samefile(header):
            raise refuse(
                "its header names itself as the file of its voxels",
                "Restore the file of the voxels, and its name in the header.",
            )
        other = read_file(place, refuse, missing=gone)
        digest.update(other)
        return other

    decoded = _decoded(header, stored, beside, refuse)
    return decoded, digest.hexdigest()


def files_of(path: Path, refuse: Refusal) -> list[Path]:
    """Every file that a volume is stored in: of a series its folder's files, sorted by name.

    Raises:
        VolumeError: the file, or the other half of two, is missing or cannot be read.
    """
    if _is_folder(path, refuse):
        return dicom.series_files(path, refuse)
    header = _partner(path, _VOXELS, _HEADERS, refuse) or path
    if not _is_file(header):
        raise refuse("there is no such file", "Restore it, or take the patient out.")
    voxels = _partner(header, _HEADERS, _VOXELS, refuse)
    if voxels is not None:
        return [header, voxels]
    return [header, *_named_in(header, refuse)]


def _named_in(header: Path, refuse: Refusal) -> list[Path]:
    """The file that a text header names, if there is one."""
    found: list[Path] = []

    def beside(name: str) -> bytes:
        found.append(header.with_name(name))
        raise _FoundError

    if not header.name.lower().endswith(_TEXT_HEADERS):
        return []
    missing = refuse("there is no such file", "Restore it, or take the patient out.")
    stored = read_file(header, refuse, missing=missing)
    with contextlib.suppress(_FoundError):
        if nrrd.is_nrrd(stored[:16]):
            nrrd.decode(stored, beside, refuse)
        elif metaimage.is_metaimage(stored[:64]):
            metaimage.decode(stored, beside, refuse)
    return found


class _FoundError(Exception):
    """Ends the reading of a header where its voxels would be asked for."""


def format_of(whole: bytes, inside: bytes) -> Format | None:
    """The format of a file; None where none claims it.

    Args:
        whole: its first bytes as they are stored.
        inside: what gzip packed, where it packed the whole file; else the same.
    """
    claimed = (one for one in FORMATS if one.claims(inside if one.packed else whole))
    return next(claimed, None)


def _decoded(path: Path, stored: bytes, beside: Beside, refuse: Refusal) -> Decoded:
    if not stored:
        raise refuse("the file is empty", COPY_AGAIN)
    check_fetched(stored, refuse)
    content = Content(stored, refuse, packed=stored[:2] == GZIP)
    found = format_of(stored[:LONGEST_START], content.start)
    if found is not None:
        voxels = _partner(path, _HEADERS, _VOXELS, refuse)
        return found.decode(Stored(path, stored, content, beside, voxels, refuse))
    if path.name.endswith(_PACKED) and stored[:2] != GZIP:
        raise refuse("it is damaged: its name ends in .gz, its content is no gzip", COPY_AGAIN)
    raise refuse(
        "it is not an image of a format that is read",
        "Convert it to NIfTI; of two files, name the header (.hdr, .nhdr, .mhd).",
    )


def _partner(
    path: Path, own: tuple[str, ...], others: tuple[str, ...], refuse: Refusal
) -> Path | None:
    """The one other file of a pair, or None (VolumeError: there are two)."""
    for suffix in own:
        if path.name.lower().endswith(suffix):
            stem = path.name[: -len(suffix)]
            names = [stem + form for other in others for form in (other, other.upper())]
            found = [place for name in names if _is_file(place := path.with_name(name))]
            if len(found) > 1 and not found[0].samefile(found[-1]):
                raise refuse(
                    "two files beside it could be its other half", "Take one of them away."
                )
            return found[0] if found else None
    return None


def _is_folder(path: Path, refuse: Refusal) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError) as error:
        seen = (error.strerror if isinstance(error, OSError) else None) or "its name is none"
        raise refuse(seen, "Let the user that runs this read it, or mend its path.") from None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        # a name too long, a folder that is not ours to read
        return False
