"""From a patient's files to normalised slices, and from slices back to the patient's grid."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lift.cohort.normalisation import Scale, looks_inside_the_mask, scale_of
from lift.cohort.patients import Patient
from lift.config.plan import (
    FirstSourceGrid,
    GridRule,
    OwnGrid,
    PercentileRule,
    Plan,
    SpacingGrid,
    WindowRule,
)
from lift.errors import SpacingError, VolumeError
from lift.volumes.masks import body_mask, nonzero_mask
from lift.volumes.resampling import Grid, resample, resample_labels, with_spacing
from lift.volumes.slices import from_slices, slice_spacing, to_slices
from lift.volumes.volume import Volume, check_same_grid, read_volume

Floats = NDArray[np.float32]
_SMALLEST_MASK: Final = 0.005
_LARGEST_BODY: Final = 0.95
"""Of the grid: a larger one is the whole volume, whose background is not dark."""
_VERSION: Final = 1
"""Raised whenever this code gives other slices for the same plan: caches must notice."""
_DEPTH_AXIS: Final = {"axial": 2, "coronal": 1, "sagittal": 0}


@dataclass(frozen=True)
class CropBox:
    """Position of the prepared slices in the whole stack (depth, height, width).

    Attributes:
        whole: shape of the whole stack.
        start: first slice, row and column of the crop.
        stop: one past the last.
    """

    whole: tuple[int, int, int]
    start: tuple[int, int, int]
    stop: tuple[int, int, int]

    @property
    def box(self) -> tuple[slice, slice, slice]:
        """The crop in the whole stack."""
        z, y, x = (slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
        return z, y, x


@dataclass(frozen=True)
class Prepared:
    """One patient, ready for the generator, with everything needed to write the result.

    Attributes:
        source: (z, n_source, h, w), float32 in [0, 1]; the crop, padded with 0 on the far
            sides to the plan's multiple.
        target: (z, 1, h, w), float32 in [0, 1], or None.
        mask: 0 or 1, (z, 1, h, w), float32.
        spacing_mm: along depth, height and width.
        reference: the first source: the grid to write on (of one larger than memory, the grid of
            what was read of it).
        crop: where the slices lie.
        target_scale: how the file's values became the target, and how they come back, or None.
        plane: the slice plane.
        grid: what the whole stack lies on, where that is not the reference's own grid.
    """

    source: Floats
    target: Floats | None
    mask: Floats
    spacing_mm: tuple[float, float, float]
    reference: Volume
    crop: CropBox
    target_scale: Scale | None
    plane: str
    grid: Grid | None = None


def prepare(patient: Patient, plan: Plan, *, root: Path, with_target: bool) -> Prepared:
    """Read, check, normalise, mask and crop one patient.

    Args:
        patient: files by channel.
        plan: task and preprocessing rules.
        root: the data folder that messages name files relative to.
        with_target: read the target channel too; in an unconditional task it is the source.

    Raises:
        VolumeError: a file cannot be used, or the mask is (nearly) empty.
        AffineError: the channels are not on one grid.
        SpacingError: the through-plane spacing lies outside the plan's range.
    """
    rules = plan.preprocessing
    read = _read(patient, plan, root=root, with_target=with_target)
    for name, volume in read.volumes.items():
        if name not in read.normalised:
            scale = scale_of(
                volume.voxels, rules.rule(name), read.files[name], inside=read.counted_on(volume)
            )
            read.take(name, scale)
    sources = [read.normalised[name] for name in plan.task.inputs]
    stack = to_slices(read.inside, rules.plane).astype(np.bool_)
    crop, shape = _crop(stack, rules.crop_margin, rules.crop_multiple)

    def cut(voxels: NDArray[Any]) -> Floats:
        part = to_slices(voxels, rules.plane)[crop.box]
        padded = np.zeros(shape, dtype=np.float32)
        padded[: part.shape[0], : part.shape[1], : part.shape[2]] = part
        return padded

    target = plan.task.target if with_target and plan.task.source else None
    return Prepared(
        source=np.stack([cut(voxels) for voxels in sources], axis=1),
        target=None if target is None else cut(read.normalised[target])[:, None],
        mask=cut(read.inside)[:, None],
        spacing_mm=slice_spacing(read.spacing_mm, rules.plane),
        reference=read.reference,
        crop=crop,
        target_scale=None if target is None else read.scales[target],
        plane=rules.plane,
        grid=read.grid,
    )


def values_inside(patient: Patient, plan: Plan, *, root: Path) -> dict[str, NDArray[Any]]:
    """Return the values of every channel inside the mask, by name: one row, in its own units.

    Raises:
        DataError: as `prepare`.
    """
    read = _read(patient, plan, root=root, with_target=True)
    return {name: volume.voxels[read.counted_on(volume)] for name, volume in read.volumes.items()}


def restore(
    prepared: Prepared, slices: NDArray[Any], *, background: float, labels: bool = False
) -> Floats:
    """Prepared slices on the patient's own grid as (x, y, z), `background` outside the crop.

    Where the plan works on another grid they are resampled back, trilinear.

    Args:
        prepared: the patient that the slices belong to.
        slices: (z, 1, h, w) or (z, h, w), padded as `prepared.mask` is.
        background: what the rest of the volume holds.
        labels: where the plan resamples, take the nearest voxel's value instead of a mean.

    Raises:
        ValueError: the shape is not that of the patient's slices.
    """
    whole = on_plan_grid(prepared, slices, background=background)
    if prepared.grid is None:
        return whole
    own = grid_of(prepared.reference)
    if labels:
        return resample_labels(whole, prepared.grid, own)
    return resample(whole, prepared.grid, own, background=background)


def on_plan_grid(prepared: Prepared, slices: NDArray[Any], *, background: float) -> Floats:
    """As `restore`, on the grid that the plan works on: what figures are computed on."""
    crop = prepared.crop
    slices = np.asarray(slices)
    if slices.ndim == 4:
        slices = slices[:, 0] if slices.shape[1] == 1 else slices
    if slices.shape != prepared.mask[:, 0].shape:
        raise ValueError(
            f"slices {slices.shape} are not the patient's, {prepared.mask[:, 0].shape}"
        )
    whole = np.full(crop.whole, background, dtype=np.float32)
    size = [b - a for a, b in zip(crop.start, crop.stop, strict=True)]
    whole[crop.box] = slices[: size[0], : size[1], : size[2]]
    return np.ascontiguousarray(from_slices(whole, prepared.plane))


def to_output_units(
    normalised: Floats, plan: Plan, channel: str
) -> tuple[NDArray[Any], np.dtype[Any]]:
    """A normalised volume in the units it is written in, and its stored type.

    CT: HU as int16. MR, which has no unit: float32, 1 becoming the rule's `written_maximum`.
    Values outside [0, 1] are clipped, as the rule clips on the way in.
    """
    rule = plan.preprocessing.rule(channel)
    normalised = np.clip(normalised, 0.0, 1.0)
    if isinstance(rule, WindowRule):
        values = rule.low + normalised * (rule.high - rule.low)
        return np.rint(values).astype(np.int16), np.dtype(np.int16)
    return (normalised * rule.written_maximum).astype(np.float32), np.dtype(np.float32)


def is_hounsfield(plan: Plan, channel: str) -> bool:
    """Whether a channel is written in HU: its rule is a window of CT."""
    return isinstance(plan.preprocessing.rule(channel), WindowRule)


def preprocessing_digest(plan: Plan) -> str:
    """SHA-256 of all that the prepared slices depend on besides the files."""
    parts = [
        _VERSION,
        plan.task.model_dump(mode="json"),
        plan.preprocessing.model_dump(mode="json"),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass
class _Read:
    """A patient's volumes and mask; normalised are those whose rule needs no mask.

    Attributes:
        volumes: by channel, on their own grids.
        files: how messages name them.
        grid: what the patient is worked on, or None for the files' own.
        scales: by channel.
        normalised: by channel, on `grid`.
        inside: the mask, (x, y, z) on `grid`.
        counted: the same wherever the target was scanned: a source's scale must not depend on it.
    """

    volumes: dict[str, Volume]
    files: dict[str, str]
    grid: Grid | None
    scales: dict[str, Scale] = field(default_factory=dict)
    normalised: dict[str, Floats] = field(default_factory=dict)
    inside: NDArray[np.bool_] = field(default_factory=lambda: np.zeros((0, 0, 0), np.bool_))
    counted: NDArray[np.bool_] = field(default_factory=lambda: np.zeros((0, 0, 0), np.bool_))

    @property
    def reference(self) -> Volume:
        """The first source."""
        return next(iter(self.volumes.values()))

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Of the grid that the patient is worked on."""
        return self.reference.spacing_mm if self.grid is None else self.grid.spacing_mm

    def take(self, name: str, scale: Scale) -> None:
        """Normalise a channel by a scale."""
        self.scales[name] = scale
        self.normalised[name] = self.scaled(name, scale)

    def scaled(self, name: str, scale: Scale) -> Floats:
        """A channel by a scale, on `grid`."""
        values = scale.apply(self.volumes[name].voxels)
        if self.grid is None:
            return values
        return resample(values, grid_of(self.volumes[name]), self.grid)

    def counted_on(self, volume: Volume) -> NDArray[np.bool_]:
        """`counted` on a channel's own grid: its own voxels give the scale, not resampled ones."""
        if self.grid is None:
            return self.counted
        return resample_labels(self.counted.astype(np.uint8), self.grid, grid_of(volume)) > 0


