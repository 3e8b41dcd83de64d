"""A whole simulated run: cohorts, federation, baselines, evidence, report.

The same command resumes: finished cohorts, cached features, rounds and baselines are kept,
and a finished run is left as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from rich.console import Console

from lift.config.plan import TaskKind
from lift.config.simulation import SimulationConfig
from lift.privacy.costs import describe_privacy, summary
from lift.tracking.run import Tracking
from lift_simulation.progress import Reporter
from lift_simulation.tasks.paired import dry_run_paired, simulate_paired
from lift_simulation.tasks.unconditional import dry_run_unconditional, simulate_unconditional


class _Simulate(Protocol):
    def __call__(
        self,
        config: SimulationConfig,
        out: Path,
        reporter: Reporter,
        tracking: Tracking,
        *,
        command: str,
    ) -> Path: ...


class _DryRun(Protocol):
    def __call__(
        self, config: SimulationConfig, *, epsilon: float | None = None
    ) -> dict[str, object]: ...


@dataclass(frozen=True)
class _SimulatedTask:
    simulate: _Simulate
    dry_run: _DryRun


_TASKS: Final[Mapping[TaskKind, _SimulatedTask]] = {
    "paired": _SimulatedTask(simulate_paired, dry_run_paired),
    "unconditional": _SimulatedTask(simulate_unconditional, dry_run_unconditional),
}


def simulate_file(config: Path, out: Path) -> Path:
    """Run (or resume) the simulation of a file of settings; what `lift.simulate` calls.

    Raises:
        ConfigError: the settings do not fit.
        LiftError: see the message.
    """
    settings = SimulationConfig.from_yaml(config)
    reporter = Reporter(Console(stderr=True), settings.budget_s)
    return simulate(settings, out, reporter, command=f"lift.simulate({config.name})")


def privacy_line(config: SimulationConfig) -> str:
    """One line for the screen: who adds which noise, and what a patient is promised."""
    return summary(describe_privacy(config.plan, [site.name for site in config.sites]))


def simulate(config: SimulationConfig, out: Path, reporter: Reporter, *, command: str) -> Path:
    """Run (or resume) the simulation and return the path of its report.

    Raises:
        CheckpointError: the folder holds the run of other settings.
        LiftError: see the message.
    """
    task = _TASKS[config.plan.task.kind]
    with Tracking(config.tracking, out, say=reporter.line) as tracking:
        return task.simulate(config, out, reporter, tracking, command=command)


def dry_run(config: SimulationConfig, *, epsilon: float | None = None) -> dict[str, object]:
    """The resolved plan and what a run would send and cost, without starting anything."""
    return _TASKS[config.plan.task.kind].dry_run(config, epsilon=epsilon)
