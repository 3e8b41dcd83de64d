"""What ships with the generator: standardisation and projection, their fits, files and digests."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lift.errors import ConfigError, DataError
from lift.triplanar.projection import Projection, fit_projection, k_means
from lift.triplanar.standardise import (
    Standardisation,
    clip_length,
    fit_standardisation,
    mean_distance,
)
from tests import wording
from tests.lift.drifting.small import (
    ENCODER,
    GROUPS,
    LAYOUT,
    features,
    projection,
    raw,
    standardisation,
)


def test_public_features_have_mean_distance_one_in_every_group() -> None:
    for group, x in enumerate(raw(1, 160)):
        y = standardisation().transform(x, group)
        assert y.shape == (160, 10)
        assert float(mean_distance(y)) == pytest.approx(1, abs=1e-4)
        torch.testing.assert_close(y.mean(0), torch.zeros(10), rtol=0, atol=1e-4)


def test_axes_are_the_principal_ones() -> None:
    x = raw(1, 160)[3].double().numpy()  # sagittal: one block
    y = standardisation().transform(torch.from_numpy(x).float(), 3).double().numpy()
    centred = x - x.mean(0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    expected = centred @ vectors[:, ::-1][:, :10]
    ratio = np.abs(y).sum(0) / np.abs(expected).sum(0)
    # axes are kept to 8 bits: half a step of 1 / 127 in each number
    np.testing.assert_allclose(ratio, ratio[0], rtol=4e-3)
    np.testing.assert_allclose(np.abs(y), np.abs(expected) * ratio[0], rtol=0, atol=8e-3)


def test_the_small_difference_between_slices_is_not_lost_among_the_axes() -> None:
    random = torch.Generator().manual_seed(3)
    slices = torch.randn(200, 20, generator=random)
    differences = 0.01 * torch.randn(200, 20, generator=random)
    rows = [torch.cat([slices, differences], dim=1) for _ in range(GROUPS)]
    fitted = fit_standardisation(rows, LAYOUT, ENCODER, dimension=24)
    shuffled = torch.cat([slices, differences.roll(1, 0)], dim=1)
    axial = (fitted.transform(rows[0], 0) - fitted.transform(shuffled, 0)).norm(dim=1).mean()
    coronal = (fitted.transform(rows[2], 2) - fitted.transform(shuffled, 2)).norm(dim=1).mean()
    assert float(axial) > 0.3
    assert float(coronal) < 0.05


def test_too_few_copied_or_broken_rows_are_refused() -> None:
    with pytest.raises(DataError, match="19 feature vectors; at least 20"):
        fit_standardisation([x[:19] for x in raw(1, 160)], LAYOUT, ENCODER, dimension=10)
    with pytest.raises(DataError, match="10 directions"):
        fit_standardisation(
            [x[:4].repeat(40, 1) for x in raw(1, 160)], LAYOUT, ENCODER, dimension=10
        )
    with pytest.raises(DataError, match="directions"):
        fit_standardisation([torch.ones(160, 40)] * GROUPS, LAYOUT, ENCODER, dimension=10)
    broken = raw(1, 160)
    broken[1][0, 0] = torch.nan
    with pytest.raises(DataError, match=r"NaN.*"):
        fit_standardisation(broken, LAYOUT, ENCODER, dimension=10)
    with pytest.raises(ValueError, match="groups"):
        fit_standardisation(broken[:1], LAYOUT, ENCODER)


@given(seed=st.integers(0, 2**32 - 1), size=st.floats(0.01, 1e4), radius=st.floats(0.1, 10))
def test_clipping_bounds_lengths_and_leaves_short_rows_alone(
    seed: int, size: float, radius: float
) -> None:
    y = size * torch.randn(20, 7, generator=torch.Generator().manual_seed(seed))
    clipped = clip_length(y, radius)
    assert float(clipped.double().norm(dim=1).max()) <= radius
    short = y.double().norm(dim=1) < radius * (1 - 1e-5)
    assert torch.equal(clipped[short], y[short])
    cosine = torch.nn.functional.cosine_similarity(y.double(), clipped.double())
    assert float(cosine.min()) > 1 - 1e-6


def test_files_give_the_same_bits_back(tmp_path: Path) -> None:
    digest = standardisation().save(tmp_path / "s.safetensors")
    loaded = Standardisation.load(tmp_path / "s.safetensors", expected_digest=digest)
    assert loaded.digest == digest == standardisation().digest
    assert all(torch.equal(a, b) for a, b in zip(loaded.axes, standardisation().axes, strict=True))
    digest = projection().save(tmp_path / "p.safetensors")
    again = Projection.load(tmp_path / "p.safetensors", expected_digest=None)
    assert again.digest == digest == projection().digest
    assert again.kinds == projection().kinds
    assert torch.equal(again.anchors, projection().anchors)
    assert again.standardisation_digest == standardisation().digest


def test_files_that_are_wrong_damaged_or_absent_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    standardisation().save(path)
    with pytest.raises(ConfigError, match=f"{wording.PLAN_SAYS} 000000"):
        Standardisation.load(path, expected_digest="0" * 64)
    with pytest.raises(DataError, match="not what its digest says"):
        Projection.load(path, expected_digest=None)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match="not what its digest says"):
        Standardisation.load(path, expected_digest=None)
    path.write_bytes(bytes(content[: len(content) // 2]))
    with pytest.raises(DataError, match="truncated"):
        Standardisation.load(path, expected_digest=None)
    with pytest.raises(DataError, match="cannot use the projection"):
        Projection.load(tmp_path / "absent", expected_digest=None)


def test_a_projections_digest_covers_everything_it_does() -> None:
    one = projection()
    others = [
        dataclasses.replace(one, radius=1.5),
        dataclasses.replace(one, cell_radius=1.0),
        dataclasses.replace(one, kinds=("anchors",)),
        dataclasses.replace(one, encoder_digest="cd" * 32),
        dataclasses.replace(one, standardisation_digest="cd" * 32),
        dataclasses.replace(one, anchors=one.anchors + 1e-6),
        dataclasses.replace(one, frequencies=one.frequencies.flip(2)),
        dataclasses.replace(one, layout=dataclasses.replace(LAYOUT, windows=3)),
    ]
    assert len({one.digest, *(other.digest for other in others)}) == len(others) + 1


def test_random_features_have_length_one_and_approximate_the_gaussian_kernel() -> None:
    of = fit_projection(features(1, 160), standardisation(), seed=1, n_features=4096)
    y = features(4, 60)[0]
    phi = of.random_features(y)
    torch.testing.assert_close(phi.norm(dim=2), torch.ones(2, 60))
    for width, rows in zip(of.widths, phi, strict=True):
        kernel = torch.exp(-torch.cdist(y, y).square() / (2 * width**2))
        assert float((rows @ rows.T - kernel).abs().max()) < 0.12
    lengths = (of.frequencies * torch.tensor(of.widths)[:, None, None]).norm(dim=1)
    assert float(lengths.square().mean()) == pytest.approx(10, rel=0.1)


def test_anchors_are_k_means_and_repeat_with_the_seed() -> None:
    again = fit_projection(
        features(1, 160),
        standardisation(),
        seed=5,
        kinds=projection().kinds,
        n_anchors=24,
        n_features=256,
    )
    assert again.digest == projection().digest
    assert projection(6).digest != projection().digest
    points = features(1, 160)[0].double()
    centres = k_means(points, 24, torch.Generator().manual_seed(1))
    cell = torch.cdist(points, centres).argmin(1)
    for j in range(24):
        torch.testing.assert_close(points[cell == j].mean(0), centres[j])
    blobs = torch.eye(4, dtype=torch.float64).repeat(9, 1) * 10
    found = k_means(blobs, 4, torch.Generator().manual_seed(2))
    assert {tuple(row) for row in found.tolist()} == {tuple(row) for row in blobs[:4].tolist()}


def test_a_projection_without_sense_is_refused() -> None:
    public = features(1, 160)
    with pytest.raises(DataError, match="fewer different feature vectors than the 64"):
        fit_projection([y[:30].repeat(4, 1) for y in public], standardisation(), seed=1)
    for settings in ({"n_features": 7}, {"widths": (0.0,)}, {"radius": -1.0}):
        with pytest.raises(ValueError, match="> 0"):
            fit_projection(public, standardisation(), seed=1, n_anchors=8, **settings)
    with pytest.raises(ValueError, match="kinds"):
        fit_projection(public, standardisation(), seed=1, kinds=())
    with pytest.raises(ValueError, match="groups"):
        fit_projection(public[:2], standardisation(), seed=1)
