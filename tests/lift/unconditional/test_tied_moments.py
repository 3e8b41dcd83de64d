"""One covariance for all positions: exact sums, what is refused, and the chain that keeps it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from lift.config.plan import GaussianPlan, MapperPlan
from lift.errors import UpdateRejectedError
from lift.tasks.unconditional.decoder import FrozenDecoder
from lift.tasks.unconditional.moments import (
    TrajectoryForm,
    TrajectorySums,
    fit_gaussian,
    form_of,
    gaussian_shapes,
    moments_to_arrays,
)
from lift.tasks.unconditional.review import moments_from_arrays
from lift.tasks.unconditional.stationary import stationary_chain, steady_share
from lift.wire.names import GAUSSIAN, TRAJECTORY
from tests.lift.unconditional import moment_cases as cases
from tests.lift.unconditional.moment_cases import mapper_of

FORM = TrajectoryForm(6, (0, 1, 4), (2, 3), tied=True)
SHORT = TrajectoryForm(6, (0, 1, 4), (), tied=True, rest=(2, 3))
PATIENTS = 40
Arrays = dict[str, np.ndarray]


def cohort(form: TrajectoryForm = FORM, patients: int = PATIENTS, seed: int = 0) -> list[Tensor]:
    """Chains that are as spread at every position, around a curve, each with one length."""
    random = np.random.default_rng(seed)
    tail = len(form.tail)
    curve = np.sin(np.arange(6)[:, None] + np.arange(3 + tail))
    spread = np.array([1.0, 0.7, 0.5, 0.4, 0.3])[: 3 + tail]
    found = []
    for _ in range(patients):
        x = random.standard_normal(3 + tail)
        rows = [x]
        for _ in range(5):
            x = 0.8 * x + 0.6 * random.standard_normal(3 + tail)
            rows.append(x)
        own = curve + spread * np.stack(rows)
        length = np.full((6, 1), 0.5 * random.standard_normal() + 0.3 * own[0, 0])
        both = np.concatenate([own[:, :3], length, own[:, 3:]], axis=1)
        found.append(torch.from_numpy(both).float())
    return found


def sums_of(patients: list[Tensor], form: TrajectoryForm = FORM) -> TrajectorySums:
    return cases.sums_of(patients, form)


def test_sites_sums_in_any_order_are_those_of_the_pooled_patients_to_the_bit() -> None:
    patients = cohort()
    whole = sums_of(patients)
    sites = [sums_of(patients[:11]), sums_of(patients[11:17]), sums_of(patients[17:])]
    for total in (sites[0] + sites[1] + sites[2], sites[2] + sites[0] + sites[1]):
        assert all(torch.equal(total.units[name], whole.units[name]) for name in whole.units)
    one, other = fit_gaussian(whole), fit_gaussian(sites[2] + (sites[1] + sites[0]))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert {name: tuple(t.shape) for name, t in one.items()} == gaussian_shapes(FORM)


def test_the_moments_are_numpys_to_1e_9_and_few() -> None:
    patients = cohort()
    sums = sums_of(patients)
    rows = np.stack([one.double().numpy() for one in patients])
    joint, tail = rows[..., :4], rows[..., 4:]
    expected = {
        "mean": rows.mean(0),
        "within": np.einsum("nki,nkj->ij", joint, joint) / PATIENTS / 6,
        "next": np.einsum("nki,nkj->ij", joint[:, 1:], joint[:, :-1]) / PATIENTS / 5,
        "tail_within": (tail**2).mean((0, 1)),
        "tail_next": (tail[:, 1:] * tail[:, :-1]).mean((0, 1)),
    }
    assert set(expected) == set(sums.units)
    for name, value in expected.items():
        assert tuple(sums.units[name].shape) == FORM.shapes[name] == value.shape
        np.testing.assert_allclose(sums.mean(name).numpy(), value, rtol=0, atol=1e-9)


def test_drawn_trajectories_have_the_moments_and_shuffled_ones_do_not() -> None:
    sums = sums_of(cohort(patients=600))
    mapper = mapper_of(fit_gaussian(sums), FORM)
    drawn = mapper.states(mapper.draw(20_000, torch.Generator().manual_seed(1))).double()
    joint = drawn[..., :4]
    assert torch.allclose(drawn.mean(0), sums.mean("mean"), rtol=0, atol=0.05)
    within = torch.einsum("nki,nkj->kij", joint, joint).mean(0) / len(drawn)
    following = torch.einsum("nki,nkj->ij", joint[:, 1:], joint[:, :-1]) / len(drawn) / 5
    assert torch.allclose(within, sums.mean("within"), rtol=0, atol=0.05)
    assert torch.allclose(following, sums.mean("next"), rtol=0, atol=0.08)
    tail = drawn[..., 4:]
    assert torch.allclose(tail.square().mean((0, 1)), sums.mean("tail_within"), rtol=0, atol=0.03)
    products = (tail[:, 1:] * tail[:, :-1]).mean((0, 1))
    assert torch.allclose(products, sums.mean("tail_next"), rtol=0, atol=0.03)
    # the control: every position of another volume
    shuffled = torch.stack([joint[torch.randperm(len(joint)), k] for k in range(6)], dim=1)
    wrong = torch.einsum("nki,nkj->ij", shuffled[:, 1:], shuffled[:, :-1]) / len(drawn) / 5
    assert not torch.allclose(wrong, sums.mean("next"), rtol=0, atol=0.08)


def test_the_length_never_changes_along_a_volume_and_keeps_its_ties() -> None:
    sums = sums_of(cohort(patients=600))
    gaussian = fit_gaussian(sums)
    step, noise = gaussian[GAUSSIAN + "step"][0], gaussian[GAUSSIAN + "noise"][0]
    keeps = torch.zeros(4)
    keeps[3] = 1
    assert torch.allclose(step[3], keeps, atol=1e-5)
    assert torch.allclose(noise[3], torch.zeros(4), atol=1e-3)
    within = sums.mean("within") - sums.mean("mean")[:, :4].mT @ sums.mean("mean")[:, :4] / 6
    first = gaussian[GAUSSIAN + "first"].double()
    assert torch.allclose(first @ first.mT, within, rtol=0, atol=1e-5)
    assert float(within[0, 3]) > 0.1


def test_latents_of_which_nothing_is_kept_stay_at_their_public_mean() -> None:
    gaussian = fit_gaussian(sums_of(cohort(SHORT), SHORT))
    residual = MapperPlan(latent=1, width=8, layers=1)
    for mapper in (mapper_of(gaussian, SHORT), mapper_of(gaussian, SHORT, residual)):
        noise = mapper.draw(3, torch.Generator().manual_seed(3))
        latents = mapper(noise, torch.linspace(0, 1, 11)).detach()
        assert latents.shape == (3, 11, 5)
        assert not bool(latents[..., [2, 3]].any())
        assert all(float(latents[..., place].std()) > 0.1 for place in (0, 1, 4))
    # only the learned residual moves them
    with torch.no_grad():
        mapper.residual[2].bias.fill_(1.0)  # type: ignore[index,operator]
    assert bool((mapper(noise, torch.linspace(0, 1, 11))[..., [2, 3]] == 1).all())


def test_a_plan_says_what_is_tied_and_what_is_left_out(decoder: FrozenDecoder) -> None:
    latent = decoder.card.network.latent
    form = form_of(GaussianPlan(positions=4, axes=3, tied=True, tail=False), decoder)
    assert (form.tied, form.tail, form.rest) == (True, (), tuple(range(3, latent)))
    assert set(form.shapes["tail_within"]) == {0}
    assert not form_of(GaussianPlan(), decoder).tied


@pytest.mark.parametrize("seed", range(5))
def test_a_chain_keeps_its_covariance_whatever_its_steps_are(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    root = torch.randn(5, 3 if seed == 4 else 5, generator=random, dtype=torch.float64)
    within = root @ root.mT
    following = 10**seed * torch.randn(5, 5, generator=random, dtype=torch.float64)
    chain = stationary_chain(within, following, 2)
    later = within
    for _ in range(200):
        later = chain.step @ later @ chain.step.mT + chain.noise @ chain.noise.mT
    assert torch.allclose(later, within, rtol=0, atol=1e-6 * float(within.trace()))
    assert torch.allclose(chain.first @ chain.first.mT, within, rtol=0, atol=1e-9)
    # the last two numbers are carried on as they are
    assert torch.allclose(chain.step[3:] @ within, within[3:], rtol=0, atol=1e-6)
    assert torch.allclose(chain.noise[3:], torch.zeros(2, 5).double(), atol=1e-5)


def test_steady_numbers_explain_themselves_and_what_is_tied_to_them() -> None:
    root = torch.randn(4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    within = root @ root.mT
    share = steady_share(within, 1)
    expected = torch.outer(within[:, 3], within[:, 3]) / within[3, 3]
    assert torch.allclose(share, expected, rtol=0, atol=1e-9)


def _with(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Arrays], Arrays]:
    return lambda arrays: arrays | {TRAJECTORY + name: change(arrays[TRAJECTORY + name])}


def _skewed(array: np.ndarray) -> np.ndarray:
    changed = array.copy()
    changed[0, 1] += 12345
    return changed


BAD: dict[str, tuple[Callable[[Arrays], Arrays], str]] = {
    "of every position": (_with("within", lambda a: np.stack([a] * 6)), "of shape"),
    "not symmetric": (_with("within", _skewed), "symmetric"),
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


@pytest.mark.parametrize("patients", [5, 40])
def test_moments_that_a_cohort_has_are_taken(patients: int) -> None:
    for form in (FORM, SHORT):
        # each position as far from the others as can be: the two ends weigh most
        wild = [one * torch.tensor([4.0, 1, 1, 1, 1, 4])[:, None] for one in cohort(form, patients)]
        for trajectories in (cohort(form, patients), wild):
            sums = sums_of(trajectories, form)
            back = moments_from_arrays(moments_to_arrays(sums), form)
            assert all(torch.equal(back.units[name], sums.units[name]) for name in sums.units)
