"""The sketch of whole trajectories: exact sums, the covariance that it tells, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from lift.config.plan import GaussianPlan
from lift.errors import DataError, UpdateRejectedError
from lift.mixer.gaussian import GaussianTrajectory
from lift.tasks.unconditional.decoder import FrozenDecoder
from lift.tasks.unconditional.moments import (
    LARGEST,
    TrajectoryForm,
    TrajectorySums,
    fit_gaussian,
    form_of,
    gaussian_shapes,
    moments_to_arrays,
)
from lift.tasks.unconditional.review import moments_from_arrays
from lift.tasks.unconditional.sketch import FEWEST_SKETCHED, public_columns
from lift.wire.names import GAUSSIAN, TRAJECTORY
from tests.lift.unconditional import moment_cases as cases

FORM = TrajectoryForm(positions=6, joint=(), tail=(0, 1, 2), columns=40)
SIZE = 6 * 4


def cohort(patients: int, seed: int = 0) -> list[Tensor]:
    """Trajectories whose numbers hang together over the whole body, (6, 1 + 3) each."""
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((5, 6 * 3))
    found = []
    for _ in range(patients):
        latents = 0.4 * (random.standard_normal(5) @ mixing).reshape(6, 3)
        length = np.full((6, 1), random.standard_normal())
        found.append(torch.from_numpy(np.concatenate([length, latents], axis=1)).float())
    return found


def covariance(patients: list[Tensor]) -> np.ndarray:
    rows = np.stack([one.double().numpy().ravel() for one in patients])
    return np.asarray(np.cov(rows.T, bias=True))


def sums_of(patients: list[Tensor], form: TrajectoryForm = FORM) -> TrajectorySums:
    return cases.sums_of(patients, form)


def mapper_of(sums: TrajectorySums) -> GaussianTrajectory:
    return cases.mapper_of(fit_gaussian(sums), sums.form)


def test_fewer_patients_than_columns_give_their_covariance_exactly() -> None:
    patients = cohort(30)
    gaussian = fit_gaussian(sums_of(patients))
    assert {name: tuple(t.shape) for name, t in gaussian.items()} == gaussian_shapes(FORM)
    root = gaussian[GAUSSIAN + "factor"].double().numpy()
    np.testing.assert_allclose(root @ root.T, covariance(patients), atol=1e-5)
    mean = torch.stack(patients).mean(0)
    assert torch.allclose(gaussian[GAUSSIAN + "mean"], mean, atol=1e-6)


def test_fewer_columns_than_numbers_keep_what_is_largest_and_never_add() -> None:
    patients = cohort(200, seed=1)
    exact = covariance(patients)
    narrow = TrajectoryForm(6, (), (0, 1, 2), columns=8)
    root = fit_gaussian(sums_of(patients, narrow))[GAUSSIAN + "factor"].double().numpy()
    kept = root @ root.T
    # five ties and the length: six directions hold all there is
    assert np.linalg.norm(kept - exact) < 0.02 * np.linalg.norm(exact)
    two = TrajectoryForm(6, (), (0, 1, 2), columns=2)
    root = fit_gaussian(sums_of(patients, two))[GAUSSIAN + "factor"].double().numpy()
    assert np.linalg.norm(root @ root.T - exact) > 0.1 * np.linalg.norm(exact)
    assert np.linalg.eigvalsh(exact - root @ root.T).min() > -1e-6


def test_sums_are_the_same_in_any_order_and_grouping() -> None:
    patients = cohort(50, seed=2)
    whole = sums_of(patients)
    parts = sums_of(patients[31:]) + sums_of(patients[:31])
    assert all(torch.equal(parts.units[name], whole.units[name]) for name in whole.units)
    one, other = fit_gaussian(whole), fit_gaussian(parts)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_drawn_volumes_have_the_covariance_and_one_length() -> None:
    patients = cohort(300, seed=3)
    mapper = mapper_of(sums_of(patients))
    noise = mapper.draw(20_000, torch.Generator().manual_seed(4))
    states = mapper.states(noise)
    assert torch.equal(states[:, :, 0], states[:, :1, 0].expand(-1, 6))
    drawn = np.cov(states.flatten(1).double().numpy().T, bias=True)
    np.testing.assert_allclose(drawn, covariance(patients), atol=0.12)
    latents = mapper(noise, torch.linspace(0, 1, 6))
    assert torch.equal(latents, states[..., 1:])
    assert mapper.outside(latents, torch.linspace(0, 1, 6)) == pytest.approx(1, abs=0.05)


def test_the_public_columns_keep_numbers_in_bounds_and_are_the_same_everywhere() -> None:
    columns = public_columns(SIZE, 40)
    assert torch.equal(columns.abs(), torch.full((SIZE, 40), 1 / SIZE, dtype=torch.float64))
    largest = [torch.full((6, 4), LARGEST), torch.full((6, 4), -LARGEST)]
    sums = sums_of(largest * 10)
    moments_from_arrays(moments_to_arrays(sums), FORM)
    # the first signs are pinned: other ones would be another space
    assert [round(v) for v in (columns[:4, 0] * SIZE).tolist()] == [-1, -1, -1, 1]


def test_what_a_site_sends_comes_back_and_what_no_cohort_has_is_refused() -> None:
    arrays = moments_to_arrays(sums_of(cohort(FEWEST_SKETCHED)))
    back = moments_from_arrays(arrays, FORM)
    assert back.patients == FEWEST_SKETCHED
    sketch = arrays[TRAJECTORY + "sketch"]
    for bad_sketch in (-sketch, sketch + 2**44, 1000 * sketch):
        bad = arrays | {TRAJECTORY + "sketch": bad_sketch}
        with pytest.raises(UpdateRejectedError):
            moments_from_arrays(bad, FORM)
    with pytest.raises(UpdateRejectedError, match="19 patients"):
        moments_from_arrays(arrays | {TRAJECTORY + "patients": np.array([19])}, FORM)


def test_nineteen_patients_send_no_sketch() -> None:
    with pytest.raises(DataError, match="at least 20"):
        moments_to_arrays(sums_of(cohort(FEWEST_SKETCHED - 1)))


def test_a_plan_asks_for_a_sketch_and_cannot_tie_it(decoder: FrozenDecoder) -> None:
    form = form_of(GaussianPlan(positions=4, covariance="sketch", columns=16), decoder)
    latent = decoder.card.network.latent
    assert form.shapes["sketch"] == (4 * (1 + latent), 16)
    assert form.tail == tuple(range(latent))
    with pytest.raises(ValidationError, match="cannot be tied"):
        GaussianPlan(covariance="sketch", tied=True)
