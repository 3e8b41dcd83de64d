"""The laws of distances between point sets, against closed forms and brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity

from lift.metrics import ms_ssim as similarity
from lift.metrics.ms_ssim import SMALLEST_SIDE, WINDOW, ms_ssim
from lift.metrics.point_sets import (
    KERNEL_WIDTHS,
    LARGEST_RATIO,
    descriptors,
    expected_nearest,
    frechet_distance,
    kernel_matrix,
    mean_off_diagonal,
    mmd_squared,
    nearest_ratios,
    order_correlations,
)
from lift.metrics.synthrad import Floats


def gaussian(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).normal(size=shape)


def test_frechet_of_shifted_points_is_the_square_of_the_shift() -> None:
    rows = gaussian(0, 40, 6)
    shift = np.array([1.0, -2.0, 0.5, 0.0, 0.0, 3.0])
    expected = np.square(shift).sum()
    assert frechet_distance(rows, rows + shift) == pytest.approx(expected, rel=1e-6)


def test_frechet_of_scaled_points_is_that_of_their_standard_deviations() -> None:
    rows = gaussian(1, 40, 6)
    rows -= rows.mean(0)
    expected = 4 * np.cov(rows.T).trace()  # (3 - 1)^2 tr C
    assert frechet_distance(rows, 3 * rows) == pytest.approx(expected, rel=1e-9)


def test_frechet_is_the_textbook_formula_for_each_group() -> None:
    a, b = gaussian(2, 3, 50, 5), gaussian(3, 3, 30, 5) @ gaussian(4, 3, 5, 5)
    for group, found in enumerate(frechet_distance(a, b)):
        first, second = np.cov(a[group].T), np.cov(b[group].T)
        mean = np.square(a[group].mean(0) - b[group].mean(0)).sum()
        expected = mean + np.trace(first + second - 2 * np.real(sqrtm(first @ second)))
        assert found == pytest.approx(expected, rel=1e-6)


def test_frechet_is_zero_for_a_permutation_and_never_negative_for_too_few_rows() -> None:
    rows = gaussian(5, 4, 12)  # rank 3 of 12
    assert 0 <= frechet_distance(rows, rows[::-1]) < 1e-6
    assert frechet_distance(rows, gaussian(6, 4, 12)) > 1


def test_frechet_falls_with_the_number_of_rows_for_one_source() -> None:
    few, many = (
        np.mean([frechet_distance(gaussian(i, n, 8), gaussian(i + 50, n, 8)) for i in range(10)])
        for n in (12, 120)
    )
    assert few > 5 * many


def test_mmd_is_the_brute_force_mean_over_pairs_of_different_volumes() -> None:
    a, b = gaussian(7, 2, 4, 3, 5) / 3, gaussian(8, 2, 6, 3, 5) / 3 + 0.2

    def kernel(x: Floats, y: Floats) -> float:
        square = np.square(x - y).sum()
        return float(np.mean([np.exp(-square / (2 * s * s)) for s in KERNEL_WIDTHS]))

    def mean(own: Floats, other: Floats, *, same: bool) -> float:
        pairs = [
            kernel(own[i, w], other[j, v])
            for i, j in itertools.product(range(len(own)), range(len(other)))
            if not (same and i == j)
            for w, v in itertools.product(range(3), repeat=2)
        ]
        return float(np.mean(pairs))

    expected = np.mean(
        [
            mean(x, x, same=True) + mean(y, y, same=True) - 2 * mean(x, y, same=False)
            for x, y in zip(a, b, strict=True)
        ]
    )
    found = mmd_squared(kernel_matrix(a, a), kernel_matrix(b, b), kernel_matrix(a, b))
    assert found == pytest.approx(expected, rel=1e-9)


def _mmd(seed: int, shift: float) -> float:
    # windows of one volume lie near each other, as those of real volumes do
    centres = gaussian(seed, 1, 16, 1, 4) / 3
    rows = centres + gaussian(seed + 1000, 1, 16, 2, 4) / 20
    a, b = rows[:, :6], rows[:, 6:] + shift
    return mmd_squared(kernel_matrix(a, a), kernel_matrix(b, b), kernel_matrix(a, b))


def test_mmd_is_unbiased_for_sets_of_any_size_and_sees_a_shift() -> None:
    same = np.array([_mmd(seed, 0.0) for seed in range(200)])
    assert abs(same.mean()) < 3 * same.std() / np.sqrt(len(same))
    assert (same < 0).mean() > 0.3
    assert np.mean([_mmd(seed, 0.3) for seed in range(20)]) > 5 * same.std() / np.sqrt(len(same))


def test_mean_off_diagonal_passes_over_what_is_unknown() -> None:
    matrix = np.array([[9.0, 1.0, np.nan], [2.0, 9.0, np.nan], [np.nan, 6.0, 9.0]])
    assert mean_off_diagonal(matrix) == 3.0
    assert np.isnan(mean_off_diagonal(np.array([[1.0]])))


def test_a_descriptor_holds_all_of_its_own_volume() -> None:
    points = gaussian(9, 3, 5, 2, 4)
    assert np.array_equal(np.sort(descriptors(points)[2]), np.sort(points[:, 2].ravel()))


def test_expected_nearest_is_the_mean_over_all_subsets() -> None:
    distances = np.random.default_rng(1).uniform(size=(3, 7))
    for size in range(1, 8):
        subsets = itertools.combinations(range(7), size)
        expected = np.mean([distances[:, list(s)].min(axis=1) for s in subsets], axis=0)
        assert expected_nearest(distances, size) == pytest.approx(expected)
    for size in (0, 8):
        with pytest.raises(ValueError, match="candidates"):
            expected_nearest(distances, size)


def _ratio(n_training: int, n_held_out: int, *, copied: bool) -> float:
    training, held_out = gaussian(10, n_training, 3), gaussian(11, n_held_out, 3)
    made = training[:12] + 0.02 * gaussian(12, 12, 3) if copied else gaussian(13, 400, 3)

    def distances(a: Floats, b: Floats) -> Floats:
        return np.asarray(np.linalg.norm(a[:, None] - b[None], axis=2))

    ratios = nearest_ratios(
        distances(made, training), distances(made, held_out), distances(held_out, training)
    )
    return float(np.median(ratios))


@pytest.mark.parametrize(("n_training", "n_held_out"), [(60, 60), (300, 40), (40, 300)])
def test_nearest_ratio_is_one_for_fresh_points_and_small_for_copies_whatever_the_numbers(
    n_training: int, n_held_out: int
) -> None:
    assert _ratio(n_training, n_held_out, copied=False) == pytest.approx(1, abs=0.15)
    assert _ratio(n_training, n_held_out, copied=True) < 0.3


def test_nearest_ratio_of_a_held_out_volume_is_finite() -> None:
    zero, one = np.zeros((1, 1)), np.ones((1, 1))
    assert nearest_ratios(one, zero, one) == [LARGEST_RATIO]


def test_order_correlation_is_spearmans_with_the_place_of_greatest_likeness() -> None:
    places = gaussian(14, 8, 30)
    order = [1, 0, 2, 5, 4, 3, 3, 7]
    stack = places[order] * 2.5 + 0.7  # gain and offset do not matter
    assert order_correlations(stack[None], places) == pytest.approx(
        [spearmanr(order, range(8)).statistic]
    )


def test_order_correlation_tells_straight_reversed_and_uniform_stacks() -> None:
    places = gaussian(15, 8, 30)
    stacks = np.stack([places, places[::-1], places[[3] * 8], np.zeros_like(places)])
    assert order_correlations(stacks, places) == pytest.approx([1, -1, 0, 0])


def images(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).uniform(size=shape))


def test_ms_ssim_is_one_for_equal_images_symmetric_and_low_for_noise() -> None:
    a, b = images(1, 5, 2, 32, 40), images(2, 5, 2, 32, 40)
    assert ms_ssim(a, a).numpy() == pytest.approx(1)
    assert ms_ssim(a, b).numpy() == pytest.approx(ms_ssim(b, a).numpy())
    assert float(ms_ssim(a, b).max()) < 0.4
    assert bool((ms_ssim(a, 1 - a) >= 0).all())


def test_the_terms_of_ms_ssim_are_those_of_scikit_image() -> None:
    a, b = images(3, 1, 1, 30, 31), images(4, 1, 1, 30, 31)
    luminance, structure = similarity._terms(a, b)
    _, expected = structural_similarity(
        a[0, 0].numpy(),
        b[0, 0].numpy(),
        win_size=WINDOW,
        data_range=1.0,
        use_sample_covariance=False,
        full=True,
    )
    border = WINDOW // 2
    inner = expected[border:-border, border:-border]
    assert (luminance * structure)[0, 0].numpy() == pytest.approx(inner, abs=1e-9)


def test_ms_ssim_refuses_images_without_three_scales() -> None:
    small = torch.zeros(1, 1, SMALLEST_SIDE - 1, 64)
    with pytest.raises(ValueError, match="sides"):
        ms_ssim(small, small)
