"""The perceptual distance: what smoothing, flicker and noise cost, and what contrast does not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from lift.metrics.perceptual import perceptual_distance
from lift.metrics.synthrad import CT_RANGE, MR_RANGE, Floats, Mask, psnr_db

SHAPE = (24, 40, 36)


@pytest.fixture(scope="module")
def mask() -> Mask:
    z, y, x = np.meshgrid(*(np.linspace(-1.1, 1.1, n) for n in SHAPE), indexing="ij")
    return np.asarray(z**2 + y**2 + x**2 < 1)


def textured(mask: Mask, seed: int, texture: float = 0.08) -> Floats:
    """A head: the tissue of all seeds is one, its texture is each seed's own."""
    random = np.random.default_rng(seed)
    tissue = gaussian_filter(np.random.default_rng(99).standard_normal(mask.shape), 2.5)
    fine = gaussian_filter(random.standard_normal(mask.shape), 0.7)
    volume = 0.5 + 0.1 * tissue / tissue.std() + texture * fine / fine.std()
    return np.where(mask, np.clip(volume, 0.05, 1.0), 0.0)


def smoothed(volume: Floats, mask: Mask, sigma: float | tuple[float, float, float]) -> Floats:
    """Means of what lies inside: the head's edge stays sharp, which would cost PSNR, too."""
    share = np.maximum(gaussian_filter(mask.astype(float), sigma), 1e-9)
    return np.where(mask, gaussian_filter(volume, sigma) / share, 0.0)


def distance(prediction: Floats, target: Floats, mask: Mask) -> float:
    found = perceptual_distance(prediction, target, mask, MR_RANGE)
    assert found is not None
    return found


def test_smoothing_wins_psnr_and_loses_here(mask: Mask) -> None:
    target, prediction = textured(mask, 0), textured(mask, 1)
    blurred = smoothed(prediction, mask, 1.0)
    own, other = (psnr_db(v, target, mask, MR_RANGE) for v in (prediction, blurred))
    assert other > own + 1.5
    assert distance(blurred, target, mask) > 2 * distance(prediction, target, mask)


def test_more_blur_is_farther(mask: Mask) -> None:
    target = textured(mask, 0)
    found = [distance(smoothed(target, mask, s), target, mask) for s in (0.01, 0.5, 1.0, 2.0)]
    assert found == sorted(found)
    assert found[0] == pytest.approx(0, abs=1e-6)
    assert found[-1] > 0.2


def test_blur_along_depth_alone_is_seen(mask: Mask) -> None:
    target = textured(mask, 0)
    assert distance(smoothed(target, mask, (1.0, 0, 0)), target, mask) > 0.02


def test_at_one_psnr_blur_is_farthest_and_a_gain_nearest(mask: Mask) -> None:
    target = textured(mask, 0)
    noise = 0.05 * np.random.default_rng(5).standard_normal(target.shape)
    volumes = (0.9 * target, target + noise, smoothed(target, mask, 1.0))
    values_db = [psnr_db(volume, target, mask, MR_RANGE) for volume in volumes]
    gained, noisy, blurred = (distance(volume, target, mask) for volume in volumes)
    assert max(values_db) - min(values_db) < 1
    assert 4 * gained < noisy < blurred / 2


def test_other_texture_of_the_same_kind_is_nearer_than_none(mask: Mask) -> None:
    target = textured(mask, 0)
    other, none = textured(mask, 2), textured(mask, 2, texture=0.0)
    assert distance(other, target, mask) < distance(none, target, mask)


def test_nothing_and_everything(mask: Mask) -> None:
    target = textured(mask, 0)
    assert distance(target, target, mask) == 0
    assert 0.8 < distance(np.zeros_like(target), target, mask) <= 1


def test_what_lies_outside_the_mask_does_not_count(mask: Mask) -> None:
    target, prediction = textured(mask, 0), textured(mask, 1)
    rubbish = np.where(mask, prediction, 7.0)
    assert distance(rubbish, target, mask) == distance(prediction, target, mask)


def test_a_wider_grid_changes_nothing(mask: Mask) -> None:
    target, prediction = textured(mask, 0), textured(mask, 1)
    wide: list[Floats] = [np.pad(part, 5) for part in (prediction, target)]
    wider = distance(wide[0], wide[1], np.asarray(np.pad(mask, 5), dtype=np.bool_))
    assert wider == distance(prediction, target, mask)


def test_units_of_ct(mask: Mask) -> None:
    target, prediction = textured(mask, 0), textured(mask, 1)
    in_hu = [CT_RANGE.low + CT_RANGE.span * volume for volume in (prediction, target)]
    found = perceptual_distance(in_hu[0], in_hu[1], mask, CT_RANGE)
    assert found == pytest.approx(distance(prediction, target, mask), rel=1e-4)


def test_a_constant_target_and_a_thin_volume(mask: Mask) -> None:
    flat = np.ones(SHAPE)
    everywhere = np.ones(SHAPE, dtype=bool)
    assert distance(flat, flat, everywhere) == 0
    thin, few = np.ones((3, 5, 40)), np.ones((3, 40, 40))
    assert perceptual_distance(thin, thin, thin, MR_RANGE) is None
    assert perceptual_distance(few, few, few, MR_RANGE) == 0
