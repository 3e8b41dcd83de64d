"""Settings of one site: data, cache, device, enrolment and policy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final, get_args

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


AcceptReason = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
"""Why the site uses a patient whom the image checks veto: one line of text."""


class CacheSettings(Settings):
    """The site's cache of frozen features."""

    folder: Path | None = None
    """Default: `cache` beside the site's other work files."""
    largest_gb: float = Field(default=50.0, gt=0)
    """The oldest entries are removed beyond this size."""


class BudgetSettings(Settings):
    """Privacy budget of the hospital's patients, over all runs."""

    epsilon: float = Field(gt=0)
    """Cap on epsilon over all releases, for adding or removing one patient."""
    delta: Delta
    """Delta at which all releases are counted. Fixed when the ledger is created."""
    ledger: Path | None = None
    """File of the ledger. Default: `ledger.jsonl` in the work folder. Each cohort has one ledger:
    sites on one host that share patients name the same file."""
    mark: Path | None = None
    """File that links the data to their ledger. Default: `lift-cohort.json` in `data.root`. Set it
    if the data folder is read-only, to the same file for all sites that read the data."""
    repeats: float = Field(default=0.1, ge=0, le=1)
    """Allowance of a run for repeated computations (after a crash, or a second request for the
    same round), as a share of the planned rounds, rounded up to whole rounds."""


class CardSettings(Settings):
    """The data card. It leaves only after `lift-client check --share-card`."""

    floor: int = Field(default=5, ge=2, le=1000)
    """Counts of persons are rounded down to a multiple of this. Smaller counts do not appear."""


class SiteSettings(Settings):
    """One site."""

    name: Name
    """Name of the site, as agreed with the coordinator."""
    data: CohortData
    """Folder and layout of the volumes."""
    cache: CacheSettings = CacheSettings()
    """The cache of frozen features."""
    budget: BudgetSettings | None = None
    """Privacy budget. Required for every plan that protects patients with noise."""
    device: DeviceName = "auto"
    """auto, cpu, cuda, or cuda:N for one of several GPUs; auto: the GPU when there is one."""
    accept: dict[str, AcceptReason] = Field(default_factory=dict)
    """Patients who take part although the image checks veto them: name in the data folder -> the
    reason, which goes into the journal. A file that cannot be read stays refused."""

    @field_validator("accept")
    @classmethod
    def _reasons_name_nobody(cls, accept: dict[str, str]) -> dict[str, str]:
        for name, reason in accept.items():
            if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", reason):
                raise ValueError(
                    f"the reason to accept '{name}' names the patient, and it goes into the "
                    "journal, which stays: say it without the name"
                )
        return accept

    @property
    def checks_images(self) -> bool:
        """Whether a veto of the image checks leaves a patient out: at a site, and in a simulation.

        Not where somebody opens a folder of their own, as in the Python API.
        """
        return False

    @property
    def image_reports(self) -> Path | None:
        """Folder of the reports of the image checks; None: every cohort is examined anew."""
        return None

    @property
    def patient_records(self) -> Path | None:
        """Folder where the site keeps who was withdrawn, and who was used; None: it keeps none."""
        return None


class PolicySettings(Settings):
    """What a federation may do at this site. Requests of the server beyond this are refused."""

    privacy_modes: tuple[PrivacyMode, ...]
    """Privacy modes that the site accepts. `none` adds no noise to what leaves. Required:
    `lift-client enroll` leaves it empty, and nothing starts before it is chosen."""
    tasks: tuple[TaskRule, ...] = ()
    """Tasks that may run here. Empty: only the task of the kit."""
    generators: tuple[Digest, ...] = ()
    """Fingerprints of generators that may run here. Empty: only the one of the kit."""
    most_rounds: int = Field(default=1000, ge=1)
    """Largest number of training rounds of a plan."""
    most_steps_per_round: int = Field(default=10_000, ge=1)
    """Largest number of optimiser steps in a round."""
    largest_learning_rate: float = Field(default=1.0, gt=0)
    """Largest learning rate of a plan. This bound and the six below stop a server from choosing
    settings with which one patient decides whether training overflows. Useful plans stay far below
    the defaults."""
    largest_weight_decay: float = Field(default=1.0, ge=0)
    """Largest weight decay, and largest pull back to the received mixer (`proximal`)."""
    largest_gradient_clip: float = Field(default=1000.0, gt=0)
    """Largest bound on the gradient of a step."""
    largest_loss_weight: float = Field(default=1000.0, gt=0)
    """Largest scale of the loss, and largest weight of its terms."""
    least_clip_norm: float = Field(default=1e-6, gt=0)
    """Smallest clip norm (bound on the contribution of one patient) of a plan."""
    largest_clip_norm: float = Field(default=1000.0, gt=0)
    """Largest clip norm of a plan."""
    largest_start_value: float = Field(default=1000.0, gt=0)
    """Largest absolute parameter of a mixer from which a round starts."""
    least_patient_count_step: int = Field(default=5, ge=1)
    """Smallest step to which a plan may round numbers of patients."""
    site_styles: bool = False
    """Whether a plan may publish the mean grey scale of each site (`unconditional.site_styles`).
    If not, the whole plan is refused: a missing style could be computed from the mean over all
    sites and the other styles."""
    largest_update_bytes: int = Field(default=1_000_000, ge=1)
    """Largest number of bytes of the tensors in one answer of a round. The default is 500,000
    parameters in half precision."""
    largest_statistics_bytes: int = Field(default=8_000_000, ge=1)
    """Largest number of bytes of the statistics that are sent once, before the rounds. Moments of
    trajectories take about 0.5 MB, a sketch of whole trajectories 7 MB."""
    image_checks: bool = True
    """on: a patient whom the checks of `lift-client check --images` veto is left out, by name and
    reason. off: only files that cannot be used are refused. The log and the journal say so."""

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
    """The whole settings file of a site. Paths are relative to the folder of the YAML file."""

    kit: Path = Path("kit")
    """Folder of the kit from the coordinator: kit.json and ca.pem."""
    key: Path = Path("site.key")
    """Private key of the site, mode 0600. It is created here and never leaves."""
    folder: Path = Path("work")
    """Work folder: journal, log, stored plan, split, outbox."""
    generator: GeneratorChoice
    """The frozen generator. Its fingerprint must be the one in the kit."""
    local_port: Port = 9094
    """Port on 127.0.0.1 between the two processes of this program, protected by a secret."""
    policy: PolicySettings
    """What this site allows."""
    card: CardSettings = CardSettings()
    """How the data card is rounded."""

    @property
    def checks_images(self) -> bool:
        """As the policy says."""
        return self.policy.image_checks

    @property
    def image_reports(self) -> Path:
        """Folder `check` in the work folder."""
        return self.folder / "check"

    @property
    def patient_records(self) -> Path:
        """The work folder."""
        return self.folder

    def under(self, folder: Path) -> SiteConfig:
        """Return the same settings with relative paths resolved against `folder`."""
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
