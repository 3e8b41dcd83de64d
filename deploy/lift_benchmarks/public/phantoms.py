"""Phantoms in the layouts of the official folders: names, nesting, and SynthRAD2025's .mha."""

from __future__ import annotations

import tempfile
import zlib
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from lift.cohort.phantom.write import STATEMENT, check_empty, write_patient
from lift.config.phantom import MR_CHANNELS, PHANTOM_MARK, SCANNERS, PhantomCohortConfig
from lift.files import write_atomically, write_json
from lift.volumes.volume import read_volume
from lift_benchmarks.public.folders import Benchmark

_TOP: Final = {
    "brats": "PHANTOM-BraTS2023-GLI-TrainingData",
    "2023": "Task1/brain",
    "2025": "Task1/HN",
}
_IDS: Final = {"2023": "1B{}{:03d}", "2025": "1HN{}{:03d}"}
_CENTRES: Final = "ABC"
_LPS: Final = np.diag([-1.0, -1.0, 1.0])
_TYPES: Final = {"int16": "MET_SHORT", "uint8": "MET_UCHAR"}


def write_official(
    folder: Path,
    benchmark: Benchmark,
    *,
    year: Literal["2023", "2025"] = "2023",
    persons: int = 5,
    in_plane_mm: float = 2.0,
) -> None:
    """Write phantom patients as the official download has them; equal arguments, equal bytes.

    Three scanners stand for three centres. BraTS: the first person has a second time point.
    `PHANTOM.json` at the top says what the volumes are.

    Args:
        folder: is created; it must hold nothing.
        benchmark: layout.
        year: of SynthRAD: .nii.gz by region (2023), or .mha by the region's letters (2025).
        persons: of each centre.
        in_plane_mm: in-plane spacing.

    Raises:
        DataError: the folder holds something.
    """
    check_empty(folder)
    head = benchmark == "synthrad"
    top = folder / _TOP[year if head else benchmark]
    for place, (letter, scanner) in enumerate(zip(_CENTRES, SCANNERS, strict=True)):
        cohort = PhantomCohortConfig.from_data(
            {
                "patients": persons,
                "seed": 400 + place,
                "scanner": scanner,
                "in_plane_mm": in_plane_mm,
                "channels": ["mr", "ct"] if head else list(MR_CHANNELS),
                "target": "ct" if head else "t2f",
            },
            "phantom",
        )
        for index in range(persons):
            number = place * persons + index
            if head:
                name = _IDS[year].format(letter, index + 1)
                _write_head(cohort, index, top / name, as_mha=year == "2025")
            else:
                # the first person was examined twice: another head will do for that
                person, time = (number - 1, 1) if number == 1 else (number, 0)
                _write_brain(cohort, index, top / f"BraTS-PHA-{person:05d}-{time:03d}")
    write_json(folder / PHANTOM_MARK, {"statement": STATEMENT})


def _write_brain(cohort: PhantomCohortConfig, index: int, place: Path) -> None:
    with tempfile.TemporaryDirectory() as work:
        write_patient(cohort, index, Path(work), "brats")
        (made,) = Path(work).iterdir()
        for file in made.iterdir():
            name = file.name.replace(made.name, place.name)
            write_atomically(place / name, file.read_bytes())


def _write_head(cohort: PhantomCohortConfig, index: int, place: Path, *, as_mha: bool) -> None:
    with tempfile.TemporaryDirectory() as work:
        write_patient(cohort, index, Path(work), "synthrad")
        (made,) = Path(work).iterdir()
        for file in made.iterdir():
            if not as_mha:
                write_atomically(place / file.name, file.read_bytes())
                continue
            volume = read_volume(file, labels=file.name.startswith("mask"))
            name = file.name.replace(".nii.gz", ".mha")
            write_atomically(place / name, metaimage(volume.voxels, volume.affine))


def metaimage(voxels: NDArray[Any], affine: NDArray[np.float64]) -> bytes:
    """A MetaImage file (.mha), compressed.

    Args:
        voxels: (x, y, z), int16 or uint8.
        affine: voxel -> mm, RAS+.
    """
    place = _LPS @ affine[:3, :3]
    spacing = np.linalg.norm(place, axis=0)
    packed = zlib.compress(voxels.astype(voxels.dtype.newbyteorder("<")).tobytes(order="F"), 1)

    def row(numbers: NDArray[np.float64]) -> str:
        return " ".join(f"{number:.9g}" for number in numbers)

    header = [
        "ObjectType = Image",
        "NDims = 3",
        "BinaryData = True",
        "BinaryDataByteOrderMSB = False",
        "CompressedData = True",
        f"CompressedDataSize = {len(packed)}",
        f"TransformMatrix = {row((place / spacing).T.ravel())}",
        f"Offset = {row(_LPS @ affine[:3, 3])}",
        f"ElementSpacing = {row(spacing)}",
        f"DimSize = {' '.join(map(str, voxels.shape))}",
        f"ElementType = {_TYPES[voxels.dtype.name]}",
        "ElementDataFile = LOCAL",
    ]
    return ("\n".join(header) + "\n").encode() + packed
