"""Metrics of synthetic volumes on disk against the real ones, file by file.

The result names files and is for whoever owns them: it stays with the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, TypedDict

import numpy as np

from lift.config.plan import PercentileRule
from lift.errors import DataError, VolumeError
from lift.metrics.subjects import NOT_TOLD, read_subjects, subjects_of_files
from lift.metrics.synthrad import CT_RANGE, MR_RANGE, Floats, Mask
from lift.metrics.table import Entry, Protocol, entries, metric_table, patient_metrics
from lift.volumes.slices import slice_spacing, to_slices
from lift.volumes.volume import Volume, check_same_grid, read_volume

SUFFIXES: Final = (".nii", ".nii.gz")

_PLANE = "axial"
_SEED = 0
_SHOWN_NAMES = 5


class Evaluation(TypedDict):
    """What :func:`evaluate_folders` found; every number is finite.

    Attributes:
        protocol: `mr` or `ct`.
        volumes: number of pairs.
        persons: whose they are; each counts once in the means and intervals.
        note: empty, or that the persons of the files are not known.
        metrics: METRIC -> mean over persons with its 95% bootstrap interval; `n` counts persons.
        subjects: file -> person, as it was given; empty where each file is a person.
        per_volume: file (relative to its folder) -> METRIC -> figure.
    """

    protocol: Protocol
    volumes: int
    persons: int
    note: str
    metrics: dict[str, Entry]
    subjects: dict[str, str]
    per_volume: dict[str, dict[str, float]]


def evaluate_folders(
    predicted: Path,
    target: Path,
    *,
    mask: Path | None,
    protocol: Protocol,
    subjects: Path | None = None,
) -> Evaluation:
    """Metrics of every NIfTI file under `predicted` against its namesake under `target`.

    Files pair by their path relative to the folder, and every file must have its partner: a
    missing prediction would flatter the mean. Depth is the axial direction.

    - `ct`: values are HU and are compared as they are. Without `mask` the whole volume counts,
      air included; the challenge's figures need its masks.
    - `mr`: MR has no unit, so each volume is clipped to its own 0.1 and 99.9 percentile (of the
      whole volume) and brought to [0, 1]: a prediction may be written at any positive scale and
      offset. Without `mask` the voxels count where the target is not 0.

    Args:
        predicted: folder of synthetic volumes.
        target: folder of real volumes on the same grids.
        mask: folder of masks with the same names, or None; a mask counts where it is above 0.
        protocol: `mr` or `ct`.
        subjects: CSV table that says whose each file is (`lift.metrics.subjects`); None: each is
            a person of its own.

    Raises:
        DataError: a folder does not exist, holds no NIfTI file, or a file has no partner; or the
            table of subjects is damaged or lacks a file.
        VolumeError: a file cannot be read, its mask is empty, or its values do not vary.
        AffineError: two files of a pair are not on one grid.
    """
    folders = {"prediction": predicted, "target": target}
    if mask is not None:
        folders["mask"] = mask
    names = _paired_names(folders)
    # before the first volume is read
    people = {} if subjects is None else subjects_of_files(read_subjects(subjects), names)
    per_volume = {name: _evaluate_pair(name, predicted, target, mask, protocol) for name in names}
    return {
        "protocol": protocol,
        "volumes": len(names),
        "persons": len(set(people.values())) if people else len(names),
        "note": NOT_TOLD if subjects is None else "",
        "metrics": entries(metric_table(per_volume, seed=_SEED, persons=people, protocol=protocol)),
        "subjects": people,
        "per_volume": per_volume,
    }


def _evaluate_pair(
    name: str, predicted: Path, target: Path, mask: Path | None, protocol: Protocol
) -> dict[str, float]:
    wanted = read_volume(target / name, root=target)
    synthetic = read_volume(predicted / name, root=predicted)
    check_same_grid(wanted, synthetic, (f"target {name}", f"prediction {name}"))
    if mask is not None:
        drawn = read_volume(mask / name, root=mask, labels=True)
        check_same_grid(wanted, drawn, (f"target {name}", f"mask {name}"))
        inside: Mask = _slices(drawn) > 0
    elif protocol == "mr":
        inside = _slices(wanted) != 0
    else:
        inside = np.ones_like(_slices(wanted), dtype=np.bool_)
    if not inside.any():
        raise VolumeError(
            f"cannot evaluate '{name}'",
            where="the folder of masks",
            seen="its mask holds no voxel; at least one must be above 0",
            remedy="Correct the mask, or take the file out of every folder; nothing was written.",
        )
    pair = [_slices(volume) for volume in (synthetic, wanted)]
    if protocol == "mr":
        pair = [
            _normalised(volume, role, name)
            for volume, role in zip(pair, ("prediction", "target"), strict=True)
        ]
    return patient_metrics(
        pair[0],
        pair[1],
        inside,
        range=MR_RANGE if protocol == "mr" else CT_RANGE,
        spacing_mm=slice_spacing(wanted.spacing_mm, _PLANE),
        protocol=protocol,
    )


def _slices(volume: Volume) -> Floats:
    return np.asarray(to_slices(volume.voxels, _PLANE), dtype=np.float64)


def _normalised(volume: Floats, role: str, name: str) -> Floats:
    rule = PercentileRule()
    low, high = (float(level) for level in np.percentile(volume, [rule.low, rule.high]))
    if low == high:
        raise VolumeError(
            f"cannot evaluate '{name}'",
            where=f"the folder of {role}s",
            seen=f"the {role}'s {rule.low:g} and {rule.high:g} percentiles are equal; "
            "they must differ to bring it to [0, 1]",
            remedy="Look at the file in a viewer: it is all but constant. Nothing was written.",
        )
    return (np.clip(volume, low, high) - low) / (high - low)


def _paired_names(folders: dict[str, Path]) -> list[str]:
    """Relative paths of the NIfTI files, the same in every folder."""
    listed = {role: _nifti_names(role, folder) for role, folder in folders.items()}
    every = sorted(set().union(*listed.values()))
    problems = [
        f"no {role} for {_some([name for name in every if name not in names])}"
        for role, names in listed.items()
        if len(names) < len(every)
    ]
    if problems:
        raise DataError(
            "cannot pair the volumes by their names",
            where=" and ".join(f"'{folder}'" for folder in folders.values()),
            seen="\n".join([*problems, "every file needs a namesake in every folder"]),
            remedy="Add or remove files, or rename them; nothing was written.",
        )
    return every


def _nifti_names(role: str, folder: Path) -> set[str]:
    if not folder.is_dir():
        raise DataError(
            f"cannot read the {role} folder",
            where=f"'{folder}'",
            seen="there is no such folder",
            remedy="Check the path given on the command line.",
        )
    names = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.name.endswith(SUFFIXES) and not path.name.startswith(".") and path.is_file()
    }
    if not names:
        raise DataError(
            f"cannot read the {role} folder",
            where=f"'{folder}'",
            seen=f"it holds no NIfTI file ({' or '.join(SUFFIXES)})",
            remedy="Check the path given on the command line.",
        )
    return names


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:_SHOWN_NAMES])
    more = len(names) - _SHOWN_NAMES
    return f"{shown} and {more} more" if more > 0 else shown
