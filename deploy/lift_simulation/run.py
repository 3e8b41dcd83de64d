"""A whole simulated run: cohorts, federation, baselines, evidence, report.

The same command resumes: finished cohorts, cached features, rounds and baselines are kept,
and a finished run is left as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

from rich.console import Console

from lift.config.plan import TaskKind
from lift.config.simulation import SimulationConfig
from lift.device import resolve_device
from lift.privacy.costs import describe_privacy, summary
from lift.tasks.describe import describe_dry_run
from lift.tasks.registry import open_generator
from lift.tracking.run import Tracking
from lift_simulation.progress import Reporter
from lift_simulation.tasks.paired import simulate_paired
from lift_simulation.tasks.unconditional import simulate_unconditional


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


_TASKS: Final[Mapping[TaskKind, _Simulate]] = {
    "paired": simulate_paired,
    "unconditional": simulate_unconditional,
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
    run = _TASKS[config.plan.task.kind]
    with Tracking(config.tracking, out, say=reporter.line) as tracking:
        return run(config, out, reporter, tracking, command=command)


def dry_run(config: SimulationConfig, *, epsilon: float | None = None) -> dict[str, object]:
    """The resolved plan and what a run would send and cost, without starting anything."""
    sites = [site.name for site in config.sites]
    if config.generator is None:
        return {
            "plan": config.plan.model_dump(mode="json"),
            "sites": sites,
            "note": "the decoder is made first: fingerprint and bytes are known after that",
        }
    cpu = resolve_device("cpu")
    generator, plan = open_generator(config.plan, config.generator, device=cpu)
    return describe_dry_run(plan, generator, sites, epsilon=epsilon)
