"""Settings of the comparison: models, their training, and how each data set is divided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, Self

from pydantic import Field, model_validator

from lift.config.base import Settings
from lift.config.plan import Fraction, MixerPlan, Name, Plan, Positive, SplitPlan
from lift_simulation.plain.curve import Mode

Kind = Literal["zrefine", "pyramid", "unet"]
MODES: Final[tuple[Mode, ...]] = ("pooled", "fedavg")
RIVAL: Final = "unet"


class ModelSettings(Settings):
    """One network, trained once on all sites' patients and once federated."""

    kind: Kind
    width: int = Field(ge=1, le=64)
    learning_rate: Positive
    most_steps: int = Field(ge=1)
    """Budget: optimiser steps of all sites together."""
    window: tuple[int, int, int] | None = None
    """Of training; the rival predicts in windows of this size too. None: that of all models."""


class DataSetSettings(Settings):
    """How a data set is divided; without settings of its own it has the split of its plan."""

    train: Fraction | None = None
    validation: Fraction | None = None
    folds: int = Field(default=1, ge=1, le=20)
    """With 2 or more, every patient is held out once, in one of so many trainings."""
    budget: float = Field(default=1.0, gt=0, le=1)
    """Share of every model's `most_steps`."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.train is None) != (self.validation is None):
            raise ValueError("give train and validation together")
        if self.folds > 1 and self.train is not None:
            raise ValueError("give folds, or train and validation")
        return self


class ReachConfig(Settings):
    """Settings of `python -m lift_benchmarks.reach`."""

    threads: int = Field(ge=1)
    window: tuple[int, int, int]
    patients_per_step: int = Field(ge=1)
    pooled_steps: int = Field(ge=1)
    """Steps of a pooled training between two states that its average counts."""
    local_steps: int = Field(ge=1)
    """Steps of each site in a round."""
    checkpoint_steps: int = Field(ge=1)
    """Steps, of all sites together, between two measurements of the curve."""
    fewest_share: Fraction
    """Share of its budget before which no training is called flat."""
    plateau_db: Positive
    sharpness: Positive
    """Of the average over a training's states; see `lift_simulation.plain.curve.averaged`."""
    models: tuple[ModelSettings, ...] = Field(min_length=1)
    data_sets: dict[Name, DataSetSettings] = Field(default_factory=dict)
    """By the name of the simulation's settings."""

    @model_validator(mode="after")
    def _one_reference(self) -> Self:
        if sum(model.kind == RIVAL for model in self.models) != 1:
            raise ValueError(f"models: exactly one is a {RIVAL}, what all are compared with")
        rival = next(model for model in self.models if model.kind == RIVAL)
        if max(rival.window or self.window) <= 16:
            raise ValueError(
                f"models: the {RIVAL} halves its window four times and needs two voxels then: one "
                "side above 16"
            )
        names = [(model.kind, model.width) for model in self.models]
        if len(set(names)) != len(names):
            raise ValueError("models: each kind and width once")
        return self

    def data_set(self, name: str) -> DataSetSettings:
        """How a data set is divided."""
        return self.data_sets.get(name, DataSetSettings())


@dataclass(frozen=True)
class Entry:
    """One training: a model and how it is trained."""

    model: ModelSettings
    mode: Mode

    @property
    def name(self) -> str:
        """Of its files and rows."""
        return f"{self.model.kind}-{self.model.width}-{self.mode}"


def list_entries(config: ReachConfig) -> list[Entry]:
    """All trainings: every pooled one, then the federated ones."""
    return [Entry(model, mode) for mode in MODES for model in config.models]


def reference_row(config: ReachConfig) -> str:
    """The row that all are compared with: the pooled rival."""
    return next(
        entry.name
        for entry in list_entries(config)
        if entry.model.kind == RIVAL and entry.mode == "pooled"
    )


def shared_plan(plan: Plan, config: ReachConfig, data: DataSetSettings) -> Plan:
    """The data set's plan as every model has it: patients are seen under curves."""
    split = plan.split
    if data.train is not None and data.validation is not None:
        split = SplitPlan(train=data.train, validation=data.validation, key=split.key)
    mixer = MixerPlan(kind="zrefine", ridge=plan.mixer.ridge)
    return plan.model_copy(update={"threads": config.threads, "split": split, "mixer": mixer})


def model_plan(plan: Plan, config: ReachConfig, model: ModelSettings) -> Plan:
    """The plan under which one model is trained; the rival has no mixer's plan of its own."""
    mixer = plan.mixer
    if model.kind != RIVAL:
        mixer = plan.mixer.model_copy(update={"kind": model.kind, "width": model.width})
    training = plan.training.model_copy(
        update={
            "window": model.window or config.window,
            "patients_per_step": config.patients_per_step,
            "learning_rate": model.learning_rate,
        }
    )
    return plan.model_copy(update={"mixer": mixer, "training": training})
