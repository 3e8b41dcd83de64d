"""Which patients each run used: keyed hashes alone, written when a run opens its cohort."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, Literal, TypeVar

from pydantic import Field

from lift.cohort.patients import Patient
from lift.cohort.split import Part
from lift.cohort.withdrawn import check_key, keep_key, new_hashes, read_hashes
from lift.config.base import VERSION, Settings
from lift.config.plan import Digest, Plan
from lift.errors import RecordError
from lift.files import write_atomically
from lift.strict_json import read_model

USED_FILE: Final = "patients-used.json"
Time = Annotated[str, Field(max_length=40)]
"""UTC, ISO 8601, with milliseconds."""
Item = TypeVar("Item", bound=str)


class UsedPatient(Settings):
    """What a run used of one person."""

    since: Time
    """When the run first opened a cohort with this person."""
    parts: tuple[Part, ...]
    """Parts of the split, at any opening; sorted."""
    examinations: tuple[Digest, ...]
    """Keyed hashes, sorted."""


class UsedRun(Settings):
    """The persons of one run."""

    since: Time
    """When the site began this record of the run."""
    task: Annotated[str, Field(max_length=1000)]
    """Channels, such as `t1n, t2w -> t2f`."""
    patients: dict[Digest, UsedPatient]
    """Keyed hash of a person -> what was used."""


class PatientsUsed(Settings):
    """The content of `patients-used.json`."""

    format_version: Annotated[Literal[1], VERSION] = 1
    key_digest: Digest
    """Of the key of these hashes."""
    runs: dict[Digest, UsedRun] = Field(default_factory=dict)
    """Digest of the plan -> the run."""


def note_used(
    folder: Path, plan: Plan, parts: Mapping[Part, Sequence[Patient]], now: datetime
) -> None:
    """Add the patients of a cohort that a run has opened, before anything is computed of them.

    Args:
        folder: the site's work folder.
        plan: of the run.
        parts: the patients of each part of the split.
        now: the present time.

    Raises:
        RecordError: the record is damaged, or its key is missing or another one.
        OSError: it cannot be written.
    """
    known = read_used(folder)
    hashes = read_hashes(folder) or new_hashes()
    runs = {} if known is None else dict(known.runs)
    time = now.astimezone(UTC).isoformat(timespec="milliseconds")
    run = runs.get(plan.digest())
    patients = {} if run is None else dict(run.patients)
    for part, found in parts.items():
        for patient in found:
            person = hashes.person(patient.subject)
            new = UsedPatient(since=time, parts=(), examinations=())
            before = patients.get(person, new)
            patients[person] = UsedPatient(
                since=before.since,
                parts=_joined(part, before.parts),
                examinations=_joined(hashes.examination(patient.id), before.examinations),
            )
    source = ", ".join(plan.task.source)
    task = f"{source} -> {plan.task.target}" if source else f"new volumes of {plan.task.target}"
    runs[plan.digest()] = UsedRun(
        since=time if run is None else run.since, task=task, patients=patients
    )
    used = PatientsUsed(key_digest=hashes.key_digest, runs=runs)
    if used != known:
        keep_key(folder, hashes)
        content = used.model_dump_json(indent=2).encode() + b"\n"
        write_atomically(folder / USED_FILE, content, mode=0o600)


def read_used(folder: Path) -> PatientsUsed | None:
    """The record of a work folder; None where there is none.

    Raises:
        RecordError: it is damaged, or its key is missing or another one.
    """
    path = folder / USED_FILE

    def refuse(seen: str) -> RecordError:
        return RecordError(
            "cannot read which patients the runs have used",
            where=str(path),
            seen=seen,
            remedy="Nothing was computed. Restore it from a backup, with the files beside it. If "
            "there is none, remove it: what earlier runs used is then not known.",
        )

    found = read_model(PatientsUsed, path, refuse, damaged="it is no such record")
    if found is not None:
        check_key(path, found.key_digest, read_hashes(folder))
    return found


def _joined(added: Item, before: Sequence[Item]) -> tuple[Item, ...]:
    return tuple(sorted({added, *before}))
