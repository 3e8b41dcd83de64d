"""The z-filter's equations with noise: one patient's bound, the noise, and a fit that bears it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lift.config.privacy import StartRelease
from lift.mixer.z_filter import NormalEquations, fit, normal_equations
from lift.tasks.paired.private.start import (
    equations_norm,
    fit_released,
    patient_equations_of,
    release_equations,
)
from tests.lift.privacy.streams import KnownStream

RELEASE = StartRelease(noise_multiplier=1.5, clip_norm=0.02)
SILENT = RELEASE.model_copy(update={"noise_multiplier": 1e-9, "clip_norm": 1e3})
RIDGE = 1e-3


def equations(seed: int, *, scale: float = 1.0, depth: int = 9) -> NormalEquations:
    """Of a volume whose neighbours tell something of the target."""
    random = torch.Generator().manual_seed(seed)
    pred = scale * torch.rand(depth, 1, 8, 8, generator=random)
    shifted = torch.roll(pred, 1, 0)
    target = 0.8 * pred + 0.2 * shifted
    return normal_equations(pred, target, torch.ones_like(pred))


def packed(of: NormalEquations) -> torch.Tensor:
    return torch.cat([of.a.flatten(), of.b])


@given(
    seed=st.integers(0, 1000),
    scale=st.sampled_from([1e-2, 1.0, 100.0]),
    volumes=st.sampled_from([1, 8]),
)
def test_one_patient_moves_the_sum_by_no_more_than_the_clip_norm(
    seed: int, scale: float, volumes: int
) -> None:
    quiet = RELEASE.model_copy(update={"noise_multiplier": 1e-12})
    others = [equations(1), equations(2)]
    patient = patient_equations_of([equations(seed + i, scale=scale) for i in range(volumes)])
    without = release_equations(others, quiet, KnownStream())
    with_it = release_equations([*others, patient], quiet, KnownStream())
    moved = packed(with_it) - packed(without)
    assert float(moved.norm()) <= RELEASE.clip_norm * (1 + 1e-6)


def test_a_patient_with_many_volumes_counts_once() -> None:
    one = patient_equations_of([equations(1)])
    many = patient_equations_of([equations(1)] * 8)
    torch.testing.assert_close(packed(one), packed(many))
    assert many.patients == 1


def test_the_noise_is_that_of_the_plan_on_each_different_number() -> None:
    drawn = [release_equations([], RELEASE, KnownStream(1000 * i)) for i in range(400)]
    upper = torch.triu_indices(6, 6, offset=1)
    expected = RELEASE.noise_multiplier * RELEASE.clip_norm
    groups = {
        "b": (torch.cat([each.b for each in drawn]), 1.0),
        "diagonal": (torch.cat([each.a.diagonal() for each in drawn]), 1.0),
        # a number that stands twice in the matrix counts twice in its length
        "above it": (torch.cat([each.a[upper[0], upper[1]] for each in drawn]), math.sqrt(0.5)),
    }
    for name, (values, factor) in groups.items():
        tolerance = 5 / math.sqrt(2 * len(values))
        measured = float(values.std()) / (expected * factor)
        assert abs(measured - 1) < tolerance, name
        assert all(abs(measured * wrong - 1) > tolerance for wrong in (2 / 3, 3 / 2))


def test_almost_no_noise_gives_the_exact_filter() -> None:
    cohort = [equations(seed) for seed in range(6)]
    exact = cohort[0]
    for each in cohort[1:]:
        exact = exact + each
    released = release_equations(cohort, SILENT, KnownStream())
    taps = fit_released(released, SILENT, 1, RIDGE)
    torch.testing.assert_close(taps, fit(exact, RIDGE), rtol=1e-3, atol=1e-4)


def test_much_noise_gives_a_filter_that_does_little_and_is_finite() -> None:
    loud = RELEASE.model_copy(update={"noise_multiplier": 200.0})
    cohort = [equations(seed) for seed in range(6)]
    exact = fit_released(release_equations(cohort, SILENT, KnownStream()), SILENT, 1, RIDGE)
    taps = fit_released(release_equations(cohort, loud, KnownStream()), loud, 1, RIDGE)
    assert bool(torch.isfinite(taps).all())
    naive = fit(release_equations(cohort, loud, KnownStream()), RIDGE)
    assert float(taps.norm()) < max(2.0, float(exact.norm()) * 10)
    assert float(taps.norm()) < float(naive.norm())


def test_nobody_and_a_patient_that_is_not_finite_give_noise_alone() -> None:
    bad = NormalEquations(
        torch.full((6, 6), torch.nan, dtype=torch.float64),
        torch.zeros(6, dtype=torch.float64),
        0,
        1,
    )
    one = release_equations([], RELEASE, KnownStream())
    other = release_equations([bad], RELEASE, KnownStream())
    assert torch.equal(packed(one), packed(other))
    assert (one.voxels, one.patients) == (0, 0)


def test_the_length_that_is_clipped_counts_what_stands_twice_twice() -> None:
    of = equations(4)
    assert equations_norm(of) == pytest.approx(float(packed(of).norm()))
