"""Thumbnail, texture and spectrum of a box: what they see, and what they must not see."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lift.metrics.descriptors import (
    BANDS,
    FREQUENCIES,
    TEXTURES,
    THUMBNAIL,
    depth_spectrum_db,
    texture,
    thumbnail,
)
from tests.lift.metrics.smooth_volumes import body

SHAPE = (24, 20, 16)


def box(seed: int = 0) -> Tensor:
    return torch.from_numpy(body(seed, SHAPE)).float()


def test_a_thumbnail_is_the_mean_of_each_part() -> None:
    found = thumbnail(box()).reshape(THUMBNAIL)
    expected = box().double().numpy().reshape(12, 2, 10, 2, 8, 2).mean(axis=(1, 3, 5))
    assert found == pytest.approx(expected)


def test_texture_and_spectrum_see_neither_gain_nor_offset() -> None:
    other = 0.3 * box() + 0.2
    assert texture(box()).shape == (TEXTURES,)
    assert texture(other) == pytest.approx(texture(box()), abs=1e-3)
    assert depth_spectrum_db(other) == pytest.approx(depth_spectrum_db(box()), abs=1e-3)
    assert np.abs(thumbnail(other) - thumbnail(box())).max() > 0.1


def test_white_noise_has_one_power_in_all_bands_whatever_its_length() -> None:
    for depth in (20, 48):
        noise = torch.from_numpy(np.random.default_rng(0).normal(size=(depth, 60, 60)))
        # the lowest band is partly of the mean, which is taken away
        assert depth_spectrum_db(noise)[1:] == pytest.approx(np.zeros(BANDS - 1), abs=0.5)


def test_a_wave_along_depth_stands_in_its_own_band_of_that_axis_alone() -> None:
    band = 6
    wave = np.sin(2 * np.pi * FREQUENCIES[band] * np.arange(64))[:, None, None]
    noise = np.random.default_rng(0).normal(size=(64, 32, 32))
    loud = torch.from_numpy(wave + 0.1 * noise)
    assert depth_spectrum_db(loud).argmax() == band
    per_axis = texture(loud).reshape(3, -1)[:, :BANDS]
    assert per_axis[0].argmax() == band
    assert np.ptp(per_axis[1:, 1:]) < 1 < np.ptp(per_axis[0])


def test_texture_by_axis_follows_the_axis() -> None:
    turned = texture(box().movedim(0, 2)).reshape(3, -1)
    # (height, width, depth) for (depth, height, width)
    assert turned[[2, 0, 1]] == pytest.approx(texture(box()).reshape(3, -1))


@pytest.mark.parametrize("shape", [(1, 5, 5), (2, 2, 2), (3, 9, 4)])
def test_constant_and_thin_boxes_have_finite_descriptors(shape: tuple[int, int, int]) -> None:
    for values in (torch.zeros(shape), torch.full(shape, 0.5), torch.rand(shape)):
        for found in (thumbnail(values), texture(values), depth_spectrum_db(values)):
            assert np.isfinite(found).all()
