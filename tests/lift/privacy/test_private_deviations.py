"""Noisy deviations from public moments: one patient's length, and what the fit falls back on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from lift.config.privacy import StatisticsOnce, TrajectoryBounds
from lift.errors import DataError
from lift.privacy.noise import SecureStream
from lift.tasks.unconditional.moments import (
    LARGEST_UNITS,
    SCALE,
    TrajectoryForm,
    TrajectorySums,
    fit_gaussian,
    patient_moments,
)
from lift.tasks.unconditional.private import moments as trajectories
from lift.tasks.unconditional.private.deviations import fit_noisy_deviations, mean_noise
from lift.tasks.unconditional.private.moments import lengths_of, release_moments, sensitivity, units
from lift.tasks.unconditional.public_gaussian import (
    POSITIONS,
    PublicGaussian,
    fit_public_moments,
    public_form,
    public_gaussian,
)
from lift.wire.names import GAUSSIAN
from tests.lift.privacy.streams import KnownStream

LATENT, STYLE = 6, 1
FORM = TrajectoryForm(8, (0, 1, 2, 5), (3, 4), tied=True, steady=2)
PLAN = StatisticsOnce(mode="stats-once", delta=1e-4, public_patients=50, noise_multiplier=1.3)
Patient = list[Tensor]


class Silent(SecureStream):
    """Noise that is 0: what is released without any, by the code that is used."""

    __slots__ = ()

    def normals(self, count: int) -> NDArray[np.float64]:
        return np.zeros(count)


def cohort(positions: int, patients: int, seed: int, shift: float = 0.0) -> list[Patient]:
    """Smooth trajectories around a curve: latents in order, then the length."""
    random = np.random.default_rng(seed)
    place = np.linspace(0, 1, positions)[:, None]
    curve = np.sin(4 * place + np.arange(LATENT + 1))
    found = []
    for _ in range(patients):
        rows = curve + shift * np.cos(3 * place)
        for wave in range(4):
            weights = random.standard_normal(LATENT + 1) * 0.6 / (1 + wave)
            rows = rows + weights * np.cos(np.pi * wave * place)
        rows[:, LATENT - STYLE :] = rows[:1, LATENT - STYLE :]
        found.append([torch.from_numpy(rows).float()])
    return found


def ordered(patients: list[Patient], form: TrajectoryForm) -> list[Patient]:
    places = [*form.joint, LATENT, *form.tail]
    return [[volume[:, places] for volume in volumes] for volumes in patients]


@pytest.fixture(scope="module")
def public() -> PublicGaussian:
    form = public_form(STYLE, LATENT)
    found = fit_public_moments(ordered(cohort(POSITIONS, 40, 1), form), STYLE, LATENT)
    return public_gaussian(found, FORM)


def vector(sums: TrajectorySums) -> Tensor:
    unit = units(sums.form, lengths_of(sums.form, PLAN.trajectories, deviations=True))
    return torch.cat(
        [(sums.units[name].double() / SCALE / unit[name]).flatten() for name in sorted(unit)]
    )


def moved_by(one: Patient, public: PublicGaussian) -> float:
    """How far a patient more moves what is released of others."""
    others = ordered(cohort(8, 2, 3), FORM)
    both = [
        vector(release_moments(patients, FORM, PLAN, 50, Silent(), public))
        for patients in (others, [*others, one])
    ]
    return float((both[1] - both[0]).norm())


def bound(public: PublicGaussian) -> float:
    lengths = lengths_of(public.sent, PLAN.trajectories, deviations=True)
    # float32 sums of three patients, with which the noise ends
    return sensitivity(public.sent, lengths) * (1 + 1e-5)


def patient(seed: int, scale: float, volumes: int) -> Patient:
    random = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(8, LATENT + 1, generator=random) for _ in range(volumes)]


def largest_patient(public: PublicGaussian) -> Patient:
    """As far from the public mean as numbers go, in one direction everywhere."""
    one = torch.zeros(8, LATENT + 1, dtype=torch.float64)
    one[:, : FORM.width] = public.mean[:, : FORM.width] + 50 * public.sd
    return [one]


@given(
    seed=st.integers(0, 10_000),
    volumes=st.sampled_from([1, 2, 5]),
    scale=st.sampled_from([1e-4, 1.0, 3.0, 1e6]),
)
def test_one_patient_more_or_less_moves_the_sums_by_at_most_the_sensitivity(
    seed: int, volumes: int, scale: float, public: PublicGaussian
) -> None:
    assert moved_by(patient(seed, scale, volumes), public) <= bound(public)


def test_the_worst_patient_moves_them_by_just_that(public: PublicGaussian) -> None:
    assert 0.999 * bound(public) < moved_by(largest_patient(public), public) <= bound(public)


@pytest.mark.parametrize("wrong", ["no clip", "one clip for both"])
def test_without_its_clips_a_patient_moves_them_further(
    wrong: str, public: PublicGaussian, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = trajectories.clipped

    def changed(one: Tensor, form: TrajectoryForm, lengths: trajectories.Lengths) -> Tensor:
        longer = replace(lengths, joint=lengths.product)
        return one if wrong == "no clip" else clip(one, form, longer)

    monkeypatch.setattr(trajectories, "clipped", changed)
    assert moved_by(largest_patient(public), public) > 1.3 * bound(public)


def test_a_patient_who_is_not_finite_adds_nothing(public: PublicGaussian) -> None:
    bad = [torch.full((8, LATENT + 1), torch.nan)]
    assert moved_by(bad, public) == 0


def test_nothing_is_sent_of_latents_that_are_not_joint(public: PublicGaussian) -> None:
    one, other = (ordered(cohort(8, 4, 5), FORM) for _ in range(2))
    for volumes in other:
        volumes[0][:, FORM.width :] += 3
    sums = [release_moments(p, FORM, PLAN, 50, Silent(), public) for p in (one, other)]
    assert all(torch.equal(sums[0].units[n], sums[1].units[n]) for n in sums[0].units)
    assert sums[0].form.tail == ()
    assert set(sums[0].form.rest) == {3, 4}


def part(gaussian: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(GAUSSIAN): tensor.double() for name, tensor in gaussian.items()}


@pytest.mark.parametrize("loud", [1e3, 1e6])
def test_hopeless_noise_leaves_the_public_gaussian(public: PublicGaussian, loud: float) -> None:
    noisy = PLAN.model_copy(update={"noise_multiplier": loud})
    wanted = part(public.tensors())
    nearest = []
    few = ordered(cohort(8, 5, 9, 2.0), FORM)
    for seed in range(5):
        sums = release_moments(few, FORM, noisy, 5, KnownStream(1 + 1000 * seed), public)
        found = part(fit_noisy_deviations(sums, noisy, 1, public))
        assert set(found) == set(wanted)
        assert all(bool(t.isfinite().all()) for t in found.values())
        nearest.append(max(float((found[n] - wanted[n]).abs().max()) for n in wanted))
    # one draw in some thirty is taken for more than noise
    assert sorted(nearest)[2] < 1e-5


def test_without_much_noise_the_mean_is_the_cohorts_own_and_not_the_public_one(
    public: PublicGaussian,
) -> None:
    wide = TrajectoryBounds(deviation_clip=3.0, product_clip=3.0)
    quiet = PLAN.model_copy(update={"noise_multiplier": 1e-6, "trajectories": wide})
    patients = ordered(cohort(8, 200, 7, 0.5), FORM)
    exact = sum((patient_moments(p, FORM) for p in patients), start=TrajectorySums.zero(FORM))
    sums = release_moments(patients, FORM, quiet, 200, KnownStream(), public)
    one, other = part(fit_gaussian(exact)), part(fit_noisy_deviations(sums, quiet, 1, public))
    width = FORM.width
    assert torch.allclose(one["mean"][:, :width], other["mean"][:, :width], rtol=0, atol=2e-3)
    covariance = [g["first"] @ g["first"].mT for g in (one, other)]
    assert torch.allclose(covariance[0], covariance[1], rtol=0, atol=5e-3)
    assert float((one["mean"] - public.mean)[:, :width].abs().max()) > 0.3
    # of the tail nothing was sent
    assert torch.equal(other["mean"][:, width:], public.mean[:, width:].float().double())


def test_with_noise_the_mean_is_nearer_to_the_cohorts_than_what_came_and_than_the_public_one(
    public: PublicGaussian,
) -> None:
    loud = PLAN.model_copy(update={"noise_multiplier": 4.0})
    patients = ordered(cohort(8, 60, 11, 0.25), FORM)
    truth = torch.stack([volumes[0] for volumes in patients]).double().mean(0)[:, : FORM.width]
    wrong: dict[str, list[float]] = {"fit": [], "public": [], "noisy": []}
    for seed in range(6):
        sums = release_moments(patients, FORM, loud, 60, KnownStream(1 + 1000 * seed), public)
        fit = part(fit_noisy_deviations(sums, loud, 1, public))["mean"][:, : FORM.width]
        came = public.mean[:, : FORM.width] + sums.mean("mean") * public.sd
        for name, mean in (("fit", fit), ("public", public.mean[:, : FORM.width]), ("noisy", came)):
            wrong[name].append(float((mean - truth).norm()))
    figures = {name: float(np.mean(values)) for name, values in wrong.items()}
    assert figures["fit"] < 0.9 * figures["public"]
    assert figures["fit"] < 0.9 * figures["noisy"]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_whatever_a_site_sends_within_the_form_the_gaussian_is_finite_and_bounded(
    public: PublicGaussian, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    signs = {
        name: (torch.randint(0, 2, shape, generator=random) * 2 - 1) * LARGEST_UNITS
        for name, shape in public.sent.shapes.items()
    }
    found = part(fit_noisy_deviations(TrajectorySums(public.sent, 1, signs), PLAN, 1, public))
    assert all(bool(torch.isfinite(tensor).all()) for tensor in found.values())
    lengths = lengths_of(public.sent, PLAN.trajectories, deviations=True)
    away = (found["mean"][:, : FORM.width] - public.mean[:, : FORM.width]) / public.sd
    assert float(away.norm(dim=1).max()) <= lengths.joint * (1 + 1e-5)
    covariance = found["first"] @ found["first"].mT / public.sd[:, None] / public.sd
    assert float(covariance.trace()) <= lengths.product**2 + FORM.width + lengths.joint**2
    step, noise, later = found["step"][0], found["noise"][0], found["first"] @ found["first"].mT
    before = later
    for _ in range(80):
        later = step @ later @ step.mT + noise @ noise.mT
    assert torch.allclose(later, before, rtol=0, atol=1e-3 * max(1, float(before.trace())))


def test_noise_of_a_mean_is_what_the_release_has_and_no_release_makes_no_gaussian(
    public: PublicGaussian,
) -> None:
    patients: Sequence[Patient] = ordered(cohort(8, 20, 2), FORM)
    errors = []
    for seed in range(8):
        pair = [
            release_moments(patients, FORM, PLAN, 20, stream, public).mean("mean")
            for stream in (KnownStream(1 + 1000 * seed), Silent())
        ]
        errors.append(pair[0] - pair[1])
    measured = float(torch.stack(errors).std()) / mean_noise(public.sent, PLAN, 20, 1)
    tolerance = 5 / (2 * 8 * errors[0].numel()) ** 0.5
    assert abs(measured - 1) < tolerance
    assert all(abs(measured * other - 1) > tolerance for other in (2 / 3, 3 / 2))
    with pytest.raises(DataError, match="no site sent"):
        fit_noisy_deviations(TrajectorySums.zero(public.sent), PLAN, 0, public)
