"""Real volumes on the decoder's grid: field of view, pixels, and bodies that are too short."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lift.cohort.preprocessing import CropBox, Prepared
from lift.config.decoder import SliceDecoderConfig
from lift.errors import VolumeError
from lift.tasks.unconditional.grid import BodyVolume, body_volume, same_view
from lift.triplanar.groups import GroupLayout
from lift.volumes.grids import ras_grid
from tests import wording

LAYOUT = GroupLayout(2, 2, 2, windows=1)


def decoder(image: tuple[int, int], pixel_mm: float) -> SliceDecoderConfig:
    return SliceDecoderConfig(image=image, pixel_mm=pixel_mm)


def prepared(
    voxels: NDArray[np.float32], mask: NDArray[np.bool_], spacing_mm: tuple[float, float, float]
) -> Prepared:
    """A stack (z, h, w), padded by 3 rows and columns as a plan's multiple would."""
    z, h, w = voxels.shape
    wide = ((0, 0), (0, 3), (0, 3))
    return Prepared(
        source=np.pad(voxels, wide)[:, None],
        target=None,
        mask=np.pad(mask, wide)[:, None].astype(np.float32),
        spacing_mm=spacing_mm,
        reference=ras_grid((w, h, z), (1.0, 1.0, 1.0)),
        crop=CropBox((z, h, w), (0, 0, 0), (z, h, w)),
        target_scale=None,
        plane="axial",
    )


def test_equal_pixels_are_copied_around_the_middle_of_the_body() -> None:
    voxels = np.random.default_rng(0).random((5, 30, 28), dtype=np.float32)
    mask = np.zeros(voxels.shape, dtype=bool)
    mask[:, 4:22, 6:24] = True  # middle: row 13, column 15
    found = body_volume(
        prepared(voxels, mask, (2.0, 1.5, 1.5)), decoder((16, 16), 1.5), LAYOUT, "p"
    )
    assert found.spacing_mm == (2.0, 1.5, 1.5)
    np.testing.assert_array_equal(found.voxels[0, 0].numpy(), voxels[:, 5:21, 7:23])
    assert found.extent.tolist() == [[[0, 4], [0, 15], [0, 15]]]


def test_a_field_that_is_too_small_goes_on_with_its_border() -> None:
    voxels = np.random.default_rng(0).random((4, 12, 16), dtype=np.float32)
    mask = np.ones(voxels.shape, dtype=bool)
    found = body_volume(
        prepared(voxels, mask, (1.0, 1.0, 1.0)), decoder((16, 16), 1.0), LAYOUT, "p"
    )
    expected = np.pad(voxels, ((0, 0), (2, 2), (0, 0)), mode="edge")
    np.testing.assert_array_equal(found.voxels[0, 0].numpy(), expected)


def test_other_pixels_are_resampled_to_the_decoders_and_keep_places_in_mm() -> None:
    # a ramp along width in mm: resampling must keep its slope
    width_mm = (np.arange(40) + 0.5) * 0.8
    voxels = np.broadcast_to(width_mm / 40, (4, 40, 40)).astype(np.float32)
    mask = np.ones(voxels.shape, dtype=bool)
    found = body_volume(
        prepared(voxels, mask, (3.0, 0.8, 0.8)), decoder((16, 16), 1.6), LAYOUT, "p"
    )
    row = found.voxels[0, 0, 0, 8].numpy()
    np.testing.assert_allclose(np.diff(row), 1.6 / 40, atol=1e-3)
    np.testing.assert_allclose(row.mean(), 0.4, atol=0.01)


def test_a_body_of_too_few_slices_is_refused_by_name() -> None:
    voxels = np.random.default_rng(0).random((2, 16, 16), dtype=np.float32)
    mask = np.ones(voxels.shape, dtype=bool)
    with pytest.raises(VolumeError, match="patient-7") as caught:
        body_volume(
            prepared(voxels, mask, (1.0, 1.0, 1.0)), decoder((16, 16), 1.0), LAYOUT, "patient-7"
        )
    assert f"2 {wording.SLICES_ALONG_DEPTH}; at least 3" in caught.value.seen


def stack(depth: int, spacing_mm: float, seed: int = 0) -> BodyVolume:
    voxels = torch.rand(1, 1, depth, 6, 5, generator=torch.Generator().manual_seed(seed))
    return BodyVolume(voxels, (spacing_mm, 2.0, 2.0))


def test_a_longer_body_is_cut_around_its_middle_bit_for_bit() -> None:
    body = stack(20, 3.0)
    found = same_view(body, 12, 3.0)
    assert found.spacing_mm == (3.0, 2.0, 2.0)
    assert torch.equal(found.voxels, body.voxels[:, :, 4:16])


def test_a_shorter_body_goes_on_with_its_own_border_on_both_sides() -> None:
    body = stack(6, 3.0)
    found = same_view(body, 10, 3.0).voxels[0, 0]
    assert torch.equal(found[2:8], body.voxels[0, 0])
    for outside in (found[0], found[1]):
        assert torch.equal(outside, body.voxels[0, 0, 0])
    for outside in (found[8], found[9]):
        assert torch.equal(outside, body.voxels[0, 0, -1])


@pytest.mark.parametrize("spacing_mm", [1.5, 2.0, 5.0])
def test_another_spacing_is_brought_to_the_generated_one_at_its_place(spacing_mm: float) -> None:
    # values that rise evenly along depth, in mm from the body's middle
    depth = round(90 / spacing_mm)
    places = (torch.arange(depth) - (depth - 1) / 2) * spacing_mm
    ramp = (0.5 + places / 200)[None, None, :, None, None].expand(1, 1, depth, 6, 5)
    found = same_view(BodyVolume(ramp, (spacing_mm, 2.0, 2.0)), 20, 3.0)
    assert found.voxels.shape == (1, 1, 20, 6, 5)
    assert found.spacing_mm == (3.0, 2.0, 2.0)
    expected = 0.5 + (np.arange(20) - 9.5) * 3.0 / 200
    # the two ends average over a border; whole slices may lie half of one beside the middle
    reach = spacing_mm / 2 / 200 + 1e-3
    np.testing.assert_allclose(found.voxels[0, 0, 1:-1, 0, 0], expected[1:-1], atol=reach)


def test_a_spacing_that_hardly_differs_is_not_resampled() -> None:
    body = stack(20, 3.01)
    assert torch.equal(same_view(body, 12, 3.0).voxels, body.voxels[:, :, 4:16])
