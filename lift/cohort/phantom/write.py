"""The phantom cohort as files, in any layout that can be read; BraTS 2023 where none is named."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import nibabel
import numpy as np
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from numpy.typing import NDArray

from lift.cohort.phantom.anatomy import Grid, Head, make_head
from lift.cohort.phantom.places import Layout, patient_id, volume_path, write_index
from lift.cohort.phantom.scanner import (
    FINE_MM,
    acquire,
    body_share,
    brain_share,
    delivered_share,
    draw_public_scanner,
    without_corruption,
)
from lift.config.phantom import (
    PHANTOM_MARK,
    PUBLIC,
    SCANNERS,
    PhantomCohortConfig,
    ScannerConfig,
)
from lift.errors import ConfigError, DataError
from lift.files import write_atomically, write_json
from lift.randomness import derive_seed
from lift.strict_json import parse_json

STATEMENT: Final = (
    "PHANTOM: every volume in this folder is simulated from the MNI152 atlas. No patient."
)
"""What `PHANTOM.json` says of the volumes beside and below it."""
# what a head needs around MNI's origin, mm: (low, high) along x, y, z
_BRAIN_FIELD: Final = ((-84.0, 84.0), (-118.0, 86.0), (-74.0, 91.0))
_HEAD_FIELD: Final = ((-100.0, 100.0), (-134.0, 102.0), (-74.0, 106.0))
_VERSION: Final = 2


def write_phantom_cohort(
    config: PhantomCohortConfig,
    folder: Path,
    *,
    layout: Layout | None = None,
    progress: Callable[[int, int], None] | None = None,
    workers: int = 2,
) -> None:
    """One cohort: see :func:`write_phantom_cohorts`."""
    write_phantom_cohorts({folder: config}, layout=layout, progress=progress, workers=workers)


def write_phantom_cohorts(
    cohorts: Mapping[Path, PhantomCohortConfig],
    *,
    layout: Layout | None = None,
    progress: Callable[[int, int], None] | None = None,
    workers: int = 2,
) -> None:
    """Write every patient of the cohorts; a finished cohort of the same settings is kept.

    The bytes depend on the settings alone, neither on `workers` nor on how often the work was
    broken off; patient k depends on the seed and k, not on the number of patients.

    Args:
        cohorts: folder -> cohort; `PHANTOM.json` in the folder says what the volumes are.
        layout: of the files. Default: brats, and synthrad for mr and ct.
        progress: called with the patients done and their number, over all cohorts.
        workers: processes; 1 works in this one.
    """
    todo = {
        folder: config
        for folder, config in cohorts.items()
        if not _is_done(folder / PHANTOM_MARK, _card(config))
    }
    jobs = [
        (config, index, folder, layout)
        for folder, config in todo.items()
        for index in range(config.patients)
    ]
    for folder in todo:
        folder.mkdir(parents=True, exist_ok=True)

    def report(done: int) -> None:
        if progress is not None:
            progress(done, len(jobs))

    if workers <= 1 or len(jobs) <= 1:
        for done, job in enumerate(jobs, start=1):
            write_patient(*job)
            report(done)
    else:
        # spawned, not forked: the parent may hold threads of numerical libraries; one pool for
        # all cohorts, because each worker reads the atlas once
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, context, initializer=_end_with_parent) as pool:
            futures = [pool.submit(write_patient, *job) for job in jobs]
            for done, future in enumerate(as_completed(futures), start=1):
                future.result()
                report(done)
    for folder, config in todo.items():
        names = [patient_name(config, index, layout) for index in range(config.patients)]
        write_index(folder, _layout(config, layout), names, config.channels)
        write_json(folder / PHANTOM_MARK, _card(config))


@dataclass(frozen=True)
class Examined:
    """One phantom patient on the scanner, before any channel is acquired.

    Attributes:
        name: of the patient's folder.
        scanner: that it lies in.
        grid: the fine grid.
        head: on that grid.
        keep_skull: whether the whole head is delivered.
        units_per_signal: of the delivered MR volumes.
        affine: delivered voxel -> scanner mm.
    """

    name: str
    scanner: ScannerConfig
    grid: Grid
    head: Head
    keep_skull: bool
    units_per_signal: float
    affine: NDArray[np.float64]


def examine(config: PhantomCohortConfig, index: int) -> Examined:
    """Patient `index` (from 0) of a cohort; the same whenever it is asked for."""
    rng = np.random.default_rng(derive_seed(_patient_seed(config, index), "head"))
    scanner = _scanner(config, rng)
    head_layout = "ct" in config.channels
    stripped = config.skull_strip
    keep_skull = head_layout or stripped is False or (stripped == "half" and index % 2 == 1)
    grid = _grid(config, scanner, whole_head=keep_skull)
    head = make_head(grid, rng, whole_head=keep_skull)
    units_per_signal = rng.uniform(1500, 6000)
    affine = _affine(grid, scanner, rng)
    name = patient_name(config, index)
    return Examined(name, scanner, grid, head, keep_skull, units_per_signal, affine)


def write_patient(
    config: PhantomCohortConfig, index: int, folder: Path, layout: Layout | None = None
) -> None:
    """Write the files of patient `index` (from 0)."""
    seed, head_layout = _patient_seed(config, index), "ct" in config.channels
    patient = examine(config, index)
    name = patient_name(config, index, layout)
    scanner, grid, head = patient.scanner, patient.grid, patient.head
    keep_skull, affine = patient.keep_skull, patient.affine
    inside = (body_share if keep_skull else brain_share)(head, scanner, grid) > 0.5
    for channel in config.channels:
        channel_rng = np.random.default_rng(derive_seed(seed, "channel", channel))
        acquired = acquire(
            head, grid, channel, scanner, channel_rng, is_target=channel == config.target
        )
        if acquired.is_ct:
            voxels = np.rint(np.clip(acquired.voxels, -1024, 3071))
        else:
            voxels = np.rint(np.clip(acquired.voxels * patient.units_per_signal, 0, 32767))
            if not keep_skull:
                # a lost slice is dark, not absent: the mask rule `nonzero` must still find it
                voxels = np.where(inside, np.maximum(voxels, 1), 0)
        path = volume_path(folder, _layout(config, layout), name, channel)
        _write(path, voxels.astype(np.int16), affine, scanner)
    if head_layout:
        _write(folder / name / "mask.nii.gz", inside.astype(np.uint8), affine, scanner)


def check_empty(folder: Path) -> None:
    """Refuse a folder that holds something: phantoms must not lie among patients.

    Raises:
        DataError: it does.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise DataError(
            "cannot write phantom volumes",
            where=str(folder),
            seen="the folder is not empty; phantoms must not lie among other files",
            remedy="Nothing was written. Name another folder, or empty this one.",
        )


