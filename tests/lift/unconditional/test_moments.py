"""Moments of trajectories: exact sums, what is refused, and the Gaussian that has them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from lift.config.plan import GaussianPlan, MapperPlan, Plan
from lift.errors import ConfigError, DataError, UpdateRejectedError
from lift.mixer.gaussian import GaussianTrajectory, held_inside
from lift.tasks.unconditional.decoder import FrozenDecoder
from lift.tasks.unconditional.grid import BodyVolume
from lift.tasks.unconditional.moments import (
    LARGEST,
    SCALE,
    TrajectoryForm,
    TrajectorySums,
    body_length_mm,
    fit_gaussian,
    form_of,
    gaussian_shapes,
    moments_to_arrays,
    patient_moments,
    trajectory,
)
from lift.tasks.unconditional.review import moments_from_arrays
from lift.wire.names import TRAJECTORY
from tests.lift.unconditional import moment_cases as cases
from tests.lift.unconditional.tiny_decoder import plan_data

FORM = TrajectoryForm(positions=5, joint=(0, 1, 4), tail=(2, 3))
PATIENTS = 40
Arrays = dict[str, np.ndarray]


def cohort(seed: int = 0, patients: int = PATIENTS) -> list[Tensor]:
    """Trajectories that are alike along the body, each with one length."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(patients):
        joint = np.array([0.5, -0.2, 0.1]) + np.cumsum(random.normal(0, 0.5, (5, 3)), axis=0)
        tail = 0.3 * np.cumsum(random.standard_normal((5, 2)), axis=0)
        length = np.full((5, 1), random.standard_normal())
        found.append(torch.from_numpy(np.concatenate([joint, length, tail], axis=1)).float())
    return found


def sums_of(patients: list[Tensor]) -> TrajectorySums:
    return cases.sums_of(patients, FORM)


def mapper_of(
    gaussian: dict[str, Tensor], residual: MapperPlan | None = None
) -> GaussianTrajectory:
    return cases.mapper_of(gaussian, FORM, residual)


def test_sites_sums_in_any_order_are_those_of_the_pooled_patients_to_the_bit() -> None:
    patients = cohort()
    whole = sums_of(patients)
    sites = [sums_of(patients[:11]), sums_of(patients[11:17]), sums_of(patients[17:])]
    # the last site joins late
    for total in (sites[0] + sites[1] + sites[2], sites[2] + sites[0] + sites[1]):
        assert total.patients == PATIENTS
        assert all(torch.equal(total.units[name], whole.units[name]) for name in whole.units)
    one, other = fit_gaussian(whole), fit_gaussian(sites[2] + (sites[1] + sites[0]))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert {name: tuple(t.shape) for name, t in one.items()} == gaussian_shapes(FORM)


