"""`metrics.json`: figures of each method, at each site and pooled."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from lift.metrics.rows import MIXER_ROWS

METRICS_FILE: Final = "metrics.json"


class Record(BaseModel):
    """A part of a record: what is not known here is passed over; no NaN."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class Measure(Record):
    """A mean, or a mean difference, with its 95% interval; what is None is not known."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    wins: int | None = None
    unit: str = ""


Table = dict[str, Measure]
"""METRIC -> measure."""


class SiteFigures(Record):
    """One site's figures: METHOD -> METRIC -> measure, over persons.

    `examinations` are those of all its persons that were measured; None: as many.
    """

    patients: int
    examinations: int | None = None
    methods: dict[str, Table]


class Comparisons(Record):
    """`METHOD - REFERENCE` -> METRIC -> paired difference, over all patients and by site."""

    pooled: dict[str, Table] = Field(default_factory=dict)
    sites: dict[str, dict[str, Table]] = Field(default_factory=dict)

    @property
    def main(self) -> str:
        """The row of the run's own mixer."""
        names = {name.split(" - ")[0] for name in self.pooled}
        return next((row for row in MIXER_ROWS[::-1] if row in names), MIXER_ROWS[0])


class FieldOfView(Record):
    """Depth to which all volumes of a run that makes new ones were cut."""

    slices: int
    slice_spacing_mm: float


class Spectra(Record):
    """Mean power along depth of each row, in dB, each volume at one gain."""

    cycles_per_mm: tuple[float, ...]
    power_db: dict[str, tuple[float, ...]]


class Metrics(Record):
    """`metrics.json`."""

    sites: dict[str, SiteFigures] = Field(default_factory=dict)
    pooled: dict[str, Table] = Field(default_factory=dict)
    comparisons: Comparisons = Comparisons()
    cross_site: dict[str, dict[str, Table]] = Field(default_factory=dict)
    field_of_view: FieldOfView | None = None
    spectra: Spectra | None = None

    @property
    def main(self) -> str:
        """The row of the run's own mixer."""
        return next((row for row in MIXER_ROWS[::-1] if row in self.pooled), MIXER_ROWS[0])

    second_phantom: dict[str, Table] | None = None
