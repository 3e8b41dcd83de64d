"""Statistics: what they are, that they add exactly, and that patients count once."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lift.errors import ConfigError, DataError
from lift.tasks.unconditional.drifting.statistics import (
    LARGEST_COHORT,
    Sums,
    group_units,
    parts,
    patient_sums,
)
from lift.triplanar.projection import Projection, fit_projection
from tests import wording
from tests.lift.drifting.small import (
    GROUPS,
    at_once,
    features,
    patients,
    projection,
    standardisation,
    summed,
    total,
)

SEEDS = st.integers(0, 2**32 - 1)


def by_definition(of: Projection, group: int, y: Tensor) -> dict[str, np.ndarray]:
    """One patient's numbers, window by window, in numpy."""
    anchors = of.anchors[group].double().numpy()
    w = of.frequencies.double().numpy()
    windows, d = y.shape
    k, half = len(anchors), w.shape[2]
    counts, sums = np.zeros(k), np.zeros((k, d))
    mean_phi, first, second = np.zeros((len(w), 2 * half)), np.zeros(d), np.zeros((d, d))
    for row in y.double().numpy():
        inside = row * min(1.0, of.radius / max(float(np.linalg.norm(row)), 1e-30))
        j = int(np.argmin([np.linalg.norm(inside - anchor) for anchor in anchors]))
        offset = inside - anchors[j]
        counts[j] += 1 / windows
        sums[j] += offset * min(1.0, of.cell_radius / np.linalg.norm(offset)) / windows
        for t in range(len(w)):
            phases = inside @ w[t]
            phi = np.concatenate([np.cos(phases), np.sin(phases)]) / math.sqrt(half)
            mean_phi[t] += phi / windows
        first += inside / windows
        second += np.outer(inside, inside) / windows
    return {
        "anchor_counts": counts,
        "anchor_sums": sums,
        "feature_sums": mean_phi,
        "first_moments": first,
        "second_moments": second[np.triu_indices(d)],
    }


@settings(max_examples=20)
@given(seed=SEEDS, windows=st.integers(1, 5), far=st.floats(0.5, 6))
def test_a_patients_numbers_follow_their_definition(seed: int, windows: int, far: float) -> None:
    of = projection()
    (patient,) = patients(seed % 10_000, 1, windows=windows)
    patient = [far * y for y in patient]
    sums = patient_sums(of, patient)
    for group, y in enumerate(patient):
        for name, expected in by_definition(of, group, y).items():
            scale = parts(of)[name].scale
            units = sums.units[name][group].double().numpy()
            # counts move by what rounding left over, once a window
            slack = (0.51 + windows * (name == "anchor_counts")) / scale + 1e-5 * of.radius**2
            np.testing.assert_allclose(units / scale, expected, rtol=0, atol=slack)
    assert (sums.units["anchor_counts"].sum(1) == parts(of)["anchor_counts"].scale).all()


@settings(max_examples=15)
@given(seed=st.integers(0, 1000), order=st.permutations(range(5)), cuts=st.sets(st.integers(1, 4)))
def test_sums_are_the_same_integers_however_a_cohort_is_split(
    seed: int, order: list[int], cuts: set[int]
) -> None:
    cohort = patients(seed, 5, windows=3)
    whole = total(cohort)
    split = Sums.zero(projection())
    for low, high in itertools.pairwise([0, *sorted(cuts), 5]):
        split += total([cohort[i] for i in order[low:high]])
    assert split.patients == whole.patients == 5
    for name, units in whole.units.items():
        assert units.dtype == torch.int64
        assert torch.equal(split.units[name], units), name


def test_a_batch_of_volumes_gives_the_integers_of_its_patients() -> None:
    cohort = patients(3, 9, windows=3)
    whole = total(cohort)
    batch = at_once(cohort, projection())
    assert batch.patients == whole.patients == 9
    for name, expected in whole.units.items():
        assert torch.equal(batch.units[name], expected), name


