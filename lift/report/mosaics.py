"""Three planes of a held-out patient through every method, in millimetres, and slice means."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from lift.metrics.through_plane import FEWEST_SLICE_VOXELS
from lift.records.rows import MIXER_ROWS
from lift.report.figures import Picture, Profile, drawable, titled
from lift.report.read import Floats, PatientFolder, PatientVolumes, Plane, Run
from lift.report.terms import method_term
from lift.viewer.volumes import BONE_WINDOW, is_hounsfield
from lift.volumes.slices import slice_spacing, to_slices

_COLUMN_METHODS: Final = ("no_mixer", "z_median", *MIXER_ROWS)
_ERROR_METHODS: Final = ("no_mixer", *MIXER_ROWS)
_PROFILE_METHODS: Final = ("no_mixer", *MIXER_ROWS)
_MARGIN_MM: Final = 6.0
_LOWEST_DPI: Final = 110.0
_WIDEST_PIXELS: Final = 2400

# the layout, in inches
_WIDTH: Final = 14.0
_LEFT: Final = 0.77
_RIGHT: Final = 13.2
_HEAD: Final = 0.8
_GAP: Final = 0.17


@dataclass(frozen=True)
class _Column:
    title: str
    voxels: Floats
    colours: str
    lowest: float
    highest: float


def profile(folder: PatientFolder, volumes: PatientVolumes, plane: Plane) -> Profile:
    """Slice means along depth of the target, no mixer and federated, inside the mask.

    A slice with fewer than 20 mask voxels has none (NaN), as in the metric `slice_gain`.
    """
    inside = to_slices(volumes.mask, plane)
    count = inside.sum(axis=(1, 2))
    held = np.flatnonzero(count)
    rows = slice(int(held[0]), int(held[-1]) + 1)
    slice_mm, _, _ = slice_spacing(volumes.spacing_mm, plane)

    def means(voxels: Floats) -> NDArray[np.float64]:
        total = np.where(inside, to_slices(voxels, plane), 0.0).sum(axis=(1, 2), dtype=float)
        mean = total / np.maximum(count, 1)
        return np.where(count >= FEWEST_SLICE_VOXELS, mean, np.nan)[rows]

    return Profile(
        site=folder.site,
        patient=folder.patient,
        depth_mm=slice_mm * np.arange(rows.stop - rows.start, dtype=np.float64),
        target=means(volumes.target),
        methods={
            method: means(volumes.predictions[method])
            for method in _PROFILE_METHODS
            if method in volumes.predictions
        },
    )


def mosaic(run: Run, folder: PatientFolder, volumes: PatientVolumes) -> Picture:
    """Axial, coronal and sagittal plane through the mask's centre of gravity, a column a volume.

    Columns: inputs, target, no mixer, z-median, federated, and the absolute errors of no mixer
    and federated inside the mask on one colour scale. Voxels are drawn as they are, without
    interpolation, with their physical aspect; the patient's right is on the left.
    """
    columns = _columns(volumes)
    box = _box(volumes)
    x_mm, y_mm, z_mm = (
        (part.stop - part.start) * side for part, side in zip(box, volumes.spacing_mm, strict=True)
    )
    centre = [round(float(axis.mean())) for axis in np.nonzero(volumes.mask)]
    # plane, axis that it is seen along, the side at its left edge, width and height
    planes = (
        ("axial", 2, "R", x_mm, y_mm),
        ("coronal", 1, "R", x_mm, z_mm),
        ("sagittal", 0, "A", y_mm, z_mm),
    )
    column_width = (_RIGHT - _LEFT - _GAP * (len(columns) - 1)) / len(columns)
    inches_per_mm = column_width / max(x_mm, y_mm)
    total = _HEAD + (y_mm + 2 * z_mm) * inches_per_mm + 3 * _GAP
    # a pixel for every voxel, as far as the picture's width allows
    voxels_per_inch = 1 / (inches_per_mm * min(volumes.spacing_mm))
    dpi = min(max(_LOWEST_DPI, voxels_per_inch), _WIDEST_PIXELS / _WIDTH)
    figure = Figure(figsize=(_WIDTH, total), dpi=dpi, facecolor="white")
    # one pair of axes for all panels, in inches: 24 pairs take ten times as long to draw
    place = figure.add_axes((0, 0, 1, 1))
    place.set_axis_off()
    shown: dict[str, AxesImage] = {}
    top = total - _HEAD
    for plane, axis, side, width_mm, height_mm in planes:
        width, height = width_mm * inches_per_mm, height_mm * inches_per_mm
        for index, column in enumerate(columns):
            start = _LEFT + index * (column_width + _GAP) + (column_width - width) / 2
            shown[column.colours] = place.imshow(
                _cut(column.voxels, box, axis, centre[axis]),
                extent=(start, start + width, top - height, top),
                cmap=column.colours,
                vmin=column.lowest,
                vmax=column.highest,
                interpolation="nearest",
            )
            if plane == "axial":
                middle = start + width / 2
                place.text(middle, top + 0.06, column.title, ha="center", va="bottom", fontsize=9)
        through = "in plane" if plane == run.plane else "through plane"
        label = f"{plane}\n({through})"
        place.text(
            0.2, top - height / 2, label, rotation=90, ha="center", va="center", linespacing=1.4
        )
        edge = _LEFT + (column_width - width) / 2 - 0.08
        place.text(edge, top - height / 2, side, ha="right", va="center")
        top -= height + _GAP
    _scale_bar(place, inches_per_mm, total - 0.2)
    place.set(xlim=(0, _WIDTH), ylim=(0, total), aspect="auto")
    _colour_bars(figure, shown, "HU" if _is_ct(volumes) else "normalised")
    title = f"{drawable(folder.site)} · {drawable(folder.patient)} (held out)"
    place.text(0.1, total - 0.12, titled(run, title), fontsize=11, va="top", weight="bold")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    kind = "Phantom" if run.record.phantom else "Held-out"
    return Picture(
        stream.getvalue(),
        "png",
        f"{kind} patient in three planes: inputs, target, no mixer, z-median, federated, errors.",
        "Planes through the mask's centre of gravity, in mm, voxels as they are. Target and "
        "predictions share one grey scale, both errors one colour scale; each input has its own. "
        "R: the patient's right; A: anterior."
        + (" A CT is shown in the bone window, -500 to 1500 HU." if _is_ct(volumes) else ""),
    )


def _columns(volumes: PatientVolumes) -> Sequence[_Column]:
    inside = volumes.mask
    scale = BONE_WINDOW if _is_ct(volumes) else (0.0, _upper(volumes.target[inside]))
    columns = [
        _Column(f"input {drawable(channel)}", voxels, "gray", 0.0, _upper(voxels[inside]))
        for channel, voxels in volumes.sources.items()
    ]
    columns.append(_Column("target", volumes.target, "gray", *scale))
    methods = [method for method in _COLUMN_METHODS if method in volumes.predictions]
    columns += [
        _Column(method_term(method).label, volumes.predictions[method], "gray", *scale)
        for method in methods
    ]
    errors = {
        method: np.where(inside, np.abs(volumes.predictions[method] - volumes.target), 0.0).astype(
            np.float32
        )
        for method in _ERROR_METHODS
        if method in volumes.predictions
    }
    largest = max(_upper(error[inside]) for error in errors.values())
    columns += [
        _Column(f"|error|\n{method_term(method).label}", error, "magma", 0.0, largest)
        for method, error in errors.items()
    ]
    return columns


def _is_ct(volumes: PatientVolumes) -> bool:
    """Whether the target has the values of a CT: air far below 0."""
    return is_hounsfield(float(volumes.target.min()), float(volumes.target.max()))


def _upper(values: Floats) -> float:
    """The 99.5th percentile as the bright end of a scale; a constant 0 still has a scale."""
    return float(np.percentile(values, 99.5)) or 1.0


def _box(volumes: PatientVolumes) -> tuple[slice, slice, slice]:
    """The mask's bounding box with a margin of 6 mm."""
    parts = []
    for indices, side, length in zip(
        np.nonzero(volumes.mask), volumes.spacing_mm, volumes.mask.shape, strict=True
    ):
        margin = int(np.ceil(_MARGIN_MM / side))
        parts.append(
            slice(max(0, int(indices.min()) - margin), min(length, int(indices.max()) + margin + 1))
        )
    x, y, z = parts
    return x, y, z


