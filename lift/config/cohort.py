"""Folder and layout of a site's volumes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from lift.config.base import Settings


class _FolderData(Settings):
    root: Path
    """The data folder. Messages name files relative to it."""
    on_bad_file: Literal["skip", "stop"] = "skip"
    """skip: leave out the patient, by name, and continue. stop: refuse the whole cohort. Under a
    plan that protects patients, stop acts like skip: an answer must not depend on one patient."""


class BratsData(_FolderData):
    """BraTS 2023: `BraTS-GLI-00000-000/BraTS-GLI-00000-000-t1n.nii.gz`, t1c, t2w, t2f."""

    layout: Literal["brats"] = "brats"
    """Chooses this layout."""


class SynthradData(_FolderData):
    """SynthRAD2023 `1BA001/{mr,ct,mask}.nii.gz`, or 2025 `1ABA005/{mr,ct,mask}.mha`."""

    layout: Literal["synthrad"] = "synthrad"
    """Chooses this layout."""


SeriesPattern = Annotated[
    str, Field(pattern=r"^([A-Za-z0-9]+-([A-Za-z0-9]+|\*)_)*[A-Za-z0-9]+$", max_length=200)
]


class BidsData(_FolderData):
    """BIDS: `sub-01[/ses-01]/anat/sub-01[_ses-01][_ce-gd]_T1w.nii.gz`, by session."""

    layout: Literal["bids"] = "bids"
    """Chooses this layout."""
    series: dict[str, SeriesPattern] = Field(default_factory=dict)
    """Channel -> how its files end, with the entities that tell them from others, such as
    `acq-3d_T1w`; `*` stands for any value, and `without-acq_T1w` for files without that entity.
    What is not named: t1n `T1w`, t1c `ce-*_T1w`, t2w `T2w`,
    t2f `FLAIR`, mr `T1w`, ct `CT`. A file with contrast agent (`ce`), or of another part
    than magnitude (`part`), is meant only where it is named."""


class TableData(_FolderData):
    """A CSV table: `patient`, one column by channel, optionally `subject` and `mask`; paths under
    the root. A row is an examination; rows with one `subject` are one person's. Without that column
    each row is a person.
    """

    layout: Literal["table"] = "table"
    """Chooses this layout."""
    table: Path
    """The CSV file."""


KnownData = BratsData | SynthradData | BidsData | TableData


class AutoData(_FolderData):
    """The layout is detected from the folder and reported. Naming it is safer."""

    layout: Literal["auto"] = "auto"
    """Chooses this layout."""


CohortData = Annotated[
    BratsData | SynthradData | BidsData | TableData | AutoData, Field(discriminator="layout")
]
