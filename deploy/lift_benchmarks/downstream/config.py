"""Settings of the experiment: which hospital has few labels, the pairs, the segmenter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from lift.config.base import Settings
from lift.config.plan import Name, Positive
from lift.config.segmentation import SegmenterSettings

Row = Literal[
    "real",
    "real_augmented",
    "both",
    "both_augmented",
    "synthetic",
    "synthetic_augmented",
    "shuffled",
    "all_real",
    "all_real_augmented",
]
BY_NUMBER: Final[tuple[Row, ...]] = ("real", "real_augmented", "both", "both_augmented")
"""Rows that exist for each number of labelled patients."""
ONCE: Final[tuple[Row, ...]] = (
    "synthetic",
    "synthetic_augmented",
    "shuffled",
    "all_real",
    "all_real_augmented",
)
"""Rows that the hospital's own patients have no part in, or all patients have."""


class PairSegmenterSettings(SegmenterSettings):
    """The segmenter; every row trains the same network for as many steps."""

    synthetic_share: float = Field(gt=0, lt=1)
    """Share of each batch that is generated in the rows `both` and `both_augmented`."""


class DataSetSettings(Settings):
    """What is segmented in one data set, and whose labels are few."""

    site: Name
    """The hospital that asks."""
    few: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    """Numbers of its labelled training patients."""
    labels: str = ""
    """Label files, with `{patient}` for a patient's id; whatever is above 0 counts."""
    tissue: str = ""
    """In place of files: of a phantom's own truth."""
    reach_mm: Positive
    """Signed distances to the label's edge are clipped here."""
    waves: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
    """Cosines along height and width that a slice of signed distances is kept by."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.labels) == bool(self.tissue):
            raise ValueError("give labels, or for phantoms tissue")
        if self.labels and "{patient}" not in self.labels:
            raise ValueError("labels must hold {patient}")
        if len(set(self.few)) != len(self.few):
            raise ValueError("few: each number once")
        return self


class DownstreamConfig(Settings):
    """Settings of `python -m lift_benchmarks.downstream`."""

    threads: int = Field(ge=1)
    seeds: int = Field(ge=1, le=20)
    """Trainings of each row: other labelled patients, first numbers and batches."""
    pairs: int = Field(ge=2, le=4096)
    """Generated pairs."""
    segmenter: PairSegmenterSettings
    data_sets: dict[Name, DataSetSettings] = Field(min_length=1)
    """By the name of the simulation's settings."""


@dataclass(frozen=True)
class Entry:
    """One training.

    Attributes:
        row: what it is trained on.
        few: labelled patients of the hospital; 0 where the row has no number.
        seed: which of the row's trainings, from 0.
    """

    row: Row
    few: int
    seed: int

    @property
    def cell(self) -> str:
        """Of all trainings that differ in their seed alone."""
        return f"{self.row}-{self.few}" if self.row in BY_NUMBER else self.row

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.cell}-seed{self.seed}"

    @property
    def augmented(self) -> bool:
        """Whether slices are changed at random."""
        return self.row.endswith("_augmented")

    @property
    def generated(self) -> bool:
        """Whether it sees generated pairs."""
        return self.row.startswith(("synthetic", "both", "shuffled"))


def list_entries(config: DownstreamConfig, data: DataSetSettings) -> list[Entry]:
    """All trainings, seed by seed: a run that is broken off has whole seeds."""
    return [
        entry
        for seed in range(config.seeds)
        for entry in (
            *(Entry(row, 0, seed) for row in ONCE),
            *(Entry(row, few, seed) for few in sorted(data.few) for row in BY_NUMBER),
        )
    ]
