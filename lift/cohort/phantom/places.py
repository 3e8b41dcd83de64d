"""Names and places of a phantom cohort's files, for every layout that can be read."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from lift.files import write_atomically, write_json

Layout = Literal["brats", "synthrad", "bids", "table"]
TABLE_FILE: Final = "patients.csv"
"""The table of layout `table`, in the data folder."""
_IDS: Final[dict[Layout, str]] = {
    "brats": "BraTS-PHA-{:05d}-000",
    "synthrad": "1PA{:03d}",
    "bids": "sub-PHA{:05d}",
    "table": "PHA-{:05d}",
}
# how a file ends in BIDS
_SERIES: Final = {
    "t1n": "T1w",
    "t1c": "ce-gd_T1w",
    "t2w": "T2w",
    "t2f": "FLAIR",
    "mr": "T1w",
    "ct": "CT",
}
_BIDS_VERSION: Final = "1.10.0"


def patient_id(layout: Layout, index: int) -> str:
    """The name of patient `index` (from 0)."""
    return _IDS[layout].format(index + 1)


def volume_path(folder: Path, layout: Layout, patient: str, channel: str) -> Path:
    """The file of a patient's channel."""
    if layout == "bids":
        return folder / patient / "anat" / f"{patient}_{_SERIES[channel]}.nii.gz"
    if layout == "brats":
        return folder / patient / f"{patient}-{channel}.nii.gz"
    return folder / patient / f"{channel}.nii.gz"


def write_index(
    folder: Path, layout: Layout, patients: Sequence[str], channels: Sequence[str]
) -> None:
    """Write what the layout has beside its volumes: the table, or the description of BIDS."""
    if layout == "bids":
        description = {"Name": "PHANTOM volumes, no patient", "BIDSVersion": _BIDS_VERSION}
        write_json(folder / "dataset_description.json", description)
    if layout == "table":
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["patient", "subject", *channels])
        for patient in patients:
            paths = [volume_path(folder, layout, patient, channel) for channel in channels]
            table.writerow(
                [patient, patient, *(path.relative_to(folder).as_posix() for path in paths)]
            )
        write_atomically(folder / TABLE_FILE, text.getvalue().encode())