def _cut(voxels: Floats, box: tuple[slice, slice, slice], axis: int, index: int) -> Floats:
    """One plane as an image, (rows, columns): anterior or superior up, right or anterior left."""
    part = np.take(voxels, index, axis=axis)[tuple(box[i] for i in range(3) if i != axis)]
    return np.ascontiguousarray(part[::-1, ::-1].T)


def _scale_bar(place: Axes, inches_per_mm: float, height: float) -> None:
    """A bar of 20 or 50 mm in the title's line, at the right; all in inches."""
    length_mm = 50.0 if inches_per_mm < 0.015 else 20.0
    start = _RIGHT - length_mm * inches_per_mm
    place.fill_between([start, _RIGHT], height - 0.03, height + 0.03, color="#222222")
    place.text(start - 0.08, height, f"{length_mm:g} mm", fontsize=9, va="center", ha="right")


def _colour_bars(figure: Figure, shown: dict[str, AxesImage], unit: str) -> None:
    """Grey scale of target and predictions, and the errors' scale, at the right edge."""
    for index, (colours, label) in enumerate(
        (("magma", f"|error| ({unit})"), ("gray", f"target ({unit})"))
    ):
        place = figure.add_axes((_RIGHT / _WIDTH + 0.006, 0.06 + 0.47 * index, 0.008, 0.36))
        bar = figure.colorbar(shown[colours], cax=place)
        bar.ax.tick_params(labelsize=7, length=2)
        bar.set_label(label, fontsize=8, labelpad=1)
