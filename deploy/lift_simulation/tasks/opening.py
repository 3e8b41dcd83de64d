"""How every simulated run begins: threads, its record, its sites."""

from __future__ import annotations

from pathlib import Path

from lift.config.plan import Plan
from lift.config.simulation import SimulationConfig
from lift.config.site import SiteSettings
from lift.device import busy_notice, fix_threads
from lift.generator.base import Generator
from lift.generator.card import check_task
from lift_simulation.progress import Reporter
from lift_simulation.sites import open_sites, phantoms_of
from lift_simulation.tasks.record import RecordFile


def begin_run(
    config: SimulationConfig,
    plan: Plan,
    generator: Generator,
    out: Path,
    record: RecordFile,
    reporter: Reporter,
) -> dict[str, SiteSettings]:
    """Describe the run in its record, and give the sites' settings; phantom cohorts are written.

    Raises:
        ConfigError: the generator was made for another task.
        LiftError: see the message.
    """
    check_task(generator.card, plan.task, plan.preprocessing)
    fix_threads(plan.threads)
    if busy := busy_notice(plan.threads):
        reporter.line(f"note: {busy}")
    record.describe(plan, generator)
    with reporter.stage("cohorts"):
        return open_sites(
            config,
            out / "cache",
            out / "cohorts",
            reporter,
            phantoms_of(config),
            ledgers=out / "ledgers",
        )