def _read(patient: Patient, plan: Plan, *, root: Path, with_target: bool) -> _Read:
    """Read and check a patient's files, and find the mask; errors as of `prepare`."""
    rules = plan.preprocessing
    inputs = plan.task.inputs
    names = [*inputs, *([plan.task.target] if with_target and plan.task.source else [])]
    coarsest = rules.grid.spacing_mm if isinstance(rules.grid, SpacingGrid) else None
    volumes = {
        name: read_volume(patient.channels[name], root=root, coarsest_mm=coarsest) for name in names
    }
    reference = volumes[inputs[0]]
    files = {name: _relative(patient.channels[name], root) for name in names}
    grid = _plan_grid(reference, rules.grid, files[names[0]])
    for name in names:
        if grid is None:
            check_same_grid(reference, volumes[name], (files[names[0]], files[name]))
        own_mm = slice_spacing(volumes[name].spacing_mm, rules.plane)
        _check_spacing(own_mm[0], plan, files[name])
    read = _Read(volumes, files, grid)
    for name in names:
        rule = rules.rule(name)
        if not looks_inside_the_mask(rule):
            read.take(name, scale_of(volumes[name].voxels, rule, files[name]))
    axis = _DEPTH_AXIS[rules.plane]
    if rules.mask == "file":
        if patient.mask is None:
            raise VolumeError(
                f"patient '{patient.id}' has no mask",
                where=str(root),
                seen="the plan's mask rule is `file`",
                remedy="Add the mask, or use another mask rule.",
            )
        own = read_volume(patient.mask, root=root, coarsest_mm=coarsest, labels=True)
        mask_name = _relative(patient.mask, root)
        if grid is None:
            check_same_grid(reference, own, (files[names[0]], mask_name))
        inside = _labels_on(own.voxels > 0, own, grid)
    elif rules.mask == "nonzero":
        filled = [volumes[name].voxels != 0 for name in inputs]
        on_grid = [
            _labels_on(one, volumes[name], grid) for one, name in zip(filled, inputs, strict=True)
        ]
        inside = nonzero_mask(on_grid, axis)
    else:
        # a rule that looks inside the mask cannot make it
        whole = PercentileRule()
        sources = [
            read.normalised[name]
            if name in read.normalised
            else read.scaled(name, scale_of(volumes[name].voxels, whole, files[name]))
            for name in inputs
        ]
        inside = body_mask(sources, read.spacing_mm, axis)
        if inside.mean() > _LARGEST_BODY:
            raise VolumeError(
                f"the body of patient '{patient.id}' fills nearly the whole volume",
                where=str(root),
                seen=f"the mask covers {inside.mean():.1%} of the voxels; at most "
                f"{_LARGEST_BODY:.0%} may be body (rule `{rules.mask}`)",
                remedy="The background is not dark (signed or offset values, phase-sensitive "
                "inversion recovery), or there is none: export the magnitude image, set what lies "
                "around the body to 0, or use another preprocessing.mask rule.",
            )
    counted = inside
    if grid is not None:
        # where a channel was not scanned there is nothing to learn from
        for name in names:
            everywhere = np.ones(volumes[name].voxels.shape, dtype=np.bool_)
            scanned = _labels_on(everywhere, volumes[name], grid)
            inside = inside & scanned
            counted = counted & scanned if name in inputs else counted
    if inside.mean() < _SMALLEST_MASK:
        raise VolumeError(
            f"the mask of patient '{patient.id}' is nearly empty",
            where=str(root),
            seen=f"{inside.mean():.2%} of the voxels; at least {_SMALLEST_MASK:.1%} are needed "
            f"(rule `{rules.mask}`)",
            remedy="Check the volumes, or use another preprocessing.mask rule.",
        )
    read.inside, read.counted = inside, counted
    return read


