"""Metrics of synthetic volumes on disk against the real ones, file by file.

The result names files and is for whoever owns them: it stays with the data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, TypedDict

import numpy as np

from lift.config.plan import PercentileRule
from lift.errors import DataError, VolumeError
from lift.metrics.subjects import NOT_TOLD, read_subjects, subjects_of_files
from lift.metrics.synthrad import CT_RANGE, MR_RANGE, Floats, Mask
from lift.metrics.table import Entry, Protocol, entries, metric_table, patient_metrics
from lift.metrics.volume_files import volumes_under
from lift.volumes.slices import slice_spacing, to_slices
from lift.volumes.volume import Volume, check_same_grid, read_volume

_ROLES: Final = ("target", "prediction", "mask")
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
        per_volume: file of the target (relative to its folder) -> METRIC -> figure.
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
    """Metrics of every volume under `predicted` against its namesake under `target`.

    Volumes pair by their path relative to the folder without the ending, whatever their formats,
    and each must have its partner: a missing prediction would flatter the mean. Depth is the axial
    direction.

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
        DataError: a folder does not exist, holds no volume, or a volume has no partner; or the
            table of subjects is damaged or lacks a file.
        VolumeError: a file cannot be read, its mask is empty, or its values do not vary.
        AffineError: two files of a pair are not on one grid.
    """
    folders = {"prediction": predicted, "target": target}
    if mask is not None:
        folders["mask"] = mask
    pairs = _paired(folders)
    names = list(pairs)
    # before the first volume is read
    people = {} if subjects is None else subjects_of_files(read_subjects(subjects), names)
    per_volume = {
        name: _evaluate_pair(name, paths, folders, protocol) for name, paths in pairs.items()
    }
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
    name: str, paths: Mapping[str, Path], folders: Mapping[str, Path], protocol: Protocol
) -> dict[str, float]:
    wanted, synthetic = (
        read_volume(paths[role], root=folders[role]) for role in ("target", "prediction")
    )
    check_same_grid(wanted, synthetic, (f"target {name}", f"prediction {name}"))
    if "mask" in paths:
        drawn = read_volume(paths["mask"], root=folders["mask"], labels=True)
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


def _paired(folders: Mapping[str, Path]) -> dict[str, dict[str, Path]]:
    """NAME of the target -> role -> path; the same stems in every folder."""
    listed = {role: volumes_under(role, folder) for role, folder in folders.items()}
    # one that has no target is called as it is in the first folder that has it
    names = {
        stem: path.relative_to(folders[role]).as_posix()
        for role in reversed(_ROLES)
        for stem, path in listed.get(role, {}).items()
    }
    problems = [
        f"no {role} for {_some([names[stem] for stem in sorted(names) if stem not in found])}"
        for role, found in listed.items()
        if len(found) < len(names)
    ]
    if problems:
        raise DataError(
            "cannot pair the volumes by their names",
            where=" and ".join(f"'{folder}'" for folder in folders.values()),
            seen="\n".join([*problems, "every volume needs one of its name, whatever its format"]),
            remedy="Add or remove files, or rename them; nothing was written.",
        )
    return {
        names[stem]: {role: found[stem] for role, found in listed.items()}
        for stem in sorted(names, key=lambda stem: names[stem])
    }


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:_SHOWN_NAMES])
    more = len(names) - _SHOWN_NAMES
    return f"{shown} and {more} more" if more > 0 else shown
