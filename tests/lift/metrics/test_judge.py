"""The judge passes real volumes, and rejects every set that is not what it claims."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from lift.metrics.classifier import FEWEST
from lift.metrics.judge import classifier_figures, real_split_classifier
from lift.metrics.neighbours import NEIGHBOURS
from lift.metrics.reference import Reference
from lift.metrics.table import MetricValue
from lift.metrics.volume_sets import MeasuredSet
from tests.lift.metrics.negative_controls import (
    CONTROLS,
    COUNT,
    FRESH,
    HELD_OUT,
    TRAINING,
    control_figures,
    figures_of,
    judged,
    real_set,
    reference,
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def real_figures() -> dict[str, MetricValue]:
    """Real volumes that nobody has seen, as if they were generated."""
    return figures_of(real_set(FRESH))


def test_real_volumes_meet_every_aim() -> None:
    aims = judged(real_figures())
    assert {aim.metric for aim in aims if aim.outcome == "missed"} == set()
    assert len(aims) == 7


@pytest.mark.parametrize("name", CONTROLS)
def test_a_set_that_is_not_what_it_claims_misses_its_aims(name: str) -> None:
    missed = {aim.metric for aim in judged(control_figures(name)) if aim.outcome == "missed"}
    assert missed >= CONTROLS[name].misses


def test_every_figure_without_an_aim_rejects_a_control_as_well() -> None:
    real = real_figures()
    for metric, name, factor in (
        ("spectrum_z", "slices shuffled", 5.0),
        ("spectrum_z", "blurred", 5.0),
        ("near_copies", "copies of training volumes", np.inf),
    ):
        assert control_figures(name)[metric].value > factor * max(real[metric].value, 0.1) or (
            factor == np.inf and control_figures(name)[metric].value == 1 > real[metric].value
        )
    assert control_figures("one volume, 60 times")["recall"].value < 0.2 < real["recall"].value
    for name in ("slices shuffled", "flat"):
        assert control_figures(name)["precision"].value < 0.3 < real["precision"].value
    assert NEIGHBOURS == 3


def test_copies_alone_do_not_show_in_a_distance_of_distributions() -> None:
    # why nearest distances are an aim of their own
    found = control_figures("copies of training volumes")
    assert 0.3 < found["auc_content"].value < 0.7
    assert 0.3 < found["auc_texture"].value < 0.7


def test_copies_of_the_held_out_volumes_are_at_one_half() -> None:
    found = classifier_figures(reference().real, real_set(HELD_OUT), seed=3, repeats=4)
    for figure in found.values():
        assert figure.value == pytest.approx(0.5, abs=0.02)


def test_real_halves_are_at_one_half() -> None:
    found = real_split_classifier(reference(), seed=1)
    assert set(found) == {"auc_content", "auc_texture"}
    for figure in found.values():
        assert figure.n == COUNT // 2
        assert figure.low is not None
        assert figure.high is not None
        assert figure.low < 0.5 < figure.high
        assert figure.value == pytest.approx(0.5, abs=0.1)
    few = Reference(real_set(HELD_OUT, 2 * FEWEST - 2), training=real_set(TRAINING))
    assert real_split_classifier(few, seed=1) == {}


def test_neither_the_order_of_volumes_nor_a_second_run_changes_a_bit() -> None:
    made, real = real_set(FRESH), real_set(HELD_OUT)
    found = classifier_figures(made, real, seed=1, repeats=2)
    order = np.random.default_rng(0).permutation(COUNT)
    assert (
        classifier_figures(made.take(order), real.take(order[::-1].copy()), seed=1, repeats=2)
        == found
    )
    assert classifier_figures(made, real, seed=2, repeats=2) != found


def test_too_few_volumes_and_mixed_spacings_have_no_figure() -> None:
    made, real = real_set(FRESH), real_set(HELD_OUT)
    few = np.arange(FEWEST - 1)
    assert classifier_figures(made.take(few), real, seed=1) == {}
    assert classifier_figures(made, real.take(few), seed=1) == {}

    def coarser(volumes: MeasuredSet, ratio: float) -> MeasuredSet:
        return replace(volumes, spacing_mm=volumes.spacing_mm * [ratio, 1, 1])

    assert set(classifier_figures(coarser(made, 1.2), real, seed=1, repeats=1)) == {"auc_content"}
    assert len(classifier_figures(coarser(made, 1.04), real, seed=1, repeats=1)) == 2
