"""The scanner of a volume, from its file: the maker from a closed list, and two numbers.

DICOM says it. A NIfTI header does not; the JSON sidecar that BIDS puts beside the file may (Brain
Imaging Data Structure 1.10, "Hardware information" of MRI). Nothing else of either is looked at.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lift.config.card import Vendor, vendor_of
from lift.errors import VolumeError
from lift.volumes.formats.checks import Refusal
from lift.volumes.formats.dicom import series_files
from lift.volumes.formats.dicom_image import is_dicom, parsing, read_dataset
from lift.volumes.formats.packed import read_file
from lift.volumes.volume import SUFFIXES

_LONGEST: Final = 1 << 20
_STRONGEST_T: Final = 30.0
_THICKEST_MM: Final = 100.0


@dataclass(frozen=True)
class Scanner:
    """What one volume was made with; None where nothing says it.

    Attributes:
        vendor: the maker, never its free text.
        field_strength_t: tesla.
        slice_thickness_mm: as acquired.
    """

    vendor: Vendor | None = None
    field_strength_t: float | None = None
    slice_thickness_mm: float | None = None


def scanner_of(path: Path) -> Scanner:
    """What a DICOM file, or the sidecar of another one, says; what cannot be read says nothing.

    Args:
        path: a file, or the folder of a series, of which the first file speaks.
    """
    said = _dicom(path) or _sidecar(path)
    maker = said.get("Manufacturer")
    return Scanner(
        vendor=vendor_of(maker) if isinstance(maker, str) else None,
        field_strength_t=_number(said.get("MagneticFieldStrength"), _STRONGEST_T),
        slice_thickness_mm=_number(said.get("SliceThickness"), _THICKEST_MM),
    )


def _dicom(path: Path) -> dict[str, object]:
    refuse = Refusal(path.name, None)
    try:
        files = series_files(path, refuse) if path.is_dir() else [path]
        for file in files:
            with file.open("rb") as stream:
                if not is_dicom(stream.read(132)):
                    continue
            missing = refuse("there is no such file", "Restore it.")
            dataset = read_dataset(read_file(file, refuse, missing=missing), refuse)
            with parsing(refuse):
                maker = dataset.get("Manufacturer")
                numbers = {
                    name: None if (value := dataset.get(name)) is None else float(value)
                    for name in ("MagneticFieldStrength", "SliceThickness")
                }
            return {"Manufacturer": None if maker is None else str(maker), **numbers}
    except (OSError, VolumeError):
        pass
    return {}


def _sidecar(path: Path) -> dict[str, object]:
    suffix = max((s for s in SUFFIXES if path.name.lower().endswith(s)), key=len, default="")
    if not suffix:
        return {}
    beside = path.with_name(path.name[: -len(suffix)] + ".json")
    try:
        if not beside.is_file() or beside.stat().st_size > _LONGEST:
            return {}
        said = json.loads(beside.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _number(value: object, most: float) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and 0 < value <= most else None
