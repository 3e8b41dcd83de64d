"""`lift-client check --images`: check every patient in parallel, then all together."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from lift.cohort.layouts import list_patients
from lift.cohort.patients import Patient, Refusal
from lift.cohort.split import Split, split_patients
from lift.cohort.withdrawn import left_out
from lift.config.plan import GridRule, OwnGrid, SplitPlan
from lift.config.site import SiteConfig
from lift.files import write_json
from lift.inspection.traces import check_duplicates
from lift.strict_json import parse_model
from lift_client.check.inspect_data import (
    VERSION,
    PatientReport,
    Remark,
    examine_patient,
    files_digest,
)

FOLDER: Final = "check"
_MOST_WORKERS: Final = 8
_OWN_GRID: Final = OwnGrid()
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class CohortReport:
    """All patients of a site, sorted by name.

    Attributes:
        patients: one report each; remarks about several patients stand with each of them.
        kept: how many reports were there already.
    """

    patients: tuple[PatientReport, ...]
    kept: int

    def count(self, verdict: str) -> int:
        """Patients with this verdict."""
        return sum(report.verdict == verdict for report in self.patients)


def examine_cohort(
    config: SiteConfig,
    channels: Sequence[str],
    *,
    grid: GridRule = _OWN_GRID,
    workers: int | None = None,
    progress: Progress | None = None,
) -> CohortReport:
    """Check every patient of the site. Reports of unchanged files are reused.

    Args:
        config: the site's settings.
        channels: names that a patient must have.
        grid: the plan's rule for a patient's channels on several grids.
        workers: processes; None: one a core, 8 at most. 1 works in this one. The patient of a
            process that is killed is vetoed.
        progress: called with the patients done and their number.

    Raises:
        DataError: the folder or the table cannot be read, or holds no patient.
        RecordError: who was withdrawn cannot be told.
    """
    data = config.data.model_copy(update={"on_bad_file": "skip"})
    usable, refusals = list_patients(data, channels, without=left_out(config))
    folder = config.folder / FOLDER
    reports: dict[str, PatientReport] = {r.patient: _of_refusal(r) for r in refusals}
    todo = []
    for patient in usable:
        kept = _stored(_path(folder, patient.id), patient, grid)
        if kept is None:
            todo.append(patient)
        else:
            reports[patient.id] = kept
    kept_reports = len(usable) - len(todo)
    ready = kept_reports

    def done(report: PatientReport, *, keep: bool = True) -> None:
        nonlocal ready
        if keep:
            write_json(_path(folder, report.patient), report.model_dump(mode="json"))
        reports[report.patient] = report
        ready += 1
        if progress is not None:
            progress(ready, len(usable))

    if workers == 1:
        for patient in todo:
            done(examined(patient, data.root, grid))
    else:
        count = min(workers or os.cpu_count() or 1, _MOST_WORKERS)
        killed = []
        for patient, report in _in_processes(todo, data.root, grid, count):
            if report is None:
                killed.append(patient)
            else:
                done(report)
        # several at once may have been too much for the memory: each again, with nothing beside it
        for patient, report in _in_processes(killed, data.root, grid, 1):
            # what killed it may not be there the next time: that is not kept
            done(report or _not_examined(patient, grid), keep=report is not None)
    split = split_patients(usable, SplitPlan(), config.name) if usable else None
    together = _together(list(reports.values()), split)
    found = [
        report.model_copy(update={"remarks": (*report.remarks, *together[name])})
        for name, report in sorted(reports.items())
    ]
    return CohortReport(tuple(found), kept_reports)


def examined(patient: Patient, root: Path, grid: GridRule) -> PatientReport:
    """The patient's report; a fault of this software in one patient does not stop the others."""
    try:
        return examine_patient(patient, root, grid)
    except Exception as error:
        remark = Remark(
            check="looking",
            verdict="veto",
            seen=f"this software failed on it ({type(error).__name__})",
            remedy="Take the patient out, and report it: a volume like this should be refused with "
            "a reason.",
        )
        return PatientReport(
            patient=patient.id,
            subject=patient.subject,
            files=files_digest(patient.channels, grid),
            remarks=(remark,),
        )


def _in_processes(
    todo: Sequence[Patient], root: Path, grid: GridRule, count: int
) -> Iterator[tuple[Patient, PatientReport | None]]:
    """Each patient with its report as it is made; None where its process was killed.

    Each process has a pool of its own: where one is killed, one patient was at it.
    """
    waiting = iter(todo)
    running: dict[Future[PatientReport], tuple[Patient, ProcessPoolExecutor]] = {}

    def start(patient: Patient, pool: ProcessPoolExecutor) -> None:
        running[pool.submit(examined, patient, root, grid)] = (patient, pool)

    try:
        for patient in islice(waiting, count):
            start(patient, _pool())
        while running:
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                patient, pool = running.pop(future)
                report = None
                try:
                    report = future.result()
                except BrokenProcessPool:
                    pool.shutdown()
                    pool = _pool()
                following = next(waiting, None)
                if following is None:
                    pool.shutdown()
                else:
                    start(following, pool)
                yield patient, report
    finally:
        for _, pool in running.values():
            pool.shutdown(wait=False, cancel_futures=True)


def _pool() -> ProcessPoolExecutor:
    # spawned, not forked: the parent may hold threads of numerical libraries
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def _not_examined(patient: Patient, grid: GridRule) -> PatientReport:
    remark = Remark(
        check="looking",
        verdict="veto",
        seen="could not be examined: the process that looked at it was killed, twice; the system "
        "does that where memory is not enough",
        remedy="Free memory and run the check again, resample the volume, or take the patient out.",
    )
    return PatientReport(
        patient=patient.id,
        subject=patient.subject,
        files=files_digest(patient.channels, grid),
        remarks=(remark,),
    )


def _together(
    reports: Sequence[PatientReport], split: Split | None
) -> defaultdict[str, list[Remark]]:
    """What only shows when patients are compared: the same voxels under two names."""
    digests = {
        (report.patient, channel): digest
        for report in reports
        for channel, digest in report.digests.items()
    }
    parts = {report.patient: _part(split, report.patient) for report in reports}
    remarks: defaultdict[str, list[Remark]] = defaultdict(list)
    for (patient, channel), found in sorted(check_duplicates(digests, parts).items()):
        remarks[patient].append(
            Remark(
                check=found.check,
                channel=channel,
                verdict=found.verdict,
                seen=found.seen,
                remedy=found.remedy,
            )
        )
    return remarks


def _part(split: Split | None, patient: str) -> str:
    if split is None:
        return ""
    parts = {"train": split.train, "validation": split.validation, "test": split.test}
    return next((name for name, ids in parts.items() if patient in ids), "")


def _of_refusal(refusal: Refusal) -> PatientReport:
    reason = refusal.reason
    remark = Remark(check="files", verdict="veto", seen=reason.seen, remedy=reason.remedy)
    return PatientReport(
        patient=refusal.patient, subject=refusal.subject, files="", remarks=(remark,)
    )


def _stored(path: Path, patient: Patient, grid: GridRule) -> PatientReport | None:
    try:
        report = parse_model(PatientReport, path.read_bytes())
    except (OSError, ValueError):
        return None
    same = report.version == VERSION and report.files == files_digest(patient.channels, grid)
    return report if same and report.patient == patient.id else None


def _path(folder: Path, patient: str) -> Path:
    # a patient's name may hold anything
    return folder / f"{hashlib.sha256(patient.encode()).hexdigest()[:32]}.json"
