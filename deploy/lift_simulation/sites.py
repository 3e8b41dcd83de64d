"""The sites of a simulation: their settings, and phantom cohorts as files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TypeVar

import torch

from lift.cohort.phantom.write import write_phantom_cohorts
from lift.config.cohort import BratsData, CohortData, SynthradData
from lift.config.phantom import PhantomCohortConfig
from lift.config.plan import Plan
from lift.config.privacy import NoPrivacy, SiteLevel
from lift.config.simulation import SimulatedSite, SimulationConfig
from lift.config.site import MARK_FILE, BudgetSettings, SiteSettings
from lift.device import resolve_devices
from lift.generator.base import Generator
from lift_client.gate.cohort_ledger import adopt, begin
from lift_client.gate.ledger import LEDGER_FILE
from lift_simulation.progress import Reporter

_NO_CAP: Final = 1e6
Copy = TypeVar("Copy", bound=Generator)


class SimulatedSettings(SiteSettings):
    """A site's settings in a simulation, which keeps reports of image checks beside its cache."""

    image_checks: bool = True
    """As `policy.image_checks` of a site."""

    @property
    def checks_images(self) -> bool:
        """As the simulation's settings say."""
        return self.image_checks

    @property
    def image_reports(self) -> Path | None:
        """A folder for each site: two of them may have patients of one name."""
        return None if self.cache.folder is None else self.cache.folder / "check" / self.name


def open_sites(
    config: SimulationConfig,
    cache: Path,
    cohorts: Path,
    reporter: Reporter,
    phantoms: Mapping[str, PhantomCohortConfig],
    *,
    ledgers: Path,
) -> dict[str, SiteSettings]:
    """Each site's settings; phantom cohorts are written as files first.

    Args:
        config: the simulation's settings.
        cache: default folder of the feature cache.
        cohorts: where phantom cohorts go, a folder by site.
        reporter: shows the progress.
        phantoms: site -> its phantom cohort.
        ledgers: where privacy ledgers are made, a folder by site, for plans that spend.
    """
    write_phantom_cohorts(
        {cohorts / name: phantom for name, phantom in phantoms.items()},
        progress=lambda done, total: reporter.step("phantom patients", done, total),
    )
    settings = config.cache.model_copy(update={"folder": config.cache.folder or cache})
    opened: dict[str, SiteSettings] = {}
    devices = site_devices(config)
    for site in config.sites:
        data = site.data
        if isinstance(data, PhantomCohortConfig):
            layout = SynthradData if "ct" in data.channels else BratsData
            data = layout(root=cohorts / site.name)
        opened[site.name] = SimulatedSettings(
            name=site.name,
            data=data,
            cache=settings,
            device=str(devices[site.name]),
            budget=_budget(config.plan, site, data, ledgers / site.name),
            accept=site.accept,
            image_checks=config.image_checks,
        )
    return opened


def site_devices(config: SimulationConfig) -> dict[str, torch.device]:
    """Site -> where it computes: several GPUs are taken in turn, in the order of the sites.

    Raises:
        ConfigError: a GPU was asked for that torch does not see.
    """
    devices = resolve_devices(config.device)
    return {site.name: devices[k % len(devices)] for k, site in enumerate(config.sites)}


def copies_for_sites(
    first: Copy, devices: Mapping[str, torch.device], load: Callable[[torch.device], Copy]
) -> dict[str, Copy]:
    """Site -> the frozen generator on the site's device, one copy for each device.

    Args:
        first: the copy that is there.
        devices: site -> its device.
        load: makes a copy on a device.
    """
    copies = {first.device: first}
    for device in devices.values():
        if _numbered(device) not in copies:
            copies[_numbered(device)] = load(device)
    return {site: copies[_numbered(device)] for site, device in devices.items()}


def _numbered(device: torch.device) -> torch.device:
    """As a tensor on it names it."""
    return torch.device(device.type, device.index or 0) if device.type == "cuda" else device


def _budget(
    plan: Plan, site: SimulatedSite, data: CohortData, folder: Path
) -> BudgetSettings | None:
    """The site's budget with its ledger, which is made at the first start."""
    if isinstance(plan.privacy, NoPrivacy | SiteLevel):
        return site.budget
    given = site.budget or BudgetSettings(epsilon=_NO_CAP, delta=plan.privacy.delta)
    path = given.ledger or folder / LEDGER_FILE
    # the data are not this program's to mark
    mark = given.mark or path.with_name(MARK_FILE)
    budget = given.model_copy(update={"ledger": path, "mark": mark})
    settings = SiteSettings(name=site.name, data=data, budget=budget)
    if not path.exists():
        begin(settings, folder)
    elif not mark.exists():
        adopt(settings, folder, path)
    return budget


def phantoms_of(config: SimulationConfig) -> dict[str, PhantomCohortConfig]:
    """Site -> its phantom cohort, of the sites that are phantoms."""
    return {
        site.name: site.data for site in config.sites if isinstance(site.data, PhantomCohortConfig)
    }
