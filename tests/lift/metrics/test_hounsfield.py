"""Figures of bone: a CT without bone, or with another head's bone, has no good one."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from lift.cohort.phantom.scanner import acquire, body_share
from lift.cohort.phantom.write import examine
from lift.config.phantom import PhantomCohortConfig
from lift.metrics.hounsfield import BONE_HU, TissueFigures, tissue_figures
from lift.metrics.synthrad import mae_hu

Floats = NDArray[np.float64]
GOOD_BONE_HU, GOOD_DICE = 150.0, 0.9


@cache
def _heads() -> tuple[tuple[Floats, NDArray[np.bool_]], ...]:
    """CT and body of two phantom heads on one grid."""
    config = PhantomCohortConfig(
        patients=2,
        scanner="valley",
        seed=31,
        in_plane_mm=4.0,
        channels=("mr", "ct"),
        target="ct",
    )
    made = []
    for index in range(2):
        one = examine(config, index)
        rng = np.random.default_rng(index)
        ct = acquire(one.head, one.grid, "ct", one.scanner, rng, is_target=True).voxels
        made.append((ct.astype(np.float64), body_share(one.head, one.scanner, one.grid) > 0.5))
    return tuple(made)


def _is_good(figures: TissueFigures) -> bool:
    assert figures.bone_mae is not None
    assert figures.bone_dice is not None
    return figures.bone_mae < GOOD_BONE_HU and figures.bone_dice > GOOD_DICE


def test_a_ct_with_noise_is_good_and_the_figures_are_those_of_numpy() -> None:
    target, body = _heads()[0]
    noise = np.random.default_rng(1).normal(0, 40, target.shape)
    found = tissue_figures(target + noise, target, body)
    assert _is_good(found)
    bone = body & (target > BONE_HU)
    soft = body & (target > -200) & (target <= BONE_HU)
    assert found.bone_mae == pytest.approx(np.abs(noise[bone]).mean())
    assert found.soft_mae == pytest.approx(np.abs(noise[soft]).mean())
    assert tissue_figures(target, target, body) == TissueFigures(0.0, 0.0, 1.0)


def test_a_ct_without_bone_is_rejected_although_its_soft_tissue_is_perfect() -> None:
    target, body = _heads()[0]
    without = np.where(target > BONE_HU, 40.0, target)
    found = tissue_figures(without, target, body)
    assert not _is_good(found)
    assert found.soft_mae == 0.0
    assert found.bone_dice == 0.0
    # the mean over the whole mask hides it
    assert found.bone_mae is not None
    assert mae_hu(without, target, body) < found.bone_mae / 3


def test_the_bone_of_another_head_is_rejected() -> None:
    (target, body), (other, other_body) = _heads()
    bone, there = target > BONE_HU, (other > BONE_HU) & other_body
    swapped = np.where(bone, 40.0, target)
    swapped = np.where(there, other, swapped)
    found = tissue_figures(swapped, target, body)
    assert not _is_good(found)
    assert found.bone_dice is not None
    assert 0.1 < found.bone_dice < GOOD_DICE


def test_bone_everywhere_is_rejected_by_its_overlap() -> None:
    target, body = _heads()[0]
    found = tissue_figures(np.where(body, np.maximum(target, 900.0), target), target, body)
    assert not _is_good(found)
    assert found.bone_dice is not None
    assert found.bone_dice < 0.7


def test_what_is_not_there_has_no_figure() -> None:
    soft = np.full((8, 8, 8), 40.0)
    assert tissue_figures(soft, soft, soft > 0) == TissueFigures(None, 0.0, None)
    air = np.full((8, 8, 8), -1000.0)
    assert tissue_figures(soft, air, soft > 0) == TissueFigures(None, None, None)
    with pytest.raises(ValueError, match="empty"):
        tissue_figures(soft, soft, soft < 0)