def test_groups_may_be_taken_in_any_selection() -> None:
    rows = torch.stack(features(2, 8))
    owner = torch.arange(4).repeat_interleave(2)
    whole = group_units(projection(), (0, 1, 2, 3), rows, owner, 4)
    some = group_units(projection(), (1, 3), rows[[1, 3]], owner, 4, ("anchors",))
    assert set(some) == {"anchor_counts", "anchor_sums"}
    assert all(torch.equal(units, whole[name][[1, 3]]) for name, units in some.items())


def test_windows_do_not_weigh() -> None:
    (patient,) = patients(1, 1, windows=2)
    often = [y.repeat(4, 1) for y in patient]
    one, many = patient_sums(projection(), patient), patient_sums(projection(), often)
    for name, units in one.units.items():
        assert int((units - many.units[name]).abs().max()) <= 1, name


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), far=st.floats(0.1, 1e6))
def test_one_patients_influence_is_bounded_at_any_scale(seed: int, far: float) -> None:
    of = projection()
    (patient,) = patients(seed, 1, windows=3)
    sums = patient_sums(of, [far * y for y in patient])
    for group in range(GROUPS):
        value = {n: u[group].double() / parts(of)[n].scale for n, u in sums.units.items()}
        joint = torch.cat([value["anchor_counts"], value["anchor_sums"].flatten() / of.cell_radius])
        assert float(joint.norm()) <= math.sqrt(2) + 1e-3
        assert (value["feature_sums"].norm(dim=1) <= 1 + 1e-4).all()
        assert float(value["first_moments"].norm()) <= of.radius + 1e-4


def test_the_largest_cohort_fits_in_int32_and_no_finer_unit_does() -> None:
    of = projection()
    bounds = {
        "anchor_counts": 1.0,
        "anchor_sums": of.cell_radius,
        "feature_sums": math.sqrt(2 / of.n_features),
        "first_moments": of.radius,
        "second_moments": of.radius**2,
    }
    for name, bound in bounds.items():
        scale = parts(of)[name].scale
        assert LARGEST_COHORT * (bound * scale + 0.5) < 2**31, name
        assert LARGEST_COHORT * 4 * bound * scale >= 2**31, name
        assert math.log2(scale).is_integer()


def test_sums_of_another_space_are_not_added() -> None:
    cohort = patients(1, 2)
    sums = total(cohort)
    with pytest.raises(
        ConfigError, match=rf"{wording.ANOTHER_PROJECTION}.*digest.*needed"
    ) as caught:
        _ = sums + total(cohort, projection(6))
    assert caught.value.remedy
    foreign = dataclasses.replace(sums, encoder_digest="cd" * 32)
    with pytest.raises(ConfigError, match=wording.ANOTHER_ENCODER):
        _ = sums + foreign


def test_an_overflow_is_refused_and_never_wraps() -> None:
    sums = summed(1, 2)
    huge = {n: torch.full_like(u, 2**62) for n, u in sums.units.items()}
    large = dataclasses.replace(sums, units=huge)
    with pytest.raises(DataError, match="64 bits"):
        _ = large + large
    negative = dataclasses.replace(sums, units={n: -u - 1 for n, u in huge.items()})
    with pytest.raises(DataError, match="64 bits"):
        _ = negative + negative
    assert int((large + negative).units["anchor_sums"].max()) == -1


def test_a_patient_without_windows_or_with_nan_is_refused() -> None:
    (patient,) = patients(1, 1)
    empty = [patient[0][:0], *patient[1:]]
    with pytest.raises(DataError, match=r"group axial.*no window"):
        patient_sums(projection(), empty)
    patient[2][0, 0] = torch.inf
    with pytest.raises(DataError, match=rf"coronal.*{wording.NOT_FINITE}"):
        patient_sums(projection(), patient)
    with pytest.raises(ValueError, match="groups"):
        patient_sums(projection(), patient[:2])


def test_sums_of_nobody_have_no_mean() -> None:
    with pytest.raises(DataError, match="no patient"):
        Sums.zero(projection()).mean(projection(), "anchor_counts")


def test_only_the_asked_for_kinds_are_computed() -> None:
    of = fit_projection(
        features(1, 160), standardisation(), seed=1, kinds=("anchors",), n_anchors=8
    )
    assert set(total(patients(1, 2), of).units) == {"anchor_counts", "anchor_sums"}
