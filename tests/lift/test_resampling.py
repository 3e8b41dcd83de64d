"""Resampling: places are kept, labels are exact, detail does not fold, and the way back exists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lift.cohort.patients import Patient
from lift.cohort.preprocessing import grid_of, on_plan_grid, prepare, preprocessing_digest, restore
from lift.config.plan import Plan
from lift.errors import AffineError, ConfigError, SpacingError, VolumeError
from lift.volumes.resampling import Grid, resample, resample_labels, with_spacing
from lift.volumes.volume import read_volume, write_volume
from tests.lift.formats.cases import check_places, itk_answer, itk_image
from tests.lift.formats.dicom_cases import series
from tests.lift.formats.dicom_cases import write as write_series
from tests.lift.small_world import SOURCES, TARGET, small_plan

Array = NDArray[Any]


def affine_of(kind: str, spacing: tuple[float, float, float]) -> Array:
    """Axes turned, sheared, swapped or mirrored; off centre."""
    a = np.deg2rad(17)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    tilt = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    axes = {
        "straight": np.eye(3),
        "oblique": turn @ tilt,
        "sheared": np.array([[1, 0, 0], [0, 1, 0.25], [0, 0, 1]]),
        "mirrored": np.diag([-1, -1, 1]),
        "swapped": np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]]),
    }[kind]
    affine = np.eye(4)
    affine[:3, :3] = axes @ np.diag(spacing)
    affine[:3, 3] = (-31.0, 12.5, 7.25)
    return affine


KINDS = ("straight", "oblique", "sheared", "mirrored", "swapped")


def places(grid: Grid) -> Array:
    """Mm of every voxel centre, (x, y, z, 3)."""
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)
    found: Array = index @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    return found


def inner(shape: tuple[int, ...], margin: int = 4) -> tuple[slice, ...]:
    return tuple(slice(margin, n - margin) for n in shape)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 2.3, 1.1), (2.0, 2.0, 2.0)])
def test_a_voxels_value_stays_at_its_place(kind: str, spacing: tuple[float, float, float]) -> None:
    source = Grid((40, 36, 18), affine_of(kind, (0.9, 1.1, 3.0)))
    onto = with_spacing(source, spacing, "a")
    for axis in range(3):
        # a volume that says where it is
        there = resample(places(source)[..., axis], source, onto, background=np.nan)
        error = np.abs(there - places(onto)[..., axis])[inner(onto.shape)]
        assert error.max() < 1e-3
        back = resample(there, onto, source)
        error = np.abs(back - places(source)[..., axis])[inner(source.shape)]
        # mm, of voxels of 0.9 mm: the bar is a tenth of one
        assert error.max() < 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_the_new_grid_has_the_same_centre_and_covers_the_old_one(kind: str) -> None:
    source = Grid((40, 36, 18), affine_of(kind, (0.9, 1.1, 3.0)))
    for spacing in ((1.0, 1.0, 1.0), (0.35, 5.0, 2.0), (0.9, 1.1, 3.0)):
        onto = with_spacing(source, spacing, "a")
        np.testing.assert_allclose(onto.spacing_mm, spacing, rtol=1e-12)
        middles = [
            (grid.affine @ [*((np.array(grid.shape) - 1) / 2), 1])[:3] for grid in (source, onto)
        ]
        np.testing.assert_allclose(middles[0], middles[1], atol=1e-9)
        extent = np.array(onto.shape) * spacing - np.array(source.shape) * source.spacing_mm
        assert (extent > -2e-3 * np.array(spacing)).all()
        assert (extent < np.array(spacing)).all()
    same = with_spacing(source, source.spacing_mm, "a")
    np.testing.assert_allclose(same.affine, source.affine, atol=1e-9)
    assert same.shape == source.shape


def test_an_axis_without_a_number_keeps_its_spacing_and_its_voxels() -> None:
    source = Grid((40, 36, 18), affine_of("oblique", (0.9, 1.1, 3.0)))
    onto = with_spacing(source, (None, 2.2, None), "a")
    assert onto.shape == (40, 18, 18)
    np.testing.assert_array_equal(onto.affine[:3, [0, 2]], source.affine[:3, [0, 2]])
    np.testing.assert_allclose(onto.affine[:3, 1], 2 * source.affine[:3, 1])


@pytest.mark.parametrize(
    "grid",
    [
        {"kind": "spacing", "spacing_mm": [None, None, None]},
        {"kind": "spacing", "spacing_mm": [1.0, 1.0]},
        {"kind": "spacing", "spacing_mm": [1.0, 0.0, 1.0]},
        {"kind": "spacing", "spacing_mm": [1.0, 21.0, None]},
        {"kind": "spacing"},
        {"kind": "own", "spacing_mm": [1.0, 1.0, 1.0]},
        {"kind": "atlas"},
    ],
)
def test_a_rule_that_says_nothing_or_too_much_is_refused(grid: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_with(grid)
    assert "preprocessing.grid" in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_labels_come_back_exactly_from_a_finer_grid(kind: str, dtype: type) -> None:
    rng = np.random.default_rng(4)
    source = Grid((14, 12, 9), affine_of(kind, (1.2, 0.9, 3.0)))
    labels: Array = rng.integers(0, 100, source.shape).astype(dtype)
    for spacing in ((0.6, 0.45, 1.0), (0.5, 0.31, 1.3), (1.2, 0.9, 3.0)):
        onto = with_spacing(source, spacing, "a")
        finer = resample_labels(labels, source, onto)
        assert finer.dtype == labels.dtype
        assert set(np.unique(finer)) <= {*np.unique(labels), 0}
        np.testing.assert_array_equal(resample_labels(finer, onto, source), labels)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_grid_gives_the_same_bits(kind: str) -> None:
    rng = np.random.default_rng(4)
    grid = Grid((14, 12, 9), affine_of(kind, (1.2, 0.9, 3.0)))
    voxels = rng.normal(size=grid.shape).astype(np.float32)
    again = resample(voxels, grid, grid)
    np.testing.assert_array_equal(again, voxels)
    assert not np.shares_memory(again, voxels)
    # as interpolation itself does, where the numbers of the two grids differ in a last bit
    nearly = Grid(grid.shape, grid.affine * (1 + 2e-16))
    assert not np.array_equal(nearly.affine, grid.affine)
    np.testing.assert_array_equal(resample(voxels, grid, nearly), voxels)


def test_it_agrees_with_simpleitk() -> None:
    rng = np.random.default_rng(4)
    source = Grid((20, 22, 12), affine_of("oblique", (1.0, 1.0, 2.0)))
    onto = Grid((24, 18, 30), affine_of("straight", (0.8, 0.9, 0.7)))
    voxels = rng.normal(size=source.shape).astype(np.float32)
    found = resample(voxels, source, onto, background=-7.0)
    theirs = SimpleITK.Resample(
        itk_image(voxels, source.affine),
        itk_image(np.zeros(onto.shape, np.float32), onto.affine),
        SimpleITK.Transform(),
        SimpleITK.sitkLinear,
        -7.0,
    )
    other = SimpleITK.GetArrayFromImage(theirs).T
    both = (found != -7) & (other != -7)
    assert both.mean() > 0.3
    assert ((found == -7) == (other == -7)).mean() > 0.999
    assert np.abs(found - other)[both].max() < 1e-4


def test_detail_that_the_new_grid_cannot_hold_does_not_fold_into_it() -> None:
    source = Grid((64, 64, 8), np.diag([1.0, 1.0, 1.0, 1.0]))
    onto = with_spacing(source, (4.0, 4.0, 1.0), "a")
    # 2.5 mm waves on a 4 mm grid: without a Gaussian they would appear as waves of 6.7 mm
    waves = np.sin(2 * np.pi * places(source)[..., 0] / 2.5)
    assert resample(waves, source, onto)[2:-2].std() < 0.03
    assert waves[::4].std() > 0.6
    slow = np.sin(2 * np.pi * places(source)[..., 0] / 40)
    kept = resample(slow, source, onto)
    wanted = np.sin(2 * np.pi * places(onto)[..., 0] / 40)
    assert np.abs(kept - wanted)[2:-2].max() < 0.1


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(*[st.floats(0.4, 4.0)] * 3),
    st.tuples(*[st.floats(0.4, 4.0)] * 3),
    st.sampled_from(KINDS),
)
def test_what_is_outside_is_background_and_nothing_else_is(
    own: tuple[float, float, float], new: tuple[float, float, float], kind: str
) -> None:
    source = Grid((9, 8, 7), affine_of(kind, own))
    onto = with_spacing(source, new, "a")
    found = resample(np.ones(source.shape), source, onto, background=-5.0)
    assert set(np.unique(np.round(found, 5))) <= {np.float32(1.0), np.float32(-5.0)}
    # all but the rim that was added to make whole voxels
    assert (found[inner(onto.shape, 1)] == 1).all() or min(onto.shape) <= 2


def test_a_grid_that_no_memory_holds_is_refused() -> None:
    grid = Grid((512, 512, 900), np.diag([1.0, 1.0, 1.0, 1.0]))
    with pytest.raises(VolumeError, match="cannot resample volume 'a'") as caught:
        with_spacing(grid, (0.2, 0.2, 0.2), "a")
    assert caught.value.where == "preprocessing.grid.spacing_mm"


def body(grid: Grid) -> Array:
    """Something smooth with an edge, a function of the place in mm."""
    at = places(grid) - places(grid).reshape(-1, 3).mean(axis=0)
    radius = np.linalg.norm(at / np.array([14.0, 13.0, 12.0]), axis=-1)
    values = 500 + 150 * np.sin(at[..., 0] / 5) + 100 * np.cos(at[..., 2] / 6)
    found: Array = np.where(radius < 1, values, 0).round().astype(np.int16)
    return found


def patient(folder: Path, grids: dict[str, Grid]) -> Patient:
    paths = {}
    for name, grid in grids.items():
        paths[name] = folder / f"{name}.nii.gz"
        nibabel.Nifti1Image(body(grid), grid.affine).to_filename(paths[name])
    return Patient("a", "a", paths, None)


def plan_with(grid: dict[str, Any], **more: Any) -> Plan:
    return small_plan(preprocessing={"grid": grid, "crop_multiple": 4, **more})


FINE = Grid((30, 30, 28), affine_of("straight", (1.0, 1.0, 1.0)))


def thick(shift: float = 0.0) -> Grid:
    """The same body in 4 mm slices, with pixels of another size."""
    affine = affine_of("straight", (1.5, 1.5, 4.0))
    grid = Grid((20, 20, 7), affine)
    centres = [(g.affine @ [*((np.array(g.shape) - 1) / 2), 1])[:3] for g in (FINE, grid)]
    affine[:3, 3] += centres[0] - centres[1] + shift
    return Grid(grid.shape, affine)


def test_channels_on_other_grids_need_the_plans_word(tmp_path: Path) -> None:
    one = patient(tmp_path, {SOURCES[0]: FINE, SOURCES[1]: thick(), TARGET: FINE})
    with pytest.raises(AffineError) as caught:
        prepare(one, plan_with({"kind": "own"}), root=tmp_path, with_target=True)
    assert "preprocessing.grid" in caught.value.remedy
    plan = plan_with({"kind": "first_source"})
    prepared = prepare(one, plan, root=tmp_path, with_target=True)
    assert prepared.source.shape[:2] == (prepared.mask.shape[0], 2)
    assert prepared.spacing_mm == (1.0, 1.0, 1.0)
    # the thick channel shows the same body in the same place
    first, second = prepared.source[:, 0], prepared.source[:, 1]
    inside = prepared.mask[:, 0] > 0
    assert np.corrcoef(first[inside], second[inside])[0, 1] > 0.8
    back = restore(prepared, prepared.source[:, :1], background=0.0)
    assert back.shape == FINE.shape
    assert prepared.target is not None
    np.testing.assert_array_equal(
        restore(prepared, prepared.mask, background=0.0, labels=True),
        on_plan_grid(prepared, prepared.mask, background=0.0),
    )


def test_what_a_channel_does_not_show_is_outside_the_mask(tmp_path: Path) -> None:
    whole = patient(tmp_path, {SOURCES[0]: FINE, SOURCES[1]: thick(), TARGET: FINE})
    plan = plan_with({"kind": "first_source"}, mask="body")
    full = prepare(whole, plan, root=tmp_path, with_target=True)
    low = Grid((20, 20, 4), thick().affine)
    cut = patient(tmp_path, {SOURCES[0]: FINE, SOURCES[1]: low, TARGET: FINE})
    part = prepare(cut, plan, root=tmp_path, with_target=True)
    assert part.mask.sum() < 0.9 * full.mask.sum()
    above = on_plan_grid(part, part.mask, background=0.0)[:, :, 18:]
    assert not above.any()


@pytest.mark.parametrize("kind", ["straight", "oblique", "mirrored", "swapped"])
def test_results_land_on_the_patients_own_grid(tmp_path: Path, kind: str) -> None:
    own = Grid((30, 26, 14), affine_of(kind, (1.0, 1.2, 2.0)))
    one = patient(tmp_path, {SOURCES[0]: own, SOURCES[1]: own, TARGET: own})
    plan = plan_with({"kind": "spacing", "spacing_mm": [1.5, 1.5, 1.5]})
    prepared = prepare(one, plan, root=tmp_path, with_target=True)
    np.testing.assert_allclose(prepared.spacing_mm, 1.5)
    assert prepared.target is not None
    back = restore(prepared, prepared.target, background=0.0)
    reference = read_volume(one.channels[TARGET])
    assert back.shape == reference.voxels.shape
    assert prepared.target_scale is not None
    inside = reference.voxels > 0
    error = np.abs(prepared.target_scale.invert(back) - reference.voxels)[inside]
    # the rim mixes body and air; the rest is what 1.5 mm can hold
    assert np.median(error) < 15
    write_volume(tmp_path / "out.nii.gz", back, prepared.reference, dtype=np.dtype(np.float32))
    image = nibabel.load(tmp_path / "out.nii.gz")
    check_places(image.affine, own.affine, own.shape, 1e-3)
    _, place = itk_answer(tmp_path / "out.nii.gz")
    check_places(place, own.affine, own.shape, 1e-3)


@pytest.mark.parametrize("form", ["nii", "mgz", "nrrd", "mha", "dicom"])
@pytest.mark.parametrize("kind", ["straight", "oblique", "swapped"])
def test_a_landmark_of_any_format_comes_back_within_a_tenth_of_a_voxel(
    tmp_path: Path, form: str, kind: str
) -> None:
    own = Grid((26, 24, 16), affine_of(kind, (1.0, 1.2, 2.5)))
    centre = np.array([11.3, 12.6, 7.2])
    index = np.stack(np.meshgrid(*map(np.arange, own.shape), indexing="ij"), axis=-1)
    blob = 3000 * np.exp(-(((index - centre) * own.spacing_mm) ** 2).sum(-1) / (2 * 4.0**2))
    voxels = blob.astype(np.int16)
    path = tmp_path / f"a.{form}"
    if form == "dicom":
        write_series(series(voxels, own.affine), path)
    elif form == "nii":
        nibabel.Nifti2Image(voxels, own.affine).to_filename(path)
    elif form == "mgz":
        nibabel.MGHImage(voxels, own.affine).to_filename(path)
    else:
        SimpleITK.WriteImage(itk_image(voxels, own.affine), str(path))
    volume = read_volume(path)
    grid = grid_of(volume)
    onto = with_spacing(grid, (1.6, 1.3, 1.1), "a")
    back = resample(resample(volume.voxels, grid, onto), onto, grid)
    for found in (volume.voxels, back):
        weight = found / found.sum()
        at = (places(grid) * weight[..., None]).sum(axis=(0, 1, 2))
        wanted = own.affine[:3, :3] @ centre + own.affine[:3, 3]
        off = np.abs(np.linalg.solve(grid.affine[:3, :3], at - wanted))
        assert off.max() < 0.1


def test_a_rule_for_grids_is_part_of_what_a_cache_goes_by() -> None:
    digests = {
        preprocessing_digest(plan_with(grid))
        for grid in (
            {"kind": "own"},
            {"kind": "first_source"},
            {"kind": "spacing", "spacing_mm": [1.0, 1.0, 1.0]},
            {"kind": "spacing", "spacing_mm": [1.0, 1.0, 2.0]},
        )
    }
    assert len(digests) == 4


def test_slices_too_far_apart_stay_refused_when_the_plan_resamples(tmp_path: Path) -> None:
    far = Grid((20, 20, 5), affine_of("straight", (1.5, 1.5, 8.0)))
    one = patient(tmp_path, {SOURCES[0]: far, SOURCES[1]: far, TARGET: far})
    plan = plan_with({"kind": "spacing", "spacing_mm": [2.0, 2.0, 2.0]})
    with pytest.raises(SpacingError):
        prepare(one, plan, root=tmp_path, with_target=True)
