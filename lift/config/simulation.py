"""Settings of `lift-simulate`: sites, generator, plan and comparisons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from lift.config.base import Settings
from lift.config.cohort import BidsData, BratsData, SynthradData, TableData
from lift.config.decoder import DecoderPretrainConfig
from lift.config.device import DeviceNames
from lift.config.generator import GeneratorChoice
from lift.config.phantom import PhantomCohortConfig
from lift.config.plan import Name, Plan
from lift.config.site import AcceptReason, BudgetSettings, CacheSettings
from lift.config.tracking import TrackingSettings

Comparison = Literal[
    "z_filter_local",
    "curves",
    "control_2d",
    "local_only",
    "local_curves",
    "local_steps",
    "centralised",
    "cross_site",
    "federated_samples",
]


FEWEST_SITES_TO_LEAVE_OUT: Final = 2
"""One to be left out, and one to train."""


class SimulatedSite(Settings):
    """One site of the simulation."""

    name: Name
    """Name of the site."""
    description: str = ""
    """One line for the report: scanner, patients."""
    data: Annotated[
        BratsData | SynthradData | BidsData | TableData | PhantomCohortConfig,
        Field(discriminator="layout"),
    ]
    """Folder of its volumes, or the phantom cohort to write."""
    joins: Literal["training", "afterwards"] = "training"
    """afterwards: does not train; fits its curves to `calibration_pairs` of its own patients."""
    budget: BudgetSettings | None = None
    """Privacy budget of the site. Without it there is no cap."""
    accept: dict[str, AcceptReason] = Field(default_factory=dict)
    """Patients who take part although the image checks veto them: name -> reason."""


class CleanPhantom(Settings):
    """A second phantom without slice corruption, reported beside the first."""

    patients: int = Field(ge=3)
    """Patients at each site."""
    rounds: int = Field(ge=1)
    """Training rounds on it."""


class SimulationConfig(Settings):
    """A whole federation in one process."""

    name: Name
    """Name of the run; by default the output folder is out/NAME."""
    data_statement: str
    """One sentence that describes the volumes, for the head of the report."""
    runs_tried: tuple[str, ...] = ()
    """Unconditional: earlier settings and their results, for the report."""
    generator: GeneratorChoice | None = None
    """The frozen generator. Give exactly one of this and `pretrain`."""
    pretrain: DecoderPretrainConfig | None = None
    """Unconditional: first pre-train the slice decoder on public volumes, in OUT/generator."""
    sites: tuple[SimulatedSite, ...] = Field(min_length=1)
    """The hospitals of the simulation."""
    plan: Plan
    """Everything that determines the result of the run."""
    compare: tuple[Comparison, ...] = (
        "z_filter_local",
        "curves",
        "control_2d",
        "local_only",
        "local_curves",
        "local_steps",
        "centralised",
        "cross_site",
    )
    """Rows in addition to no_mixer, z_median, z_filter and federated."""
    leave_one_out: bool = False
    """Hold out every patient once, each in its own federation."""
    folds: int = Field(default=1, ge=1, le=20)
    """If 2 or more: hold out every patient once, in one of this many federations."""
    leave_one_site_out: bool = False
    """Every site is left out once, in a federation of its own, and joins afterwards. With `folds`
    its patients are held out in turn."""
    calibration_pairs: int = Field(default=3, ge=1, le=100)
    """Training patients to which a site that joins afterwards fits its curves."""
    participation: Path | None = None
    """`rounds.jsonl` of a run whose absences are repeated: who counted there counts here."""
    clean_phantom: CleanPhantom | None = None
    """A second phantom without slice corruption; null leaves it out."""
    cache: CacheSettings = CacheSettings()
    """The cache of frozen features, shared by all sites."""
    image_checks: bool = True
    """on: patients whom the checks of `lift-client check --images` veto are left out, as at a site.
    off: only files that cannot be used are refused."""
    device: DeviceNames = "auto"
    """auto, cpu, cuda, or cuda:N for one of several GPUs; auto: the GPU when there is one.
    cuda:all, or a list such as [cuda:0, cuda:1]: the sites take these GPUs in turn."""
    synthesis_patients: int = Field(default=2, ge=0)
    """Held-out patients by site whose volumes are written; every one with leave_one_out."""
    generated_volumes: int = Field(default=96, ge=8, le=4096)
    """Unconditional: new volumes of each method that are compared with the held-out ones."""
    written_volumes: int = Field(default=8, ge=0, le=256)
    """Unconditional: how many of them are written as files and shown."""
    budget_s: dict[str, float] = Field(default_factory=dict)
    """Time budget of each stage in seconds. Reported next to the time taken, not enforced."""
    tracking: TrackingSettings = TrackingSettings()
    """Where the figures of the rounds go, in addition to the record of the run."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.generator is None) == (self.pretrain is None):
            raise ValueError("give exactly one of generator and pretrain")
        if self.plan.task.kind == "unconditional":
            late = any(site.joins == "afterwards" for site in self.sites)
            if self.several_runs or self.clean_phantom or self.participation or late:
                raise ValueError(
                    "leave_one_out, folds, leave_one_site_out, joins, clean_phantom and "
                    "participation belong to paired tasks"
                )
        elif self.pretrain is not None:
            raise ValueError("pretrain belongs to an unconditional task: give generator")
        names = [site.name for site in self.sites]
        if len(set(names)) != len(names):
            raise ValueError("site names must be distinct")
        if self.clean_phantom is not None and not self.phantom:
            raise ValueError("clean_phantom needs phantom sites only")
        if self.participation is not None and (self.several_runs or self.clean_phantom):
            raise ValueError(
                "participation repeats one run: leave out leave_one_out, folds, "
                "leave_one_site_out and clean_phantom"
            )
        if self.leave_one_site_out and (self.leave_one_out or self.clean_phantom or self.late):
            raise ValueError(
                "leave_one_site_out leaves each site out itself: leave out leave_one_out, joins "
                "and clean_phantom"
            )
        if not self.joined:
            raise ValueError("a site must join in training (sites.joins)")
        if self.leave_one_site_out and len(self.sites) < FEWEST_SITES_TO_LEAVE_OUT:
            raise ValueError(f"leave_one_site_out needs {FEWEST_SITES_TO_LEAVE_OUT} sites or more")
        if self.leave_one_out and self.folds > 1:
            raise ValueError("give leave_one_out or folds, not both")
        if self.in_folds and self.plan.split.held_out:
            raise ValueError(
                "leave_one_out and folds choose split.held_out themselves: leave that out"
            )
        held_out = self.plan.split.held_out
        strangers = [name for name in held_out if name.partition("/")[0] not in names]
        if strangers:
            raise ValueError(
                f"split.held_out names patients of no site here: {', '.join(strangers)}; "
                "a name is SITE/PATIENT"
            )
        return self

    def canonical_json(self) -> str:
        """As for all settings, but without `tracking`: it changes nothing of what is computed.

        So a run may be resumed with other trackers, and one from before there were any.
        """
        data = self.model_dump(mode="json", exclude={"tracking"})
        return json.dumps(data, sort_keys=True, separators=(",", ":"))

    @property
    def in_folds(self) -> bool:
        """Whether every patient is held out once, and all are pooled."""
        return self.leave_one_out or self.folds > 1

    @property
    def several_runs(self) -> bool:
        """Whether there are several federations, whose held-out patients are pooled."""
        return self.in_folds or self.leave_one_site_out

    @property
    def joined(self) -> tuple[str, ...]:
        """Names of the sites that take part in the training."""
        return tuple(site.name for site in self.sites if site.joins == "training")

    @property
    def late(self) -> tuple[str, ...]:
        """Names of the sites that join afterwards."""
        return tuple(site.name for site in self.sites if site.joins == "afterwards")

    @property
    def phantom(self) -> bool:
        """Whether every site is a phantom."""
        return all(isinstance(site.data, PhantomCohortConfig) for site in self.sites)
