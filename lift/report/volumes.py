"""The report's viewer: held-out patients to scroll through, target beside synthesis."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from lift.markup import escape, tag
from lift.records.rows import MIXER_ROWS
from lift.report.patients import in_turn
from lift.report.read import PatientFolder, Plane, Run
from lift.report.sections import Section, lacking
from lift.report.terms import method_term
from lift.viewer.embedded import ViewerSet, is_built, viewers
from lift.viewer.volumes import COARSE, ViewerVolume, can_draw, viewer_volume
from lift.volumes.volume import Volume, read_volume

MOST_SETS: Final = 3
MOST_BYTES: Final = 2_000_000
"""All volumes together, before base64: keeps the page under 10 MB."""
_METHODS: Final = (*MIXER_ROWS, "no_mixer")
_FACTORS: Final = (1, 2, 3, 4)
_DEPTH: Final[dict[Plane, int]] = {"sagittal": 0, "coronal": 1, "axial": 2}
_TITLE: Final = "Scroll through held-out patients"


@dataclass(frozen=True)
class Shown:
    """The section, and whether its viewer's script must be allowed."""

    section: Section
    has_script: bool


def viewer_section(run: Run) -> Shown:
    """A viewer of the first held-out patient of each site, at most three, at most 2 MB.

    Raises:
        VolumeError: a volume is damaged.
    """
    whole = in_turn([folder for folder in run.patients if not folder.missing])
    if not whole:
        return _without("The run folder holds no volumes of held-out patients.")
    if not is_built():
        return _without(
            "This report was written by an installation without the viewer. The volumes are in "
            "the run folder."
        )
    shown = whole[:MOST_SETS]
    sets: list[ViewerSet] = []
    for folder in shown:
        found = _volumes(folder, run.plane, MOST_BYTES // len(shown))
        if found is None:
            continue
        volumes, factor = found
        caption = f"{folder.site} · {folder.patient}"
        if factor > 1:
            caption += f" · means of {factor} x {factor} voxels of each slice"
        caption = f"PHANTOM · {caption}" if run.record.phantom else caption
        sets.append(ViewerSet(caption, volumes, run.record.phantom))
    if not sets:
        return _without(
            "The volumes are too large for a report. View them with `lift view` in the run folder."
        )
    explained = tag(
        "p",
        "Scroll or use the arrow and page keys; all volumes follow. Swipe and difference compare "
        "two of them. Values are kept in a thousand grey levels here; the files under synthesis/ "
        "have full precision; open them with ",
        tag("code", "lift view"),
        ".",
        class_="note",
    )
    return Shown(Section("volumes", _TITLE, (explained, viewers(sets))), has_script=True)


def _volumes(
    folder: PatientFolder, plane: Plane, most_bytes: int
) -> tuple[tuple[ViewerVolume, ...], int] | None:
    """The volumes of one patient, and by what factor their slices had to be made coarser.

    Every slice is kept: what is to be seen is what happens from one to the next. None where
    even the coarsest are too large.
    """
    names = {"target": "target", **{name: method_term(name).label for name in _METHODS}}
    files = {label: folder.path / f"{name}.nii.gz" for name, label in names.items()}
    read = {label: read_volume(file) for label, file in files.items() if file.is_file()}
    for factor in _FACTORS:
        coarse = {label: _coarser(volume, plane, factor) for label, volume in read.items()}
        if not all(can_draw(volume.voxels.shape) for volume in coarse.values()):
            continue
        packed = tuple(viewer_volume(label, v, levels=COARSE) for label, v in coarse.items())
        if sum(len(volume.packed()) for volume in packed) <= most_bytes:
            return packed, factor
    return None


def _coarser(volume: Volume, plane: Plane, factor: int) -> Volume:
    """Means of `factor` voxels along both axes of a slice, at their place; depth stays."""
    if factor == 1:
        return volume
    factors = [1 if axis == _DEPTH[plane] else factor for axis in range(3)]
    counts = [length // each for length, each in zip(volume.voxels.shape, factors, strict=True)]
    kept = volume.voxels[tuple(slice(n * f) for n, f in zip(counts, factors, strict=True))]
    blocks = kept.reshape([size for pair in zip(counts, factors, strict=True) for size in pair])
    affine = volume.affine.copy()
    affine[:3, 3] += volume.affine[:3, :3] @ [(each - 1) / 2 for each in factors]
    affine[:3, :3] = volume.affine[:3, :3] * factors
    means = blocks.mean(axis=(1, 3, 5), dtype=np.float64).astype(np.float32)
    return replace(volume, voxels=means, affine=affine)


def _without(sentence: str) -> Shown:
    return Shown(Section("volumes", _TITLE, (lacking(escape(sentence)),)), has_script=False)
