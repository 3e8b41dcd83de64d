from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lift.cohort.normalisation import Scale, scale_of
from lift.cohort.patients import Patient
from lift.cohort.preprocessing import prepare, preprocessing_digest, restore, to_output_units
from lift.config.plan import PercentileRule, Plan, WindowRule
from lift.errors import AffineError, SpacingError, VolumeError
from lift.volumes.masks import body_mask, nonzero_mask
from lift.volumes.slices import to_slices
from lift.volumes.volume import read_volume, write_volume

Array = NDArray[Any]
SHAPE = (30, 34, 12)
SPACING = (1.5, 1.25, 4.0)
PLANES = ("axial", "coronal", "sagittal")


def plan(target: str = "t2", /, **preprocessing: object) -> Plan:
    return Plan.from_data(
        {
            "task": {"source": ["t1", "pd"], "target": target},
            "preprocessing": {"highest_slice_spacing_mm": 5.0, **preprocessing},
            "privacy": {"mode": "none"},
        },
        "test",
    )


def ball(centre: tuple[float, float, float], radius: float) -> NDArray[np.bool_]:
    grid = np.indices(SHAPE)
    away = [
        (axis - middle) * size for axis, middle, size in zip(grid, centre, SPACING, strict=True)
    ]
    inside: NDArray[np.bool_] = np.sqrt(np.sum(np.square(away), axis=0)) < radius
    return inside


HEAD = ball((13, 18, 6), 17.0)


def image_of(seed: int, scale: float = 400.0) -> Array:
    """A textured ball on an exactly empty background, as skull stripping leaves it."""
    rng = np.random.default_rng(seed)
    return (HEAD * (scale + rng.uniform(0, scale, SHAPE))).astype(np.int16)


def save(path: Path, voxels: Array, spacing: tuple[float, float, float] = SPACING) -> Path:
    # stored turned round, so that a mixed-up axis shows
    image = nibabel.Nifti1Image(voxels, np.diag([*spacing, 1.0]))
    image.as_reoriented(np.array([[1, -1], [2, 1], [0, -1]])).to_filename(path)
    return path


def patient(folder: Path, **changed: Array) -> Patient:
    names = {"t1": image_of(1), "pd": image_of(2, 90.0), "t2": image_of(3), **changed}
    files = {name: save(folder / f"{name}.nii.gz", voxels) for name, voxels in names.items()}
    mask = files.pop("mask", None)
    return Patient("p-000", "p", files, mask)


@pytest.mark.parametrize("plane", PLANES)
def test_prepared_slices_go_back_to_the_voxels_they_came_from(tmp_path: Path, plane: str) -> None:
    prepared = prepare(patient(tmp_path), plan(plane=plane), root=tmp_path, with_target=True)
    assert prepared.target is not None
    scale = scale_of(image_of(3), PercentileRule())
    expected = scale.apply(image_of(3))
    assert prepared.target_scale == scale
    back = restore(prepared, prepared.target * prepared.mask, background=-1.0)
    np.testing.assert_array_equal(back[HEAD], expected[HEAD])
    mask = restore(prepared, prepared.mask, background=0.0)
    np.testing.assert_array_equal(mask > 0, HEAD)
    depth = {"axial": 2, "coronal": 1, "sagittal": 0}[plane]
    assert prepared.spacing_mm[0] == pytest.approx(SPACING[depth])
    # outside the crop there is background, and nothing else is
    np.testing.assert_array_equal(
        back == -1.0, restore(prepared, prepared.mask + 1, background=0) == 0
    )


@pytest.mark.parametrize("plane", PLANES)
def test_the_crop_is_the_masks_box_with_its_margin(tmp_path: Path, plane: str) -> None:
    rules = plan(plane=plane, crop_margin=2, crop_multiple=8)
    prepared = prepare(patient(tmp_path), rules, root=tmp_path, with_target=False)
    assert prepared.target is None
    assert prepared.target_scale is None
    places = np.argwhere(to_slices(HEAD, plane))
    low, high = places.min(0), places.max(0) + 1
    stack = to_slices(HEAD, plane).shape
    for axis, margin in enumerate((0, 2, 2)):
        assert prepared.crop.start[axis] == max(0, low[axis] - margin)
        assert prepared.crop.stop[axis] == min(stack[axis], high[axis] + margin)
    depth, channels, height, width = prepared.source.shape
    assert (depth, channels) == (high[0] - low[0], 2)
    assert height % 8 == width % 8 == 0
    sizes = [b - a for a, b in zip(prepared.crop.start, prepared.crop.stop, strict=True)]
    assert 0 <= height - sizes[1] < 8
    assert 0 <= width - sizes[2] < 8
    # padding is zero
    assert not prepared.source[:, :, sizes[1] :].any()
    assert not prepared.source[:, :, :, sizes[2] :].any()
    assert prepared.mask.any(axis=(1, 2, 3)).all()
    for array in (prepared.source, prepared.mask):
        assert array.dtype == np.float32
        assert array.min() >= 0
        assert array.max() <= 1


