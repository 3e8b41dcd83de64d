"""`lift-client withdraw`: a patient is left out from now on, and the site's traces are removed.

First the patient is on the list of those who are left out, then the traces go, then the journal
gets its line: after a crash on the way the same call goes on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from lift.cohort.layouts import list_patients
from lift.cohort.patients import Patient
from lift.cohort.withdrawn import (
    LONGEST_REASON,
    PatientHashes,
    WithdrawnPatient,
    left_out,
    new_hashes,
    read_hashes,
    read_withdrawn,
    write_withdrawn,
)
from lift.config.site import SiteConfig
from lift.errors import ConfigError, DataError
from lift.files import held_alone
from lift_client.approval import ApprovedRelease, approved_releases
from lift_client.enrolment import read_kit
from lift_client.gate.journal import JOURNAL_FILE, Journal, Line, read_journal
from lift_client.gate.patients_used import PatientsUsed, UsedRun, read_used
from lift_client.gate.withdrawal_notes import note_withdrawal
from lift_client.own.traces import image_reports, kept_parameters, last_plan, traces_of

_MOST_FORMS: Final = 3


@dataclass(frozen=True)
class RunUse:
    """What is known of one run's use of the patient.

    Attributes:
        run: digest of the plan.
        task: its channels.
        parts: parts of the split that the patient was in.
        rounds: training rounds that the site answered since then.
        kinds: of all these answers.
    """

    run: str
    task: str
    parts: tuple[str, ...]
    rounds: tuple[int, ...]
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class Withdrawal:
    """What was found and done, or would be.

    Attributes:
        person: keyed hash; it is not kept where nothing was done.
        found: where the patient was found; empty: nowhere, and the name is taken as it was given.
        examinations: how many are known.
        already: when the patient was withdrawn before; empty: not yet.
        removed: what was removed, or would be.
        kept: files of parameters that may have been trained with the patient.
        runs: those that used the patient.
        unknown_runs: run -> until when it is not known whether it did; empty: at all.
        releases: approved ones of these runs.
        unknown_releases: approved ones of which it is not known.
    """

    person: str
    found: str
    examinations: int
    already: str
    removed: tuple[str, ...]
    kept: tuple[str, ...]
    runs: tuple[RunUse, ...]
    unknown_runs: dict[str, str]
    releases: tuple[ApprovedRelease, ...]
    unknown_releases: tuple[ApprovedRelease, ...]


@dataclass(frozen=True)
class _Person:
    """Names are those that are still known; hashes are of all examinations that ever were."""

    person: str
    examinations: tuple[str, ...]
    names: frozenset[str]
    found: str


def withdraw(
    config: SiteConfig,
    name: str,
    *,
    now: datetime,
    reason: str = "",
    gone: bool = False,
    dry_run: bool = False,
) -> Withdrawal:
    """Withdraw a person: every examination is left out from now on, and its traces are removed.

    Args:
        config: the site's settings.
        name: of the person or of one examination, as the data folder or its table has it.
        now: the present time.
        reason: for the list and the journal; it must not name the patient.
        gone: accept a name that is found nowhere, since the files were deleted before.
        dry_run: change nothing.

    Raises:
        ConfigError: a client of this site is running; the reason names the patient or is too long.
        DataError: the name is unknown or ambiguous, or the data cannot be listed.
        RecordError: a record of the site is damaged; nothing was changed.
    """
    work = config.folder
    if len(reason) > LONGEST_REASON or not reason.isprintable():
        raise _bad_reason(f"longer than {LONGEST_REASON} characters, or not one line of text")
    with held_alone(work / "lock", _running(work)):
        withdrawn = read_withdrawn(work)
        hashes = read_hashes(work) or new_hashes()
        used = read_used(work)
        approved = approved_releases(work)
        person = _find(config, name, hashes, used, withdrawn, gone=gone)
        if any(re.search(rf"(?<!\w){re.escape(one)}(?!\w)", reason) for one in person.names):
            raise _bad_reason("it names the patient")
        before = next((one for one in withdrawn if one.person == person.person), None)
        already = "" if before is None else before.withdrawn
        # with a damaged journal nothing is begun
        journal = None if dry_run else Journal(work / JOURNAL_FILE)
        entry = WithdrawnPatient(
            person=person.person,
            examinations=person.examinations,
            withdrawn=already or now.astimezone(UTC).isoformat(timespec="milliseconds"),
            reason=reason if before is None else before.reason,
        )
        if not dry_run and entry != before:
            others = tuple(one for one in withdrawn if one.person != person.person)
            write_withdrawn(work, hashes, (*others, entry))
        excluded = left_out(config)

        def without(patient: Patient) -> bool:
            of_this = hashes.person(patient.subject) == person.person
            return of_this or hashes.examination(patient.id) in known or excluded(patient)

        known = set(person.examinations)
        traces = traces_of(
            config, person.names, lambda one: hashes.examination(one) in known, without
        )
        if journal is not None:
            for trace in traces:
                trace.remove()
            note_withdrawal(journal, work, entry)
        lines = read_journal(work / JOURNAL_FILE).lines
        runs, unknown = _runs(
            lines, used, person.person, "" if before is None else before.withdrawn
        )
        of_runs = {run.run for run in runs}
        recorded = set() if used is None else set(used.runs) - set(unknown)
        return Withdrawal(
            person=person.person,
            found=person.found,
            examinations=len(person.examinations),
            already=already,
            removed=tuple(trace.what for trace in traces),
            kept=tuple(kept_parameters(work)),
            runs=runs,
            unknown_runs=unknown,
            releases=tuple(one for one in approved if one.run in of_runs),
            unknown_releases=tuple(one for one in approved if one.run not in of_runs | recorded),
        )


def _find(
    config: SiteConfig,
    name: str,
    hashes: PatientHashes,
    used: PatientsUsed | None,
    withdrawn: Sequence[WithdrawnPatient],
    *,
    gone: bool,
) -> _Person:
    """The person of this name: in the data folder, in the image reports, or by hash in a record."""
    try:
        listed = _listed(config)
    except DataError:
        if not gone:
            raise
        listed = []
    reports = [(one.patient, one.subject) for one in image_reports(config)]
    in_folder = [(one.id, one.subject) for one in listed]
    found, subjects = "", set[str]()
    for place, known in (("the data folder", in_folder), ("the reports on images", reports)):
        # of an older report the person may be another: a table may have got its subjects since
        if not subjects:
            found, subjects = place, {of for row, of in known if name in (row, of)}
    if len(subjects) > 1:
        raise DataError(
            "the name belongs to several persons",
            where=str(config.data.root),
            seen="it is an examination of one person, and another person's name",
            remedy="Nothing was changed. Give the name of another examination of the person who is "
            "meant.",
        )
    rows = [*in_folder, *reports]
    kept = _kept(used, withdrawn)
    subject = subjects.pop() if subjects else name
    person = hashes.person(subject)
    if subject == name and not any(name in row for row in rows):
        by_examination = hashes.examination(name)
        known_by = {one for one, names in kept.items() if by_examination in names}
        found = "the site's record" if person in kept or known_by else ""
        if known_by:
            person = min(known_by)
            subject = next((of for _, of in rows if hashes.person(of) == person), name)
    if not found and not gone:
        raise _nobody(config, listed)
    ids = {row for row, of in rows if of == subject} or {name}
    files = {
        path.relative_to(config.data.root).as_posix()
        for patient in listed
        if patient.subject == subject
        for path in (*patient.channels.values(), *([patient.mask] if patient.mask else []))
    }
    examinations = {hashes.examination(one) for one in ids} | kept.get(person, set())
    return _Person(
        person, tuple(sorted(examinations)), frozenset({subject, name, *ids, *files}), found
    )


def _listed(config: SiteConfig) -> list[Patient]:
    """Every examination of the data folder, also those that were withdrawn or are incomplete."""
    plan = last_plan(config.folder)
    if plan is not None:
        channels = plan.task.channels
    else:
        task = read_kit(config.kit, site=config.name).task
        channels = (*task.source, task.target)
    patients, refusals = list_patients(config.data, channels, one_by_one=True)
    return [*patients, *(Patient(one.patient, one.subject, {}, None) for one in refusals)]


def _kept(used: PatientsUsed | None, withdrawn: Sequence[WithdrawnPatient]) -> dict[str, set[str]]:
    """Person -> examinations, as hashes, of all that the site's records know."""
    kept: dict[str, set[str]] = {}
    for run in () if used is None else used.runs.values():
        for person, one in run.patients.items():
            kept.setdefault(person, set()).update(one.examinations)
    for entry in withdrawn:
        kept.setdefault(entry.person, set()).update(entry.examinations)
    return kept


