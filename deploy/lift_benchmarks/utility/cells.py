"""The cells of the bench: one federation for each cohort, mode and epsilon."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, Self

from pydantic import Field, model_validator

from lift.config.base import Settings
from lift.config.phantom import PhantomCohortConfig
from lift.config.plan import AggregationPlan, Plan, Positive, SplitPlan
from lift.config.privacy import PatientGradients, StartRelease
from lift.config.simulation import SimulationConfig
from lift.privacy.accounting import Mechanism, noise_multiplier_for

Mode = Literal["none", "patient-local", "patient-central"]
PRIVATE_MODES: Final[tuple[Mode, ...]] = ("patient-local", "patient-central")
NEARLY_NO_NOISE: Final = 0.05
"""Noise multiplier of the cells without an epsilon worth its name: what clipping alone costs."""


class UtilityConfig(Settings):
    """Settings of the bench."""

    cohorts: tuple[int, ...] = Field(min_length=1)
    """Training patients of all sites together, one federation of each size."""
    held_out: int = Field(ge=1)
    """Held-out patients of each site: the first of its cohort, whatever its size."""
    epsilons: tuple[float, ...] = Field(min_length=1)
    batch: Positive
    """Expected patients of one step, all sites together: the sampling rate follows."""
    start_share: float = Field(gt=0, lt=1)
    """Share of epsilon that the z-filter's release alone would cost."""
    clip_norm: Positive
    start_clip_norm: Positive
    server_learning_rate: Positive
    """`patient-central`: of Adam at the server."""
    server_average: float = Field(ge=0, lt=1)
    """`patient-central`: decay of the moving average of the mixers."""
    simulation: SimulationConfig
    """Sites and plan without privacy; the cohorts' sizes are those of the cells."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        sites = len(self.simulation.sites)
        if not self.simulation.phantom or self.simulation.plan.privacy.mode != "none":
            raise ValueError("simulation: give phantom sites and `privacy: {mode: none}`")
        if min(self.cohorts) < max(sites, self.batch):
            raise ValueError("cohorts: each needs a patient by site, and no fewer than the batch")
        return self


@dataclass(frozen=True)
class Cell:
    """One federation.

    Attributes:
        patients: training patients of all sites together.
        mode: privacy mode.
        epsilon: what a patient is promised; None: nothing (without noise).
    """

    patients: int
    mode: Mode
    epsilon: float | None = None

    @property
    def name(self) -> str:
        """Of its folder and files."""
        level = "inf" if self.epsilon is None else f"{self.epsilon:g}"
        return f"{self.patients}-{self.mode}" + ("" if self.mode == "none" else f"-{level}")


def list_cells(config: UtilityConfig) -> list[Cell]:
    """All cells; of each cohort first the one without privacy."""
    cells = []
    for patients in config.cohorts:
        cells.append(Cell(patients, "none"))
        cells += [
            Cell(patients, mode, epsilon)
            for mode in PRIVATE_MODES
            for epsilon in (None, *sorted(config.epsilons, reverse=True))
        ]
    return cells


def training_patients(config: UtilityConfig, patients: int) -> dict[str, int]:
    """Training patients of each site: as equal as whole numbers are."""
    names = [site.name for site in config.simulation.sites]
    each, more = divmod(patients, len(names))
    return {name: each + (i < more) for i, name in enumerate(names)}


def public_delta(patients: int) -> float:
    """One over ten times the number of patients, rounded down to a power of ten."""
    return float(f"1e{math.floor(-math.log10(10 * patients) + 1e-9)}")


def cell_config(config: UtilityConfig, cell: Cell) -> SimulationConfig:
    """The simulation of a cell: its cohorts, and its plan."""
    trained = training_patients(config, cell.patients)
    sites = [
        site.model_copy(
            update={
                "data": site.data.model_copy(
                    update={"patients": trained[site.name] + config.held_out}
                )
            }
        )
        for site in config.simulation.sites
    ]
    held_out = [
        f"{site.name}/{patient_id(site.data, index)}"
        for site in config.simulation.sites
        for index in range(config.held_out)
    ]
    plan = _plan(config, cell, trained)
    split = SplitPlan(train=1.0, validation=0.0, held_out=tuple(held_out))
    return config.simulation.model_copy(
        update={"sites": tuple(sites), "plan": plan.model_copy(update={"split": split})}
    )


def patient_id(data: object, index: int) -> str:
    """How the phantom cohort names its patient `index` (from 0)."""
    if not isinstance(data, PhantomCohortConfig):
        raise TypeError("a site of this bench is a phantom")
    return f"BraTS-PHA-{index + 1:05d}-000"


def _plan(config: UtilityConfig, cell: Cell, trained: dict[str, int]) -> Plan:
    plan = config.simulation.plan
    if cell.mode == "none":
        return plan
    q, steps = config.batch / cell.patients, plan.total_steps
    start_noise, noise = noise_multipliers(config, cell, q, steps)
    privacy = PatientGradients(
        mode=cell.mode,
        delta=public_delta(cell.patients),
        public_patients=trained,
        clip_norm=config.clip_norm,
        noise_multiplier=noise,
        sampling_rate=q,
        windows_per_volume=1,
        start=StartRelease(noise_multiplier=start_noise, clip_norm=config.start_clip_norm),
    )
    plan = plan.model_copy(update={"privacy": privacy})
    if cell.mode == "patient-local":
        return plan
    # as many noisy steps; each is a round
    server = AggregationPlan(
        optimiser="adam",
        learning_rate=config.server_learning_rate,
        epsilon=1e-4,
        ema=config.server_average,
    )
    return plan.model_copy(
        update={
            "training": plan.training.model_copy(update={"steps": 1}),
            "federation": plan.federation.model_copy(update={"rounds": steps}),
            "aggregation": server,
        }
    )


def noise_multipliers(
    config: UtilityConfig, cell: Cell, q: float, steps: int
) -> tuple[float, float]:
    """Of the z-filter's release and of each step: together they cost the cell's epsilon."""
    if cell.epsilon is None:
        return NEARLY_NO_NOISE, NEARLY_NO_NOISE
    return _noise_for(cell.epsilon, config.start_share, public_delta(cell.patients), q, steps)


@functools.cache  # both private modes ask the same, and each answer takes seconds
def _noise_for(
    target: float, start_share: float, delta: float, q: float, steps: int
) -> tuple[float, float]:
    start = rounded_up(noise_multiplier_for(target * start_share, delta, q=1.0, steps=1))
    released = [Mechanism(start)]
    steps_noise = noise_multiplier_for(target, delta, q=q, steps=steps, already=released)
    return start, rounded_up(steps_noise)


def rounded_up(noise: float) -> float:
    """Four decimals, never below the value."""
    return math.ceil(noise * 1e4) / 1e4


def cell_order(cells: Sequence[Cell]) -> list[Cell]:
    """By cohort, mode and falling epsilon, as a table shows them."""
    modes = ("none", *PRIVATE_MODES)
    return sorted(
        cells,
        key=lambda cell: (cell.patients, modes.index(cell.mode), -(cell.epsilon or math.inf)),
    )
