"""The whole-crop figures: what counts, what does not, and their values by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from lift.metrics.brats import psnr_crop_db, ssim_crop
from lift.metrics.synthrad import MR_RANGE, Floats, psnr_db


def test_background_counts_and_dilutes_the_error() -> None:
    target = np.full((10, 10, 10), 0.5)
    target[5:] = 0.0
    mask = target > 0
    prediction = np.where(mask, 0.6, 0.0)
    # half of the voxels are wrong by .1: mean squared error .005
    assert psnr_crop_db(prediction, target, mask) == pytest.approx(23.0103, abs=1e-4)
    assert psnr_crop_db(target, target, mask) == 100.0


def test_the_prediction_is_zero_outside_the_mask_but_the_target_is_not() -> None:
    target = np.full((10, 10, 10), 0.5)
    mask = np.zeros(target.shape, dtype=np.bool_)
    mask[:5] = True
    prediction = np.where(mask, 0.5, 0.123)
    # half of the voxels are wrong by .5: mean squared error .125
    assert psnr_crop_db(prediction, target, mask) == pytest.approx(9.0309, abs=1e-4)
    assert psnr_crop_db(prediction * 0 + 0.5, target, mask) == pytest.approx(9.0309, abs=1e-4)


def test_values_are_clipped_to_0_and_1() -> None:
    target = np.full((8, 8, 8), 1.5)
    mask = np.ones(target.shape, dtype=np.bool_)
    assert psnr_crop_db(target * 2, target, mask) == 100.0
    assert ssim_crop(target * 2, target, mask) == pytest.approx(1.0)
    assert psnr_crop_db(-target, target, mask) == 0.0


@pytest.mark.parametrize(
    ("shape", "axis", "rim"), [((8, 240, 9), 1, 8), ((8, 9, 240), 2, 8), ((159, 8, 9), 0, 2)]
)
def test_only_the_middle_155_x_224_x_224_counts(
    shape: tuple[int, int, int], axis: int, rim: int
) -> None:
    target = np.random.default_rng(0).random(shape)
    mask = np.ones(shape, dtype=np.bool_)
    prediction = target.copy()
    for end in (slice(0, rim), slice(shape[axis] - rim, None)):
        prediction[tuple(end if a == axis else slice(None) for a in range(3))] = 0.0
    assert psnr_crop_db(prediction, target, mask) == 100.0
    assert ssim_crop(prediction, target, mask) == pytest.approx(1.0)
    first_inside = tuple(rim if a == axis else slice(None) for a in range(3))
    prediction[first_inside] = 0.0
    assert psnr_crop_db(prediction, target, mask) < 40.0


def test_a_volume_within_the_crop_counts_in_full() -> None:
    random = np.random.default_rng(1)
    target = random.random((9, 12, 11))
    prediction = np.clip(target + random.normal(0, 0.1, target.shape), 0, 1)
    mask = np.ones(target.shape, dtype=np.bool_)
    assert psnr_crop_db(prediction, target, mask) == pytest.approx(
        10 * np.log10(1 / np.mean((prediction - target) ** 2))
    )


def test_ssim_of_the_crop_equals_explicit_windows() -> None:
    random = np.random.default_rng(2)
    target = random.random((9, 12, 11))
    prediction = np.clip(target + random.normal(0, 0.2, target.shape), 0, 1)
    mask = random.random(target.shape) < 0.5
    p, t = _windows(np.where(mask, prediction, 0.0)), _windows(target)
    covariance = (p * t).mean(-1) - p.mean(-1) * t.mean(-1)
    p_mean, t_mean = p.mean(-1), t.mean(-1)
    expected = (
        (2 * p_mean * t_mean + 1e-4)
        * (2 * covariance * 343 / 342 + 9e-4)
        / (p_mean**2 + t_mean**2 + 1e-4)
        / (p.var(-1, ddof=1) + t.var(-1, ddof=1) + 9e-4)
    ).mean()
    assert ssim_crop(prediction, target, mask) == pytest.approx(expected, abs=1e-9)


def test_background_lifts_the_crop_figure_above_the_masked_one() -> None:
    random = np.random.default_rng(3)
    mask = np.zeros((12, 40, 40), dtype=np.bool_)
    mask[:, 15:25, 15:25] = True
    target = np.where(mask, random.random(mask.shape), 0.0)
    prediction = np.where(mask, target + random.normal(0, 0.1, mask.shape), 0.0)
    inside = psnr_db(prediction, target, mask, values=MR_RANGE)
    # the mask is 1/16 of the crop: 12 dB of flattery
    assert psnr_crop_db(prediction, target, mask) - inside == pytest.approx(12.04, abs=0.01)


def test_the_crop_ssim_does_not_exist_below_7_slices() -> None:
    thin = np.zeros((6, 20, 20))
    assert ssim_crop(thin, thin, np.ones(thin.shape, dtype=np.bool_)) is None


def _windows(volume: Floats) -> Floats:
    view = sliding_window_view(volume, (7, 7, 7))
    return view.reshape(*view.shape[:3], 343)
