"""Two sites of phantoms, some of whom the image checks must veto."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Final

import nibabel
import numpy as np
from numpy.typing import NDArray

from lift.cohort.phantom.write import write_phantom_cohort
from lift.config.phantom import PhantomCohortConfig
from tests.end_to_end.tiny_run import SOURCES, TARGET, TinyRun, make_bundle

CHANNELS: Final = ("t1n", "t2w", "t2f")
"""Of the tiny generator."""
PATIENTS = 7
SEEDS = {"east": 71, "west": 72}


def name(index: int) -> str:
    """A phantom's name."""
    return f"BraTS-PHA-{index:05d}-000"


GREY = (name(2), name(5))
"""At east, and so is the next one."""
ACCEPTED = name(6)
UNPAIRED = name(3)
"""At west."""
VETOED = {"east": GREY, "west": (UNPAIRED,)}
REASON = "phase-sensitive sequence, looked at by the radiologist"


def file(root: Path, patient: str, channel: str) -> Path:
    """A patient's file of one channel."""
    return root / patient / f"{patient}-{channel}.nii.gz"


def make_sites(folder: Path) -> TinyRun:
    """Two sites' phantoms, three with a grey T1, one whose target lies elsewhere; a bundle."""
    made = TinyRun(folder)
    make_bundle(made.bundle)
    for site, seed in SEEDS.items():
        config = PhantomCohortConfig(
            patients=PATIENTS,
            scanner="north",
            seed=seed,
            corruption=False,
            in_plane_mm=4.0,
            channels=CHANNELS,
        )
        write_phantom_cohort(config, made.site(site), workers=1)
    for patient in (*GREY, ACCEPTED):
        make_grey(file(made.site("east"), patient, SOURCES[0]))
    move(file(made.site("west"), UNPAIRED, TARGET))
    return made


def without_vetoed(made: TinyRun, folder: Path) -> TinyRun:
    """A copy in which nobody is whom the checks veto, but for the accepted one."""
    shutil.copytree(made.folder / "data", folder / "data")
    shutil.copytree(made.bundle, folder / "bundle")
    copy = TinyRun(folder)
    for site, patients in VETOED.items():
        for patient in patients:
            shutil.rmtree(copy.site(site) / patient)
    return copy


def make_grey(path: Path) -> None:
    """Signed values, as of phase-sensitive inversion recovery, around a grey background."""
    voxels, affine = _load(path)
    inside = voxels > 0.1 * float(np.percentile(voxels, 99))
    signed = np.where(inside, voxels - np.median(voxels[inside]), 0.0)
    _save(path, signed, affine)


def move(path: Path) -> None:
    """The volume elsewhere, so that the bodies hardly meet."""
    voxels, affine = _load(path)
    _save(path, np.roll(voxels, voxels.shape[1] // 2, axis=1), affine)


def _load(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    image = nibabel.load(path)
    return np.asanyarray(image.dataobj).astype(np.float32), image.affine


def _save(path: Path, voxels: NDArray[Any], affine: NDArray[Any]) -> None:
    image = nibabel.Nifti1Image(voxels.astype(np.float32), affine)
    image.header["descrip"] = b"PHANTOM, simulated, no patient"
    nibabel.save(image, path)
