"""A file, the plan's grid, and back: places to a tenth of a voxel, labels exactly, in any format.

Every test records the worst that it saw: `--junitxml FILE -o junit_family=xunit1` keeps it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from lift.cohort.patients import Patient
from lift.cohort.preprocessing import grid_of, prepare, restore
from lift.volumes.resampling import Grid, resample, resample_labels, with_spacing
from lift.volumes.volume import Volume, read_volume, write_volume
from tests.lift.formats.cases import check_places, itk_answer, meta_text, nrrd_text, stored
from tests.lift.formats.test_real_odd_files import NOT_FOR_ITK, READ
from tests.lift.small_world import SOURCES, small_plan

Array = NDArray[Any]
Record = Callable[[str, object], None]
SHAPE: Final = (22, 20, 16)
MARGIN: Final = 5
"""Voxels at each side where a Gaussian or a missing neighbour may bend a ramp."""
BAR: Final = 0.1
"""Of a voxel."""
TYPES: Final = {"int16": ("short", "MET_SHORT"), "float32": ("float", "MET_FLOAT")}
MOST: Final = (96, 96, 40)


def turn(about: int, degrees: float) -> Array:
    a = np.deg2rad(degrees)
    one, other = (axis for axis in range(3) if axis != about)
    matrix = np.eye(3)
    matrix[one, one] = matrix[other, other] = np.cos(a)
    matrix[one, other], matrix[other, one] = -np.sin(a), np.sin(a)
    return matrix


AXES: Final = {
    "axial": (np.eye(3), (1.0, 1.0, 3.0)),
    "oblique": (turn(0, 14) @ turn(2, -23), (0.9, 1.1, 2.5)),
    "sheared": (np.array([[1, 0, 0], [0, 1, 0.3], [0, 0, 1]]), (0.8, 0.8, 2.4)),
    "flipped": (np.diag([-1.0, -1.0, 1.0]), (1.2, 1.0, 2.0)),
    "swapped": (np.array([[0.0, 0, 1], [1, 0, 0], [0, -1, 0]]), (1.1, 1.3, 1.7)),
    "anisotropic": (turn(1, 5), (0.6, 0.6, 6.0)),
}
FACTORS: Final = {"finer": (0.6, 0.7, 0.45), "coarser": (1.6, 1.3, 1.2), "mixed": (1.4, 1.0, 0.4)}


def affine_of(kind: str) -> Array:
    axes, spacing = AXES[kind]
    affine = np.eye(4)
    affine[:3, :3] = axes @ np.diag(spacing)
    affine[:3, 3] = (-31.25, 12.5, 87.75)
    return affine


def _nifti1(path: Path, data: Array, affine: Array) -> None:
    nibabel.Nifti1Image(data, affine).to_filename(path)


def _nifti2(path: Path, data: Array, affine: Array) -> None:
    nibabel.Nifti2Image(data, affine).to_filename(path)


def _mgz(path: Path, data: Array, affine: Array) -> None:
    nibabel.MGHImage(data, affine).to_filename(path)


def _words(vector: Array) -> list[str]:
    return [repr(float(number)) for number in vector]


def _nrrd(path: Path, data: Array, affine: Array) -> None:
    vectors = [f"({','.join(_words(affine[:3, axis]))})" for axis in range(4)]
    fields = {
        "type": TYPES[data.dtype.name][0],
        "sizes": " ".join(map(str, data.shape)),
        "space directions": " ".join(vectors[:3]),
        "space origin": vectors[3],
    }
    path.write_bytes(nrrd_text(fields) + stored(data))


def _mha(path: Path, data: Array, affine: Array) -> None:
    lps = np.diag([-1.0, -1.0, 1.0]) @ affine[:3]
    spacing = np.linalg.norm(lps[:, :3], axis=0)
    fields: dict[str, str | None] = {
        "ElementType": TYPES[data.dtype.name][1],
        "DimSize": " ".join(map(str, data.shape)),
        "ElementSpacing": " ".join(_words(spacing)),
        "TransformMatrix": " ".join(_words((lps[:, :3] / spacing).T.ravel())),
        "Offset": " ".join(_words(lps[:, 3])),
    }
    path.write_bytes(meta_text(fields) + stored(data))


Writer = Callable[[Path, Array, Array], None]
FORMATS: Final[dict[str, tuple[str, Writer]]] = {
    "nifti1": ("a.nii.gz", _nifti1),
    "nifti2": ("a.nii", _nifti2),
    "mgz": ("a.mgz", _mgz),
    "nrrd": ("a.nrrd", _nrrd),
    "mha": ("a.mha", _mha),
}


def for_itk(form: str, kind: str) -> bool:
    """ITK reads neither NIfTI-2, which stays NIfTI-2, nor sheared axes."""
    return form != "nifti2" and kind != "sheared"


def places(grid: Grid) -> Array:
    """Mm of every voxel centre, (x, y, z, 3)."""
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)
    found: Array = index @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    return found


def scaled(own: Grid, factors: tuple[float, ...]) -> Grid:
    x, y, z = (size * factor for size, factor in zip(own.spacing_mm, factors, strict=True))
    return with_spacing(own, (x, y, z), "a")


def there_and_back(values: Array, own: Grid, factors: tuple[float, ...]) -> Array:
    onto = scaled(own, factors)
    return resample(resample(values, own, onto), onto, own)


def in_voxels(shift_mm: Array, affine: Array) -> float:
    """The longest part of any shift (..., 3) along an axis of the voxels."""
    along = np.linalg.solve(affine[:3, :3], shift_mm.reshape(-1, 3).T)
    return float(np.abs(along).max())


def centre(weights: Array, grid: Grid) -> Array:
    """Centre of mass, mm."""
    share = weights.astype(np.float64) / weights.sum(dtype=np.float64)
    found: Array = (places(grid) * share[..., None]).sum(axis=(0, 1, 2))
    return found


def inner(shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(MARGIN, n - MARGIN) for n in shape)


def check_written(path: Path, affine: Array, shape: tuple[int, ...], *, itk: bool) -> None:
    """The file lies where the original lay, for nibabel and for ITK."""
    image = nibabel.load(path)
    assert image.shape == shape
    check_places(image.affine, affine, shape, 1e-3)
    if itk:
        data, place = itk_answer(path)
        check_places(place, affine, shape, 1e-3)
        np.testing.assert_array_equal(data, np.asarray(image.dataobj))


@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("kind", AXES)
@pytest.mark.parametrize("form", FORMATS)
def test_every_voxel_says_its_place_again(
    tmp_path: Path, form: str, kind: str, factors: str, record_property: Record
) -> None:
    name, write = FORMATS[form]
    affine = affine_of(kind)
    file_grid = Grid(SHAPE, affine)
    read = []
    for axis in range(3):
        # each voxel holds where it lies, along one axis of the patient
        write(tmp_path / name, places(file_grid)[..., axis].astype(np.float32), affine)
        volume = read_volume(tmp_path / name)
        back = there_and_back(volume.voxels, grid_of(volume), FACTORS[factors])
        write_volume(tmp_path / "out.nii", back, volume, dtype=np.dtype(np.float32))
        check_written(tmp_path / "out.nii", affine, SHAPE, itk=for_itk(form, kind))
        read.append(np.asarray(nibabel.load(tmp_path / "out.nii").dataobj, dtype=np.float64))
    shift = np.stack(read, axis=-1) - places(file_grid)
    worst = in_voxels(shift[inner(SHAPE)], affine)
    record_property("worst_ramp_voxels", worst)
    # float32 holds 90 mm to 8e-6 mm
    assert worst < 1e-4


@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("kind", AXES)
@pytest.mark.parametrize("form", FORMATS)
def test_a_landmark_is_where_it_was(
    tmp_path: Path, form: str, kind: str, factors: str, record_property: Record
) -> None:
    name, write = FORMATS[form]
    affine = affine_of(kind)
    middle = affine[:3] @ [10.3, 9.6, 7.7, 1.0]
    away = (places(Grid(SHAPE, affine)) - middle) @ np.linalg.inv(affine[:3, :3]).T
    blob = 9000 * np.exp(-(away**2).sum(axis=-1) / (2 * 1.7**2))
    write(tmp_path / name, blob.astype(np.int16), affine)
    volume = read_volume(tmp_path / name)
    grid = grid_of(volume)
    back = there_and_back(volume.voxels, grid, FACTORS[factors])
    worst = in_voxels(centre(back, grid) - middle, grid.affine)
    record_property("worst_landmark_voxels", worst)
    assert worst < BAR
    # half a voxel, the classic fault, is seen by the same measure
    half = grid.affine.copy()
    half[:3, 3] += grid.affine[:3, 0] / 2
    shifted = resample(volume.voxels, Grid(grid.shape, half), grid)
    assert in_voxels(centre(shifted, grid) - middle, grid.affine) > 4 * BAR


@pytest.mark.parametrize("kind", AXES)
@pytest.mark.parametrize("form", FORMATS)
def test_labels_come_back_bit_for_bit(tmp_path: Path, form: str, kind: str) -> None:
    name, write = FORMATS[form]
    affine = affine_of(kind)
    labels = np.random.default_rng(3).integers(0, 9, SHAPE).astype(np.int16)
    write(tmp_path / name, labels, affine)
    volume = read_volume(tmp_path / name)
    grid = grid_of(volume)
    for factors in ((0.6, 0.7, 0.45), (0.5, 0.5, 0.5), (0.34, 1.0, 0.21)):
        onto = scaled(grid, factors)
        back = resample_labels(resample_labels(volume.voxels, grid, onto), onto, grid)
        np.testing.assert_array_equal(back, volume.voxels)
    write_volume(tmp_path / "out.nii.gz", back, volume)
    check_written(tmp_path / "out.nii.gz", affine, SHAPE, itk=for_itk(form, kind))
    np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / "out.nii.gz").dataobj), labels)


@pytest.mark.parametrize("kind", AXES)
@pytest.mark.parametrize("rule", ["own", "first_source", "finer"])
def test_a_drawn_mask_goes_through_the_plan_and_back_exactly(
    tmp_path: Path, kind: str, rule: str
) -> None:
    affine = affine_of(kind)
    rng = np.random.default_rng(8)
    files = {}
    for channel in SOURCES:
        files[channel] = tmp_path / f"{channel}.nii.gz"
        _nifti1(files[channel], rng.integers(1, 500, SHAPE).astype(np.int16), affine)
    drawn = rng.random(SHAPE) < 0.4
    _nifti1(tmp_path / "mask.nii.gz", drawn.astype(np.int16), affine)
    x, y, z = read_volume(files[SOURCES[0]]).spacing_mm
    finer = {"kind": "spacing", "spacing_mm": [x / 2, None, z * 0.4]}
    grid = finer if rule == "finer" else {"kind": rule}
    limits = {"lowest_slice_spacing_mm": 0.2, "highest_slice_spacing_mm": 6.5}
    plan = small_plan(preprocessing={"mask": "file", "grid": grid, **limits})
    case = Patient("a", "a", files, tmp_path / "mask.nii.gz")
    prepared = prepare(case, plan, root=tmp_path, with_target=False)
    if rule == "finer":
        assert prepared.grid is not None
        assert prepared.grid.spacing_mm == pytest.approx((x / 2, y, z * 0.4))
    assert prepared.source.min() >= 0
    assert prepared.source.max() <= 1
    back = restore(prepared, prepared.mask, background=0.0, labels=True)
    write_volume(tmp_path / "out.nii.gz", back, prepared.reference, dtype=np.dtype(np.uint8))
    check_written(tmp_path / "out.nii.gz", affine, SHAPE, itk=kind != "sheared")
    np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / "out.nii.gz").dataobj), drawn)


def cut(volume: Volume) -> Volume:
    """At most `MOST` voxels from the middle, where they lay."""
    start = [max(0, (n - most) // 2) for n, most in zip(volume.voxels.shape, MOST, strict=True)]
    x, y, z = (slice(a, a + most) for a, most in zip(start, MOST, strict=True))
    affine = volume.affine.copy()
    affine[:3, 3] = (volume.affine @ [*start, 1.0])[:3]
    return Volume(volume.voxels[x, y, z], affine, volume.grid, volume.digest)


@pytest.mark.real_data
@pytest.mark.parametrize("name", READ)
def test_a_real_volume_comes_back_where_it_was(
    real_data: Path, name: str, record_property: Record
) -> None:
    volume = cut(read_volume(real_data / "format_robustness" / name))
    grid = grid_of(volume)
    # every value as a label of its own
    labels = np.unique(volume.voxels, return_inverse=True)[1].reshape(grid.shape).astype(np.int32)
    onto = scaled(grid, (0.8, 0.5, 0.6))
    finer = resample_labels(labels, grid, onto)
    np.testing.assert_array_equal(resample_labels(finer, onto, grid), labels)
    if min(grid.shape) <= 2 * MARGIN:
        assert name == "nibabel_standard.nii.gz"  # 4 x 5 x 7 voxels: all of it is border
        return
    weights = volume.voxels.astype(np.float64) - float(volume.voxels.min())
    for factors in ((0.8, 0.9, 0.7), (1.3, 1.0, 1.2)):
        back = there_and_back(weights, grid, factors)
        moved = in_voxels(centre(back, grid) - centre(weights, grid), grid.affine)
        record_property("worst_real_centre_voxels", moved)
        assert moved < BAR
        ramps = [there_and_back(places(grid)[..., axis], grid, factors) for axis in range(3)]
        shift = in_voxels((np.stack(ramps, -1) - places(grid))[inner(grid.shape)], grid.affine)
        record_property("worst_real_ramp_voxels", shift)
        assert shift < 1e-3


NO_BACKGROUND = ("mr_breast.nrrd", "nibabel_anatomical.nii")


@pytest.mark.real_data
@pytest.mark.parametrize("name", [name for name in READ if name != "nibabel_standard.nii.gz"])
def test_a_real_volume_is_written_on_its_own_grid_from_the_plans(
    real_data: Path, name: str, tmp_path: Path, record_property: Record
) -> None:
    path = real_data / "format_robustness" / name
    own = read_volume(path)
    x, y, z = own.spacing_mm
    grid = {"kind": "spacing", "spacing_mm": [1.5 * x, None, 1.5 * z]}
    limits = {"highest_slice_spacing_mm": 10.0}
    # their background is not dark, or there is none: with rule `body` they are refused
    mask = "nonzero" if name in NO_BACKGROUND else "body"
    plan = small_plan(preprocessing={"mask": mask, "grid": grid, **limits})
    case = Patient("a", "a", dict.fromkeys(SOURCES, path), None)
    prepared = prepare(case, plan, root=real_data, with_target=False)
    assert prepared.grid is not None
    assert prepared.grid.spacing_mm == pytest.approx((1.5 * x, y, 1.5 * z))
    back = restore(prepared, prepared.source[:, :1], background=0.0)
    write_volume(tmp_path / "out.nii.gz", back, prepared.reference, dtype=np.dtype(np.float32))
    itk = name not in NOT_FOR_ITK
    check_written(tmp_path / "out.nii.gz", own.grid.affine, own.grid.shape, itk=itk)
    # it shows the same patient
    inside = restore(prepared, prepared.mask, background=0.0, labels=True) > 0
    alike = np.corrcoef(back[inside], own.voxels[inside].astype(np.float64))[0, 1]
    record_property("correlation", float(alike))
    assert alike > 0.8