def _check_spacing(spacing_mm: float, plan: Plan, name: str) -> None:
    low = plan.preprocessing.lowest_slice_spacing_mm
    high = plan.preprocessing.highest_slice_spacing_mm
    # headers store float32: 6.5 may read 6.5000005
    if low * (1 - 1e-4) <= spacing_mm <= high * (1 + 1e-4):
        return
    raise SpacingError(
        f"cannot use volume '{name}'",
        where="preprocessing.lowest_slice_spacing_mm, preprocessing.highest_slice_spacing_mm",
        seen=f"slice spacing is {spacing_mm:.2f} mm; the plan allows {low:g} to {high:g} mm",
        remedy="Resample the volume, take it out, or ask the study lead before widening the range.",
    )


def grid_of(volume: Volume) -> Grid:
    """The grid that a volume's voxels lie on."""
    x, y, z = volume.voxels.shape
    return Grid((x, y, z), volume.affine)


def _plan_grid(reference: Volume, rule: GridRule, name: str) -> Grid | None:
    """The grid that a patient is worked on; None for the files' own."""
    if isinstance(rule, OwnGrid):
        return None
    own = grid_of(reference)
    return own if isinstance(rule, FirstSourceGrid) else with_spacing(own, rule.spacing_mm, name)


def _labels_on(voxels: NDArray[Any], volume: Volume, grid: Grid | None) -> NDArray[Any]:
    if grid is None:
        return voxels
    return resample_labels(voxels.astype(np.uint8), grid_of(volume), grid) > 0


def _crop(
    stack: NDArray[np.bool_], margin: int, multiple: int
) -> tuple[CropBox, tuple[int, int, int]]:
    """The mask's box with an in-plane margin, and the padded shape."""
    start, stop = [], []
    for axis in range(3):
        others = tuple(i for i in range(3) if i != axis)
        places = np.flatnonzero(stack.any(axis=others))
        extra = margin if axis > 0 else 0
        start.append(max(0, int(places[0]) - extra))
        stop.append(min(stack.shape[axis], int(places[-1]) + 1 + extra))
    height, width = (-(-(stop[i] - start[i]) // multiple) * multiple for i in (1, 2))
    depth, whole = stop[0] - start[0], stack.shape
    box = CropBox(
        (whole[0], whole[1], whole[2]),
        (start[0], start[1], start[2]),
        (stop[0], stop[1], stop[2]),
    )
    return box, (depth, height, width)


def _relative(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else path.name
