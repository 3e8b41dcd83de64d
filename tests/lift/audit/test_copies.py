"""Copies among generated volumes are found, and volumes of nobody are not called copies."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist

from lift.audit.copies import (
    CopyFigures,
    Patients,
    Volume,
    copy_figures,
    correlation_distances,
    nearer_shares,
)
from lift.audit.scores import CAVEAT
from lift.errors import DataError
from lift.metrics.synthrad import Floats
from tests import wording
from tests.lift.metrics.smooth_volumes import body
from tests.lift.small_world import assert_four_parts


def volume(seed: int, depth: int = 20) -> Volume:
    return body(seed, (depth, 24, 22)).astype(np.float32)


def patients(first: int, count: int) -> Patients:
    """Each with one volume; they differ in their number of slices."""
    seeds = range(first, first + count)
    return {f"anna-{seed}": [volume(seed, 18 + seed % 5)] for seed in seeds}


def noisy(original: Volume, noise: float, seed: int) -> Volume:
    """A copy in twice as many slices, with another gain, and noise inside the body."""
    rng = np.random.default_rng(seed)
    inside = original > 0
    changed = 0.1 + 0.8 * original + noise * rng.normal(size=original.shape)
    copy: Volume = np.where(inside, changed.clip(0.06, 1), 0).astype(np.float32)
    return np.repeat(copy, 2, axis=0)


TRAINING, HELD_OUT = patients(0, 24), patients(100, 16)
FRESH = [volume(seed, 17 + seed % 4) for seed in range(200, 230)]


def copies_of(cohort: Patients, noise: float) -> list[Volume]:
    volumes = itertools.chain.from_iterable(cohort.values())
    return [noisy(one, noise, seed) for seed, one in enumerate(volumes)]


@pytest.fixture(scope="module")
def independent() -> CopyFigures:
    return copy_figures(FRESH, TRAINING, HELD_OUT, seed=1)


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_copies_are_found_by_all_three_figures(noise: float) -> None:
    found = copy_figures(copies_of(TRAINING, noise), TRAINING, HELD_OUT, seed=1)
    assert found.attack.auc_low > 0.9
    assert found.attack.tpr > 0.8
    # of 24 training patients 16 count, so that a copy's original is one of them in 2 of 3
    assert found.nearer_low > 0.6
    assert found.nearer_training > found.chance_high
    assert found.copies > 0.9
    assert found.copies_of_held_out == 0.0


def test_a_verbatim_copy_of_every_training_patient_is_found_with_certainty() -> None:
    verbatim = [one for volumes in HELD_OUT.values() for one in volumes]
    found = copy_figures(verbatim, HELD_OUT, TRAINING, seed=1)
    assert (found.attack.auc, found.attack.tpr, found.copies) == (1.0, 1.0, 1.0)
    assert (found.nearer_training, found.nearer_low) == (1.0, 1.0)


def test_independent_volumes_are_not_called_copies(independent: CopyFigures) -> None:
    attack = independent.attack
    assert attack.auc_low <= 0.5 <= attack.auc_high
    assert independent.chance_low <= independent.nearer_training <= independent.chance_high
    assert independent.copies <= 0.1
    assert independent.copies_of_held_out <= 0.1


def test_without_copies_the_share_lies_where_random_divisions_lie() -> None:
    outside = 0
    for first in range(1000, 3000, 100):
        own = [volume(seed) for seed in range(first + 40, first + 55)]
        found = copy_figures(own, patients(first, 12), patients(first + 20, 9), seed=first)
        outside += not found.chance_low <= found.nearer_training <= found.chance_high
    # 1 of 20 expected
    assert outside <= 3


def test_copies_of_held_out_patients_look_like_the_opposite() -> None:
    found = copy_figures(copies_of(HELD_OUT, 0.05), TRAINING, HELD_OUT, seed=1)
    assert found.attack.auc_high < 0.1
    assert found.nearer_training < found.chance_low
    assert found.copies < 0.1
    assert found.copies_of_held_out == 1.0


def test_a_few_copies_among_many_are_counted_as_such() -> None:
    copied = {name: TRAINING[name] for name in sorted(TRAINING)[:8]}
    found = copy_figures([*FRESH[:24], *copies_of(copied, 0.05)], TRAINING, HELD_OUT, seed=1)
    assert found.copies == pytest.approx(8 / 32, abs=0.07)
    assert found.attack.tpr >= 0.25
    assert found.generated == 32


def test_smooth_volumes_are_near_to_everybody_and_that_is_told() -> None:
    everybody = np.mean([volume(seed) for seed in range(300, 340)], axis=0)
    smooth = [
        (everybody + 0.02 * gaussian_filter(one, 3.0)).astype(np.float32)
        for one in (volume(seed) for seed in range(400, 430))
    ]
    found = copy_figures(smooth, TRAINING, HELD_OUT, seed=1)
    assert found.copies > 0.9
    # no copying: the held-out patients are as near
    assert found.copies_of_held_out > 0.9
    assert found.chance_low <= found.nearer_training <= found.chance_high


def test_a_patient_with_several_volumes_counts_once_and_by_the_nearest() -> None:
    # the first volume of each belongs to nobody's copy
    double = {
        name: [volume(500 + index), *volumes]
        for index, (name, volumes) in enumerate(TRAINING.items())
    }
    found = copy_figures(copies_of(TRAINING, 0.05), double, HELD_OUT, seed=1)
    assert found.attack.members == 20
    assert (found.attack.auc, found.copies) == (1.0, 1.0)


def test_neither_the_order_of_volumes_nor_their_laziness_matters(
    independent: CopyFigures,
) -> None:
    def read() -> Iterator[Volume]:
        yield from FRESH[::-1]

    turned = {name: iter(TRAINING[name]) for name in sorted(TRAINING, reverse=True)}
    assert copy_figures(read(), turned, HELD_OUT, seed=1) == independent


@pytest.mark.parametrize("few", ["generated", "training", "held-out"])
def test_fewer_than_five_of_anything_are_refused(few: str) -> None:
    with pytest.raises(DataError) as caught:
        copy_figures(
            FRESH[:4] if few == "generated" else FRESH,
            patients(0, 4) if few == "training" else TRAINING,
            patients(0, 4) if few == "held-out" else HELD_OUT,
            seed=0,
        )
    assert_four_parts(caught.value)
    assert few in caught.value.what


def test_a_patient_on_both_sides_is_refused_without_a_name() -> None:
    with pytest.raises(DataError) as caught:
        copy_figures(FRESH, TRAINING, patients(20, 8), seed=0)
    assert_four_parts(caught.value)
    assert "anna" not in str(caught.value)


def test_volumes_that_cannot_be_compared_are_refused() -> None:
    def refused(bad: Volume, match: str) -> None:
        with pytest.raises(ValueError, match=match):
            copy_figures([*FRESH, bad], TRAINING, HELD_OUT, seed=0)

    refused(np.zeros((20, 24), np.float32), "a finite")
    refused(np.full((20, 24, 22), np.nan, np.float32), "a finite")
    refused(np.zeros((20, 24, 23), np.float32), "one shape")
    with pytest.raises(ValueError, match=wording.EACH_NEEDS_A_VOLUME):
        copy_figures(FRESH, {**TRAINING, "anna-99": []}, HELD_OUT, seed=0)


def test_an_empty_volume_is_at_distance_1_and_no_copy() -> None:
    empty = [np.zeros((20, 24, 22), np.float32)] * 6
    found = copy_figures(empty, TRAINING, HELD_OUT, seed=0)
    assert (found.attack.auc, found.nearer_training, found.copies) == (0.5, 0.5, 0.0)


def test_nothing_of_a_patient_is_in_the_result(independent: CopyFigures) -> None:
    table = asdict(independent)
    attack = table.pop("attack")
    assert "anna" not in json.dumps([table, attack])
    assert all(isinstance(value, float | int) for value in (*table.values(), *attack.values()))
    assert (attack["members"], attack["others"]) == (20, 15)
    # two decimals hide what one more volume would change
    assert all(value == round(value, 2) for value in (*table.values(), *attack.values()))
    assert CopyFigures.CAVEAT == replace(independent).CAVEAT == CAVEAT


def union_correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    union = (a > 0) | (b > 0)
    if a[union].std() * b[union].std() < 1e-9:
        return 0.0
    return float(np.corrcoef(a[union], b[union])[0, 1])


@given(st.integers(0, 2**32 - 1))
def test_the_distance_is_that_of_the_union_of_masks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (rng.random((n, 40)) * (rng.random((n, 40)) > 0.4) for n in (3, 5))
    found = correlation_distances(a, b)
    direct = [[1 - union_correlation(one, other) for other in b] for one in a]
    np.testing.assert_allclose(found, direct, atol=1e-9)
    np.testing.assert_allclose(correlation_distances(b, a), found.T, atol=1e-12)
    np.testing.assert_allclose(np.diag(correlation_distances(a, a)), 0, atol=1e-9)


def test_the_background_and_the_gain_of_a_volume_do_not_matter() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 1, 30)) + 0.1
    padded = [np.concatenate([one, np.zeros((1, 200))], axis=1) for one in (a, 0.2 + 3 * b)]
    np.testing.assert_allclose(correlation_distances(*padded), cdist(a, b, "correlation"))


def mean_over_subsets(to_training: Floats, to_held_out: Floats) -> Floats:
    size = min(to_training.shape[1], to_held_out.shape[1])
    shares = []
    for one in itertools.combinations(range(to_training.shape[1]), size):
        for other in itertools.combinations(range(to_held_out.shape[1]), size):
            near, far = to_training[:, one].min(axis=1), to_held_out[:, other].min(axis=1)
            shares.append((near < far) + 0.5 * (near == far))
    mean: Floats = np.mean(shares, axis=0)
    return mean


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_shares_are_the_mean_over_all_subsets_of_one_size(
    training: int, held_out: int, seed: int
) -> None:
    # few distinct distances: ties must be frequent
    rng = np.random.default_rng(seed)
    near, far = (rng.integers(0, 5, (4, n)).astype(float) for n in (training, held_out))
    found = nearer_shares(near, far)
    np.testing.assert_allclose(found, mean_over_subsets(near, far), atol=1e-12)
    np.testing.assert_allclose(nearer_shares(far, near), 1 - found, atol=1e-12)
