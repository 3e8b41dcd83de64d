"""Moments of trajectories with noise: one patient's length, the noise, what is made of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from lift.config.privacy import StatisticsOnce, TrajectoryBounds
from lift.errors import DataError, UpdateRejectedError
from lift.mixer.gaussian import GaussianTrajectory
from lift.privacy.accounting import Mechanism, epsilon
from lift.privacy.noise import SecureStream
from lift.tasks.unconditional.moments import (
    LARGEST,
    LARGEST_UNITS,
    SCALE,
    TrajectoryForm,
    TrajectorySums,
    fit_gaussian,
    moments_to_arrays,
    patient_moments,
)
from lift.tasks.unconditional.private import moments as trajectories
from lift.tasks.unconditional.private.gaussian import fit_noisy_gaussian, noise_std
from lift.tasks.unconditional.private.moments import (
    clipped,
    lengths_of,
    release_moments,
    sensitivity,
    units,
)
from lift.tasks.unconditional.review import moments_from_arrays
from lift.wire.names import GAUSSIAN, TRAJECTORY
from tests.lift.privacy.streams import KnownStream

FORM = TrajectoryForm(5, (0, 1, 4), (2, 3), tied=True, steady=1)
SHORT = TrajectoryForm(7, (0, 1, 2, 3), (), tied=True, rest=(4, 5), steady=2)
FORMS = (FORM, SHORT)
PLAN = StatisticsOnce(mode="stats-once", delta=1e-4, public_patients=50, noise_multiplier=1.3)
QUIET = PLAN.model_copy(update={"noise_multiplier": 1e-6})
Patient = list[Tensor]


class Silent(SecureStream):
    """Noise that is 0: what is released without any, by the code that is used."""

    __slots__ = ()

    def normals(self, count: int) -> NDArray[np.float64]:
        return np.zeros(count)


def width(form: TrajectoryForm) -> int:
    return form.width + len(form.tail)


def patient(seed: int, form: TrajectoryForm, *, volumes: int = 1, scale: float = 1.0) -> Patient:
    random = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(volumes):
        one = scale * torch.randn(form.positions, width(form), generator=random)
        one[:, form.width - form.steady : form.width] = one[
            :1, form.width - form.steady : form.width
        ]
        found.append(one)
    return found


def largest_patient(form: TrajectoryForm, *, volumes: int = 1) -> Patient:
    """The same direction everywhere, as far as numbers go: nothing averages out."""
    one = torch.zeros(form.positions, width(form))
    one[:, : form.width] = LARGEST
    if form.tail:
        one[:, form.width] = LARGEST
    return [one] * volumes


def cohort(form: TrajectoryForm, patients: int, seed: int = 0) -> list[Patient]:
    """Patients around curves of their own, with positions that are alike."""
    random = np.random.default_rng(seed)
    curve = np.sin(np.arange(form.positions)[:, None] + np.arange(width(form)))
    found = []
    for _ in range(patients):
        steps = random.normal(0, 0.4, (form.positions, width(form)))
        rows = 0.6 * curve + 0.6 * random.standard_normal(width(form)) + 0.5 * np.cumsum(steps, 0)
        low, high = form.width - form.steady, form.width
        rows[:, low:high] = rows[:1, low:high]
        found.append([torch.from_numpy(rows).float()])
    return found


def vector(sums: TrajectorySums) -> Tensor:
    """The vector that gets the noise."""
    unit = units(sums.form, lengths_of(sums.form, PLAN.trajectories))
    return torch.cat(
        [(sums.units[name].double() / SCALE / unit[name]).flatten() for name in sorted(unit)]
    )


def released(
    patients: Sequence[Patient], form: TrajectoryForm, stream: SecureStream | None = None
) -> Tensor:
    return vector(release_moments(patients, form, PLAN, 50, stream or Silent()))


def moved_by(one: Patient, form: TrajectoryForm) -> float:
    """How far a patient more moves what is released of others."""
    others = [patient(1, form), largest_patient(form)]
    return float((released([*others, one], form) - released(others, form)).norm())


def bound(form: TrajectoryForm) -> float:
    # float32 sums of three patients, with which the noise ends
    return sensitivity(form, lengths_of(form, PLAN.trajectories)) * (1 + 1e-5)


@given(
    seed=st.integers(0, 10_000),
    volumes=st.sampled_from([1, 2, 8]),
    scale=st.sampled_from([1e-4, 1.0, 3.0, 1e6]),
    form=st.sampled_from(FORMS),
)
def test_one_patient_more_or_less_moves_the_sums_by_at_most_the_sensitivity(
    seed: int, volumes: int, scale: float, form: TrajectoryForm
) -> None:
    assert moved_by(patient(seed, form, volumes=volumes, scale=scale), form) <= bound(form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("volumes", [1, 3])
def test_the_worst_patient_moves_them_by_just_that(form: TrajectoryForm, volumes: int) -> None:
    worst = moved_by(largest_patient(form, volumes=volumes), form)
    assert 0.999 * bound(form) < worst <= bound(form)


@pytest.mark.parametrize("form", FORMS)
def test_without_the_clip_they_move_further(
    form: TrajectoryForm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unclipped(one: Tensor, *_: object) -> Tensor:
        return one

    monkeypatch.setattr(trajectories, "clipped", unclipped)
    assert moved_by(largest_patient(form), form) > 2 * bound(form)
    assert moved_by(patient(3, form, scale=8.0), form) > 2 * bound(form)


def test_a_patient_counts_once_whatever_the_number_of_volumes() -> None:
    one = patient(2, FORM)
    assert torch.equal(released([one], FORM), released([one * 4], FORM))


def test_a_patient_who_is_not_finite_adds_nothing_where_that_is_so_and_stops_nobody() -> None:
    bad = patient(4, FORM)
    bad[0][2, 1] = torch.nan
    bad[0][3, FORM.width] = torch.inf
    kept = clipped(bad[0], FORM, lengths_of(FORM, PLAN.trajectories))
    assert not bool(kept[2, : FORM.width].any())
    assert not bool(kept[3, FORM.width :].any())
    assert bool(kept[2, FORM.width :].any())
    assert moved_by(bad, FORM) <= bound(FORM)
    nothing = [torch.full((FORM.positions, width(FORM)), torch.nan)]
    assert moved_by(nothing, FORM) == 0


def test_what_is_short_enough_is_not_changed_by_the_clip() -> None:
    (one,) = patient(5, FORM, scale=0.1)
    assert torch.equal(clipped(one, FORM, lengths_of(FORM, PLAN.trajectories)), one.double())


def test_the_noise_is_that_of_the_plan_and_not_two_thirds_of_it() -> None:
    form = TrajectoryForm(12, tuple(range(12)), tuple(range(12, 20)), tied=True)
    patients = cohort(form, 8)
    errors = released(patients, form, KnownStream()) - released(patients, form)
    expected = PLAN.noise_multiplier * sensitivity(form, lengths_of(form, PLAN.trajectories))
    # the standard error of a standard deviation: five of them, for a false alarm in 10^6 runs
    tolerance = 5 / math.sqrt(2 * len(errors))
    measured = float(errors.std()) / expected
    assert abs(measured - 1) < tolerance
    # negative controls: the errors that the test exists for are far outside
    assert all(abs(measured * wrong - 1) > tolerance for wrong in (2 / 3, 3 / 2))
    assert abs(float(errors.mean())) < 5 * expected / math.sqrt(len(errors))


def test_the_noise_of_the_total_is_what_the_fit_takes_it_for() -> None:
    form = TrajectoryForm(12, tuple(range(12)), tuple(range(12, 20)), tied=True)
    sites = [cohort(form, 9, seed) for seed in range(3)]
    exact, noisy = TrajectorySums.zero(form), TrajectorySums.zero(form)
    for number, patients in enumerate(sites):
        exact = exact + release_moments(patients, form, PLAN, 40, Silent())
        noisy = noisy + release_moments(patients, form, PLAN, 40, KnownStream(1 + 1000 * number))
    std = noise_std(noisy, PLAN, 3)
    for name, shape in form.shapes.items():
        errors = ((noisy.mean(name) - exact.mean(name)) / std[name]).flatten()
        tolerance = 5 / math.sqrt(2 * math.prod(shape))
        assert abs(float(errors.square().mean().sqrt()) - 1) < tolerance, name


def test_the_number_of_patients_is_the_public_one_and_nobody_still_gives_noise() -> None:
    for count in (0, 3, 20):
        sums = release_moments(cohort(FORM, count), FORM, PLAN, 50, KnownStream())
        assert sums.patients == 50
        assert float(vector(sums).norm()) > 1
    with pytest.raises(DataError, match="at most 8192 fit"):
        release_moments([], FORM, PLAN, 9000, KnownStream())


def test_two_kinds_together_cost_what_the_plan_says_and_each_has_its_share() -> None:
    share = PLAN.for_each_of(2).noise_multiplier
    both = epsilon([Mechanism(share), Mechanism(share)], PLAN.delta)
    assert both == pytest.approx(epsilon([Mechanism(PLAN.noise_multiplier)], PLAN.delta), abs=1e-3)
    # the control: each with the plan's own noise would cost more
    twice = [Mechanism(PLAN.noise_multiplier)] * 2
    assert epsilon(twice, PLAN.delta) > both + 0.5
    assert PLAN.for_each_of(1) == PLAN


def test_noisy_sums_travel_whatever_they_look_like_and_are_refused_by_their_form_alone() -> None:
    few = release_moments(cohort(FORM, 2), FORM, PLAN, 3, KnownStream())
    arrays = moments_to_arrays(few, noisy=True)
    back = moments_from_arrays(arrays, FORM, noisy=True)
    assert back.patients == 3
    assert all(torch.equal(back.units[name], few.units[name]) for name in few.units)
    with pytest.raises(DataError, match="3 patients"):
        moments_to_arrays(few)
    with pytest.raises(UpdateRejectedError):
        moments_from_arrays(arrays, FORM)
    for name, changed in {
        "mean": arrays[TRAJECTORY + "mean"][:-1],
        "within": arrays[TRAJECTORY + "within"].astype(np.float64),
        "next": np.full_like(arrays[TRAJECTORY + "next"], np.iinfo(np.int64).min),
        "patients": np.array([0]),
    }.items():
        with pytest.raises(UpdateRejectedError):
            moments_from_arrays(arrays | {TRAJECTORY + name: changed}, FORM, noisy=True)


def part(gaussian: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(GAUSSIAN): tensor.double() for name, tensor in gaussian.items()}


@pytest.mark.parametrize("form", FORMS)
def test_without_much_noise_the_gaussian_is_the_exact_one(form: TrajectoryForm) -> None:
    wide = QUIET.model_copy(update={"trajectories": TrajectoryBounds(clip=9.0, tail_clip=9.0)})
    patients = cohort(form, 400)
    exact = sum((patient_moments(p, form) for p in patients), start=TrajectorySums.zero(form))
    noisy = release_moments(patients, form, wide, 400, KnownStream())
    one, other = part(fit_gaussian(exact)), part(fit_noisy_gaussian(noisy, wide, 1))
    assert set(one) == set(other)
    for name, value in one.items():
        assert torch.allclose(value, other[name], rtol=0, atol=2e-3), name


def test_hardly_any_patients_leave_what_is_public() -> None:
    loud = PLAN.model_copy(update={"noise_multiplier": 1e3})
    shares, spreads = [], []
    for seed in range(1, 200, 20):
        noisy = release_moments(cohort(SHORT, 5), SHORT, loud, 5, KnownStream(1000 * seed))
        found = part(fit_noisy_gaussian(noisy, loud, 1))
        # how far the covariance lies from the public one, of what it could be at most
        covariance = found["first"] @ found["first"].mT
        away = covariance - torch.eye(SHORT.width, dtype=torch.float64)
        shares.append(float(away.norm()))
        spreads.append(float(covariance.trace()))
    assert float(np.median(shares)) < 1.5
    longest = lengths_of(SHORT, loud.trajectories).joint
    assert max(spreads) <= longest**2 * (1 + 1e-6)


def _hopeless(form: TrajectoryForm, seed: int) -> TrajectorySums:
    loud = PLAN.model_copy(update={"noise_multiplier": 1e4})
    return release_moments([], form, loud, 1, KnownStream(seed))


def _extreme(form: TrajectoryForm, seed: int) -> TrajectorySums:
    """What a hostile site may send within the form."""
    random = torch.Generator().manual_seed(seed)
    signs = {
        name: (torch.randint(0, 2, shape, generator=random) * 2 - 1) * LARGEST_UNITS
        for name, shape in form.shapes.items()
    }
    return TrajectorySums(form, 1, signs)


def _constant(form: TrajectoryForm, seed: int) -> TrajectorySums:
    units_ = {name: torch.full(shape, seed) for name, shape in form.shapes.items()}
    return TrajectorySums(form, 1, units_)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("made", [_hopeless, _extreme, _constant])
@pytest.mark.parametrize("seed", [0, 1, 10, 100])
def test_whatever_the_sums_are_the_gaussian_is_finite_and_bounded_and_does_not_grow(
    form: TrajectoryForm, made: Callable[[TrajectoryForm, int], TrajectorySums], seed: int
) -> None:
    found = fit_noisy_gaussian(made(form, seed), PLAN, 1)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in found.values())
    gaussian = part(found)
    lengths = lengths_of(form, PLAN.trajectories)
    means = gaussian["mean"]
    assert float(means[:, : form.width].norm(dim=1).max()) <= lengths.joint * (1 + 1e-6)
    assert float(means[:, form.width :].norm(dim=1).max()) <= lengths.tail * (1 + 1e-6)
    covariance = gaussian["first"] @ gaussian["first"].mT
    assert float(covariance.trace()) <= lengths.joint**2 * (1 + 1e-6)
    assert float(gaussian["tail_sd"].square().sum(1).max()) <= lengths.tail**2 * (1 + 1e-6)
    assert float(gaussian["tail_step"].abs().sum()) <= gaussian["tail_step"].numel()
    # the covariance is the same at every position, of ten times as many
    step, noise = gaussian["step"][0], gaussian["noise"][0]
    later = covariance
    for _ in range(10 * form.positions):
        later = step @ later @ step.mT + noise @ noise.mT
    assert torch.allclose(later, covariance, rtol=0, atol=1e-3 * max(1, float(covariance.trace())))
    mapper = GaussianTrajectory(form.positions, form.joint, form.tail, None, form.rest)
    mapper.load_gaussian({name: value.float() for name, value in gaussian.items()})
    latents = mapper(mapper.draw(50, torch.Generator().manual_seed(1)), torch.linspace(0, 1, 30))
    assert latents.shape == (50, 30, len(form.joint) + len(form.tail) + len(form.rest))
    assert float(latents.abs().max()) < 10 * (lengths.joint + lengths.tail)


def test_no_release_makes_no_gaussian() -> None:
    with pytest.raises(DataError, match="no site sent"):
        fit_noisy_gaussian(TrajectorySums.zero(FORM), PLAN, 0)


def test_shrinking_brings_the_gaussian_nearer_than_the_noisy_moments_are() -> None:
    """Of cohorts whose latents are what the public ones are: 60 patients, epsilon about 2."""
    form = TrajectoryForm(8, tuple(range(8)), (), tied=True)
    privacy = PLAN.model_copy(update={"noise_multiplier": 1.73})
    random = np.random.default_rng(5)
    curve = 0.6 * np.sin(0.4 * np.arange(8)[:, None] + np.arange(9))
    curve[:, -1] = 0
    better = 0
    for seed in range(10):
        patients = []
        for _ in range(60):
            rows = curve + 0.8 * random.standard_normal(9) + 0.3 * random.standard_normal((8, 9))
            rows[:, -1] = rows[0, -1]
            patients.append([torch.from_numpy(rows).float()])
        noisy = release_moments(patients, form, privacy, 60, KnownStream(1 + 1000 * seed))
        exact = release_moments(patients, form, privacy, 60, Silent())
        mean = part(fit_noisy_gaussian(noisy, privacy, 1))["mean"]
        wrong = (noisy.mean("mean") - exact.mean("mean")).norm()
        better += bool((mean - exact.mean("mean")).norm() < 0.9 * wrong)
    assert better >= 9


def test_a_patient_whose_moments_cannot_be_computed_adds_nothing() -> None:
    people = cohort(FORM, 3)
    torn = [people[0][0], people[0][0][:2]]
    found, others = (
        release_moments(some, FORM, PLAN, 50, KnownStream())
        for some in ([people[0], torn, [], *people[1:]], people)
    )
    assert all(torch.equal(found.units[name], others.units[name]) for name in others.units)