def test_the_moments_are_numpys_to_1e_9() -> None:
    patients = cohort()
    sums = sums_of(patients)
    rows = np.stack([one.double().numpy() for one in patients])
    joint, tail = rows[..., :4], rows[..., 4:]
    expected = {
        "mean": rows.mean(0),
        "within": np.einsum("nki,nkj->kij", joint, joint) / PATIENTS,
        "next": np.einsum("nki,nkj->kij", joint[:, 1:], joint[:, :-1]) / PATIENTS,
        "tail_within": (tail**2).mean(0),
        "tail_next": (tail[:, 1:] * tail[:, :-1]).mean(0),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(sums.mean(name).numpy(), value, rtol=0, atol=1e-9)


def test_a_patient_counts_once_whatever_the_number_of_volumes() -> None:
    one, other = cohort(patients=2)
    twice = patient_moments([one, other], FORM)
    assert twice.patients == 1
    average = (patient_moments([one], FORM) + patient_moments([other], FORM)).mean("within")
    assert torch.allclose(twice.mean("within"), average, rtol=0, atol=1e-9)


def test_drawn_trajectories_have_the_moments_and_shuffled_ones_do_not() -> None:
    sums = sums_of(cohort(patients=400))
    mapper = mapper_of(fit_gaussian(sums))
    states = mapper.states(mapper.draw(20_000, torch.Generator().manual_seed(1)))
    drawn = states.double()
    joint = drawn[..., :4]
    assert torch.allclose(drawn.mean(0), sums.mean("mean"), rtol=0, atol=0.05)
    within = torch.einsum("nki,nkj->kij", joint, joint) / len(drawn)
    following = torch.einsum("nki,nkj->kij", joint[:, 1:], joint[:, :-1]) / len(drawn)
    assert torch.allclose(within, sums.mean("within"), rtol=0, atol=0.12)
    assert torch.allclose(following, sums.mean("next"), rtol=0, atol=0.12)
    tail = drawn[..., 4:]
    assert torch.allclose(tail.square().mean(0), sums.mean("tail_within"), rtol=0, atol=0.05)
    assert torch.allclose(
        (tail[:, 1:] * tail[:, :-1]).mean(0), sums.mean("tail_next"), rtol=0, atol=0.05
    )
    # the control: every position of another volume
    shuffled = torch.stack([joint[torch.randperm(len(joint)), k] for k in range(5)], dim=1)
    wrong = torch.einsum("nki,nkj->kij", shuffled[:, 1:], shuffled[:, :-1]) / len(drawn)
    assert not torch.allclose(wrong, sums.mean("next"), rtol=0, atol=0.12)


def test_fewer_patients_than_numbers_still_give_their_own_moments() -> None:
    sums = sums_of(cohort(patients=5))
    mapper = mapper_of(fit_gaussian(sums))
    states = mapper.states(mapper.draw(20_000, torch.Generator().manual_seed(2))).double()
    assert bool(torch.isfinite(states).all())
    within = torch.einsum("nki,nkj->kij", states[..., :4], states[..., :4]) / len(states)
    assert torch.allclose(within, sums.mean("within"), rtol=0, atol=0.15)


def test_a_volume_has_one_length_and_its_latents_at_their_own_places() -> None:
    mapper = mapper_of(fit_gaussian(sums_of(cohort(patients=60))))
    noise = mapper.draw(3, torch.Generator().manual_seed(3))
    states = mapper.states(noise)
    assert torch.equal(states[:, :, 3], states[:, :1, 3].expand(-1, 5))
    assert torch.equal(mapper.lengths(noise), states[:, 0, 3])
    latents = mapper(noise, torch.linspace(0, 1, 5))
    assert latents.shape == (3, 5, 5)
    assert torch.allclose(latents[..., [0, 1, 4, 2, 3]], states[..., [0, 1, 2, 4, 5]], atol=1e-6)
    # half-way between two positions lies half-way between their latents
    half = mapper(noise, torch.tensor([0.125]))[:, 0]
    assert torch.allclose(half, (latents[:, 0] + latents[:, 1]) / 2, atol=1e-6)


def test_a_residual_is_nothing_at_first_and_all_that_is_trained() -> None:
    gaussian = fit_gaussian(sums_of(cohort()))
    residual = MapperPlan(latent=1, width=8, layers=1)
    alone, learned = mapper_of(gaussian), mapper_of(gaussian, residual)
    noise = alone.draw(2, torch.Generator().manual_seed(4))
    position = torch.linspace(0, 1, 7)
    assert torch.equal(alone(noise, position), learned(noise, position))
    assert alone.values() == {}
    assert set(learned.values()) == {
        f"residual.{i}.{n}" for i in (0, 2) for n in ("weight", "bias")
    }
    with torch.no_grad():
        learned.residual[2].bias.fill_(1.0)  # type: ignore[index,operator]
    assert not torch.equal(alone(noise, position), learned(noise, position))


def test_the_arrays_come_back_as_they_were() -> None:
    sums = sums_of(cohort())
    arrays = moments_to_arrays(sums)
    assert all(name.startswith(TRAJECTORY) and a.dtype == np.int64 for name, a in arrays.items())
    back = moments_from_arrays(arrays | {"drifting_patients": np.zeros(1)}, FORM)
    assert back.patients == PATIENTS
    assert all(torch.equal(back.units[name], sums.units[name]) for name in sums.units)


def _with(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Arrays], Arrays]:
    return lambda arrays: arrays | {TRAJECTORY + name: change(arrays[TRAJECTORY + name])}


