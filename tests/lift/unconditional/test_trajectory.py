"""The trajectory mapper: it starts inside the prior, and slices are points of one curve."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lift.config.plan import MapperPlan
from lift.mixer.trajectory import TrajectoryMapper, position_code, slice_positions

SLICE_LATENT = 12


def mapper(**changes: int) -> TrajectoryMapper:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(4)
        return TrajectoryMapper(MapperPlan(**changes), SLICE_LATENT)


def latents(made: TrajectoryMapper, volumes: int, slices: int, seed: int = 0) -> torch.Tensor:
    noise = made.draw(volumes, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        found: torch.Tensor = made(noise, slice_positions(slices))
    return found


def test_it_starts_inside_the_latent_prior() -> None:
    found = latents(mapper(), 400, 9)
    spread = found.std(0)
    assert found.shape == (400, 9, SLICE_LATENT)
    # collapsed latents, or ones far outside, give the loss nothing to pull at
    assert float(spread.min()) > 0.4
    assert float(spread.max()) < 1.2
    assert float(found.mean((0, 1)).abs().max()) < 0.5


def test_slices_of_a_volume_share_its_latent_and_volumes_differ() -> None:
    found = latents(mapper(), 200, 9)
    within = (found[:, 0] - found[:, 8]).square().mean()
    between = (found[:100, 0] - found[100:, 0]).square().mean()
    assert float(within) < 0.6 * float(between)


@given(st.integers(2, 40), st.integers(1, 5))
def test_any_number_of_slices_lie_on_one_curve(slices: int, factor: int) -> None:
    made = mapper()
    coarse = latents(made, 2, slices)
    fine = latents(made, 2, factor * (slices - 1) + 1)
    torch.testing.assert_close(fine[:, ::factor], coarse, atol=1e-5, rtol=1e-5)


def test_neighbours_are_near_however_thin_the_slices() -> None:
    found = latents(mapper(), 20, 400)
    step = (found[:, 1:] - found[:, :-1]).square().mean().sqrt()
    far = (found[:, 200:] - found[:, :200]).square().mean().sqrt()
    assert float(step) < 0.02 * float(far) + 0.02


def test_one_seed_one_volume_whatever_the_number_of_volumes() -> None:
    made = mapper()
    torch.testing.assert_close(latents(made, 1, 5, seed=9), latents(made, 1, 5, seed=9))
    assert not torch.equal(latents(made, 1, 5, seed=9), latents(made, 1, 5, seed=10))


def test_without_variation_and_with_more_slice_numbers_than_volume_numbers() -> None:
    assert latents(mapper(variation_channels=0), 3, 4).shape == (3, 4, SLICE_LATENT)
    assert latents(mapper(latent=3), 3, 4).shape == (3, 4, SLICE_LATENT)


def test_the_variation_is_slow_and_of_unit_variance() -> None:
    noise = mapper().draw(4000, torch.Generator().manual_seed(2))
    position = torch.tensor([0.2, 0.35, 0.9])
    found = noise.variation(position, 0.15)
    assert found.shape == (4000, 3, 8)
    torch.testing.assert_close(found.var((0,)), torch.ones(3, 8), atol=0.12, rtol=0)
    near = (found[:, 0] * found[:, 1]).mean()
    far = (found[:, 0] * found[:, 2]).mean()
    # a Gaussian kernel: exp(-1/2) one length away, nothing at five
    assert float(near) == pytest.approx(0.607, abs=0.03)
    assert abs(float(far)) < 0.03


def test_positions_and_their_code() -> None:
    torch.testing.assert_close(slice_positions(3), torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(slice_positions(1), torch.tensor([0.5]))
    code = position_code(torch.tensor([0.0, 1.0]), 2)
    assert code.shape == (2, 5)
    expected = torch.tensor([[-1.0, 0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0, -1.0]])
    torch.testing.assert_close(code, expected, atol=1e-6, rtol=0)
