"""The z-filter: its differences, its exact sums, its fit, and the median beside it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lift.errors import DataError, VolumeError
from lift.mixer.differences import SHIFTS, replicate_depth, z_differences
from lift.mixer.z_filter import (
    NormalEquations,
    apply_z_filter,
    fit,
    normal_equations,
    z_median,
)

SEEDS = st.integers(0, 2**32 - 1)
DEPTHS = st.integers(1, 9)


def volume(seed: int, depth: int, size: tuple[int, int] = (4, 3)) -> tuple[Tensor, Tensor, Tensor]:
    """Prediction, target and mask of one patient, each (z, 1, h, w)."""
    random = torch.Generator().manual_seed(seed)
    shape = (depth, 1, *size)
    mask = (torch.rand(shape, generator=random) > 0.3).float()
    return torch.rand(shape, generator=random), torch.rand(shape, generator=random), mask


def naive_differences(v: Tensor, mask: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """By the definition, voxel by voxel: (z, 1, h, w) -> (6, z, h, w)."""
    depth, _, h, w = v.shape
    result = np.zeros((6, depth, h, w))
    for (i, k), d, y, x in itertools.product(enumerate(SHIFTS), range(depth), range(h), range(w)):
        if 0 <= d + k < depth and mask[d, 0, y, x] > 0 and mask[d + k, 0, y, x] > 0:
            result[i, d, y, x] = v[d + k, 0, y, x] - v[d, 0, y, x]
    return result


@given(seed=SEEDS, depth=DEPTHS)
def test_differences_follow_their_definition_and_ignore_what_lies_outside(
    seed: int, depth: int
) -> None:
    v, other, mask = volume(seed, depth)
    expected = naive_differences(v, mask)
    two_channels = torch.cat([v, other], dim=1)
    dirty = torch.where(mask > 0, two_channels, torch.nan)
    result = z_differences(dirty[None], mask[None])[0]
    assert result.shape == (depth, 12, 4, 3)
    np.testing.assert_allclose(result[:, 0::2].movedim(1, 0).numpy(), expected, atol=1e-7)
    of_other = naive_differences(other, mask)
    np.testing.assert_allclose(result[:, 1::2].movedim(1, 0).numpy(), of_other, atol=1e-7)


def test_differences_are_differentiable() -> None:
    v, _, mask = volume(1, 5, (2, 2))
    v = v[None].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda t: z_differences(t, mask[None].double()), v)


@given(seed=SEEDS, depths=st.lists(st.integers(1, 5), min_size=1, max_size=3))
def test_volumes_continue_with_their_own_last_valid_slice(seed: int, depths: list[int]) -> None:
    h = torch.randn(len(depths), 2, 5, 2, 2, generator=torch.Generator().manual_seed(seed))
    result = replicate_depth(h, torch.tensor(depths), 2)
    assert result.shape == (len(depths), 2, 9, 2, 2)
    for row, depth in enumerate(depths):
        for d in range(-2, 7):
            expected = h[row, :, min(max(d, 0), depth - 1)]
            assert torch.equal(result[row, :, d + 2], expected)


@given(seed=SEEDS, depth=st.integers(1, 20))
def test_normal_equations_are_the_means_over_the_mask(seed: int, depth: int) -> None:
    pred, target, mask = volume(seed, depth)
    inside = mask[:, 0].numpy() > 0
    d = naive_differences(pred, mask)[:, inside]
    residual = (target.double() - pred.double())[:, 0].numpy()[inside]
    count = max(int(inside.sum()), 1)
    dirty = torch.where(mask > 0, target, torch.nan)
    equations = normal_equations(torch.where(mask > 0, pred, torch.nan), dirty, mask)
    assert equations.voxels == int(inside.sum())
    assert equations.patients == 1
    assert torch.equal(equations.a, equations.a.T)
    np.testing.assert_allclose(equations.a.numpy(), d @ d.T / count, rtol=0, atol=1e-7)
    np.testing.assert_allclose(equations.b.numpy(), d @ residual / count, rtol=0, atol=1e-7)


@given(seed=SEEDS, order=st.permutations(range(6)), cuts=st.sets(st.integers(1, 5)))
def test_sums_are_exact_however_the_cohort_is_split(
    seed: int, order: list[int], cuts: set[int]
) -> None:
    patients = [normal_equations(*volume(seed + i, 3 + i)) for i in range(6)]
    whole = NormalEquations.zero()
    for patient in patients:
        whole += patient
    bounds = [0, *sorted(cuts), 6]
    total = NormalEquations.zero()
    a, b = torch.zeros(6, 6, dtype=torch.int64), torch.zeros(6, dtype=torch.int64)
    for low, high in itertools.pairwise(bounds):
        site = NormalEquations.zero()
        for index in order[low:high]:
            site += patients[index]
        units = site.to_fixed_point()
        a, b, total = a + units[0], b + units[1], total + site
    by_units = NormalEquations.from_fixed_point(a, b, voxels=total.voxels, patients=total.patients)
    for result in (total, by_units):
        assert torch.equal(result.a, whole.a)
        assert torch.equal(result.b, whole.b)
        assert (result.voxels, result.patients) == (whole.voxels, 6)
    assert torch.equal(fit(by_units, 1e-3), fit(whole, 1e-3))


def test_fixed_point_refuses_what_int64_could_not_sum() -> None:
    huge = NormalEquations(
        torch.full((6, 6), 1e6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64), 1, 1
    )
    with pytest.raises(DataError, match="normalised"):
        huge.to_fixed_point()
    assert huge.to_fixed_point(scale=1)[0][0, 0] == 1_000_000


@pytest.mark.parametrize("which", [0, 1])
def test_a_nan_inside_the_mask_is_refused(which: int) -> None:
    images = list(volume(0, 5))
    images[which][2, 0, 1, 1] = torch.nan
    images[2][2, 0, 1, 1] = 1
    with pytest.raises(VolumeError, match="NaN"):
        normal_equations(images[0], images[1], images[2])


def test_equations_of_unequal_shapes_are_refused() -> None:
    pred, target, mask = volume(0, 5)
    with pytest.raises(ValueError, match="share one shape"):
        normal_equations(pred, target[:4], mask)


def test_the_fit_finds_the_filter_that_made_the_target() -> None:
    pred, _, mask = volume(2, 40, (12, 12))
    taps = torch.tensor([0.05, -0.1, 0.3, 0.2, 0.1, -0.05], dtype=torch.float64)
    target = apply_z_filter(pred, mask, taps)
    found = fit(normal_equations(pred, target, mask), 1e-9)
    torch.testing.assert_close(found, taps, rtol=0, atol=1e-6)
    torch.testing.assert_close(apply_z_filter(pred, mask, found), target, rtol=0, atol=1e-6)


@given(seed=SEEDS, ridge=st.sampled_from([1e-6, 1e-3, 1.0]))
def test_the_fit_is_the_ridge_regression(seed: int, ridge: float) -> None:
    pred, target, mask = volume(seed, 12)
    inside = mask[:, 0].numpy() > 0
    d = naive_differences(pred, mask)[:, inside].T / np.sqrt(inside.sum())
    residual = (target.double() - pred.double())[:, 0].numpy()[inside] / np.sqrt(inside.sum())
    penalty = np.sqrt(ridge * np.mean(np.sum(d**2, axis=0)))
    stacked = np.vstack([d, penalty * np.eye(6)])
    expected = np.linalg.lstsq(stacked, np.concatenate([residual, np.zeros(6)]))[0]
    found = fit(normal_equations(pred, target, mask), ridge)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-4)


@given(seed=SEEDS, copies=st.integers(2, 5))
def test_copies_of_a_cohort_give_the_same_filter(seed: int, copies: int) -> None:
    one = normal_equations(*volume(seed, 8))
    many = NormalEquations.zero()
    for _ in range(copies):
        many += one
    torch.testing.assert_close(fit(many, 1e-3), fit(one, 1e-3), rtol=1e-9, atol=1e-12)


def test_a_patient_counts_once_however_large() -> None:
    pred, target, mask = volume(3, 6)
    wide = [torch.cat([image] * 4, dim=-1) for image in (pred, target, mask)]
    one, large = normal_equations(pred, target, mask), normal_equations(wide[0], wide[1], wide[2])
    torch.testing.assert_close(one.a, large.a, rtol=0, atol=1e-11)
    assert large.voxels == 4 * one.voxels


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_few_slices_give_finite_taps(depth: int) -> None:
    taps = fit(normal_equations(*volume(4, depth)), 1e-3)
    assert torch.isfinite(taps).all()
    reachable = torch.tensor([abs(shift) < depth for shift in SHIFTS])
    assert (taps[~reachable] == 0).all()
    assert (taps[reachable] != 0).all()


def test_a_constant_prediction_gives_no_filter() -> None:
    pred, target, mask = volume(5, 6)
    assert torch.equal(
        fit(normal_equations(torch.full_like(pred, 0.5), target, mask), 1e-3),
        torch.zeros(6, dtype=torch.float64),
    )
    empty = normal_equations(pred, target, torch.zeros_like(mask))
    assert empty.voxels == 0
    assert torch.equal(fit(empty, 1e-3), torch.zeros(6, dtype=torch.float64))


def test_sums_that_are_not_finite_are_not_fitted() -> None:
    equations = normal_equations(*volume(6, 6))
    equations.b[2] = torch.inf
    with pytest.raises(DataError, match="finite"):
        fit(equations, 1e-3)


@given(seed=SEEDS)
def test_the_fitted_filter_never_harms_the_patients_it_was_fitted_on(seed: int) -> None:
    pred, target, mask = volume(seed, 7)
    filtered = apply_z_filter(pred, mask, fit(normal_equations(pred, target, mask), 1e-3))

    def error(image: Tensor) -> float:
        return float((mask * (image - target).square()).double().sum())

    assert error(filtered) <= error(pred) + 1e-6


@given(seed=SEEDS, depth=DEPTHS)
def test_the_filter_follows_its_definition_and_changes_nothing_outside(
    seed: int, depth: int
) -> None:
    pred, _, mask = volume(seed, depth)
    taps = torch.linspace(-0.2, 0.3, 6, dtype=torch.float64)
    result = apply_z_filter(pred, mask, taps)
    expected = pred[:, 0].numpy() + np.tensordot(taps.numpy(), naive_differences(pred, mask), 1)
    np.testing.assert_allclose(result[:, 0].numpy(), expected, atol=1e-6)
    assert torch.equal(result[mask == 0], pred[mask == 0])


@given(seed=SEEDS, depth=DEPTHS, size=st.sampled_from([1, 3, 5]))
def test_the_median_is_taken_inside_the_mask_only(seed: int, depth: int, size: int) -> None:
    pred, _, mask = volume(seed, depth)
    result = z_median(torch.where(mask > 0, pred, 1e6), mask, size)
    holes = np.where(mask.numpy() > 0, pred.numpy(), np.nan)
    for d, y, x in itertools.product(range(depth), range(4), range(3)):
        if mask[d, 0, y, x] > 0:
            near = holes[max(0, d - size // 2) : d + size // 2 + 1, 0, y, x]
            assert float(result[d, 0, y, x]) == pytest.approx(np.nanmedian(near), abs=1e-7)
        else:
            assert float(result[d, 0, y, x]) == 1e6


@pytest.mark.parametrize("size", [0, 2, -1])
def test_the_median_of_an_even_number_of_slices_is_refused(size: int) -> None:
    pred, _, mask = volume(0, 3)
    with pytest.raises(ValueError, match="odd"):
        z_median(pred, mask, size)
