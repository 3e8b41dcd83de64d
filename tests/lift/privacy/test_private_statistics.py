"""Drifting statistics with noise: one patient's length, the noise, what is made of them."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lift.config.privacy import StatisticsOnce
from lift.tasks.unconditional.drifting.attraction import Anchors
from lift.tasks.unconditional.drifting.statistics import Sums, parts, patient_sums
from lift.tasks.unconditional.private.statistics import bounds, denoised, release_sums, sensitivity
from tests.lift.drifting.small import at_once, patients, projection, stacked
from tests.lift.privacy.streams import KnownStream

PLAN = StatisticsOnce(mode="stats-once", delta=1e-4, public_patients=50, noise_multiplier=1.3)
QUIET = PLAN.model_copy(update={"noise_multiplier": 1e-6})


def joint_length(sums: Sums) -> float:
    """The vector that gets the noise."""
    form, length = parts(projection()), bounds(projection())
    return math.sqrt(
        sum(
            float((units.double() / form[name].scale / length[name]).square().sum())
            for name, units in sums.units.items()
        )
    )


@given(
    seed=st.integers(0, 10_000),
    windows=st.sampled_from([1, 2, 16]),
    scale=st.sampled_from([1e-4, 1.0, 1e6]),
)
def test_one_patient_is_never_longer_than_the_sensitivity(
    seed: int, windows: int, scale: float
) -> None:
    (patient,) = patients(seed, 1, windows=windows)
    one = patient_sums(projection(), [scale * y for y in patient])
    assert joint_length(one) <= sensitivity(projection())


def test_the_sensitivity_is_tight_enough_to_mean_something() -> None:
    lengths = [joint_length(patient_sums(projection(), p)) for p in patients(1, 40, windows=1)]
    assert max(lengths) > 0.7 * sensitivity(projection())


def test_the_noise_is_that_of_the_plan_and_not_two_thirds_of_it() -> None:
    of = projection()
    exact = at_once(patients(3, 8), of)
    noisy = release_sums(exact, of, PLAN, 50, KnownStream())
    form, length = parts(of), bounds(of)
    errors = torch.cat(
        [
            (noisy.units[name] - exact.units[name]).double().flatten()
            / form[name].scale
            / length[name]
            for name in form
        ]
    )
    expected = PLAN.noise_multiplier * sensitivity(of)
    # the standard error of a standard deviation: five of them, for a false alarm in 10^6 runs
    tolerance = 5 / math.sqrt(2 * len(errors))
    measured = float(errors.std()) / expected
    assert abs(measured - 1) < tolerance
    # negative controls: the errors that the test exists for are far outside
    assert all(abs(measured * wrong - 1) > tolerance for wrong in (2 / 3, 3 / 2))
    assert abs(float(errors.mean())) < 5 * expected / math.sqrt(len(errors))


def test_the_number_of_patients_is_the_public_one() -> None:
    for count in (0, 3, 20):
        exact = at_once(patients(1, count), projection()) if count else Sums.zero(projection())
        assert release_sums(exact, projection(), PLAN, 50, KnownStream()).patients == 50


def test_without_much_noise_the_direction_is_the_exact_one() -> None:
    of = projection()
    cohort = patients(5, 60)
    exact = at_once(cohort, of)
    noisy = denoised(release_sums(exact, of, QUIET, 60, KnownStream()), of, QUIET, 1)
    groups = tuple(range(of.n_groups))
    drawn = [stacked(patients(6, 12), group) for group in groups]
    x, owner = torch.stack([rows for rows, _ in drawn]), drawn[0][1]
    one = Anchors(of, exact).net(x, owner, groups).force
    other = Anchors(of, noisy).net(x, owner, groups).force
    cosine = torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0)
    assert float(cosine) > 0.999


def test_noise_leaves_counts_of_the_patients_and_means_inside_their_cells() -> None:
    of = projection()
    noisy = release_sums(at_once(patients(7, 30), of), of, PLAN, 30, KnownStream(9))
    found = denoised(noisy, of, PLAN, 1)
    form = parts(of)
    counts = found.units["anchor_counts"].double() / form["anchor_counts"].scale
    offsets = found.units["anchor_sums"].double() / form["anchor_sums"].scale
    assert float(counts.min()) >= 0
    torch.testing.assert_close(
        counts.sum(1), torch.full((of.n_groups,), 30.0).double(), rtol=0, atol=1e-3
    )
    means = offsets.norm(dim=2) / counts.clamp_min(1e-9)
    assert float(means[counts > 0.1].max()) <= of.cell_radius * (1 + 1e-3)
    # noise of some ten patients hides most cells of thirty
    assert int((counts > 0).sum()) < counts.numel() / 4


def test_statistics_without_anchors_pass_unchanged() -> None:
    of = dataclasses.replace(projection(), kinds=("random_features",))
    sums = at_once(patients(7, 5), of)
    assert denoised(sums, of, PLAN, 1) is sums


def test_the_plan_knows_its_sites() -> None:
    by_site = PLAN.model_copy(update={"public_patients": {"north": 20}})
    assert by_site.patients_of("north") == 20
    assert not by_site.names("south")
    with pytest.raises(KeyError):
        by_site.patients_of("south")
