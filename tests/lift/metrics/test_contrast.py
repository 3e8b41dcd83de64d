"""PSNR after the best contrast: blind to gain and offset, and to nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from lift.metrics.contrast import psnr_invariant_db
from lift.metrics.synthrad import HIGHEST_PSNR_DB, MR_RANGE, Floats, Mask, psnr_db

SHAPE = (9, 14, 12)


def pair(noise: float = 0.03) -> tuple[Floats, Floats, Mask]:
    rng = np.random.default_rng(1)
    target = np.clip(0.5 + gaussian_filter(rng.standard_normal(SHAPE), 1.5), 0.05, 0.95)
    return target + noise * rng.standard_normal(SHAPE), target, rng.random(SHAPE) > 0.3


@pytest.mark.parametrize(("gain", "offset"), [(1.0, 0.0), (0.2, 0.4), (3.0, -1.0), (40.0, 7.0)])
def test_gain_and_offset_of_the_prediction_have_no_influence(gain: float, offset: float) -> None:
    prediction, target, mask = pair()
    expected = psnr_invariant_db(prediction, target, mask, MR_RANGE)
    found = psnr_invariant_db(gain * prediction + offset, target, mask, MR_RANGE)
    assert found == pytest.approx(expected, abs=1e-9)
    assert psnr_invariant_db(gain * target + offset, target, mask, MR_RANGE) == HIGHEST_PSNR_DB


def test_it_is_above_psnr_by_what_contrast_costs() -> None:
    prediction, target, mask = pair()
    plain = psnr_db(prediction, target, mask, MR_RANGE)
    found = psnr_invariant_db(prediction, target, mask, MR_RANGE)
    assert plain < found < plain + 0.5
    darker = 0.6 * prediction
    assert psnr_db(darker, target, mask, MR_RANGE) < plain - 8
    assert psnr_invariant_db(darker, target, mask, MR_RANGE) == pytest.approx(found)


def test_a_blurred_volume_a_negative_and_a_constant_are_not_made_good() -> None:
    prediction, target, mask = pair()
    good = psnr_invariant_db(prediction, target, mask, MR_RANGE)
    blurred = psnr_invariant_db(gaussian_filter(target, 2.0), target, mask, MR_RANGE)
    assert blurred < good - 3
    # both leave the target's mean alone, and no more than that
    mean = psnr_db(np.full(SHAPE, target[mask].mean()), target, mask, MR_RANGE)
    for poor in (1 - target, np.full(SHAPE, 0.7)):
        assert psnr_invariant_db(poor, target, mask, MR_RANGE) == pytest.approx(mean)
    assert mean < blurred


def test_voxels_outside_the_mask_have_no_influence() -> None:
    prediction, target, mask = pair()
    expected = psnr_invariant_db(prediction, target, mask, MR_RANGE)
    other = np.where(mask, prediction, 5.0)
    assert psnr_invariant_db(other, target, mask, MR_RANGE) == expected
