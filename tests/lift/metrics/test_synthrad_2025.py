"""MS-SSIM of SynthRAD2025, against scikit-image's SSIM at each scale."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.signal import fftconvolve
from skimage.metrics import structural_similarity

from lift.metrics.synthrad_2025 import CT_RANGE_2025, ms_ssim_ct

SHAPE = (97, 100, 104)
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
Floats = NDArray[np.float64]


def _pair() -> tuple[Floats, Floats, NDArray[np.bool_]]:
    rng = np.random.default_rng(3)
    target = gaussian_filter(rng.normal(0, 1, SHAPE), 4)
    target = 400 * target / target.std()
    noise = gaussian_filter(rng.normal(0, 1, SHAPE), 2)
    grid = np.indices(SHAPE) - np.array(SHAPE)[:, None, None, None] / 2
    return target + 60 * noise / noise.std(), target, (grid**2).sum(0) < 44**2


def _expected(prediction: Floats, target: Floats, mask: NDArray[np.bool_]) -> float:
    """As the challenge has it: luminance, contrast and structure under one power are the SSIM."""
    low, high = -1024.0, 3071.0
    first, second = (np.where(mask, np.clip(v, low, high) - low, 0) for v in (target, prediction))
    total, held = 1.0, mask
    for weight in WEIGHTS:
        full = structural_similarity(first, second, data_range=high - low, full=True)[1]
        assert full.min() > 0  # nothing is cut off at 0 here, so a power of the product will do
        inner = (slice(3, -3),) * 3
        total *= ((full[inner] ** weight)[held[inner]]).mean()
        box = np.ones((2, 2, 2)) / 8
        first, second = (fftconvolve(v, box, mode="same")[::2, ::2, ::2] for v in (first, second))
        held = held[::2, ::2, ::2]
    return float(total)


def test_it_is_the_challenges_product_over_five_scales() -> None:
    prediction, target, mask = _pair()
    found = ms_ssim_ct(prediction, target, mask)
    assert found == pytest.approx(_expected(prediction, target, mask), abs=1e-6)
    assert found is not None
    assert 0.5 < found < 0.999


def test_a_perfect_volume_has_1_and_a_worse_one_less() -> None:
    prediction, target, mask = _pair()
    assert ms_ssim_ct(target, target, mask) == pytest.approx(1.0)
    worse = target + 3 * (prediction - target)
    found = [ms_ssim_ct(volume, target, mask) for volume in (prediction, worse)]
    assert found[0] is not None
    assert found[1] is not None
    assert found[1] < found[0] - 0.01


def test_what_lies_outside_the_mask_does_not_count() -> None:
    prediction, target, mask = _pair()
    other = np.where(mask, prediction, 2000.0)
    assert ms_ssim_ct(other, target, mask) == ms_ssim_ct(prediction, target, mask)


def test_a_thin_volume_is_continued_and_one_without_an_inner_voxel_has_none() -> None:
    prediction, target, mask = _pair()
    thin = (slice(40, 60), slice(20, 70), slice(20, 70))
    found = ms_ssim_ct(prediction[thin], target[thin], mask[thin])
    assert found is not None
    assert 0 < found < 1
    corner = np.zeros(SHAPE, dtype=bool)
    corner[0, 0, 0] = True
    assert ms_ssim_ct(prediction, target, corner) is None
    assert CT_RANGE_2025.span == 4095.0
