"""No gradient is longer than the bound, whatever its size, and none stops the step."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lift.privacy.clipping import MARGIN, clip_gradient
from tests.lift.privacy.patients import joint_norm


def make_gradient(scale: float, seed: int = 0, size: int = 2000) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        name: (scale * torch.randn(n, generator=random, dtype=torch.float64)).float()
        for name, n in (("b", size), ("a", 7))
    }


def test_a_gradient_of_norm_five_by_hand() -> None:
    gradient = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([0.0, 4.0])}
    clipped = clip_gradient(gradient, 1.0)
    assert clipped.norm == 5.0
    torch.testing.assert_close(clipped.values["a"], torch.tensor([0.6, 0.0]) * (1 - MARGIN))
    torch.testing.assert_close(clipped.values["b"], torch.tensor([0.0, 0.8]) * (1 - MARGIN))
    assert gradient["a"].tolist() == [3.0, 0.0]


@pytest.mark.parametrize("clip_norm", [1e-20, 1e-3, 0.7, 1e20])
@pytest.mark.parametrize("power", range(-30, 31, 6))
def test_the_float32_result_is_never_longer_than_the_bound(power: int, clip_norm: float) -> None:
    for seed in range(5):
        gradient = make_gradient(10.0**power, seed)
        clipped = clip_gradient(gradient, clip_norm)
        assert {tensor.dtype for tensor in clipped.values.values()} == {torch.float32}
        assert joint_norm(clipped.values) <= clip_norm
        assert clipped.norm == pytest.approx(joint_norm(gradient), rel=1e-12)
        if clipped.norm > clip_norm:
            # not shorter than it need be either
            assert joint_norm(clipped.values) >= clip_norm * (1 - 2 * MARGIN)
            cosine = sum(
                (clipped.values[n].double() * gradient[n].double()).sum() for n in gradient
            )
            assert float(cosine) >= (1 - 1e-6) * joint_norm(clipped.values) * clipped.norm
        if clipped.norm < clip_norm * (1 - MARGIN):
            assert all(torch.equal(clipped.values[name], gradient[name]) for name in gradient)


def test_clipping_in_float32_would_overshoot() -> None:
    def plain(gradient: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        norm = torch.cat([gradient[name] for name in sorted(gradient)]).norm()
        return {name: tensor * (0.7 / norm) for name, tensor in gradient.items()}

    assert max(joint_norm(plain(make_gradient(1.0, seed))) for seed in range(20)) > 0.7


@given(
    values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=20),
    clip_norm=st.floats(1e-20, 1e20),
)
def test_any_finite_gradient_is_bounded(values: list[float], clip_norm: float) -> None:
    clipped = clip_gradient({"a": torch.tensor(values, dtype=torch.float32)}, clip_norm)
    assert math.isfinite(clipped.norm)
    assert joint_norm(clipped.values) <= clip_norm


def test_denormals_and_zeros_are_kept() -> None:
    smallest = torch.tensor([1e-45, -1e-45, 0.0])
    clipped = clip_gradient({"a": smallest}, 1.0)
    assert torch.equal(clipped.values["a"], smallest)
    assert clipped.norm > 0
    zero = clip_gradient({"a": torch.zeros(3)}, 1.0)
    assert zero.norm == 0.0
    assert torch.equal(zero.values["a"], torch.zeros(3))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_counts_as_zero_and_stops_nothing(bad: float) -> None:
    gradient = make_gradient(1.0)
    gradient["a"][3] = bad
    clipped = clip_gradient(gradient, 1.0)
    assert clipped.norm == math.inf
    assert joint_norm(clipped.values) == 0.0
    assert {n: t.shape for n, t in clipped.values.items()} == {
        n: t.shape for n, t in gradient.items()
    }


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, 1e-21, 1e21, math.inf, math.nan])
def test_a_bound_out_of_range_is_refused(clip_norm: float) -> None:
    with pytest.raises(ValueError, match="clip_norm"):
        clip_gradient({"a": torch.ones(2)}, clip_norm)