def _one(index: tuple[int, ...], value: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        changed = array.copy()
        changed[index] = value
        return changed

    return change


BAD: dict[str, tuple[Callable[[Arrays], Arrays], str]] = {
    "another type": (_with("mean", lambda a: a.astype(np.float64)), "float64"),
    "another shape": (_with("within", lambda a: a[:-1]), "of shape"),
    "a part missing": (lambda a: {n: v for n, v in a.items() if "next" not in n}, "exactly"),
    "a part too many": (lambda a: a | {TRAJECTORY + "scan": np.zeros(3, np.int64)}, "exactly"),
    "four patients": (_with("patients", lambda a: np.array([4])), "4 patients"),
    "too many patients": (_with("patients", lambda a: np.array([10**6])), "1000000 patients"),
    "a mean out of reach": (
        _with("mean", _one((0, 0), PATIENTS * SCALE * 9)),
        "larger than its patients",
    ),
    "not symmetric": (_with("within", _one((0, 0, 1), 12345)), "symmetric"),
    "a negative square": (_with("within", lambda a: -a), "not those of any set of patients"),
    "more ties than squares allow": (
        _with("next", lambda a: 3 * a),
        "not those of any set of patients",
    ),
    "a negative tail": (_with("tail_within", lambda a: -a), "not those of any set of patients"),
}


@pytest.mark.parametrize("name", BAD)
def test_moments_that_no_cohort_has_are_refused_in_a_sentence(name: str) -> None:
    change, reason = BAD[name]
    with pytest.raises(UpdateRejectedError) as caught:
        moments_from_arrays(change(moments_to_arrays(sums_of(cohort()))), FORM)
    assert reason in caught.value.seen


def test_four_patients_send_nothing_and_nobody_makes_no_gaussian() -> None:
    with pytest.raises(DataError, match="4 patients"):
        moments_to_arrays(sums_of(cohort(patients=4)))
    with pytest.raises(DataError, match="no patient"):
        fit_gaussian(TrajectorySums.zero(FORM))
    with pytest.raises(DataError, match="layouts"):
        sums_of(cohort()) + TrajectorySums.zero(TrajectoryForm(6, (0, 1, 4), (2, 3)))
    bad = cohort(patients=1)[0]
    bad[0, 0] = torch.nan
    with pytest.raises(DataError, match="NaN"):
        patient_moments([bad], FORM)


def test_a_volume_becomes_a_trajectory_of_bounded_numbers(decoder: FrozenDecoder) -> None:
    form = form_of(GaussianPlan(positions=4, axes=3), decoder)
    latent = decoder.card.network.latent
    assert (form.joint, form.tail) == ((0, 1, 2), tuple(range(3, latent)))
    height, width = decoder.card.network.image
    voxels = torch.rand(1, 1, 9, height, width, generator=torch.Generator().manual_seed(5))
    volume = BodyVolume(voxels, (4.0, 1.0, 1.0))
    found = trajectory(volume, decoder, form)
    assert found.shape == (4, latent + 1)
    assert float(found.abs().max()) <= LARGEST
    assert torch.allclose(body_length_mm(found[:, 3], decoder), torch.tensor(32.0), rtol=1e-5)
    latents = decoder.latents_of(voxels[0, 0])
    assert torch.allclose(found[0, [0, 1, 2, 4, 5, 6]], latents[0].clamp(-8, 8), atol=1e-6)
    assert torch.allclose(found[-1, [0, 1, 2, 4, 5, 6]], latents[-1].clamp(-8, 8), atol=1e-6)


def test_what_is_learned_is_held_at_the_gaussians_mean_and_spread() -> None:
    mapper = mapper_of(fit_gaussian(sums_of(cohort())))
    position = torch.linspace(0, 1, 9)
    own = mapper(mapper.draw(64, torch.Generator().manual_seed(6)), position)
    assert float(held_inside(own, own)) == 0
    # one volume becomes another: neither mean nor spread changes
    assert float(held_inside(own[torch.randperm(64)], own)) < 1e-9
    assert float(held_inside(own + 0.5, own)) == pytest.approx(0.25, rel=1e-3)
    assert float(held_inside(3 * own, own)) > 1
    latents = own.clone().requires_grad_()
    held_inside(latents + 0.1, own).backward()  # type: ignore[no-untyped-call]
    assert latents.grad is not None
    assert bool(torch.isfinite(latents.grad).all())


def test_latents_far_from_the_gaussian_are_told_from_its_own() -> None:
    mapper = mapper_of(fit_gaussian(sums_of(cohort(patients=200))))
    position = torch.linspace(0, 1, FORM.positions)
    own = mapper(mapper.draw(2000, torch.Generator().manual_seed(7)), position)
    assert mapper.outside(own, position) == pytest.approx(1, abs=0.05)
    assert mapper.outside(4 * own, position) > 2


def test_only_a_gaussian_needs_no_round_and_noise_on_updates_needs_one() -> None:
    gaussian = {"unconditional__trajectory": "gaussian", "federation__rounds": 0}
    assert Plan.from_data(plan_data(**gaussian), "test").total_steps == 0
    with pytest.raises(ConfigError, match="needs none"):
        Plan.from_data(plan_data(federation__rounds=0), "test")
    site = {"mode": "site", "delta": 1e-4, "clip_norm": 1.0, "noise_multiplier": 1.0}
    with pytest.raises(ConfigError, match="without a round there are none"):
        Plan.from_data(plan_data(**gaussian, privacy=site), "test")
