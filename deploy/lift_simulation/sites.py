"""The sites of a simulation: their settings, and phantom cohorts as files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lift.cohort.phantom.write import write_phantom_cohorts
from lift.config.cohort import BratsData, SynthradData
from lift.config.phantom import PhantomCohortConfig
from lift.config.simulation import SimulationConfig
from lift.config.site import SiteSettings
from lift_simulation.progress import Reporter


def open_sites(
    config: SimulationConfig,
    cache: Path,
    cohorts: Path,
    reporter: Reporter,
    phantoms: Mapping[str, PhantomCohortConfig],
) -> dict[str, SiteSettings]:
    """Each site's settings; phantom cohorts are written as files first.

    Args:
        config: the simulation's settings.
        cache: default folder of the feature cache.
        cohorts: where phantom cohorts go, a folder by site.
        reporter: shows the progress.
        phantoms: site -> its phantom cohort.
    """
    write_phantom_cohorts(
        {cohorts / name: phantom for name, phantom in phantoms.items()},
        progress=lambda done, total: reporter.step("phantom patients", done, total),
    )
    settings = config.cache.model_copy(update={"folder": config.cache.folder or cache})
    opened = {}
    for site in config.sites:
        data = site.data
        if isinstance(data, PhantomCohortConfig):
            layout = SynthradData if "ct" in data.channels else BratsData
            data = layout(root=cohorts / site.name)
        opened[site.name] = SiteSettings(
            name=site.name, data=data, cache=settings, device=config.device
        )
    return opened


def phantoms_of(config: SimulationConfig) -> dict[str, PhantomCohortConfig]:
    """Site -> its phantom cohort, of the sites that are phantoms."""
    return {
        site.name: site.data for site in config.sites if isinstance(site.data, PhantomCohortConfig)
    }
