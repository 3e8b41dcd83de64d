"""Figures of generated volumes on disk against real ones: folders in, a table out.

The result names no file. A refusal names one, for the owner of the files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lift.cohort.normalisation import scale_of
from lift.config.plan import PercentileRule, WindowRule
from lift.errors import DataError, SpacingError
from lift.metrics.classifier import FEWEST
from lift.metrics.distribution import (
    LAYOUT,
    distribution_figures,
    evaluation_encoder,
    quality,
    real_split_figures,
)
from lift.metrics.judge import classifier_figures, real_split_classifier, same_spacing
from lift.metrics.reference import FEWEST_REAL, Reference, too_few
from lift.metrics.set_pairs import FEWEST_GENERATED
from lift.metrics.subjects import NOT_TOLD, read_subjects, subjects_of_files
from lift.metrics.table import Entry, Protocol
from lift.metrics.volume_files import volumes_under
from lift.metrics.volume_sets import ImageVolume, MeasuredSet, measure_volumes
from lift.volumes.slices import slice_spacing, to_slices
from lift.volumes.volume import read_volume

LARGEST_SPACING_RATIO: Final = 2.0
"""Between two volumes, along one axis: roughness and features beyond it are not comparable."""

FAINT: Final = 0.05
"""Normalised voxels above this are the body's."""

SMALLEST_SHARE: Final = 0.005
"""Share of a slice's voxels that must be the body's for the slice to count."""

_PLANE: Final = "axial"
_SEED: Final = 0
_SHOWN_NAMES: Final = 5

IDEALS: Final[Mapping[str, str]] = {
    "auc_content": ".5",
    "auc_texture": ".5",
    "precision": "real",
    "recall": "real",
    "nearest_distance": "real",
    "near_copies": "0",
    "spectrum_z": "0",
    "frechet_axial": "0",
    "frechet_coronal": "0",
    "frechet_sagittal": "0",
    "mmd_axial": "0",
    "mmd_coronal": "0",
    "mmd_sagittal": "0",
    "tpr": "1",
    "diversity": "1",
    "ms_ssim": "real",
    "nearest_ratio": "1",
    "order_correlation": "real",
}
"""METRIC -> what a perfect generator would get, in the order of the table."""


class GeneratedEvaluation(TypedDict):
    """What :func:`evaluate_generated` found; every number is finite.

    Attributes:
        protocol: `mr` or `ct`.
        volumes: ROLE (`generated`, `real`, `training`) -> number of volumes that were compared.
        persons: ROLE (`real`, `training`) -> number of persons.
        left_out: further real volumes of persons with one volume that is already compared.
        note: empty, or that the persons of the files are not known.
        frechet_volumes: volumes on either side of every Frechet distance, precision and recall, in
            both columns.
        one_spacing: whether generated and real volumes have one spacing; without it there are no
            figures of texture.
        encoder: digest of the evaluation's encoder.
        metrics: METRIC -> figure of the generated volumes with its 95% interval.
        real_split: METRIC -> the same of random halves of the real volumes, and the middle 95%
            of the splits.
        quality: how many generated volumes are flat or reversed.
    """

    protocol: Protocol
    volumes: dict[str, int]
    persons: dict[str, int]
    left_out: int
    note: str
    frechet_volumes: int
    one_spacing: bool
    encoder: str
    metrics: dict[str, Entry]
    real_split: dict[str, Entry]
    quality: dict[str, int]


