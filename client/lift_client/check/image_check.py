"""`lift-client check --images`: check every patient in parallel, then all together."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from lift.cohort.examination import PatientReport, Remark
from lift.cohort.layouts import list_patients
from lift.cohort.patients import Patient, Refusal
from lift.cohort.split import Split, split_patients
from lift.cohort.vetoes import (
    MORE_MEMORY,
    copied,
    examined,
    keep_report,
    not_examined,
    stored_report,
)
from lift.cohort.withdrawn import left_out
from lift.config.plan import GridRule, OwnGrid, SplitPlan
from lift.config.site import SiteConfig

_MOST_WORKERS: Final = 8
_OWN_GRID: Final = OwnGrid()
_KILLED: Final = (
    "the process that looked at it was killed, twice; the system does that where memory is not "
    "enough"
)
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
    found, refusals = list_patients(data, channels, without=left_out(config))
    usable = [patient.with_channels(channels) for patient in found]
    folder = config.image_reports
    reports: dict[str, PatientReport] = {r.patient: _of_refusal(r) for r in refusals}
    todo = []
    for patient in usable:
        kept = stored_report(folder, patient, grid)
        if kept is None:
            todo.append(patient)
        else:
            reports[patient.id] = kept
    kept_reports = len(usable) - len(todo)
    ready = kept_reports

    def done(report: PatientReport, *, keep: bool = True) -> None:
        nonlocal ready
        if keep:
            keep_report(folder, report)
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
            done(
                report or not_examined(patient, grid, _KILLED, MORE_MEMORY), keep=report is not None
            )
    split = split_patients(usable, SplitPlan(), config.name) if usable else None
    parts = {name: _part(split, name) for name in reports}
    copies = copied(list(reports.values()), together=True, parts=parts)
    whole = [
        report.model_copy(update={"remarks": (*report.remarks, *copies.get(name, ()))})
        for name, report in sorted(reports.items())
    ]
    return CohortReport(tuple(whole), kept_reports)


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