def _runs(
    lines: Sequence[Line], used: PatientsUsed | None, person: str, until: str
) -> tuple[tuple[RunUse, ...], dict[str, str]]:
    """The runs that used a person, and those of which it is not known."""
    answers: dict[str, list[Line]] = {}
    for line in lines:
        if line.run and line.kind != "failure" and (not until or line.time <= until):
            answers.setdefault(line.run, []).append(line)
    recorded = {} if used is None else used.runs
    unknown = {}
    for run, sent in answers.items():
        known = recorded.get(run)
        # answered before the site kept a record
        if known is None or sent[0].time < known.since:
            unknown[run] = "" if known is None else known.since
    found = [
        _use(run, known, person, answers.get(run, []))
        for run, known in recorded.items()
        if person in known.patients
    ]
    return tuple(found), unknown


def _use(run: str, known: UsedRun, person: str, sent: Sequence[Line]) -> RunUse:
    use = known.patients[person]
    since = [line for line in sent if line.time >= use.since]
    return RunUse(
        run=run,
        task=known.task,
        parts=use.parts,
        rounds=tuple(sorted({line.round for line in since if line.kind == "train"})),
        kinds=tuple(sorted({line.kind for line in since})),
    )


def _nobody(config: SiteConfig, listed: Sequence[Patient]) -> DataError:
    forms = sorted({re.sub(r"\d", "#", name) for one in listed for name in (one.id, one.subject)})
    persons = len({one.subject for one in listed})
    looks = ", ".join(f"'{form}'" for form in forms[:_MOST_FORMS])
    return DataError(
        "no patient has this name",
        where=str(config.data.root),
        seen=f"{len(listed)} examinations of {persons} persons"
        + (f", whose names look like {looks} (# is a digit)" if looks else ""),
        remedy="Nothing was changed. Give the name of the person or of an examination exactly as "
        "the data folder or its table has it. For one whose files were deleted before: --gone.",
    )


def _bad_reason(seen: str) -> ConfigError:
    return ConfigError(
        "cannot keep this reason",
        where="--reason",
        seen=seen,
        remedy="Nothing was changed. Give a short reason that does not name the patient: it stays "
        "in the journal.",
    )


def _running(folder: Path) -> ConfigError:
    return ConfigError(
        "a client is running for this site",
        where=str(folder),
        seen="its lock is held; it may be working with the patient",
        remedy="Nothing was changed. Stop the client, run this command, then start the client "
        "again: the run goes on.",
    )
