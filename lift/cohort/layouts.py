"""Patients in a data folder: BraTS 2023, SynthRAD, BIDS or a table."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from lift.cohort.bids import list_bids
from lift.cohort.guess import guess_layout
from lift.cohort.patients import (
    FETCH,
    UNSEEN,
    Patient,
    Refusal,
    cannot_list,
    not_fetched,
    some,
    stem_of_images,
    volumes_called,
)
from lift.cohort.withdrawn import LeftOut, nobody
from lift.config.cohort import (
    AutoData,
    BidsData,
    BratsData,
    CohortData,
    KnownData,
    SynthradData,
    TableData,
)
from lift.config.site import MARK_FILE
from lift.csv_tables import Row, TableError, read_table
from lift.errors import DataError
from lift.volumes.volume import SUFFIXES

logger = logging.getLogger(__name__)
_PATIENT: Final = "patient"
_SUBJECT: Final = "subject"
MASK: Final = "mask"
_NOBODY: Final = frozenset({"lost+found"})
_LONGEST_CELL: Final = 200
_DEEPEST: Final = 4
_MOST_FOLDERS: Final = 500
_TIME_POINT: Final = re.compile(r"^(?P<subject>.+)-\d{3}$")


def list_patients(
    data: CohortData,
    channels: Sequence[str],
    *,
    needs_mask: bool = False,
    one_by_one: bool = False,
    without: LeftOut = nobody,
) -> tuple[list[Patient], list[Refusal]]:
    """Return the patients with all channels, sorted by id, and the patients without.

    Args:
        data: folder and layout.
        channels: names that a patient must have.
        needs_mask: whether the plan's mask rule is `file`.
        one_by_one: under noise: whether this succeeds depends on no patient. A folder or table may
            hold nobody, a bad row is passed over, and `on_bad_file: stop` does not hold.
        without: patients in neither list: those of :func:`lift.cohort.withdrawn.left_out`.

    Raises:
        DataError: the folder or the table is missing, damaged or holds no patient; or a
            patient is incomplete and `on_bad_file` is `stop`.
    """
    if not _is_folder(data.root):
        raise DataError(
            "cannot list the patients",
            where=str(data.root),
            seen="there is no such folder",
            remedy="Correct data.root, or mount the folder.",
        )
    if one_by_one and all(path.name == MARK_FILE for path in data.root.iterdir()):
        return [], []
    known = guess_layout(data, channels).data if isinstance(data, AutoData) else data
    if isinstance(known, TableData):
        found = _from_table(known, channels, one_by_one=one_by_one)
    elif isinstance(known, BidsData):
        found = list_bids(known, channels)
    else:
        found = _from_folders(known, channels)
    if not found and not one_by_one:
        raise DataError(
            "cannot list the patients",
            where=str(data.root),
            seen=f"no patient in layout '{data.layout}'",
            remedy=_elsewhere(known, channels)
            or "Check data.root and data.layout against the folder's content.",
        )
    patients, refusals = [], []
    for patient in sorted(found, key=lambda patient: patient.id):
        if without(patient):
            continue
        missing = [name for name in channels if name not in patient.channels]
        if needs_mask and patient.mask is None:
            missing.append("mask")
        if not missing and not patient.problem:
            patients.append(patient)
            continue
        reason = _reason(data, patient, missing)
        if data.on_bad_file == "stop" and not one_by_one:
            raise reason
        refusals.append(Refusal(patient.id, reason, patient.subject))
    return patients, refusals


def _reason(data: CohortData, patient: Patient, missing: Sequence[str]) -> DataError:
    if patient.problem:
        seen = patient.problem
        remedy = patient.remedy or (
            "Keep the one that is meant (in BIDS, say so in `data.series`), or take the patient "
            "out."
        )
    else:
        seen = f"missing: {', '.join(missing)}; found: {', '.join(patient.channels) or 'none'}"
        seen += f"; {patient.note}" if patient.note else ""
        remedy = "Add the files, or take the patient out of the folder or table."
    return DataError(
        f"cannot use patient '{patient.id}'", where=str(data.root), seen=seen, remedy=remedy
    )


def _elsewhere(data: KnownData, channels: Sequence[str]) -> str:
    """Where below the data folder patients lie in its layout; empty where nowhere near."""
    if not isinstance(data, BratsData | SynthradData):
        return ""
    near = [data.root]
    for _ in range(_DEEPEST):
        near = [path for folder in near for path in _folders_in(folder)][:_MOST_FOLDERS]
        for folder in near:
            found = _from_folders(data.model_copy(update={"root": folder}), channels)
            if any(patient.channels for patient in found):
                place = folder.relative_to(data.root)
                return f"Patients in this layout lie in '{place}' below it: set data.root to that."
    return ""


def _folders_in(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
    except UNSEEN:
        return []


def _is_folder(path: Path) -> bool:
    try:
        found = path.is_dir()
        if found:
            next(path.iterdir(), None)
    except OSError as error:
        raise cannot_list(path, error) from None
    return found


def tells_subjects(data: TableData) -> bool:
    """Return whether a readable table names the person of each row."""
    try:
        return _SUBJECT in read_table(data.table, [_PATIENT], [_SUBJECT]).columns
    except TableError:
        return False


def _from_folders(data: BratsData | SynthradData, channels: Sequence[str]) -> list[Patient]:
    try:
        entries = sorted(data.root.iterdir())
    except OSError as error:
        raise cannot_list(data.root, error) from None
    found: list[Patient] = []
    doubtful: list[Patient] = []
    loose: dict[str, list[str]] = {}
    for folder in entries:
        if folder.name.startswith(".") or folder.name in _NOBODY:
            continue
        name = folder.name
        subject = _person(data, name)
        is_somebody = True
        try:
            if folder.is_file():
                loose.setdefault(_whose(name, channels), []).append(name)
                continue
            is_somebody = not folder.is_symlink()
            prefix = f"{name}-" if isinstance(data, BratsData) else ""
            patient = _in_folder(folder, subject, prefix, channels)
            is_somebody = bool(patient.channels or patient.mask or _holds_volumes(folder))
        except UNSEEN as error:
            # not ours to look at: listed, so that it is refused by name
            patient = Patient.unseen(name, subject, error)
        (found if is_somebody else doubtful).append(patient)
    # a folder of other things (SynthRAD's `overview`) is nobody; one that is called as patients
    # are is somebody whose files are not there, or are of another kind
    known = {patient.id for patient in (*found, *doubtful)}
    doubtful += [
        Patient.without_folder(name, _person(data, name), files)
        for name, files in loose.items()
        if name not in known
    ]
    names = {_shape(patient.id) for patient in found if patient.channels}
    return found + [patient for patient in doubtful if _shape(patient.id) in names]


def _person(data: BratsData | SynthradData, name: str) -> str:
    """Whose examination it is, by its name."""
    time_point = _TIME_POINT.match(name) if isinstance(data, BratsData) else None
    return time_point["subject"] if time_point else name


def _whose(file: str, channels: Sequence[str]) -> str:
    """The patient of a file that lies beside the folders, by its name; empty of other files."""
    stem = stem_of_images(file)
    ending = next((f"-{name}" for name in channels if stem.endswith(f"-{name}")), "")
    return stem.removesuffix(ending)


def _in_folder(folder: Path, subject: str, prefix: str, channels: Sequence[str]) -> Patient:
    paths = {channel: volumes_called(folder, prefix + channel) for channel in channels}
    masks = volumes_called(folder, f"{prefix}mask")
    several = [
        f"{channel} may be {' or '.join(path.name for path in found_paths)}"
        for channel, found_paths in [*paths.items(), (MASK, masks)]
        if len(found_paths) > 1
    ]
    present = {channel: found_paths[0] for channel, found_paths in paths.items() if found_paths}
    mask = masks[0] if masks else None
    gone = "" if several else not_fetched([*present.values(), *masks])
    there = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    return Patient(
        folder.name,
        subject,
        present,
        mask,
        problem="; ".join(several) or gone,
        remedy=FETCH if gone else "",
        note=f"its folder holds {some(there) or 'nothing'}",
    )


def _shape(name: str) -> str:
    """How a name is made: runs of letters and of digits, whatever they are."""
    return re.sub("[0-9]+", "9", re.sub("[^\\W\\d_]+", "A", name))


def _holds_volumes(folder: Path) -> bool:
    return any(path.name.lower().endswith(SUFFIXES) for path in folder.iterdir())


def _from_table(data: TableData, channels: Sequence[str], *, one_by_one: bool) -> list[Patient]:
    try:
        table = read_table(data.table, [_PATIENT], [*channels, _SUBJECT, MASK])
    except TableError as error:
        raise _table_error(data, error.seen, error.remedy) from None
    if not table.rows and not one_by_one:
        raise _table_error(data, "it has no rows")
    told = _SUBJECT in table.columns
    if not told:
        logger.warning("event=no_subject_column table=%s each_row_is=a_person", data.table.name)
    found: dict[str, Patient] = {}
    refused: list[Patient] = []
    lines: dict[str, int] = {}
    for row in table.rows:
        patient = _from_row(data, row, told=told)
        if patient.id in lines:
            patient = _refused_row(
                patient.id,
                patient.subject,
                f"line {row.line} of the table is a second row of '{patient.id}', after line "
                f"{lines[patient.id]}",
            )
            # which of them is meant is not said; under noise the first one stays, as nobody's row
            # may decide about another's
            refused.append(patient)
            if not one_by_one:
                found.pop(patient.id, None)
            continue
        lines[patient.id] = row.line
        found[patient.id] = patient
    return [*found.values(), *refused]


def _from_row(data: TableData, row: Row, *, told: bool) -> Patient:
    cells = {column: cell for column, cell in row.cells.items() if cell}
    name, subject = cells.pop(_PATIENT, ""), cells.pop(_SUBJECT, "")
    here = f"line {row.line}"
    if not name:
        return _refused_row(here, subject or here, f"{here} of the table names no patient")
    if told and not subject:
        return _refused_row(name, name, f"{here} of the table names no subject")
    subject = subject if told else name
    if row.is_longer:
        return _refused_row(name, subject, f"{here} of the table has more cells than the heading")
    paths, lacking = {}, []
    for column, cell in cells.items():
        try:
            path = data.root / cell
            if not path.resolve().is_relative_to(data.root.resolve()):
                seen = f"{here} of the table names a file outside the data folder, for {column}"
                return _refused_row(name, subject, seen)
            if _is_volume(path, data):
                paths[column] = path
            elif path.is_symlink():
                return Patient(name, subject, {}, None, not_fetched([path]), FETCH)
            else:
                lacking.append(f"'{cell[:_LONGEST_CELL]}' for {column}")
        except UNSEEN as error:
            seen = Patient.unseen(name, subject, error).problem
            return _refused_row(name, subject, f"{here} of the table, {column}: {seen}")
    mask = paths.pop(MASK, None)
    note = f"there is no {', no '.join(lacking)} ({here} of the table)" if lacking else here
    return Patient(name, subject, paths, mask, note=note)


def _refused_row(name: str, subject: str, seen: str) -> Patient:
    remedy = "Correct this row of the table, or take it out."
    return Patient(name, subject, {}, None, seen, remedy)


def _is_volume(path: Path, data: TableData) -> bool:
    # a folder is that of a series, and the data folder is none
    return path.is_file() or (path.is_dir() and path.resolve() != data.root.resolve())


def _table_error(data: TableData, seen: str, remedy: str = "") -> DataError:
    return DataError(
        "cannot read the table of patients",
        where=str(data.table),
        seen=seen,
        remedy=remedy
        or "Correct the table: columns `patient`, one by channel, optionally `subject` (whose "
        "examination a row is) and `mask`.",
    )
