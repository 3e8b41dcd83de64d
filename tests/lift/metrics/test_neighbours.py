"""Precision and recall, nearest training volumes and near copies, against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from lift.metrics.neighbours import (
    near_copies,
    nearest_figures,
    precision_recall,
    thumbnail_distances,
)
from lift.metrics.synthrad import Floats
from tests.lift.metrics.smooth_volumes import SHAPE, body, measure, measured


def shares(one: Floats, other: Floats) -> tuple[float, float]:
    return precision_recall(cdist(one, other), cdist(one, one), cdist(other, other))


def test_precision_and_recall_count_points_within_third_neighbours() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(14, 2)), rng.normal(size=(17, 2)) + 0.8

    def among(points: Floats, of: Floats) -> float:
        inside = 0
        for point in points:
            for centre in of:
                others = sorted(np.linalg.norm(centre - p) for p in of)
                if np.linalg.norm(point - centre) <= others[3]:
                    inside += 1
                    break
        return inside / len(points)

    expected = among(one, other), among(other, one)
    assert shares(one, other) == pytest.approx(expected)
    assert 0 < expected[0] < 1
    assert expected[0] != expected[1]


def test_one_point_many_times_has_no_recall_and_far_points_no_precision() -> None:
    rng = np.random.default_rng(1)
    real = rng.normal(size=(30, 3))
    precision, recall = shares(np.repeat(real[:1] + 1e-3, 30, axis=0), real)
    assert precision == 1
    assert recall < 0.1
    assert shares(real + 50, real) == (0, 0)
    assert min(shares(rng.normal(size=(30, 3)), real)) > 0.7


def test_two_points_are_among_each_other_by_their_farthest() -> None:
    assert shares(np.array([[0.0], [1.0]]), np.array([[0.5], [1.5]])) == (1, 1)


def test_a_distance_of_thumbnails_is_a_difference_in_grey_values() -> None:
    one = measure([body(0), body(1)])
    brighter = measure([np.clip(body(0) * 0.5 + 0.1, 0, 1)])
    expected = np.sqrt(np.square(one.thumbnails - brighter.thumbnails[0]).mean(axis=1))
    assert thumbnail_distances(one, brighter)[:, 0] == pytest.approx(expected)
    shifted = measure([np.full(SHAPE, 0.5), np.full(SHAPE, 0.3)])
    assert thumbnail_distances(shifted, shifted)[0, 1] == pytest.approx(0.2)


def test_near_copies_are_nearer_than_half_of_what_an_original_has_around_it() -> None:
    originals = np.array([[0.0], [1.0], [9.0]])
    volumes = np.array([[0.4], [1.6], [6.0], [9.0], [4.0]])
    found = near_copies(cdist(volumes, originals), cdist(originals, originals))
    assert found.any(axis=1).tolist() == [True, False, True, True, False]


def test_copies_of_training_volumes_are_nearer_than_held_out_ones_and_counted() -> None:
    training, held_out = measured(2000, 30), measured(0, 30)
    own = nearest_figures(held_out, training)
    noisy = [
        np.clip(body(2000 + i) + np.random.default_rng(i).normal(0, 0.01, SHAPE), 0, 1)
        for i in range(10)
    ]
    for copies in (training.take(np.arange(10)), measure(noisy)):
        found = nearest_figures(copies, training)
        assert found["near_copies"].value == 1
        assert own["nearest_distance"].low is not None
        assert found["nearest_distance"].value < 0.3 * own["nearest_distance"].low
    assert own["near_copies"].value == 0
    fresh = nearest_figures(measured(1000, 30), training)["nearest_distance"]
    assert fresh.low is not None
    assert fresh.high is not None
    assert fresh.low < own["nearest_distance"].value < fresh.high
