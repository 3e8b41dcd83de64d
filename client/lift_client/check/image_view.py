"""The cohort's report on a screen, and as JSON."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from statistics import median

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lift.config.plan import GridRule
from lift.config.site import SiteConfig
from lift_client.check.image_check import CohortReport, examine_cohort
from lift_client.check.verdict import Verdict

PIPE_WIDTH = 160
_STYLE = {"warn": "yellow", "veto": "red"}


def look(config: SiteConfig, channels: Sequence[str], grid: GridRule) -> CohortReport:
    """Examine the cohort for the task's channels, with progress on a terminal.

    Raises:
        DataError: the data folder cannot be read.
    """
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("patients", total=None)
        return examine_cohort(
            config,
            channels,
            grid=grid,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )


def show(report: CohortReport) -> None:
    """Print everything that needs attention, worst first."""
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
    table = Table(title="patients that need attention; all others can be used")
    for heading in ("patient", "verdict", "check", "channel", "what was seen", "how to fix it"):
        table.add_column(heading, overflow="fold")
    for verdict in ("veto", "warn"):
        for patient in report.patients:
            for remark in patient.remarks:
                if patient.verdict == verdict and remark.verdict != "use":
                    table.add_row(
                        patient.patient,
                        remark.verdict,
                        remark.check,
                        remark.channel,
                        remark.seen,
                        remark.remedy,
                        style=_STYLE[remark.verdict],
                    )
    if table.row_count:
        console.print(table)
    console.print(summary(report))
    if cost(report):
        console.print(cost(report))


def cost(report: CohortReport) -> str:
    """One line: time and memory by patient; empty if no patient could be read."""
    seconds = [patient.seconds for patient in report.patients if patient.seconds]
    if not seconds:
        return ""
    peaks = [patient.peak_mb for patient in report.patients if patient.peak_mb is not None]
    memory = f"; at most {max(peaks) / 1000:.1f} GB of memory in one process" if peaks else ""
    return f"{median(seconds):.1f} s a patient (at most {max(seconds):.1f} s){memory}"


def summary(report: CohortReport) -> str:
    """One line: how many can be used."""
    return (
        f"{len(report.patients)} patients: {report.count('use')} can be used, "
        f"{report.count('warn')} with a warning, {report.count('veto')} cannot"
        + (f" ({report.kept} unchanged since the last check)" if report.kept else "")
    )


def verdict(report: CohortReport) -> Verdict:
    """The cohort as one line of the check."""
    usable = len(report.patients) - report.count("veto")
    if report.count("veto") == 0:
        return Verdict(
            "images",
            "warning" if report.count("warn") else "ok",
            summary(report),
            "Look at the warnings above." if report.count("warn") else "",
        )
    return Verdict(
        "images",
        "warning" if usable else "problem",
        summary(report),
        "Fix the files named above. These patients are left out of every run, unless `accept` in "
        "the site's settings names them with a reason.",
        "" if usable else "data",
    )
