"""`run.json`: what a run is, what it ran on, and how far it came.

Keys that are `Public` stand in a release too; every other key stays with who wrote the record.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import Field, JsonValue

from lift.files import write_json
from lift.guard import JudgedOn, Verdict
from lift.protocol.messages import DifferenceDb, GuardReply
from lift.records.loss_trend import of_records
from lift.records.metrics import Measure, Public, Publication, Record, as_json
from lift.records.rounds import RoundRecord
from lift.records.shipped import Said, Source
from lift.strict_json import parse_model

RUN_FILE: Final = "run.json"
SITE_REPORT: Final = "site report"
"""Kind of a hospital's own report, with its own patients: it stays there."""
FEDERATION: Final = "federation"
"""Kind of a real server's run: it has no patients, and no figures but the sites' verdicts."""


PUBLIC_OF_GENERATOR: Final = frozenset({"fingerprint", "training_data", "licence", "network"})
"""What a release says of the generator."""
PUBLIC_OF_PRIVACY: Final = frozenset(
    {"mode", "statement", "unit", "relation", "delta", "accountant", "epsilon", "epsilon_by_rdp"}
    | {"epsilon_where_times_are_seen", "times", "epsilon_of_a_patient_in_two_hospitals"}
    | {"epsilon_by_site", "public_patients"}
)
"""What a release says of privacy: all of it follows from the plan and the names of the sites."""


class SiteRecord(Record):
    """One site of `run.json`."""

    name: str
    patients: dict[str, int] = Field(default_factory=dict)
    description: str = ""
    slice_spacing_mm: tuple[float, float] | None = None
    refused: int | None = None
    calibration_patients: int | None = None
    """For a site that joined after the training: patients to which it fitted its curves."""
    left_out: dict[str, str] = Field(default_factory=dict)
    """Patients who were refused -> why. Never of a real federation: the server knows no patient."""

    @classmethod
    def of(
        cls,
        name: str,
        *,
        train: int,
        validation: int,
        test: int,
        refused: int,
        spacings_mm: Sequence[float | None],
        **more: Any,
    ) -> Self:
        """One site: numbers of patients by part, what was refused, slice spacings in mm (or none
        that is known), and what else a kind of run says.
        """
        known = [spacing for spacing in spacings_mm if spacing is not None]
        return cls(
            name=name,
            patients={"train": train, "validation": validation, "test": test},
            refused=refused,
            slice_spacing_mm=(round(min(known), 3), round(max(known), 3)) if known else None,
            **more,
        )


class GuardRecord(Record):
    """A site's verdict on its own patients, and the differences behind it."""

    verdict: Verdict
    judged_on: JudgedOn = "validation"
    n: int | None = None
    difference_db: Measure | None = None
    against_z_filter_db: Measure | None = None
    against_local_only_db: Measure | None = None

    @classmethod
    def of(cls, reply: GuardReply, *, against_local_only: Measure | None = None) -> Self:
        """A site's verdict as it came, and what only a simulation or the site itself can add."""
        against = reply.against_no_mixer
        return cls(
            verdict=reply.verdict,
            judged_on=reply.judged_on,
            n=0 if against is None else against.n,
            difference_db=_measure(against),
            against_z_filter_db=_measure(reply.against_z_filter),
            against_local_only_db=against_local_only,
        )


class GainRecord(Record):
    """Gain of a mixer trained under noise over no mixer, from all sites' noisy sums.

    A value of None: the noise hides how many patients there are.
    """

    verdict: Public[Verdict]
    difference_db: Public[Measure]
    sites: Public[int]


class MixerRecord(Record):
    """Kind and size of the trained mixer."""

    kind: Public[str]
    parameters: Public[int]


class LossRecord(Record):
    """How the training loss went at the end; see `lift.records.loss_trend`."""

    fall_percent: float
    still_falling: bool


class AllSites(Record):
    """What a release says of the sites of a run together, by no site's name."""

    number: Public[int]
    patients: Public[dict[str, int]]
    """Sums over the sites of the numbers that each told, by part."""
    verdicts: Public[dict[str, int] | None] = None
    """VERDICT -> number of sites; None of fewer than three verdicts, or without any."""


class Description(Record):
    """What `run.json` says of any run before it computes: plan, digests, versions."""

    plan: Public[dict[str, JsonValue]]
    plan_digest: Public[str] = ""
    generator: Annotated[dict[str, JsonValue], Publication(PUBLIC_OF_GENERATOR)] = Field(
        default_factory=dict
    )
    mixer: Public[MixerRecord | None] = None
    versions: Public[dict[str, str]] = Field(default_factory=dict)


class RunRecord(Description):
    """`run.json`."""

    name: Public[str]
    phantom: Public[bool]
    kind: Public[str] = ""
    data_statement: Public[str] = ""
    runs_tried: list[str] = Field(default_factory=list)
    started: str | None = None
    finished: str | None = None
    seconds: dict[str, float | None] = Field(default_factory=dict)
    budget_s: dict[str, float | None] = Field(default_factory=dict)
    settings_digest: str = ""
    """Of a simulation's settings, for its resume."""
    bundle: str | None = None
    """Folder of a bundle of one's own, so that a translation finds it again."""
    sites: tuple[SiteRecord, ...] = ()
    guard: dict[str, GuardRecord] = Field(default_factory=dict)
    folds: tuple[dict[str, GuardRecord], ...] = ()
    """The verdicts of each federation, where a run has several."""
    chosen: tuple[dict[str, dict[str, JsonValue]], ...] = ()
    """Of each federation: by site what it uses, and the figures that decided."""
    shipped: Public[Source | None] = None
    """Of a run that trained a mapper on top of a Gaussian: which of them it releases."""
    said: Said | None = None
    """What its sites said; None where none was asked."""
    all_sites: Public[AllSites | None] = None
    """In a release, in place of what each site told and said; the coordinator's record has none."""
    gain: Public[GainRecord | None] = None
    privacy: Annotated[dict[str, JsonValue], Publication(PUBLIC_OF_PRIVACY)] = Field(
        default_factory=dict
    )
    epsilon_met: Public[dict[str, float]] = Field(default_factory=dict)
    ledger_heads: Public[dict[str, str]] = Field(default_factory=dict)
    mixer_digest: str = ""
    journal: dict[str, JsonValue] | None = None
    ledger: dict[str, JsonValue] | None = None
    command: str = ""
    update_bytes: int | None = None
    statistics_bytes: int | None = None
    loss_trend: LossRecord | None = None
    complete: Public[bool] = False

    def described(self, by: Description) -> RunRecord:
        """The record with another description."""
        return self.updated(**{name: getattr(by, name) for name in by.model_fields_set})

    def write(self, folder: Path) -> None:
        """Write `run.json`, with the keys that were set."""
        write_json(folder / RUN_FILE, as_json(self))


def read_run_record(folder: Path) -> RunRecord:
    """`run.json` of a folder.

    Raises:
        OSError: it is not there, or cannot be read.
        ValueError: it is not what a run writes.
    """
    return parse_model(RunRecord, (folder / RUN_FILE).read_bytes())


def loss_record(runs: Sequence[Sequence[RoundRecord]]) -> LossRecord | None:
    """How the training loss of a run's federations went at the end; None where nothing tells."""
    trend = of_records(runs)
    if trend is None:
        return None
    return LossRecord(**trend)


def _measure(difference: DifferenceDb | None) -> Measure | None:
    return None if difference is None else Measure(**difference.model_dump())