def evaluate_generated(
    generated: Path,
    real: Path,
    *,
    training: Path | None,
    protocol: Protocol,
    report: Callable[[int, int], None],
    subjects: Path | None = None,
) -> GeneratedEvaluation:
    """Figures of every NIfTI volume under `generated` against all those under `real`.

    No file needs a partner, and sizes may differ. All volumes are treated alike: canonical
    orientation, depth along the axial direction, normalised each by itself (`mr`: its 0.1 and
    99.9 percentile; `ct`: the window from -1024 to 3000 HU), and the body's box is where they are
    brighter than 5% of that range, without slices that are less than 0.5% bright. Boxes are
    compared whole: generated and real files should show the same part of the body.

    Of a person with several real volumes the first by name is compared, so that each person counts
    once; of training volumes all are, since each may be copied.

    Args:
        generated: folder of generated volumes, 2 at least.
        real: folder of real volumes that training did not see, 4 at least.
        training: folder of those that it saw, 4 at least, or None. They tell whether volumes are
            copies, and in which space the others are compared (`lift.metrics.reference`).
        protocol: `mr` or `ct`.
        report: called with the volumes read and their number.
        subjects: CSV table that says whose each real and training file is
            (`lift.metrics.subjects`); None: each is a person of its own.

    Raises:
        DataError: a folder does not exist or holds too few NIfTI files, a file or a person is in
            the real and in the training folder, or the table of subjects is damaged or lacks a
            file.
        VolumeError: a file cannot be read, does not vary, or is too thin.
        SpacingError: two volumes' spacings differ by more than a factor of 2 along an axis.
    """
    folders = {"generated": (generated, FEWEST_GENERATED), "real": (real, FEWEST_REAL)}
    if training is not None:
        folders["training"] = (training, FEWEST_REAL)
    files = {role: _files(role, folder, fewest) for role, (folder, fewest) in folders.items()}
    persons = {role: len(found) for role, found in files.items() if role != "generated"}
    left_out = 0
    if subjects is not None:
        people = _people(read_subjects(subjects), folders, files)
        persons = {role: len(set(own.values())) for role, own in people.items()}
        left_out = len(files["real"]) - persons["real"]
        files["real"] = _first_of_each(files["real"], people["real"])
        if len(files["real"]) < FEWEST_REAL:
            raise too_few("real", len(files["real"]), FEWEST_REAL, where=f"'{real}', by person")
    reader = _Reader(protocol, report, total=sum(map(len, files.values())))
    encoder = evaluation_encoder()
    # real ones first: the others' spacing is compared with theirs
    sets = {
        role: measure_volumes(
            reader.volumes(folders[role][0], files[role]), layout=LAYOUT, encoder=encoder
        )
        for role in sorted(files, key=lambda role: role != "real")
    }
    seen = sets.get("training")
    if seen is not None:
        _check_apart(files, sets["real"], seen)
    reference = Reference(sets["real"], training=seen)
    size = min(len(sets["generated"]), len(sets["real"]) // 2)
    figures = distribution_figures(
        sets["generated"], reference, seed=_SEED, training=seen, size=size
    )
    figures |= classifier_figures(sets["generated"], sets["real"], seed=_SEED)
    split = real_split_figures(reference, seed=_SEED, training=seen, size=size)
    split |= real_split_classifier(reference, seed=_SEED)
    return {
        "protocol": protocol,
        "volumes": {role: len(sets[role]) for role in files},
        "persons": persons,
        "left_out": left_out,
        "note": NOT_TOLD if subjects is None else "",
        "frechet_volumes": size,
        "one_spacing": same_spacing(sets["generated"], sets["real"]),
        "encoder": encoder.digest,
        "metrics": {name: asdict(figures[name]) for name in IDEALS if name in figures},
        "real_split": {name: asdict(split[name]) for name in IDEALS if name in split},
        "quality": asdict(quality(sets["generated"], reference)),
    }


def table_rows(result: GeneratedEvaluation) -> list[tuple[str, str, str, str]]:
    """For a screen: metric, generated, real by halves, what a perfect generator would get."""
    return [
        (name, _shown(entry), _shown(result["real_split"].get(name)), IDEALS[name])
        for name, entry in result["metrics"].items()
    ]


def notes(result: GeneratedEvaluation) -> list[str]:
    """Return the notes for the table."""
    counts, found = result["volumes"], result["quality"]
    lines = [
        f"{counts['generated']} generated, {counts['real']} real volumes; real halves of "
        f"{counts['real'] // 2}; 95% intervals.",
        f"Frechet distances fall with more volumes: here {result['frechet_volumes']} on either "
        "side in both columns, as of precision and recall.",
        "Generated and real files should show the same part of the body: a classifier finds a "
        "field of view first.",
    ]
    if result["note"]:
        lines.append(result["note"])
    if result["left_out"]:
        lines.append(
            f"{result['persons']['real']} persons: {result['left_out']} further volumes of theirs "
            "are left out."
        )
    if min(counts["generated"], counts["real"]) < FEWEST:
        lines.append(f"Fewer than {FEWEST} volumes on a side: no classifier is asked.")
    elif counts["real"] < 2 * FEWEST:
        lines.append(f"Fewer than {2 * FEWEST} real volumes: the classifier has no real halves.")
    if not result["one_spacing"]:
        lines.append(
            "The volumes' spacings differ by more than 5%: textures and spectra are not compared. "
            "Resample them for that."
        )
    if "training" not in counts:
        lines.append(
            "Without --training the features are scaled by the real volumes themselves: the "
            "Frechet distances of their halves are too large, by up to a third."
        )
    if found["flat"]:
        lines.append(f"{found['flat']} generated volumes are empty or constant.")
    if found["reversed"]:
        lines.append(f"{found['reversed']} generated volumes have their slices reversed.")
    return lines


def _shown(entry: Entry | None) -> str:
    if entry is None:
        return ""
    if entry["low"] is None:
        return f"{entry['value']:.3f}"
    return f"{entry['value']:.3f} ({entry['low']:.3f}, {entry['high']:.3f})"


def _files(role: str, folder: Path, fewest: int) -> list[Path]:
    """Volumes under a folder, in the order of their names."""
    found = list(volumes_under(role, folder).values())
    if len(found) < fewest:
        raise too_few(role, len(found), fewest, where=f"'{folder}'")
    return found


def _people(
    table: Mapping[str, str],
    folders: Mapping[str, tuple[Path, int]],
    files: Mapping[str, Sequence[Path]],
) -> dict[str, dict[Path, str]]:
    """ROLE -> file -> person, of real and training volumes, who are different persons."""
    found = {}
    for role in sorted(set(files) - {"generated"}):
        folder = folders[role][0]
        names = {path.relative_to(folder).as_posix(): path for path in files[role]}
        own = subjects_of_files(table, names, folder=folder.name)
        found[role] = {names[name]: subject for name, subject in own.items()}
    both = set(found["real"].values()) & set(found.get("training", {}).values())
    if both:
        shared = [path.name for path, subject in found["real"].items() if subject in both]
        raise _not_held_out(shared, f"{len(both)} persons have volumes in both, in real")
    return found


def _first_of_each(files: Sequence[Path], people: Mapping[Path, str]) -> list[Path]:
    first: dict[str, Path] = {}
    for path in files:
        first.setdefault(people[path], path)
    return list(first.values())


class _Reader:
    """Reads volumes one at a time and refuses those whose spacing is far from another's."""

    def __init__(self, protocol: Protocol, report: Callable[[int, int], None], total: int) -> None:
        self._rule = PercentileRule() if protocol == "mr" else WindowRule()
        self._report = report
        self._total = total
        self._read = 0
        # along each axis: the finest and the coarsest volume so far
        self._ends: list[list[tuple[float, str]]] = [[], [], []]

    def volumes(self, folder: Path, files: Sequence[Path]) -> Iterator[ImageVolume]:
        for path in files:
            volume = read_volume(path, root=folder)
            # the name of its folder too: files of two folders may have one name
            name = f"{folder.name}/{path.relative_to(folder).as_posix()}"
            spacing_mm = slice_spacing(volume.spacing_mm, _PLANE)
            self._check_spacing(spacing_mm, name)
            scale = scale_of(volume.voxels, self._rule, name)
            values = to_slices(scale.apply(volume.voxels), _PLANE)
            yield ImageVolume(
                torch.from_numpy(np.ascontiguousarray(values)),
                spacing_mm,
                body_box(values),
                name,
            )
            self._read += 1
            self._report(self._read, self._total)

    def _check_spacing(self, spacing_mm: tuple[float, float, float], name: str) -> None:
        for axis, side in enumerate(spacing_mm):
            known = sorted([*self._ends[axis], (side, name)])
            self._ends[axis] = [known[0], known[-1]]
            (low, fine), (high, coarse) = self._ends[axis]
            # headers store float32: twice 1.2 may read 2.4000001
            if high > low * LARGEST_SPACING_RATIO * (1 + 1e-4):
                raise SpacingError(
                    f"cannot compare '{coarse}' with '{fine}'",
                    where="the voxel spacing",
                    seen=f"{high:.2f} and {low:.2f} mm along {('depth', 'height', 'width')[axis]}; "
                    f"at most a factor of {LARGEST_SPACING_RATIO:g} may lie between two volumes",
                    remedy="Resample the volumes to like spacings, or take them out; nothing was "
                    "written.",
                )


def body_box(values: NDArray[np.float32]) -> Tensor:
    """First and last slice of the body along each axis, (3, 2), int64; the grid without any.

    Args:
        values: (d, h, w), normalised to [0, 1].
    """
    inside = values > FAINT
    ends = []
    for axis in range(3):
        share = inside.mean(axis=tuple(other for other in range(3) if other != axis))
        places = np.flatnonzero(share >= SMALLEST_SHARE)
        ends.append([places[0], places[-1]] if len(places) else [0, len(share) - 1])
    return torch.tensor(np.asarray(ends, dtype=np.int64))


def _check_apart(
    files: Mapping[str, Sequence[Path]], real: MeasuredSet, training: MeasuredSet
) -> None:
    """Refuse held-out volumes that training saw: no figure of theirs would mean anything."""
    known = set(training.digests)
    both = [
        path.name
        for path, digest in zip(files["real"], real.digests, strict=True)
        if digest in known
    ]
    if both:
        raise _not_held_out(both, "in both")


def _not_held_out(names: Sequence[str], how: str) -> DataError:
    shown = ", ".join(f"'{name}'" for name in names[:_SHOWN_NAMES])
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return DataError(
        "the real volumes were not held out",
        where="the folders of real and of training volumes",
        seen=f"{how}: {shown}{more}",
        remedy="Give real volumes of persons that training did not use; nothing was written.",
    )
