"""Settings of a public benchmark: division, pre-training, federation."""

from __future__ import annotations

from pydantic import Field, JsonValue

from lift.config.base import Settings
from lift.config.device import DeviceName
from lift.config.generator import NetworkConfig
from lift.config.plan import PreprocessingPlan
from lift.config.simulation import Comparison
from lift.config.site import CacheSettings


class Division(Settings):
    """Who is public, and who is at which site."""

    sites: int = Field(default=4, ge=1, le=100)
    """Number of sites, where the folder does not tell the contributing site."""
    public_site: str | None = None
    """One whole site as the public part, instead of a share of each."""
    public_share: float = Field(default=0.2, gt=0, lt=1)
    """Share of the persons of each site that are public."""
    most_persons: int | None = Field(default=None, ge=3)
    """Largest number of persons of each site and of the public part; null: all."""
    key: str = "benchmark"
    """Key of the hashes: another one gives another division."""


class BenchmarkSettings(Settings):
    """Size and settings of one benchmark; channels, sites and paths come from the data folder."""

    division: Division = Division()
    """Public part and sites."""
    network: NetworkConfig
    """The generator. `n_source` counts the source channels."""
    pretraining: dict[str, JsonValue]
    """Keys of `lift pretrain`: steps, batch_slices, learning_rate, loss and others."""
    preprocessing: PreprocessingPlan = PreprocessingPlan()
    """Of pre-training and federation alike."""
    plan: dict[str, JsonValue]
    """Keys of the plan without task and preprocessing."""
    compare: tuple[Comparison, ...] = ()
    """Rows in addition to no_mixer, z_median, z_filter and federated."""
    synthesis_patients: int = Field(default=2, ge=0)
    """Held-out patients of each site whose volumes are written and shown."""
    image_checks: bool = True
    """Whether patients whom the image checks veto are left out."""
    cache: CacheSettings = CacheSettings()
    """Of the frozen features; deleted at the end unless it has a folder."""
    device: DeviceName = "auto"
    """Of pre-training and federation."""
