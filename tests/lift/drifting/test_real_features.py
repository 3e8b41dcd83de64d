"""Fidelity on real features: do statistics attract like the volumes behind them (issue 4, bar 3)?

The volumes are no part of the project. `LIFT_TEST_DATA` says where they lie; without them the
test is skipped, and says so.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Final

import numpy as np
import pytest
import torch
from torch import Tensor

from lift.tasks.unconditional.drifting.attraction import (
    Anchors,
    Moments,
    RandomFeatures,
    StatisticsAttraction,
)
from lift.tasks.unconditional.drifting.field import mean_shift
from lift.tasks.unconditional.drifting.release import merge_small_cells, to_arrays
from lift.tasks.unconditional.drifting.review import review
from lift.tasks.unconditional.drifting.statistics import Sums
from lift.triplanar.encoder import RandomPyramid
from lift.triplanar.features import patient_features, raw_features
from lift.triplanar.groups import GroupLayout, body_extent, check_extent
from lift.triplanar.projection import KINDS, Projection, fit_projection
from lift.triplanar.standardise import clip_length, fit_standardisation
from lift.volumes.slices import slice_spacing, to_slices
from lift.volumes.volume import read_volume
from tests.lift.drifting.small import at_once

PROJECT: Final = Path(__file__).parents[3]
DATA: Final = Path(os.environ.get("LIFT_TEST_DATA") or PROJECT / "../shared/data").resolve()
VOLUMES: Final = DATA / "msd_hippocampus/imagesTr"
PUBLIC, REAL, HELD_OUT, SITES = 40, 66, 16, 3

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(
        not VOLUMES.is_dir(), reason=f"no hippocampus volumes in {DATA}: set LIFT_TEST_DATA"
    ),
]


@functools.cache
def world() -> tuple[Projection, list[list[Tensor]], list[list[Tensor]]]:
    """The projection, and standardised features of real and of blended held-out volumes."""
    torch.set_num_threads(1)
    files = sorted(VOLUMES.glob("*.nii.gz"))
    order = np.random.default_rng(0).permutation(len(files))[: PUBLIC + REAL + HELD_OUT]
    layout, encoder = GroupLayout(), RandomPyramid(11)

    def read(index: int) -> tuple[Tensor, tuple[float, float, float], Tensor]:
        volume = read_volume(files[index])
        slices = to_slices(volume.voxels, "axial").astype(np.float32)
        # intensity scales differ by file
        voxels = torch.from_numpy(np.clip(slices / np.percentile(slices, 99.5), 0, 1))[None, None]
        extent = body_extent(torch.ones_like(voxels))
        check_extent(extent, layout)
        return voxels, slice_spacing(volume.spacing_mm, "axial"), extent

    volumes = [read(int(index)) for index in order]
    public = [raw_features(*volume, layout, encoder) for volume in volumes[:PUBLIC]]
    gathered = [torch.cat(rows) for rows in zip(*public, strict=True)]
    standardisation = fit_standardisation(gathered, layout, encoder.digest)
    points = [standardisation.transform(rows, group) for group, rows in enumerate(gathered)]
    projection = fit_projection(points, standardisation, seed=3, kinds=KINDS)

    def standardised(
        volume: Tensor, spacing: tuple[float, float, float], extent: Tensor
    ) -> list[Tensor]:
        rows = patient_features(volume, spacing, extent, encoder, standardisation)
        return [clip_length(y, projection.radius) for y in rows]

    real = [standardised(*volume) for volume in volumes[PUBLIC : PUBLIC + REAL]]
    # "generated": a fainter volume with a faint mirror image in it
    generated = [
        standardised(0.8 * voxels + 0.1 * voxels.flip(-1), spacing, extent)
        for voxels, spacing, extent in volumes[PUBLIC + REAL :]
    ]
    return projection, real, generated


@functools.cache
def site_sums() -> tuple[Sums, ...]:
    """Each of three sites' own."""
    projection, real, _ = world()
    return tuple(at_once(real[site::SITES], projection) for site in range(SITES))


@functools.cache
def sums(*, merged: bool) -> Sums:
    """Over all sites; merged: as it leaves each site, through the wire and the review."""
    projection, _, _ = world()
    total = Sums.zero(projection)
    for own in site_sums():
        if merged:
            arrays = to_arrays(merge_small_cells(own, projection), data_version=0)
            assert sum(array.nbytes for array in arrays.values()) <= 200_000
            total += review(arrays, projection)
        else:
            total += own
    return total


def cosines(source: StatisticsAttraction, width: float) -> tuple[float, float]:
    """Mean cosine of V+ and of the net field with the exact ones, over points and groups."""
    _, real, generated = world()
    index, found = source.widths.index(width), []
    owner = torch.arange(len(generated)).repeat_interleave(2)
    for group in range(13):
        y = torch.cat([patient[group] for patient in real])
        x = torch.cat([volume[group] for volume in generated])
        exact = mean_shift(x, y, torch.ones(len(y)), (width,))[0]
        net = exact - mean_shift(x, x, torch.ones(len(x)), (width,))[0]
        field = source.field(x, group)[index]
        ours = field - source.repulsion(x, owner, group)[index]
        similar = torch.nn.functional.cosine_similarity
        found.append((similar(field, exact).mean(), similar(ours, net).mean()))
    attracted, netted = torch.tensor(found).mean(0).tolist()
    return attracted, netted


def test_anchors_attract_like_the_volumes_behind_them() -> None:
    attracted, netted = cosines(Anchors(world()[0], sums(merged=False)), 0.35)
    assert attracted >= 0.97
    assert netted >= 0.95


def test_anchors_that_may_leave_a_site_still_do() -> None:
    attracted, netted = cosines(Anchors(world()[0], sums(merged=True)), 0.35)
    assert attracted >= 0.97
    assert netted >= 0.95


def test_random_features_and_moments_do_at_wider_kernels() -> None:
    projection = world()[0]
    attracted, netted = cosines(RandomFeatures(projection, sums(merged=False)), 1.0)
    assert attracted >= 0.97
    assert netted >= 0.95
    attracted, netted = cosines(Moments(projection, sums(merged=False), widths=(0.5,)), 0.5)
    assert attracted >= 0.97
    assert netted >= 0.95
