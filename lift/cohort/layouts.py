"""Patients in a data folder: BraTS 2023, SynthRAD2023, BIDS or a table."""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from lift.cohort.bids import list_bids
from lift.cohort.guess import guess_layout
from lift.cohort.patients import Patient, Refusal, volumes_called
from lift.cohort.withdrawn import LeftOut, nobody
from lift.config.cohort import AutoData, BidsData, BratsData, CohortData, SynthradData, TableData
from lift.config.site import MARK_FILE
from lift.errors import DataError
from lift.volumes.volume import SUFFIXES

logger = logging.getLogger(__name__)
_SUBJECT: Final = "subject"
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
    if not data.root.is_dir():
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
        found = _from_table(known, one_by_one=one_by_one)
    elif isinstance(known, BidsData):
        found = list_bids(known, channels)
    else:
        found = _from_folders(known, channels)
    if not found and not one_by_one:
        raise DataError(
            "cannot list the patients",
            where=str(data.root),
            seen=f"no patient in layout '{data.layout}'",
            remedy="Check data.root and data.layout against the folder's content.",
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
        reason = DataError(
            f"cannot use patient '{patient.id}'",
            where=str(data.root),
            seen=patient.problem
            or f"missing: {', '.join(missing)}; found: {', '.join(patient.channels) or 'none'}",
            remedy="Keep the one that is meant (in BIDS, say so in `data.series`), or take the "
            "patient out."
            if patient.problem
            else "Add the files, or take the patient out of the folder or table.",
        )
        if data.on_bad_file == "stop" and not one_by_one:
            raise reason
        refusals.append(Refusal(patient.id, reason, patient.subject))
    return patients, refusals


def tells_subjects(data: TableData) -> bool:
    """Return whether a readable table names the person of each row."""
    try:
        with data.table.open(newline="", encoding="utf-8-sig") as stream:
            return _SUBJECT in next(csv.reader(stream, strict=True), [])
    except (OSError, UnicodeDecodeError, csv.Error):
        return False


def _from_folders(data: BratsData | SynthradData, channels: Sequence[str]) -> list[Patient]:
    try:
        folders = sorted(path for path in data.root.iterdir() if path.is_dir())
    except OSError as error:
        raise DataError(
            "cannot list the patients",
            where=str(data.root),
            seen=error.strerror or type(error).__name__,
            remedy="Let the user that runs this read the folder.",
        ) from None
    found = []
    for folder in folders:
        name = folder.name
        prefix = f"{name}-" if isinstance(data, BratsData) else ""
        paths = {channel: volumes_called(folder, prefix + channel) for channel in channels}
        masks = volumes_called(folder, f"{prefix}mask")
        several = [
            f"{channel} may be {' or '.join(path.name for path in found_paths)}"
            for channel, found_paths in [*paths.items(), ("mask", masks)]
            if len(found_paths) > 1
        ]
        present = {channel: found_paths[0] for channel, found_paths in paths.items() if found_paths}
        mask = masks[0] if masks else None
        # a folder of other things (SynthRAD's `overview`) is nobody; one with volumes is somebody
        # whose files are named otherwise, and is refused by name
        if not present and mask is None and not _holds_volumes(folder):
            continue
        time_point = _TIME_POINT.match(name) if isinstance(data, BratsData) else None
        subject = time_point["subject"] if time_point else name
        found.append(Patient(name, subject, present, mask, "; ".join(several)))
    return found


def _holds_volumes(folder: Path) -> bool:
    try:
        return any(path.name.endswith(SUFFIXES) for path in folder.iterdir())
    except OSError:
        # not ours to read: listed, so that it is refused by name
        return True


def _from_table(data: TableData, *, one_by_one: bool) -> list[Patient]:
    try:
        with data.table.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, strict=True)
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a CSV table in UTF-8"
        raise _table_error(data, str(reason)) from None
    if (not rows and not one_by_one) or "patient" not in (reader.fieldnames or ()):
        raise _table_error(data, "it has no rows, or no column 'patient'")
    told = _SUBJECT in (reader.fieldnames or ())
    if not told:
        logger.warning("event=no_subject_column table=%s each_row_is=a_person", data.table.name)
    found: dict[str, Patient] = {}
    for number, row in enumerate(rows, start=2):
        try:
            patient = _from_row(data, row, number, found, told=told)
        except DataError as error:
            if not one_by_one:
                raise
            logger.warning("event=row_passed_over reason=%s", error)
            continue
        found[patient.id] = patient
    return list(found.values())


def _from_row(
    data: TableData,
    row: Mapping[str, str | None],
    number: int,
    found: Collection[str],
    *,
    told: bool,
) -> Patient:
    name = (row["patient"] or "").strip()
    if not name or None in row or name in found:
        problem = "names no patient" if not name else f"is a second row of '{name}'"
        problem = "has more cells than columns" if None in row else problem
        raise _table_error(data, f"line {number} {problem}")
    subject = (row[_SUBJECT] or "").strip() if told else name
    if not subject:
        raise _table_error(data, f"line {number} names no subject")
    named = {"patient", _SUBJECT}
    cells = {k: v.strip() for k, v in row.items() if k not in named and v and v.strip()}
    paths = {column: _under_root(data, cell, number) for column, cell in cells.items()}
    paths = {column: path for column, path in paths.items() if _is_volume(path, data)}
    mask = paths.pop("mask", None)
    return Patient(name, subject, paths, mask)


def _is_volume(path: Path, data: TableData) -> bool:
    # a folder is that of a series, and the data folder is none
    return path.is_file() or (path.is_dir() and path.resolve() != data.root.resolve())


def _under_root(data: TableData, cell: str, line: int) -> Path:
    path = data.root / cell
    if not path.resolve().is_relative_to(data.root.resolve()):
        raise _table_error(data, f"line {line} names a file outside the data folder")
    return path


def _table_error(data: TableData, seen: str) -> DataError:
    return DataError(
        "cannot read the table of patients",
        where=str(data.table),
        seen=seen,
        remedy="Correct the table: columns `patient`, one by channel, optionally `subject` (whose "
        "examination a row is) and `mask`.",
    )
