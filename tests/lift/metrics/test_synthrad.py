"""The challenge's three figures against hand calculations and explicit windows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from skimage.metrics import structural_similarity

from lift.metrics.synthrad import (
    CT_RANGE,
    HIGHEST_PSNR_DB,
    MR_RANGE,
    Floats,
    Mask,
    ValueRange,
    bounding_box,
    mae_hu,
    psnr_db,
    ssim,
)

SHAPE = (13, 16, 15)


def ct_pair(seed: int, shape: tuple[int, int, int] = SHAPE) -> tuple[Floats, Floats]:
    """Two related volumes that leave the CT range at both ends."""
    random = np.random.default_rng(seed)
    target = random.normal(300.0, 1500.0, shape)
    return target + random.normal(20.0, 200.0, shape), target


def box_mask(corner: tuple[int, int, int], size: tuple[int, int, int]) -> Mask:
    mask = np.zeros(SHAPE, dtype=np.bool_)
    z, y, x = corner
    mask[z : z + size[0], y : y + size[1], x : x + size[2]] = True
    return mask


def ssim_by_explicit_windows(
    prediction: Floats, target: Floats, mask: Mask, low: float, high: float
) -> float:
    """Every 7x7x7 window cut out and its moments taken directly (no running sums)."""

    def windows(volume: Floats) -> Floats:
        held = np.where(mask, np.clip(volume, low, high), low) - low
        view = sliding_window_view(held, (7, 7, 7))
        return view.reshape(*view.shape[:3], 343)

    p, t = windows(prediction), windows(target)
    mean_p, mean_t = p.mean(-1), t.mean(-1)
    covariance = ((p - mean_p[..., None]) * (t - mean_t[..., None])).sum(-1) / 342
    c1, c2 = (0.01 * (high - low)) ** 2, (0.03 * (high - low)) ** 2
    luminance = (2 * mean_p * mean_t + c1) / (mean_p**2 + mean_t**2 + c1)
    structure = (2 * covariance + c2) / (p.var(-1, ddof=1) + t.var(-1, ddof=1) + c2)
    return float((luminance * structure)[mask[3:-3, 3:-3, 3:-3]].mean())


def test_mae_is_the_mean_over_the_mask_and_clips_nothing() -> None:
    target = np.zeros((2, 2, 2))
    prediction = np.zeros((2, 2, 2))
    prediction[0, 0] = [10.0, -9000.0]
    prediction[1, 1] = 77.0
    mask = np.zeros((2, 2, 2), dtype=np.int8)
    mask[0, 0] = [1, 3]
    mask[1, 1] = -1  # only what is above 0 counts
    assert mae_hu(prediction, target, mask) == 4505.0


def test_an_error_of_a_tenth_of_the_range_is_20_db() -> None:
    target = np.full((2, 3, 4), 100, dtype=np.int16)
    mask = np.ones((2, 3, 4), dtype=np.bool_)
    assert psnr_db(target + 402.4, target, mask, values=CT_RANGE) == pytest.approx(20.0, abs=1e-9)
    assert psnr_db(target * 0 + 0.6, target * 0 + 0.5, mask, MR_RANGE) == pytest.approx(20.0)


def test_psnr_sees_clipped_values() -> None:
    mask = np.ones((2, 2, 2), dtype=np.bool_)
    assert psnr_db(np.full((2, 2, 2), 9e3), np.full((2, 2, 2), 3e3), mask, CT_RANGE) == 100.0
    assert psnr_db(np.full((2, 2, 2), -9e3), np.full((2, 2, 2), 3e3), mask, CT_RANGE) == 0.0


def test_a_perfect_volume_has_the_highest_finite_psnr_and_nothing_is_above_it() -> None:
    _, target = ct_pair(0)
    mask = np.ones(SHAPE, dtype=np.bool_)
    assert psnr_db(target, target, mask, CT_RANGE) == HIGHEST_PSNR_DB == 100.0
    assert psnr_db(target + 1e-6, target, mask, CT_RANGE) == HIGHEST_PSNR_DB
    assert psnr_db(target + 1.0, target, mask, CT_RANGE) < HIGHEST_PSNR_DB
    assert ssim(target, target, mask, CT_RANGE) == pytest.approx(1.0, abs=1e-12)
    assert mae_hu(target, target, mask) == 0.0


def test_ssim_of_constant_volumes_is_the_luminance_term() -> None:
    mask = np.ones((9, 9, 9), dtype=np.bool_)
    result = ssim(np.full((9, 9, 9), 0.0), np.full((9, 9, 9), 1024.0), mask, CT_RANGE)
    # 1024 and 2048 above the range's low end; C1 = 40.24^2
    assert result == pytest.approx((4194304 + 1619.2576) / (5242880 + 1619.2576), rel=1e-9)


@given(st.integers(0, 10_000), st.sampled_from([CT_RANGE, ValueRange(-500.0, 900.0)]))
def test_ssim_equals_explicit_windows(seed: int, values: ValueRange) -> None:
    prediction, target = ct_pair(seed)
    mask = np.random.default_rng(seed).random(SHAPE) < 0.4
    expected = ssim_by_explicit_windows(prediction, target, mask, values.low, values.high)
    assert ssim(prediction, target, mask, values) == pytest.approx(expected, abs=1e-9)


@given(st.tuples(*[st.integers(0, n - 1) for n in SHAPE]), st.tuples(*[st.integers(1, 16)] * 3))
def test_cropping_to_the_mask_leaves_ssim_bit_identical(
    corner: tuple[int, int, int], size: tuple[int, int, int]
) -> None:
    prediction, target = ct_pair(1)
    mask = box_mask(corner, size)
    inner = mask[3:-3, 3:-3, 3:-3]
    cleaned = [
        np.where(mask, np.clip(volume, -1024, 3000), -1024) + 1024
        for volume in (target, prediction)
    ]
    _, whole = structural_similarity(*cleaned, data_range=4024, full=True)
    expected = float(whole[3:-3, 3:-3, 3:-3][inner].mean()) if inner.any() else None
    assert ssim(prediction, target, mask, CT_RANGE) == expected


def test_the_crop_is_a_crop() -> None:
    mask = np.zeros((40, 50, 60), dtype=np.bool_)
    mask[20:22, 0:3, 55] = True
    assert bounding_box(mask, margin=7) == (slice(13, 29), slice(0, 10), slice(48, 60))
    assert bounding_box(mask) == (slice(20, 22), slice(0, 3), slice(55, 56))


@given(st.integers(0, 10_000))
def test_voxels_outside_the_mask_have_no_influence(seed: int) -> None:
    prediction, target = ct_pair(seed)
    mask = box_mask((2, 3, 4), (8, 9, 7))
    noise = np.random.default_rng(seed + 1).normal(0, 5000, SHAPE)
    elsewhere = np.where(mask, 0.0, noise)
    before = _figures(prediction, target, mask)
    assert _figures(prediction + elsewhere, target - elsewhere, mask) == before
    moved = np.where(mask, noise, 0.0)
    after = _figures(prediction + moved, target, mask)
    assert all(a != b for a, b in zip(after, before, strict=True))


def test_psnr_and_ssim_do_not_depend_on_the_unit() -> None:
    prediction, target = ct_pair(3)
    mask = box_mask((1, 1, 1), (11, 12, 13))
    p, t = (prediction + 1024) / 4024, (target + 1024) / 4024
    assert psnr_db(p, t, mask, MR_RANGE) == pytest.approx(
        psnr_db(prediction, target, mask, CT_RANGE), abs=1e-9
    )
    assert ssim(p, t, mask, MR_RANGE) == pytest.approx(
        ssim(prediction, target, mask, CT_RANGE), abs=1e-9
    )


def test_the_numbers_format_does_not_change_the_figures() -> None:
    prediction, target = (volume.astype(np.int16) for volume in ct_pair(4))
    mask = box_mask((1, 1, 1), (11, 12, 13))
    assert _figures(prediction, target, mask) == _figures(
        prediction.astype(np.float32), target.astype(np.float64), mask
    )


def test_ssim_does_not_exist_without_room_for_a_window() -> None:
    thin = np.zeros((6, 20, 20))
    assert ssim(thin, thin, np.ones(thin.shape, dtype=np.bool_), MR_RANGE) is None
    volume = np.zeros((20, 20, 20))
    rim = np.zeros(volume.shape, dtype=np.bool_)
    rim[:3] = True
    assert ssim(volume, volume, rim, MR_RANGE) is None
    rim[3, 3, 3] = True
    assert ssim(volume, volume, rim, MR_RANGE) == 1.0


@pytest.mark.parametrize(
    ("prediction", "target", "mask", "reason"),
    [
        (np.zeros((8, 8, 8)), np.zeros((8, 8, 9)), np.ones((8, 8, 8)), "share one"),
        (np.zeros((8, 8, 8)), np.zeros((8, 8, 8)), np.ones((8, 8)), "share one"),
        (np.zeros((8, 8)), np.zeros((8, 8)), np.ones((8, 8)), "share one"),
        (np.zeros((8, 8, 8)), np.zeros((8, 8, 8)), np.zeros((8, 8, 8)), "mask is empty"),
        (np.full((8, 8, 8), np.nan), np.zeros((8, 8, 8)), np.ones((8, 8, 8)), "NaN"),
        (np.zeros((8, 8, 8)), np.full((8, 8, 8), np.inf), np.ones((8, 8, 8)), "NaN"),
    ],
)
def test_volumes_that_cannot_be_compared_are_refused(
    prediction: Floats, target: Floats, mask: Floats, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        mae_hu(prediction, target, mask)
    with pytest.raises(ValueError, match=reason):
        psnr_db(prediction, target, mask, MR_RANGE)
    with pytest.raises(ValueError, match=reason):
        ssim(prediction, target, mask, MR_RANGE)


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 1.0), (float("nan"), 1.0)])
def test_a_value_range_is_ordered_and_finite(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="finite low < high"):
        ValueRange(low, high)


def _figures(
    prediction: npt.NDArray[Any], target: npt.NDArray[Any], mask: Mask
) -> tuple[float, float, float]:
    similarity = ssim(prediction, target, mask, CT_RANGE)
    assert similarity is not None
    return (
        mae_hu(prediction, target, mask),
        psnr_db(prediction, target, mask, CT_RANGE),
        similarity,
    )
