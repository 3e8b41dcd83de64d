"""Where a site's volumes lie, and in which layout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from lift.config.base import Settings


class _FolderData(Settings):
    root: Path
    """The data folder; every message names files relative to it."""
    on_bad_file: Literal["skip", "stop"] = "skip"
    """skip: refuse the patient by name and go on; stop: refuse the whole cohort."""


class BratsData(_FolderData):
    """BraTS 2023: `BraTS-GLI-00000-000/BraTS-GLI-00000-000-t1n.nii.gz`, t1c, t2w, t2f."""

    layout: Literal["brats"] = "brats"


class SynthradData(_FolderData):
    """SynthRAD2023: `1BA001/{mr,ct,mask}.nii.gz`."""

    layout: Literal["synthrad"] = "synthrad"


class TableData(_FolderData):
    """A CSV table: `patient`, one column by channel, optionally `mask`; paths under the root."""

    layout: Literal["table"] = "table"
    table: Path
    """The CSV file."""


CohortData = Annotated[BratsData | SynthradData | TableData, Field(discriminator="layout")]
