"""`metrics.json`: figures of each method, at each site and pooled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from lift.files import write_json
from lift.guard import JudgedOn, Verdict
from lift.records.rows import MIXER_ROWS
from lift.strict_json import parse_model

METRICS_FILE: Final = "metrics.json"
Value = TypeVar("Value")


@dataclass(frozen=True)
class Publication:
    """Marks a key of a record that a release holds, too.

    Attributes:
        only: of an object without a model: the keys of it that are public; None: all.
    """

    only: frozenset[str] | None = None


Public = Annotated[Value, Publication()]
"""A key that a release holds, too. A key without this mark stays with who wrote the record."""


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

    @classmethod
    def publications(cls) -> dict[str, Publication]:
        """The keys that are public, and how much of each."""
        return {
            name: mark
            for name, field in cls.model_fields.items()
            for mark in field.metadata
            if isinstance(mark, Publication)
        }

    def public(self) -> Self:
        """The record with its public keys alone, and of its parts with theirs.

        Raises:
            pydantic.ValidationError: a key that must be there is not public.
        """
        marks = self.publications()
        return type(self)(
            **{
                name: _public(getattr(self, name), marks[name].only)
                for name in self.model_fields_set & marks.keys()
            }
        )


class Measure(Record):
    """A mean, or a mean difference, with its 95% interval; what is None is not known."""

    value: Public[float | None] = None
    low: Public[float | None] = None
    high: Public[float | None] = None
    n: Public[int | None] = None
    wins: Public[int | None] = None
    unit: Public[str] = ""


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

    pooled: Public[dict[str, Table]] = Field(default_factory=dict)
    sites: dict[str, dict[str, Table]] = Field(default_factory=dict)

    @property
    def main(self) -> str:
        """The row of the run's own mixer."""
        names = {name.split(" - ")[0] for name in self.pooled}
        return next((row for row in MIXER_ROWS[::-1] if row in names), MIXER_ROWS[0])


class FieldOfView(Record):
    """Depth to which all volumes of a run that makes new ones were cut."""

    slices: Public[int]
    slice_spacing_mm: Public[float]


class Spectra(Record):
    """Mean power along depth of each row, in dB, each volume at one gain."""

    cycles_per_mm: Public[tuple[float, ...]]
    power_db: Public[dict[str, tuple[float, ...]]]


class Cost(Record):
    """What one row costs; None: it has no such cost, or it was not measured."""

    parameters: Public[int | None] = None
    """That are trained."""
    sent_bytes: Public[int | None] = None
    """From a site in one round."""
    training_cpu_s: Public[float | None] = None
    """Processor seconds at one site; of a centralised training, in the one place."""
    steps: Public[int | None] = None
    """Of all sites together."""
    kept_steps: Public[int | None] = None
    """Of the kept state, which was best on validation patients."""
    stopped: Public[str | None] = None
    """plateau or budget; of a training that watches its curve."""
    epsilon: Public[float | None] = None
    inference_s: Public[float | None] = None
    """Of one volume, wall time."""
    inference_flops: Public[int | None] = None
    one_pass_flops: Public[int | None] = None
    """Of a network that predicts in windows, as if one pass over the volume were enough."""
    peak_mb: Public[float | None] = None
    """Largest memory of inference over a process that holds the network and the volume."""


class Costs(Record):
    """What the rows cost; a prediction is of the largest test volume, on the CPU."""

    volume: tuple[int, int, int] | None = None
    """Slices, rows and columns of that volume: a patient's, and so not public."""
    threads: Public[int]
    rows: Public[dict[str, Cost]]


class Metrics(Record):
    """`metrics.json`."""

    sites: dict[str, SiteFigures] = Field(default_factory=dict)
    pooled: Public[dict[str, Table]] = Field(default_factory=dict)
    comparisons: Public[Comparisons] = Comparisons()
    cross_site: dict[str, dict[str, Table]] = Field(default_factory=dict)
    field_of_view: Public[FieldOfView | None] = None
    spectra: Public[Spectra | None] = None
    patients: dict[str, dict[str, dict[str, dict[str, float]]]] = Field(default_factory=dict)
    """SITE -> METHOD -> examination -> METRIC -> figure; of a simulation alone."""
    costs: Public[Costs | None] = None
    second_phantom: Public[dict[str, Table] | None] = None
    second_phantom_comparisons: Public[Comparisons | None] = None

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


def _public(value: Any, only: frozenset[str] | None) -> Any:
    """What of a public key's value is public."""
    if isinstance(value, Record):
        return value.public()
    if isinstance(value, dict):
        return {
            name: _public(part, None)
            for name, part in value.items()
            if only is None or name in only
        }
    if isinstance(value, tuple | list):
        return type(value)(_public(part, None) for part in value)
    return value
