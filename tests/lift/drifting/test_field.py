"""The drift field: against its equations, and its laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lift.tasks.unconditional.drifting.field import (
    TEMPERATURES,
    drift_field,
    mean_shift,
    normalised_sum,
)
from tests.lift.drifting.official_field import official_force

SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.integers(1, 7)


def points(seed: int, n: int, d: int = 5) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(
    seed=SEEDS,
    n=SIZES,
    m=SIZES,
    k=st.integers(0, 4),
    weighted=st.booleans(),
    mask=st.booleans(),
)
def test_the_field_is_the_official_one(
    seed: int, n: int, m: int, k: int, weighted: bool, mask: bool
) -> None:
    x, y, u = points(seed, n), points(seed + 1, m) + 0.5, points(seed + 2, k)
    weights = [points(seed + 3 + i, size, 1)[:, 0].exp() for i, size in enumerate((n, k, m))]
    if not weighted:
        weights = [torch.ones_like(weight) for weight in weights]
    drift = drift_field(
        x,
        y,
        negatives=u,
        generated_weights=weights[0],
        negative_weights=weights[1],
        positive_weights=weights[2],
        mask_self=mask,
    )
    force, rms, unit = official_force(
        x.numpy(),
        u.numpy(),
        y.numpy(),
        (weights[0].numpy(), weights[1].numpy(), weights[2].numpy()),
        TEMPERATURES,
        100.0 if mask else 0.0,
    )
    np.testing.assert_allclose(drift.rms.numpy(), rms, rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(drift.force.numpy(), force, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(drift.goal.numpy(), x.numpy() + force, rtol=1e-5, atol=1e-5)
    assert float(drift.unit) == pytest.approx(unit)


def test_float32_gives_the_official_field_to_1e_5() -> None:
    x, y = points(1, 16, 24), points(2, 48, 24) + 0.2
    drift = drift_field(x.float(), y.float())
    ones = (np.ones(16), np.ones(0), np.ones(48))
    force, _, _ = official_force(x.numpy(), np.zeros((0, 24)), y.numpy(), ones, TEMPERATURES)
    scale = float(np.abs(force).max())
    np.testing.assert_allclose(drift.force.numpy() / scale, force / scale, rtol=0, atol=1e-5)


@given(seed=SEEDS, n=SIZES, m=SIZES)
def test_swapping_positives_and_negatives_turns_the_force_around(seed: int, n: int, m: int) -> None:
    x, y, u = points(seed, n), points(seed + 1, m), points(seed + 2, m + 1)
    silent = torch.zeros(n)
    one = drift_field(x, y, negatives=u, generated_weights=silent)
    other = drift_field(x, u, negatives=y, generated_weights=silent)
    torch.testing.assert_close(one.raw, -other.raw, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(one.force, -other.force, rtol=1e-6, atol=1e-9)


@given(seed=SEEDS, n=SIZES, m=SIZES)
def test_equal_positives_and_negatives_give_no_force(seed: int, n: int, m: int) -> None:
    x, y = points(seed, n), points(seed + 1, m)
    drift = drift_field(x, y, negatives=y, generated_weights=torch.zeros(n))
    assert float(drift.raw.abs().max()) < 1e-12


@given(seed=SEEDS, n=SIZES)
def test_without_the_mask_equal_sets_give_no_force(seed: int, n: int) -> None:
    x = points(seed, n)
    assert float(drift_field(x, x.flip(0), mask_self=False).raw.abs().max()) < 1e-12


def test_the_masked_self_distance_is_why_equal_sets_still_give_a_small_force() -> None:
    x = points(3, 64, 3)
    equal, apart = drift_field(x, x.clone()), drift_field(x, x + 2)
    assert (equal.rms > 0).all()
    # at the lower temperatures each point mostly sees its own copy, whatever the sets
    assert float(equal.rms[-1]) < 0.25 * float(apart.rms[-1])


@given(seed=SEEDS, n=SIZES, m=SIZES)
def test_the_order_of_points_has_no_influence(seed: int, n: int, m: int) -> None:
    x, y = points(seed, n), points(seed + 1, m)
    random = torch.Generator().manual_seed(seed)
    of_x = torch.randperm(n, generator=random)
    of_y = torch.randperm(m, generator=random)
    whole, mixed = drift_field(x, y), drift_field(x[of_x], y[of_y])
    torch.testing.assert_close(mixed.force, whole.force[of_x], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(mixed.rms, whole.rms, rtol=1e-8, atol=1e-10)


@given(seed=SEEDS, factor=st.floats(0.1, 50))
def test_forces_move_and_scale_with_the_points(seed: int, factor: float) -> None:
    x, y, shift = points(seed, 6), points(seed + 1, 9), points(seed + 2, 1)
    drift = drift_field(x, y)
    moved = drift_field(x + shift, y + shift)
    scaled = drift_field(factor * x, factor * y)
    torch.testing.assert_close(moved.force, drift.force, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(scaled.force, factor * drift.force, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(scaled.rms, drift.rms, rtol=1e-7, atol=1e-10)


def test_points_far_away_are_pulled_to_the_positives() -> None:
    x, y = points(4, 16) + 5, points(5, 32)
    force = drift_field(x, y).force
    direction = y.mean(0) - x
    cosine = torch.nn.functional.cosine_similarity(force, direction, dim=1)
    assert (cosine > 0.7).all()


def test_the_field_carries_no_gradient() -> None:
    x = points(6, 4).requires_grad_()
    assert not drift_field(x, points(7, 4)).force.requires_grad


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (torch.zeros(0, 3), torch.zeros(2, 3)),
        (torch.zeros(2, 3), torch.zeros(0, 3)),
        (torch.zeros(2, 3), torch.zeros(2, 4)),
        (torch.zeros(2), torch.zeros(2)),
    ],
)
def test_points_that_do_not_fit_are_refused(x: Tensor, y: Tensor) -> None:
    with pytest.raises(ValueError, match="point"):
        drift_field(x, y)


@given(seed=SEEDS, n=SIZES, m=SIZES, width=st.floats(0.2, 3))
def test_the_mean_shift_follows_its_definition(seed: int, n: int, m: int, width: float) -> None:
    x, y = points(seed, n), points(seed + 1, m)
    w = points(seed + 2, m, 1)[:, 0].exp()
    expected = np.zeros((n, 5))
    for i in range(n):
        k = np.array(
            [
                float(w[j]) * np.exp(-float((x[i] - y[j]).square().sum()) / (2 * width**2))
                for j in range(m)
            ]
        )
        if k.sum() < 1e-200:
            return
        expected[i] = (k[:, None] * (y.numpy() - x[i].numpy())).sum(0) / k.sum()
    result = mean_shift(x, y, w, (width,))
    np.testing.assert_allclose(result[0].numpy(), expected, rtol=1e-7, atol=1e-9)


def test_the_mean_shift_is_a_score_of_the_smoothed_density() -> None:
    x, y = points(1, 4).requires_grad_(), points(2, 9)
    s = 0.7
    density = torch.exp(-torch.cdist(x, y).square() / (2 * s**2)).mean(1)
    (score,) = torch.autograd.grad(density.log().sum(), x)
    torch.testing.assert_close(mean_shift(x.detach(), y, torch.ones(9), (s,))[0], s**2 * score)


def test_far_away_the_mean_shift_is_the_step_to_the_nearest() -> None:
    y = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    result = mean_shift(torch.tensor([[100.0, 0.0]]), y, torch.tensor([1.0, 1e-3]), (0.1,))
    torch.testing.assert_close(result, torch.tensor([[[-99.0, 0.0]]]))


def test_points_without_weight_have_no_influence() -> None:
    x, y = points(1, 4), points(2, 6)
    weights = torch.tensor([1.0, 2.0, 0.0, 1.0, 0.0, 0.5], dtype=torch.float64)
    some = weights > 0
    torch.testing.assert_close(
        mean_shift(x, y, weights, (0.5, 1.0)), mean_shift(x, y[some], weights[some], (0.5, 1.0))
    )
    with pytest.raises(ValueError, match="positive weight"):
        mean_shift(x, y, torch.zeros(6), (0.5,))


def test_every_width_has_the_same_say_and_zero_stays_zero() -> None:
    forces = torch.stack([points(1, 5), 1e-3 * points(2, 5), torch.zeros(5, 5)])
    total, rms = normalised_sum(forces)
    parts = [part / part.square().sum(1).mean().sqrt() for part in forces[:2]]
    torch.testing.assert_close(total, parts[0] + parts[1])
    assert float(rms[2]) == 0
