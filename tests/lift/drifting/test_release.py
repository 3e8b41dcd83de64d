"""What leaves a site: merged cells, bytes, and the review at the other end."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lift.errors import ConfigError, DataError, UpdateRejectedError
from lift.tasks.unconditional.drifting.release import from_arrays, merge_small_cells, to_arrays
from lift.tasks.unconditional.drifting.review import review
from lift.tasks.unconditional.drifting.statistics import LARGEST_COHORT, Sums, parts
from lift.triplanar.groups import GroupLayout
from lift.triplanar.projection import KINDS, Kind, Projection
from tests import wording
from tests.lift.drifting.small import GROUPS, at_once, patients, projection, summed

Arrays = dict[str, np.ndarray[Any, np.dtype[Any]]]


@functools.cache
def released() -> Sums:
    return merge_small_cells(summed(1, 30), projection())


@settings(max_examples=6)
@given(seed=st.integers(0, 500), count=st.integers(5, 40))
def test_no_cell_of_fewer_than_five_patients_leaves(seed: int, count: int) -> None:
    of = projection()
    sums = at_once(patients(seed, count), of)
    merged = merge_small_cells(sums, of)
    scale = parts(of)["anchor_counts"].scale
    counts = merged.units["anchor_counts"]
    assert ((counts == 0) | (counts >= 5 * scale)).all()
    assert torch.equal(counts.sum(1), sums.units["anchor_counts"].sum(1))
    assert torch.equal(merged.units["feature_sums"], sums.units["feature_sums"])
    assert int((sums.units["anchor_counts"] > 0).sum()) > int((counts > 0).sum())


def test_merging_keeps_the_mean_of_all_features() -> None:
    of = projection()
    sums = summed(2, 30)
    merged = merge_small_cells(sums, of)
    form = parts(of)
    for group in range(GROUPS):
        means = []
        for one in (sums, merged):
            weights = one.units["anchor_counts"][group].double() / form["anchor_counts"].scale
            offsets = one.units["anchor_sums"][group].double() / form["anchor_sums"].scale
            means.append((weights[:, None] * of.anchors[group].double() + offsets).sum(0) / 30)
        torch.testing.assert_close(means[0], means[1], rtol=0, atol=1e-4)


def test_a_cell_goes_to_its_nearest_neighbour() -> None:
    of = projection()
    form = parts(of)
    sums = Sums.zero(of)
    counts = sums.units["anchor_counts"]
    counts[:, 0], counts[:, 1] = form["anchor_counts"].scale * 20, form["anchor_counts"].scale * 20
    counts[:, 5] = form["anchor_counts"].scale * 2
    merged = merge_small_cells(dataclasses.replace(sums, patients=42), of)
    for group in range(GROUPS):
        anchors = of.anchors[group].double()
        distances = (anchors[:2] - anchors[5]).norm(dim=1)
        near = int(distances.argmin())
        assert merged.units["anchor_counts"][group, near] == 22 * form["anchor_counts"].scale
        moved = merged.units["anchor_sums"][group, near].double() / form["anchor_sums"].scale
        torch.testing.assert_close(
            moved, 2 * (anchors[5] - anchors[near]).double(), rtol=0, atol=1e-4
        )


def test_fewer_than_five_patients_send_nothing() -> None:
    with pytest.raises(DataError, match=r"1 patients; at least 5.*Nothing was sent"):
        merge_small_cells(summed(1, 1), projection())
    with pytest.raises(DataError, match="4 patients"):
        merge_small_cells(summed(1, 4), projection())
    merge_small_cells(summed(1, 5), projection())


@pytest.mark.parametrize("compact", [True, False])
def test_sums_come_back_from_the_wire_to_the_bit(compact: bool) -> None:
    sums = released()
    arrays = to_arrays(sums, data_version=4, compact=compact)
    assert all(array.dtype == np.int64 and array.ndim == 1 for array in arrays.values())
    travelled = safetensors.numpy.load(safetensors.numpy.save(arrays))
    received = from_arrays(travelled | {"z_filter_a": np.zeros(3)}, projection())
    assert received.data_version == 4
    assert received.sums.patients == 30
    assert received.sums.projection_digest == projection().digest
    for name, units in sums.units.items():
        assert torch.equal(received.sums.units[name], units)
    if compact:
        assert review(travelled, projection(), data_version=4).patients == 30


def default_projection(kinds: tuple[Kind, ...]) -> Projection:
    random = torch.Generator().manual_seed(1)
    return Projection(
        layout=GroupLayout(),
        encoder_digest="ab" * 32,
        standardisation_digest="cd" * 32,
        kinds=kinds,
        widths=(0.5, 1.0),
        radius=2.0,
        cell_radius=2.0,
        anchors=torch.randn(13, 64, 24, generator=random),
        frequencies=torch.randn(2, 24, 256, generator=random),
    )


@pytest.mark.parametrize(
    ("kinds", "most"), [(("anchors", "random_features"), 140_000), (KINDS, 160_000)]
)
def test_a_site_sends_less_than_200_kb_at_the_defaults(kinds: tuple[Kind, ...], most: int) -> None:
    of = default_projection(kinds)
    sums = dataclasses.replace(Sums.zero(of), patients=100)
    block = safetensors.numpy.save(to_arrays(sums, data_version=0))
    assert len(block) < most < 200_000


def test_a_cohort_too_large_for_the_wire_is_refused() -> None:
    sums = dataclasses.replace(released(), patients=LARGEST_COHORT + 1)
    with pytest.raises(DataError, match="at most 8192"):
        to_arrays(sums, data_version=0)
    assert from_arrays(to_arrays(sums, data_version=0, compact=False), projection())


def test_sums_of_another_encoder_or_projection_are_refused() -> None:
    arrays = to_arrays(released(), data_version=0)
    with pytest.raises(ConfigError, match=wording.ANOTHER_PROJECTION):
        review(arrays, projection(6))
    foreign = arrays | {"drifting_encoder": arrays["drifting_encoder"] + 1}
    with pytest.raises(ConfigError, match=wording.ANOTHER_ENCODER):
        review(foreign, projection())


def edited(change: Callable[[Sums], None], **fields: Any) -> Arrays:
    """Arrays of a site that changed its sums after they were merged."""
    sums = released()
    copy = dataclasses.replace(
        sums, units={name: units.clone() for name, units in sums.units.items()}, **fields
    )
    change(copy)
    return to_arrays(copy, data_version=2)


def nothing(_: Sums) -> None:
    pass


def negative_count(sums: Sums) -> None:
    counts = sums.units["anchor_counts"]
    counts[0, int(counts[0].argmin())] = -1


def too_much_weight(sums: Sums) -> None:
    counts = sums.units["anchor_counts"]
    counts[1, int(counts[1].argmax())] += 1


def small_cell(sums: Sums) -> None:
    counts = sums.units["anchor_counts"]
    empty, full = int(counts[2].argmin()), int(counts[2].argmax())
    moved = 4 * parts(projection())["anchor_counts"].scale
    counts[2, empty] += moved
    counts[2, full] -= moved


def long_cell(sums: Sums) -> None:
    full = int(sums.units["anchor_counts"][0].argmax())
    sums.units["anchor_sums"][0, full, 0] = 31 * 2 * parts(projection())["anchor_sums"].scale


def sum_in_an_empty_cell(sums: Sums) -> None:
    sums.units["anchor_sums"][0, int(sums.units["anchor_counts"][0].argmin()), 3] = 1


def long_random_features(sums: Sums) -> None:
    sums.units["feature_sums"][1, 0, 5] = 31 * parts(projection())["feature_sums"].scale


def long_moments(sums: Sums) -> None:
    sums.units["first_moments"][0, 0] = 61 * parts(projection())["first_moments"].scale


def impossible_moments(sums: Sums) -> None:
    sums.units["second_moments"][0, 0] = 0


@pytest.mark.parametrize(
    ("change", "fields", "match"),
    [
        (negative_count, {}, "negative"),
        (too_much_weight, {}, "do not sum"),
        (small_cell, {}, "fewer than 5 patients"),
        (long_cell, {}, "cell's sum is longer"),
        (sum_in_an_empty_cell, {}, "cell's sum is longer"),
        (long_random_features, {}, "random features is longer"),
        (long_moments, {}, "moments are longer"),
        (impossible_moments, {}, "not those of any set"),
        (nothing, {"patients": 1}, "1 patients; 5 to 8192"),
        (nothing, {"patients": 0}, "0 patients"),
        (nothing, {"patients": 31}, "do not sum"),
    ],
)
def test_sums_that_no_cohort_can_have_are_refused(
    change: Callable[[Sums], None], fields: dict[str, Any], match: str
) -> None:
    with pytest.raises(UpdateRejectedError, match=match) as caught:
        review(edited(change, **fields), projection())
    assert caught.value.what
    assert caught.value.remedy


def test_an_older_data_version_is_refused() -> None:
    with pytest.raises(UpdateRejectedError, match="data version 2; the site's data has version 3"):
        review(edited(nothing), projection(), data_version=3)


def test_arrays_of_another_form_are_refused() -> None:
    good = to_arrays(released(), data_version=0)
    name = "drifting_feature_sums"
    fewer_groups = len(good[name]) // GROUPS * (GROUPS - 1)
    nan = np.full(len(good[name]), np.nan)
    cases = {
        r"those of 3 groups; the projection has 4": good | {name: good[name][:fewer_groups]},
        "float64, with NaN": good | {name: nan},
        "float32; a row of int64": good | {name: good[name].astype(np.float32)},
        "1 missing": {key: array for key, array in good.items() if key != name},
        "1 extra": good | {"drifting_more": good[name]},
        "'patients' has 2": good | {"drifting_patients": np.array([30, 30])},
        "negative number of patients": good | {"drifting_patients": np.array([-3])},
        "a row of int64": good | {name: good[name].reshape(2, -1)},
    }
    for match, arrays in cases.items():
        with pytest.raises(UpdateRejectedError, match=match):
            review(arrays, projection())


@settings(max_examples=30)
@given(data=st.data())
def test_the_review_answers_with_a_refusal_or_with_sums_whatever_comes(data: st.DataObject) -> None:
    arrays = to_arrays(released(), data_version=0)
    name = data.draw(st.sampled_from(sorted(arrays)))
    changed = arrays[name].copy()
    index = data.draw(st.integers(0, len(changed) - 1))
    changed[index] = data.draw(st.integers(-(2**63), 2**63 - 1))
    with contextlib.suppress(UpdateRejectedError, ConfigError):
        assert review(arrays | {name: changed}, projection()).patients >= 5
