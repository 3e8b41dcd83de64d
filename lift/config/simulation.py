"""Settings of `lift-simulate`: sites, generator, plan and comparisons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Final, Literal, Self, get_args

from pydantic import Field, model_validator

from lift.config.base import Settings
from lift.config.cohort import BidsData, BratsData, SynthradData, TableData
from lift.config.decoder import DecoderPretrainConfig
from lift.config.device import DeviceNames
from lift.config.generator import GeneratorChoice
from lift.config.phantom import PhantomCohortConfig, lies_among_phantoms
from lift.config.plan import Name, Plan, Positive
from lift.config.privacy import Delta
from lift.config.segmentation import SegmentationSettings
from lift.config.site import AcceptReason, BudgetSettings, CacheSettings
from lift.config.tracking import TrackingSettings

MixerComparison = Literal[
    "z_filter_local",
    "curves",
    "control_2d",
    "local_only",
    "local_curves",
    "local_steps",
    "centralised",
    "cross_site",
    "federated_samples",
    "controls",
]
PlainNetworkName = Literal["unet_3d", "unet_3d_half", "unet_25d"]
"""Networks that users would take instead: trained whole, from the sources alone."""
Comparison = Literal[MixerComparison, "three_planes", PlainNetworkName]
PlainMode = Literal["centralised", "federated", "local"]
_STRIDE: Final = 16


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


class PlainNetworkSettings(Settings):
    """Training of one plain network, in each of its modes."""

    learning_rate: Positive = 2e-3
    """It does not fall: a training's states are averaged."""
    steps: int = Field(default=400, ge=1)
    """The budget: optimiser steps of all sites together."""
    window: tuple[int, int, int] = (16, 64, 64)
    """Slices, rows and columns of training; a volume is predicted in windows of this size too,
    because instance normalisation depends on it."""

    @model_validator(mode="after")
    def _large_enough(self) -> Self:
        if min(self.window) < 1 or max(self.window[1:]) <= _STRIDE:
            raise ValueError(
                "window: these networks halve it four times and need two pixels then: rows or "
                f"columns above {_STRIDE}"
            )
        return self


class RivalsSettings(Settings):
    """How the plain networks of `compare` are trained; `steps` and rates are theirs."""

    unet_3d: PlainNetworkSettings = PlainNetworkSettings()
    """MONAI's BasicUNet in 3D, widths 32 to 256."""
    unet_3d_half: PlainNetworkSettings = PlainNetworkSettings()
    """The same at half the width."""
    unet_25d: PlainNetworkSettings = PlainNetworkSettings()
    """MONAI's BasicUNet in 2D, whose input is seven neighbouring slices of all sources."""
    modes: tuple[PlainMode, ...] = ("centralised", "federated")
    """Each is a row: all patients in one place; FedAvg of the whole network; each site alone."""
    patients_per_step: int = Field(default=2, ge=1)
    """Windows of a step, each of another patient."""
    pooled_steps: int = Field(default=25, ge=1)
    """Steps in one place between two states that the average counts."""
    local_steps: int = Field(default=25, ge=1)
    """Steps of each site in a round."""
    checkpoint_steps: int = Field(default=100, ge=1)
    """Steps of all sites together between two looks at the validation patients."""
    fewest_share: float = Field(default=0.75, gt=0, le=1)
    """Share of the budget before which no training counts as flat."""
    plateau_db: Positive = 0.05
    """A gain below this over the last third of the steps is flat."""
    sharpness: Positive = 3.0
    """Of the average over a training's states: 3 is about their last quarter."""
    epsilon: Positive | None = None
    """Also train each network federated with noise at the sites, at this epsilon. Null: where the
    plan has gradients of patients with noise, at the plan's epsilon, else not."""
    delta: Delta = 1e-3
    """Of `epsilon`; the plan's own goes first."""
    clip_norm: Positive = 1.0
    """Bound on one patient's gradient of these networks."""
    sampling_rate: float = Field(default=0.5, gt=0, le=1)
    """Probability that a patient takes part in a step with noise."""

    def of(self, network: PlainNetworkName) -> PlainNetworkSettings:
        """The settings of one network."""
        found: PlainNetworkSettings = getattr(self, network)
        return found


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
    rivals: RivalsSettings = RivalsSettings()
    """Training of the plain networks, where `compare` names any."""
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
    segmentation: SegmentationSettings | None = None
    """A segmenter of real targets that judges predicted ones; null leaves it out."""
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
            if self.plain_networks or "three_planes" in self.compare:
                raise ValueError("compare: plain networks and three_planes belong to paired tasks")
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
        made_here = all(isinstance(site.data, PhantomCohortConfig) for site in self.sites)
        if self.clean_phantom is not None and not made_here:
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

        So a run may be resumed with other trackers, and one from before there were any. Nor with
        `rivals` where no plain network is compared.
        """
        left_out = {"tracking"} if self.plain_networks else {"tracking", "rivals"}
        data = self.model_dump(mode="json", exclude=left_out)
        return json.dumps(data, sort_keys=True, separators=(",", ":"))

    @property
    def plain_networks(self) -> tuple[PlainNetworkName, ...]:
        """The plain networks that are compared."""
        return tuple(name for name in get_args(PlainNetworkName) if name in self.compare)

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
        """Whether every site is a phantom: made by the run, or in a folder that says so."""
        return all(
            isinstance(site.data, PhantomCohortConfig) or lies_among_phantoms(site.data.root)
            for site in self.sites
        )
