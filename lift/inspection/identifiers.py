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

from lift.errors import VolumeError
from lift.volumes.formats.checks import Refusal
from lift.volumes.formats.dicom import series_files
from lift.volumes.formats.dicom_image import is_dicom, parsing, read_dataset
from lift.volumes.formats.metaimage import KNOWN, SYNONYMS, is_metaimage
from lift.volumes.formats.nrrd import is_nrrd
from lift.volumes.formats.packed import read_file

_TEXTS: Final = ("data_type", "db_name", "descrip", "aux_file", "intent_name")
_EXTENSIONS: Final = "header extensions"
_LONGEST_HEADER: Final = 1 << 16
_NRRD_COMMENT: Final = re.compile(
    rb"# (Complete NRRD file format specification at:|http://teem\.sourceforge\.net/nrrd/format\.html)"
)
_NRRD_TEXTS: Final = frozenset({b"content", b"labels", b"sample units"})
_METAIMAGE_NUMBERS: Final = frozenset(
    name.encode()
    for name in (*KNOWN, *SYNONYMS, "AnatomicalOrientation", "CenterOfRotation", "Modality")
)
# what common software signs with; dcm2niix adds a time of day, which is not among them
_SIGNATURES: Final = re.compile(
    r"(FSL\d[\w.]*|\d+(\.\d+)+:[0-9a-f]+|spm ?-? ?[\w. -]{0,20}|SPM[\w .-]{0,20}"
    r"|FreeSurfer [A-Z][a-z]{2} \d{1,2} \d{4}|ITK[\w .-]{0,20}|AFNI[\w .-]{0,20}|NIfTI[\w .-]{0,20}"
    r"|TE=[\d.]+|PHANTOM, simulated, no patient|none|MNI152|affine transform)"
)


# PS3.15 table E.1-1: what a scanner usually fills of the attributes that may tell who it is
_DICOM_NAMES: Final = (
    *("PatientName", "PatientID", "OtherPatientIDs", "OtherPatientNames", "PatientBirthDate"),
    *("PatientBirthTime", "PatientAddress", "PatientTelephoneNumbers", "PatientComments"),
    *("PatientMotherBirthName", "MilitaryRank", "EthnicGroup", "Occupation", "AccessionNumber"),
    *("AdditionalPatientHistory", "MedicalRecordLocator", "IssuerOfPatientID", "StudyID"),
    *("InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName", "StationName"),
    *("ReferringPhysicianName", "PerformingPhysicianName", "OperatorsName", "PhysiciansOfRecord"),
    *("RequestingPhysician", "NameOfPhysiciansReadingStudy", "ResponsiblePerson"),
    *("DeviceSerialNumber", "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate"),
    *("AcquisitionDateTime", "StudyDescription", "SeriesDescription", "ProtocolName"),
    *("ImageComments", "RequestedProcedureDescription", "PerformedProcedureStepDescription"),
)


def identifying_fields(path: Path) -> tuple[str, ...]:
    """Names of the header fields of a file that hold text nobody can vouch for, sorted.

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
        return tuple(sorted({name for file in files for name in _of_dicom(file)}))
    start = _start(path)
    if is_dicom(start):
        return tuple(sorted(_of_dicom(path)))
    if is_nrrd(start):
        return _of_nrrd(start)
    if is_metaimage(start):
        return _of_metaimage(start)
    header = _header(start)
    if header is None:
        return ()
    flag = start[header.sizeof_hdr : header.sizeof_hdr + 4]
    extended = len(flag) == 4 and flag[0] != 0
    return (*sorted(_texts(header)), *((_EXTENSIONS,) if extended else ()))


def _of_dicom(path: Path) -> set[str]:
    refuse = Refusal(path.name, None)
    missing = refuse("there is no such file", "Restore it.")
    try:
        stored = read_file(path, refuse, missing=missing)
        if not is_dicom(stored[:132]):
            return set()
        dataset = read_dataset(stored, refuse)
        with parsing(refuse):
            found = {name for name in _DICOM_NAMES if str(dataset.get(name, "") or "").strip()}
            tags = list(dataset.keys())
            if any(tag.is_private and not tag.is_private_creator for tag in tags):
                found.add("private tags")
    except VolumeError:
        return set()
    return found


def _of_nrrd(start: bytes) -> tuple[str, ...]:
    found = set()
    for line in start.partition(b"\n\n")[0].splitlines()[1:]:
        if line.startswith(b"#"):
            # the two lines that the format's own software writes
            if not _NRRD_COMMENT.fullmatch(line):
                found.add("comments")
        elif b":=" in line:
            found.add("key/value pairs")
        elif line.partition(b":")[0].strip().lower() in _NRRD_TEXTS:
            found.add("content")
    return tuple(sorted(found))


def _of_metaimage(start: bytes) -> tuple[str, ...]:
    found = set()
    for line in start.splitlines():
        name, _, text = (part.strip() for part in line.partition(b"="))
        if name == b"ElementDataFile":
            break
        if text and name not in _METAIMAGE_NUMBERS:
            found.add("Comment" if name == b"Comment" else "fields beside the image's own")
    return tuple(sorted(found))


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
    length = _LONGEST_HEADER
    try:
        with path.open("rb") as stream:
            if stream.read(2) != b"\x1f\x8b":
                stream.seek(0)
                return stream.read(length)
        with gzip.open(path) as packed:
            return packed.read(length)
    except (OSError, EOFError, zlib.error):
        return b""