def write_truth(config: PhantomCohortConfig, folder: Path, tissue: str) -> None:
    """Where a tissue fills most of a delivered voxel: 0 or 1, `PATIENT.nii.gz` for each patient.

    Each lies on the grid of the patient's own volumes. Files that are there are kept: give each
    cohort and tissue a folder of its own.

    Args:
        config: the cohort.
        folder: for the files.
        tissue: one of the head's maps, such as wm or gm.

    Raises:
        ConfigError: phantom heads have no such tissue.
    """
    for index in range(config.patients):
        path = folder / f"{patient_name(config, index)}.nii.gz"
        if path.is_file():
            continue
        patient = examine(config, index)
        if tissue not in patient.head.maps:
            raise ConfigError(
                "phantom heads have no such tissue",
                where="tissue",
                seen=f"{tissue}; there are {', '.join(sorted(patient.head.maps))}",
                remedy="Name one of them; nothing was written.",
            )
        share = delivered_share(patient.head.maps[tissue], patient.scanner, patient.grid)
        _write(path, (share > 0.5).astype(np.uint8), patient.affine, patient.scanner)


def patient_name(config: PhantomCohortConfig, index: int, layout: Layout | None = None) -> str:
    """How the cohort calls patient `index` (from 0)."""
    return patient_id(_layout(config, layout), index)


def _layout(config: PhantomCohortConfig, layout: Layout | None) -> Layout:
    return layout or ("synthrad" if "ct" in config.channels else "brats")


def _patient_seed(config: PhantomCohortConfig, index: int) -> int:
    return derive_seed(config.seed, "phantom", index)


def _scanner(config: PhantomCohortConfig, rng: np.random.Generator) -> ScannerConfig:
    if isinstance(config.scanner, ScannerConfig):
        scanner = config.scanner
    elif config.scanner == PUBLIC:
        scanner = draw_public_scanner(rng)
    else:
        scanner = SCANNERS[config.scanner]
    return scanner if config.corruption else without_corruption(scanner)


def _grid(config: PhantomCohortConfig, scanner: ScannerConfig, *, whole_head: bool) -> Grid:
    """The fine grid: in-plane as delivered, `FINE_MM` along z, whole slices."""
    field = _HEAD_FIELD if whole_head else _BRAIN_FIELD
    in_plane = config.in_plane_mm
    across = [round((high - low) / in_plane) for low, high in field[:2]]
    slices = round((field[2][1] - field[2][0]) / scanner.slice_spacing_mm)
    depth = round(slices * scanner.slice_spacing_mm / FINE_MM)
    return Grid(
        shape=(across[0], across[1], depth),
        origin_mm=(field[0][0], field[1][0], field[2][0]),
        spacing_mm=(in_plane, in_plane, FINE_MM),
    )


def _affine(grid: Grid, scanner: ScannerConfig, rng: np.random.Generator) -> NDArray[np.float64]:
    """Delivered voxel -> scanner mm: a patient never lies quite straight."""
    tilt = np.deg2rad(rng.uniform(-6, 6))
    turn = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([*grid.spacing_mm[:2], scanner.slice_spacing_mm])
    affine[:3, 3] = turn @ np.array(grid.origin_mm)
    return affine


def _write(
    path: Path, voxels: NDArray[Any], affine: NDArray[np.float64], scanner: ScannerConfig
) -> None:
    """NIfTI in the scanner's orientation; equal content gives equal bytes."""
    wanted = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(tuple(scanner.orientation)))
    stored = nibabel.orientations.apply_orientation(voxels, wanted)
    image = nibabel.Nifti1Image(stored, affine @ inv_ornt_aff(wanted, voxels.shape))
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = b"PHANTOM, simulated, no patient"
    write_atomically(path, gzip.compress(image.to_bytes(), 1, mtime=0))


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def _card(config: PhantomCohortConfig) -> dict[str, object]:
    return {
        "statement": STATEMENT,
        "version": _VERSION,
        "settings": config.model_dump(mode="json"),
        "digest": config.digest(),
    }


def _is_done(marker: Path, card: dict[str, object]) -> bool:
    try:
        return bool(parse_json(marker.read_bytes()) == json.loads(json.dumps(card)))
    except (OSError, ValueError):
        return False
