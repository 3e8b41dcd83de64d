"""Settings of one site: its data, its cache, its device; how it joins, and what it allows."""

from __future__ import annotations

from pathlib import Path
from typing import Final, get_args

from pydantic import Field, field_validator

from lift.config.base import Settings
from lift.config.cohort import CohortData
from lift.config.device import DeviceName
from lift.config.generator import GeneratorChoice
from lift.config.kit import TaskRule
from lift.config.plan import Digest, Name
from lift.config.privacy import Delta, PrivacyMode
from lift.config.server import Port

MARK_FILE: Final = "lift-cohort.json"
"""In a data folder: the id of the cohort, by which its privacy ledger is known."""


class CacheSettings(Settings):
    """The site's cache of frozen features."""

    folder: Path | None = None
    """Default: `cache` beside the site's other work files."""
    largest_gb: float = Field(default=50.0, gt=0)
    """The oldest entries are removed beyond this size."""


class BudgetSettings(Settings):
    """What the hospital lets be told about its patients, all runs together."""

    epsilon: float = Field(gt=0)
    """The cap, for add or remove one patient, of everything that is ever released."""
    delta: Delta
    """The one delta at which all releases are counted; fixed when the ledger is made."""
    ledger: Path | None = None
    """File of the ledger; default: `ledger.jsonl` in the work folder. One for each cohort: sites
    of a host that share patients name the same file."""
    mark: Path | None = None
    """File that says which ledger counts for the data; default: `lift-cohort.json` in `data.root`.
    To be named where the data folder is read-only: the same for all sites that read the data."""
    repeats: float = Field(default=0.1, ge=0, le=1)
    """How much a run may take beyond what it was admitted for, when something is computed again (a
    crash, or another request for the same round): this share of the planned, in whole rounds,
    rounded up."""


class CardSettings(Settings):
    """The data card, which leaves only after `lift-client check --share-card`."""

    floor: int = Field(default=5, ge=2, le=1000)
    """Counts of persons are rounded down to a multiple of it, and nothing smaller appears."""


class SiteSettings(Settings):
    """One site."""

    name: Name
    """Name of the site, as agreed with the coordinator."""
    data: CohortData
    """Where the volumes lie, and in which layout."""
    cache: CacheSettings = CacheSettings()
    """The cache of frozen features."""
    budget: BudgetSettings | None = None
    """Privacy budget; needed by every plan that adds noise at the site or of its patients."""
    device: DeviceName = "auto"
    """auto, cpu, cuda, or cuda:N for one of several GPUs; auto: the GPU when there is one."""


class PolicySettings(Settings):
    """What the site lets a federation do here: the site decides, whatever the server asks."""

    privacy_modes: tuple[PrivacyMode, ...]
    """Privacy modes that the site accepts; `none` adds no noise to what leaves. Required:
    `lift-client enroll` leaves it empty, and nothing starts before it is chosen."""
    tasks: tuple[TaskRule, ...] = ()
    """Tasks that may run here; empty: the kit's task alone."""
    generators: tuple[Digest, ...] = ()
    """Fingerprints of generators that may run here; empty: the kit's alone."""
    most_rounds: int = Field(default=1000, ge=1)
    """A plan with more training rounds is refused."""
    most_steps_per_round: int = Field(default=10_000, ge=1)
    """A plan with more optimiser steps in a round is refused."""
    largest_learning_rate: float = Field(default=1.0, gt=0)
    """A plan that trains with a higher learning rate is refused. This bound and the six below keep
    the server from choosing numbers with which one patient decides whether training overflows;
    their defaults are far from what training needs."""
    largest_weight_decay: float = Field(default=1.0, ge=0)
    """The same of weight decay, and of the pull back to the received mixer (`proximal`)."""
    largest_gradient_clip: float = Field(default=1000.0, gt=0)
    """The same of the bound on a step's gradient."""
    largest_loss_weight: float = Field(default=1000.0, gt=0)
    """The same of the loss's scale and of the weights of its terms."""
    least_clip_norm: float = Field(default=1e-6, gt=0)
    """A plan whose bound on one patient's part is lower is refused."""
    largest_clip_norm: float = Field(default=1000.0, gt=0)
    """A plan whose bound on one patient's part is higher is refused."""
    largest_start_value: float = Field(default=1000.0, gt=0)
    """A round that starts from a mixer with a larger number is refused."""
    least_patient_count_step: int = Field(default=5, ge=1)
    """A plan whose numbers of patients are rounded less than this is refused."""
    site_styles: bool = False
    """Whether a plan may publish sites' mean grey scales (`unconditional.site_styles`), this one's
    among them. The whole plan is refused otherwise: a style left out could be told from the mean
    over all sites and the other styles."""
    largest_update_bytes: int = Field(default=1_000_000, ge=1)
    """Bytes of tensors in one answer of a round, before compression: 500,000 numbers in half
    precision."""
    largest_statistics_bytes: int = Field(default=8_000_000, ge=1)
    """The same of what is sent once, before the rounds. Moments of trajectories take some 0.5 MB,
    a sketch of whole trajectories 7 MB; these are sums over patients and do not repeat."""

    @field_validator("privacy_modes")
    @classmethod
    def _chosen(cls, modes: tuple[PrivacyMode, ...]) -> tuple[PrivacyMode, ...]:
        if not modes:
            raise ValueError(
                "nobody has chosen yet which privacy modes this hospital accepts; needed: one or "
                f"more of {', '.join(get_args(PrivacyMode))}, such as [patient-local], or [none] "
                "for no protection of single patients (site.yaml says what each means; decide it "
                "with the security officer)"
            )
        return modes


class SiteConfig(SiteSettings):
    """A site's whole file. Relative paths are those of the YAML file's folder."""

    kit: Path = Path("kit")
    """Folder of the kit that the coordinator sent: kit.json and ca.pem."""
    key: Path = Path("site.key")
    """The site's private key, mode 0600; it was made here and never leaves."""
    folder: Path = Path("work")
    """Journal, log, stored plan, split, outbox."""
    generator: GeneratorChoice
    """The frozen generator; its fingerprint must be the one of the kit."""
    local_port: Port = 9094
    """On 127.0.0.1 only: between this program's own two processes; needs a secret."""
    policy: PolicySettings
    """What this site allows, whatever the server asks."""
    card: CardSettings = CardSettings()
    """How the data card is rounded."""

    def under(self, folder: Path) -> SiteConfig:
        """The same settings with relative paths taken from `folder`."""
        data_paths = {name: folder / value for name, value in self.data if isinstance(value, Path)}
        update: dict[str, object] = {
            "kit": folder / self.kit,
            "key": folder / self.key,
            "folder": folder / self.folder,
            "generator": self.generator.under(folder),
            "data": self.data.model_copy(update=data_paths),
        }
        if self.budget is not None:
            named = {"ledger": self.budget.ledger, "mark": self.budget.mark}
            paths = {name: folder / path for name, path in named.items() if path is not None}
            update["budget"] = self.budget.model_copy(update=paths)
        if self.cache.folder is not None:
            update["cache"] = self.cache.model_copy(update={"folder": folder / self.cache.folder})
        return self.model_copy(update=update)
