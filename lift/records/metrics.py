"""`metrics.json`: figures of each method, at each site and pooled."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field

from lift.files import write_json
from lift.guard import JudgedOn, Verdict
from lift.records.rows import MIXER_ROWS
from lift.strict_json import parse_model

METRICS_FILE: Final = "metrics.json"


class Record(BaseModel):
    """A part of a record: what is not known here is passed over; no NaN."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    def updated(self, **changes: Any) -> Self:
        """The record with other values of some keys.

        Raises:
            pydantic.ValidationError: a value does not fit its key.
        """
        known = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self)(**{**known, **changes})


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
    verdict: Verdict | None = None
    judged_on: JudgedOn | None = None
    """For a server's run, whose sites report a verdict and no figures of methods."""


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
    patients: dict[str, dict[str, dict[str, dict[str, float]]]] = Field(default_factory=dict)
    """SITE -> METHOD -> examination -> METRIC -> figure; of a simulation alone."""
    second_phantom: dict[str, Table] | None = None
    second_phantom_comparisons: Comparisons | None = None

    def write(self, folder: Path) -> None:
        """Write `metrics.json`, with the keys that were set."""
        write_json(folder / METRICS_FILE, as_json(self))

    @property
    def main(self) -> str:
        """The row of the run's own mixer."""
        return next((row for row in MIXER_ROWS[::-1] if row in self.pooled), MIXER_ROWS[0])


def read_metrics(folder: Path) -> Metrics:
    """`metrics.json` of a folder.

    Raises:
        OSError: it is not there, or cannot be read.
        ValueError: it is not what a run writes.
    """
    return parse_model(Metrics, (folder / METRICS_FILE).read_bytes())


def as_json(part: Record) -> dict[str, object]:
    """A part of a record as JSON data, with the keys that were set."""
    return part.model_dump(mode="json", exclude_unset=True)
