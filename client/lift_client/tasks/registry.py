"""A site's side of every task, by its kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from lift.cohort.split import Split
from lift.config.plan import Plan, TaskKind
from lift.config.site import SiteSettings
from lift.generator.base import Generator
from lift.tasks.paired.task import slice_generator
from lift.tasks.unconditional.task import decoder_of
from lift_client.tasks.paired import PairedWork
from lift_client.tasks.unconditional import UnconditionalWork
from lift_client.tasks.work import SiteWork

OpenReport = Callable[[str, int, int], None]
"""Called with what is read of the patients, how many are done, and of how many."""


_Open = Callable[[SiteSettings, Plan, Generator, Path, OpenReport | None, Split | None], SiteWork]


def _paired(
    settings: SiteSettings,
    plan: Plan,
    generator: Generator,
    folder: Path,
    report: OpenReport | None,
    begun: Split | None,
) -> PairedWork:
    frozen, told = slice_generator(plan, generator), _named(report, "features")
    return PairedWork(settings, plan, frozen, work=folder, report=told, begun=begun)


def _unconditional(
    settings: SiteSettings,
    plan: Plan,
    generator: Generator,
    folder: Path,
    report: OpenReport | None,
    begun: Split | None,
) -> UnconditionalWork:
    decoder, told = decoder_of(plan, generator), _named(report, "volumes")
    return UnconditionalWork(settings, plan, decoder, work=folder, report=told, begun=begun)


_WORKS: Final[Mapping[TaskKind, _Open]] = {"paired": _paired, "unconditional": _unconditional}


def open_work(
    settings: SiteSettings,
    plan: Plan,
    generator: Generator,
    folder: Path,
    report: OpenReport | None = None,
    begun: Split | None = None,
) -> SiteWork:
    """The site's side of the plan's task, with its cohort read.

    Args:
        settings: the site's.
        plan: of the run.
        generator: of the plan.
        folder: for split, cache and what the site keeps.
        report: is called while data are read.
        begun: the split with which the run began here; None: it begins now.

    Raises:
        ConfigError: the generator is that of another task.
        DataError: no patient can be used.
    """
    return _WORKS[plan.task.kind](settings, plan, generator, folder, report, begun)


def _named(report: OpenReport | None, what: str) -> Callable[[int, int], None] | None:
    if report is None:
        return None
    return lambda done, total: report(what, done, total)