def test_sources_keep_the_plans_order(tmp_path: Path) -> None:
    prepared = prepare(patient(tmp_path), plan(), root=tmp_path, with_target=False)
    for channel, seed, scale in ((0, 1, 400.0), (1, 2, 90.0)):
        image = image_of(seed, scale)
        expected = scale_of(image, PercentileRule()).apply(image)
        found = restore(prepared, prepared.source[:, channel], background=0.0)
        np.testing.assert_array_equal(found[HEAD], expected[HEAD])


def test_a_ct_target_goes_out_in_hounsfield_units_on_the_inputs_grid(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ct = np.where(HEAD, rng.integers(-900, 2900, SHAPE), -1024).astype(np.int16)
    ct[13, 18, 6] = 3071
    task = plan("ct")
    prepared = prepare(patient(tmp_path, ct=ct), task, root=tmp_path, with_target=True)
    assert prepared.target is not None
    assert prepared.target_scale == Scale((-1024.0, 3000.0))
    whole = restore(prepared, prepared.target * prepared.mask, background=0.0)
    voxels, dtype = to_output_units(whole, task, "ct")
    write_volume(tmp_path / "out.nii.gz", voxels, prepared.reference, dtype=dtype)
    written = nibabel.load(tmp_path / "out.nii.gz")
    assert written.get_data_dtype() == np.int16
    assert written.shape == nibabel.load(tmp_path / "t1.nii.gz").shape
    np.testing.assert_array_equal(written.affine, nibabel.load(tmp_path / "t1.nii.gz").affine)
    # above the window is the window's end
    np.testing.assert_array_equal(read_volume(tmp_path / "out.nii.gz").voxels, np.minimum(ct, 3000))


def test_mr_goes_out_at_the_written_maximum(tmp_path: Path) -> None:
    task = plan(normalisation={"t2": {"rule": "percentile", "written_maximum": 250.0}})
    values, dtype = to_output_units(np.array([-0.5, 0.0, 0.5, 1.0, 1.5], np.float32), task, "t2")
    assert dtype == values.dtype == np.float32
    np.testing.assert_array_equal(values, [0, 0, 125, 250, 250])


@given(
    seed=st.integers(0, 2**16),
    offset=st.sampled_from([0.0, -1024.0, 1e6]),
    scale=st.sampled_from([1e-3, 1.0, 1e5]),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_normalised_values_lie_in_0_to_1_and_can_be_brought_back(
    seed: int, offset: float, scale: float, dtype: type
) -> None:
    voxels: Array = (offset + scale * np.random.default_rng(seed).gamma(2, size=(9, 8, 7))).astype(
        dtype
    )
    if voxels.min() == voxels.max():
        return
    found = scale_of(voxels, PercentileRule())
    values = found.apply(voxels)
    assert values.dtype == np.float32
    assert values.min() == 0
    assert values.max() == 1
    low, high = np.percentile(voxels.astype(np.float64), [0.1, 99.9])
    np.testing.assert_allclose(
        found.invert(values), np.clip(voxels, low, high), atol=(high - low) * 1e-6
    )


def test_normalisation_follows_the_voxels_values_not_their_type() -> None:
    voxels = image_of(1)
    whole, real = voxels.astype(np.int16), voxels.astype(np.float64)
    scales = [scale_of(one, PercentileRule()) for one in (whole, real)]
    assert scales[0] == scales[1]
    np.testing.assert_array_equal(scales[0].apply(whole), scales[1].apply(real))


def test_percentiles_are_of_the_whole_volume_background_included() -> None:
    voxels: Array = np.zeros((10, 10, 10))
    voxels.flat[500:] = np.arange(500) + 1.0
    scale = scale_of(voxels, PercentileRule(low=0, high=50))
    assert scale == Scale((0.0, 0.5))
    assert (scale.apply(voxels) == 1).sum() == 500


def test_a_window_is_the_same_for_every_volume() -> None:
    voxels: Array = np.array([-2000.0, -1000.0, 0.0, 5000.0])
    scale = scale_of(voxels, WindowRule(low=-1000, high=0))
    assert scale == Scale((-1000.0, 0.0))
    np.testing.assert_array_equal(scale.apply(voxels), [0, 0, 1, 1])


def test_a_volume_that_is_all_but_constant_is_refused(tmp_path: Path) -> None:
    dull = np.zeros(SHAPE, np.int16)
    dull[3, 3, 3] = 5
    with pytest.raises(VolumeError, match=r"pd\.nii\.gz.*percentiles are both 0"):
        prepare(patient(tmp_path, pd=dull), plan(), root=tmp_path, with_target=False)


def test_a_spacing_outside_the_plans_range_is_refused(tmp_path: Path) -> None:
    case = patient(tmp_path)
    prepare(case, plan(highest_slice_spacing_mm=4.0), root=tmp_path, with_target=False)
    for rules in (plan(highest_slice_spacing_mm=3.9), plan(lowest_slice_spacing_mm=4.1)):
        with pytest.raises(SpacingError, match=r"'t1\.nii\.gz'.*4\.00 mm") as caught:
            prepare(case, rules, root=tmp_path, with_target=False)
        assert caught.value.where
        assert caught.value.remedy


@pytest.mark.parametrize("channel", ["pd", "t2", "mask"])
def test_files_on_different_grids_are_refused(tmp_path: Path, channel: str) -> None:
    case = patient(tmp_path, mask=HEAD.astype(np.uint8))
    original = HEAD.astype(np.uint8) if channel == "mask" else image_of(2)
    save(tmp_path / f"{channel}.nii.gz", original, (1.5, 1.25, 4.01))
    with pytest.raises(AffineError, match=rf"'t1\.nii\.gz' and '{channel}\.nii\.gz'"):
        prepare(case, plan(mask="file"), root=tmp_path, with_target=True)


def test_the_target_has_no_say_in_the_mask(tmp_path: Path) -> None:
    other = image_of(3) * ball((13, 18, 6), 9.0)
    whole, part = (
        prepare(patient(tmp_path, **change), plan(), root=tmp_path, with_target=True)
        for change in ({}, {"t2": other.astype(np.int16)})
    )
    np.testing.assert_array_equal(whole.mask, part.mask)


def test_a_drawn_mask_is_taken_as_it_is(tmp_path: Path) -> None:
    drawn = ball((10, 12, 5), 6.0) | ball((20, 24, 7), 6.0)
    case = patient(tmp_path, mask=drawn.astype(np.uint8) * 3)
    prepared = prepare(case, plan(mask="file"), root=tmp_path, with_target=False)
    np.testing.assert_array_equal(restore(prepared, prepared.mask, background=0.0), drawn)


@pytest.mark.parametrize("rule", ["file", "nonzero"])
def test_an_all_but_empty_mask_is_refused(tmp_path: Path, rule: str) -> None:
    speck = ball((13, 18, 6), 3.0)
    assert 0 < speck.mean() < 0.005
    # the two sources have nothing but the speck in common
    left = np.indices(SHAPE)[0] < 13
    changed = {
        "t1": image_of(1) * (left | speck).astype(np.int16),
        "pd": image_of(2) * (~left | speck).astype(np.int16),
        "mask": speck.astype(np.uint8),
    }
    with pytest.raises(VolumeError, match="'p-000' is nearly empty") as caught:
        prepare(patient(tmp_path, **changed), plan(mask=rule), root=tmp_path, with_target=False)
    assert all((caught.value.where, caught.value.seen, caught.value.remedy))


def test_a_body_that_fills_the_grid_is_refused(tmp_path: Path) -> None:
    body = ball((13, 18, 6), 8.0)
    rng = np.random.default_rng(5)
    grey = np.where(body, rng.choice([50, 1000], SHAPE), 400).astype(np.int16)
    made = patient(tmp_path, t1=grey, pd=grey)
    with pytest.raises(VolumeError, match="fills nearly the whole volume") as caught:
        prepare(made, plan(mask="body"), root=tmp_path, with_target=False)
    assert "at most 95%" in caught.value.seen
    assert "magnitude" in caught.value.remedy
    # on a dark background it is found, and a drawn mask may cover what it likes
    dark = np.where(body, grey, 0).astype(np.int16)
    found = prepare(
        patient(tmp_path, t1=dark, pd=dark), plan(mask="body"), root=tmp_path, with_target=False
    )
    assert 0 < found.mask.mean() <= 1
    mask = np.ones(SHAPE, np.uint8)
    mask[0, 0, 0] = 0
    drawn = patient(tmp_path, t1=grey, pd=grey, mask=mask)
    whole = prepare(drawn, plan(mask="file"), root=tmp_path, with_target=False)
    assert whole.mask.sum() == mask.sum()


def test_a_missing_mask_is_refused_where_the_rule_needs_one(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="has no mask"):
        prepare(patient(tmp_path), plan(mask="file"), root=tmp_path, with_target=False)


def test_the_nonzero_mask_is_the_largest_piece_common_to_all_sources_filled() -> None:
    first, second = HEAD.copy(), HEAD.copy()
    first[13, 18, 6] = False
    first[0, 0, 0] = second[0, 0, 0] = True
    second[29, 33, 11] = True
    np.testing.assert_array_equal(nonzero_mask([first * 7, second * 0.5], 2), HEAD)


def overlap(found: Array, truth: Array) -> float:
    return float(2 * (found & truth).sum() / (found.sum() + truth.sum()))


@pytest.mark.parametrize("stripped", [False, True])
@pytest.mark.parametrize("plane_axis", [0, 1, 2])
def test_the_body_mask_finds_head_and_brain(stripped: bool, plane_axis: int) -> None:
    rng = np.random.default_rng(plane_axis)
    rim, core = ball((13, 18, 6), 17.0), ball((13, 18, 6), 13.0)
    bone = rim & ~core & ball((13, 18, 6), 15.0)
    # dark fluid inside, dark bone in between, a bright rim, Rician background
    signal = np.where(core, 0.5, np.where(bone, 0.02, np.where(rim, 0.9, 0.0)))
    signal[ball((13, 18, 6), 4.0)] = 0.08
    truth = core if stripped else rim
    signal = np.where(truth, signal, 0.0)
    noise = rng.normal(scale=0.0 if stripped else 0.02, size=(2, *SHAPE))
    source = np.hypot(signal + noise[0], noise[1]).astype(np.float32)
    found = body_mask([source], SPACING, plane_axis)
    assert found.shape == SHAPE
    assert overlap(found, truth) > 0.9
    assert found[ball((13, 18, 6), 4.0)].all()


def test_slices_of_another_shape_are_not_restored(tmp_path: Path) -> None:
    prepared = prepare(patient(tmp_path), plan(), root=tmp_path, with_target=False)
    for wrong in (prepared.mask[:1], prepared.source, prepared.mask[:, 0, :-1]):
        with pytest.raises(ValueError, match="not the patient's"):
            restore(prepared, wrong, background=0.0)


def test_the_digest_changes_with_all_that_changes_the_slices_and_with_nothing_else() -> None:
    first = preprocessing_digest(plan())
    assert first == preprocessing_digest(plan().model_copy(update={"seed": 99}))
    others = [
        plan(crop_margin=5),
        plan(mask="body"),
        plan(plane="coronal"),
        plan("ct"),
        plan(normalisation={"t1": {"rule": "percentile", "high": 99.0}}),
    ]
    assert len({first, *map(preprocessing_digest, others)}) == len(others) + 1


@pytest.mark.real_data
@pytest.mark.parametrize("study", ["study1", "study3"])
def test_real_heads_have_a_plausible_body_mask(real_data: Path, study: str) -> None:
    folder = real_data / "brain_tumor_progression_4contrast"
    files = {
        name: folder / f"{study}_{file}.nii.gz"
        for name, file in (("t1", "t1"), ("pd", "t1ce"), ("t2", "flair"))
    }
    task = plan(mask="body", highest_slice_spacing_mm=6.5)
    prepared = prepare(Patient(study, study, files, None), task, root=folder, with_target=True)
    area = prepared.mask.sum(axis=(1, 2, 3)) * prepared.spacing_mm[1] * prepared.spacing_mm[2]
    # an adult head: 100 to 400 square centimetres in the middle, less at the top
    assert 1e4 < np.median(area) < 4e4
    assert area[-1] < np.median(area)
    assert prepared.spacing_mm[0] == pytest.approx(6.5, abs=1e-3)
    background = prepared.source[:, 0][prepared.mask[:, 0] == 0]
    assert background.mean() < 0.1 * prepared.source[:, 0][prepared.mask[:, 0] > 0].mean()
