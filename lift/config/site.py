"""Settings of one site: where its data lies, where its cache goes, what it runs on."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from lift.config.base import Settings
from lift.config.cohort import CohortData
from lift.config.plan import Name


class CacheSettings(Settings):
    """The site's cache of frozen features."""

    folder: Path | None = None
    """Default: `cache` beside the site's other work files."""
    largest_gb: float = Field(default=50.0, gt=0)
    """The oldest entries are removed beyond this size."""


class SiteSettings(Settings):
    """One site."""

    name: Name
    data: CohortData
    cache: CacheSettings = CacheSettings()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU when there is one."""
