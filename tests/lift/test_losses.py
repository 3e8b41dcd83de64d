"""The paired loss: known answers, and patients that do not see one another."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lift.config.plan import LossPlan
from lift.tasks.paired.losses import paired_loss

SHAPE = (4, 1, 5, 6)
PLANS = [
    LossPlan(),
    LossPlan(pixel="l1", scale=1.0, dz_weight=2.0),
    LossPlan(pixel="l2", scale=3.0, dz_weight=0.0),
]
every_plan = pytest.mark.parametrize("plan", PLANS, ids=lambda p: f"{p.pixel}-{p.dz_weight}")
WITH_SIMILARITY = LossPlan(scale=2.0, dz_weight=0.0, ms_ssim_weight=0.5)


def drawn(seed: int, patients: int = 1, shape: tuple[int, ...] = SHAPE) -> tuple[Tensor, ...]:
    """Prediction, target, and a mask with holes."""
    random = torch.Generator().manual_seed(seed)
    prediction, target, dice = (torch.rand(patients, *shape, generator=random) for _ in range(3))
    return prediction, target, (dice > 0.3).float()


def column(values: list[float]) -> Tensor:
    """One voxel on each of some slices, (1, z, 1, 1, 1)."""
    return torch.tensor(values).view(1, -1, 1, 1, 1)


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        # errors 1, 3, -2: squares 1, 9, 4; differences 2, -5: squares 4, 25
        (LossPlan(pixel="l2", scale=1.0, dz_weight=0.0), 14 / 3),
        (LossPlan(pixel="l2", scale=10.0, dz_weight=0.5), 10 * (14 / 3 + 0.5 * 29 / 2)),
        (LossPlan(pixel="l1", scale=1.0, dz_weight=0.0), 6 / 3),
        (LossPlan(pixel="l1", scale=2.0, dz_weight=1.0), 2 * (6 / 3 + 7 / 2)),
    ],
)
def test_three_voxels_by_hand(plan: LossPlan, expected: float) -> None:
    target = column([0.5, 0.25, 0.75])
    loss = paired_loss(target + column([1.0, 3.0, -2.0]), target, column([1, 1, 1]), plan)
    assert loss.shape == (1,)
    assert float(loss[0]) == pytest.approx(expected, rel=1e-6)


def test_a_difference_counts_where_both_of_its_slices_are_in_the_mask() -> None:
    plan = LossPlan(pixel="l2", scale=1.0, dz_weight=1.0)
    errors, nothing = column([1.0, 3.0, -2.0, 4.0]), torch.zeros(1, 4, 1, 1, 1)
    # the third slice is outside: pixels 1, 9, 16; of the three differences only the first is left
    loss = paired_loss(errors, nothing, column([1, 1, 0, 1]), plan)
    assert float(loss[0]) == pytest.approx(26 / 3 + 4.0, rel=1e-6)
    # no pair at all
    loss = paired_loss(errors, nothing, column([1, 0, 1, 0]), plan)
    assert float(loss[0]) == pytest.approx((1 + 4) / 2, rel=1e-6)


@every_plan
def test_the_loss_is_the_mean_of_plain_numpy(plan: LossPlan) -> None:
    prediction, target, mask = drawn(5)
    error = (prediction - target).numpy()[0].astype(np.float64)
    inside = mask.numpy()[0] > 0
    power = 2 if plan.pixel == "l2" else 1
    expected = (np.abs(error[inside]) ** power).mean()
    pairs = inside[1:] & inside[:-1]
    expected += plan.dz_weight * (np.abs(np.diff(error, axis=0)[pairs]) ** power).mean()
    loss = paired_loss(prediction, target, mask, plan)
    assert float(loss[0]) == pytest.approx(plan.scale * expected, rel=1e-5)


@every_plan
@settings(max_examples=15)
@given(seed=st.integers(0, 100))
def test_a_patients_loss_does_not_depend_on_the_others(plan: LossPlan, seed: int) -> None:
    prediction, target, mask = drawn(seed, patients=3)
    mask[1] *= 0.0  # a patient without a single voxel among them
    together = paired_loss(prediction, target, mask, plan)
    for row in range(3):
        one = slice(row, row + 1)
        alone = paired_loss(prediction[one], target[one], mask[one], plan)
        torch.testing.assert_close(alone, together[one], rtol=1e-6, atol=0)
    assert float(together[1]) == 0.0
    assert float(together[0]) > 0.0


@every_plan
def test_a_patients_gradient_is_its_own(plan: LossPlan) -> None:
    prediction, target, mask = drawn(1, patients=2)
    prediction.requires_grad_()
    (gradient,) = torch.autograd.grad(paired_loss(prediction, target, mask, plan)[0], prediction)
    assert bool(gradient[0].any())
    assert not bool(gradient[1].any())


@every_plan
def test_voxels_outside_the_mask_have_no_influence(plan: LossPlan) -> None:
    prediction, target, mask = drawn(2)
    outside = mask == 0
    other = torch.where(outside, 7.0 - prediction, prediction).requires_grad_()
    loss = paired_loss(other, torch.where(outside, -3.0 * target, target), mask, plan)
    assert torch.equal(loss, paired_loss(prediction, target, mask, plan))
    (gradient,) = torch.autograd.grad(loss.sum(), other)
    assert not bool(gradient[outside].any())
    assert bool(gradient[~outside].any())


@every_plan
def test_equal_volumes_lose_nothing(plan: LossPlan) -> None:
    _, target, mask = drawn(3)
    assert float(paired_loss(target, target, mask, plan)[0]) == 0.0


@every_plan
def test_one_slice_has_no_difference_along_depth(plan: LossPlan) -> None:
    prediction, target, mask = drawn(4, shape=(1, 1, 5, 6))
    without = plan.model_copy(update={"dz_weight": 0.0})
    assert torch.equal(
        paired_loss(prediction, target, mask, plan), paired_loss(prediction, target, mask, without)
    )


def smooth(seed: int, patients: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Images with structure at several scales, 64 x 64, and a mask that is a disc."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(patients * 2, 1, 8, 8, generator=random)
    image = torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bilinear")
    image = (image + 0.1 * torch.rand(image.shape, generator=random)).clamp(0, 1)
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    disc = ((y - 32) ** 2 + (x - 30) ** 2 < 26**2).float()
    image = image.view(patients, 2, 1, 64, 64)
    noise = 0.2 * torch.rand(image.shape, generator=random)
    return (image + noise).clamp(0, 1), image, disc.expand_as(image).contiguous()


def similarity_term(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    plain = WITH_SIMILARITY.model_copy(update={"ms_ssim_weight": 0.0})
    whole = paired_loss(prediction, target, mask, WITH_SIMILARITY)
    return (whole - paired_loss(prediction, target, mask, plain)) / (
        WITH_SIMILARITY.scale * WITH_SIMILARITY.ms_ssim_weight
    )


def test_the_similarity_term_is_0_for_equal_volumes_and_grows_with_the_error() -> None:
    prediction, target, mask = smooth(0)
    assert float(similarity_term(target, target, mask).abs().max()) < 1e-6
    near = similarity_term(target + 0.2 * (prediction - target), target, mask)
    far = similarity_term(prediction, target, mask)
    assert bool((near > 1e-4).all())
    assert bool((far > near).all())
    assert bool((far < 1).all())


def test_the_similarity_term_is_the_published_product_over_three_scales() -> None:
    prediction, target, mask = smooth(1, patients=1)
    x, y = (prediction * mask).numpy()[0, :, 0], (target * mask).numpy()[0, :, 0]

    def windows(image: np.ndarray) -> np.ndarray:
        view = np.lib.stride_tricks.sliding_window_view(image.astype(np.float64), (7, 7))
        return view.reshape(*view.shape[:2], -1)

    def halved(image: np.ndarray) -> np.ndarray:
        rows, columns = image.shape
        halves: np.ndarray = image.reshape(rows // 2, 2, columns // 2, 2).mean((1, 3))
        return halves

    exponents = np.array([0.0448, 0.2856, 0.3001])
    exponents /= exponents.sum()
    values = []
    for one, other in zip(x, y, strict=True):
        product, a, b = 1.0, one, other
        for scale, exponent in enumerate(exponents):
            p, q = windows(a), windows(b)
            covariance = ((p - p.mean(-1, keepdims=True)) * (q - q.mean(-1, keepdims=True))).mean(
                -1
            )
            level = (2 * covariance + 0.03**2) / (p.var(-1) + q.var(-1) + 0.03**2)
            if scale == 2:
                means = p.mean(-1), q.mean(-1)
                level = level * (
                    (2 * means[0] * means[1] + 0.01**2) / (means[0] ** 2 + means[1] ** 2 + 0.01**2)
                )
            product *= level.mean() ** exponent
            a, b = halved(a), halved(b)
        values.append(product)
    expected = 1 - np.mean(values)
    term = float(similarity_term(prediction, target, mask)[0])
    assert term == pytest.approx(expected, abs=1e-4)


def test_the_similarity_term_is_deterministic_and_its_gradient_finite_and_inside() -> None:
    prediction, target, mask = smooth(2)
    prediction.requires_grad_()
    first = paired_loss(prediction, target, mask, WITH_SIMILARITY)
    second = paired_loss(prediction, target, mask, WITH_SIMILARITY)
    assert torch.equal(first, second)
    (gradient,) = torch.autograd.grad(first[0], prediction)
    (again,) = torch.autograd.grad(second[0], prediction)
    assert torch.equal(gradient, again)
    assert bool(torch.isfinite(gradient).all())
    assert bool(gradient[0].any())
    assert not bool(gradient[1].any())
    assert not bool(gradient[mask == 0].any())


def test_an_empty_mask_loses_nothing_with_the_similarity_term_too() -> None:
    prediction, target, mask = smooth(3, patients=1)
    loss = paired_loss(prediction, target, torch.zeros_like(mask), WITH_SIMILARITY)
    assert float(loss[0]) == pytest.approx(0.0, abs=1e-6)
