"""Groups: which images of a volume go where."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lift.errors import VolumeError
from lift.triplanar.groups import (
    GroupLayout,
    RandomPlaces,
    body_extent,
    check_extent,
    cut,
    draw_groups,
)
from tests import wording

ISOTROPIC = (1.0, 1.0, 1.0)


def coded(b: int, d: int, h: int, w: int) -> Tensor:
    """Volumes whose voxel (z, y, x) is 10000 z + 100 y + x (+ 1e6 by volume)."""
    z, y, x = torch.meshgrid(torch.arange(d), torch.arange(h), torch.arange(w), indexing="ij")
    one = (10000 * z + 100 * y + x).float()
    return torch.stack([one + 1e6 * i for i in range(b)])[:, None]


def whole(volumes: Tensor) -> Tensor:
    return body_extent(torch.ones_like(volumes))


def test_the_default_layout_has_thirteen_groups_in_order() -> None:
    groups = GroupLayout().groups
    assert [group.plane for group in groups] == (["axial"] * 5 + ["coronal"] * 4 + ["sagittal"] * 4)
    for one, next_one in itertools.pairwise(groups):
        if one.plane == next_one.plane:
            assert one.high == pytest.approx(next_one.low)


@pytest.mark.parametrize(
    "settings",
    [
        {"axial": 0, "coronal": 0, "sagittal": 0},
        {"axial": -1},
        {"windows": 0},
        {"margin": 0.5},
        {"step_mm": -1.0},
    ],
)
def test_a_layout_without_sense_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"needed|needs"):
        GroupLayout(**settings)  # type: ignore[arg-type]


def test_images_are_the_volumes_own_slices() -> None:
    volumes = coded(2, 20, 24, 28)
    layout = GroupLayout(axial=2, coronal=2, sagittal=2, windows=3)
    for index, group in enumerate(layout.groups):
        windows = cut(volumes, ISOTROPIC, whole(volumes), layout, index)
        assert windows.owner.tolist() == [0, 0, 0, 1, 1, 1]
        for image, owner in zip(windows.images, windows.owner, strict=True):
            v = volumes[owner, 0]
            if group.plane == "axial":
                z = int(image[0, 0, 0] % 1e6) // 10000
                assert torch.equal(image, v[z : z + 2])
                position = z / 19
            elif group.plane == "coronal":
                y = int(image[0, 0, 0] % 1e4) // 100
                assert torch.equal(image[0], v[:, y])
                position = y / 23
            else:
                x = int(image[0, 0, 0]) % 100
                assert torch.equal(image[0], v[:, :, x])
                position = x / 27
            assert group.low - 0.03 <= position <= group.high + 0.03


@given(shift=st.integers(0, 9), length=st.integers(12, 30))
def test_positions_are_those_of_the_body_not_of_the_grid(shift: int, length: int) -> None:
    small = coded(1, length, 12, 12)
    layout = GroupLayout(axial=4, coronal=3, sagittal=3)
    padded = torch.zeros(1, 1, length + 9, 12, 12)
    padded[:, :, shift : shift + length] = small + 1
    extent = body_extent(padded)
    assert extent[0, 0].tolist() == [shift, shift + length - 1]
    for group in range(4):
        inner = cut(small + 1, ISOTROPIC, whole(small), layout, group)
        outer = cut(padded, ISOTROPIC, extent, layout, group)
        assert torch.equal(inner.images, outer.images)


def test_extent_is_that_of_each_volume_and_the_whole_grid_when_empty() -> None:
    mask = torch.zeros(2, 1, 6, 7, 8)
    mask[0, 0, 2:5, 1:4, 3:4] = 1
    assert body_extent(mask).tolist() == [
        [[2, 4], [1, 3], [3, 3]],
        [[0, 5], [0, 6], [0, 7]],
    ]


def test_images_have_physical_proportions() -> None:
    volumes = torch.rand(1, 1, 10, 24, 32)
    layout = GroupLayout(axial=1, coronal=1, sagittal=1, windows=1)
    shapes = [
        tuple(cut(volumes, (3.0, 1.0, 0.5), whole(volumes), layout, g).images.shape[1:])
        for g in range(3)
    ]
    assert shapes == [(2, 48, 32), (1, 60, 32), (1, 30, 24)]
    fixed = GroupLayout(axial=1, coronal=1, sagittal=1, windows=1, pixel_mm=2.0)
    shapes = [
        tuple(cut(volumes, (3.0, 1.0, 0.5), whole(volumes), fixed, g).images.shape[1:])
        for g in range(3)
    ]
    assert shapes == [(2, 12, 8), (1, 15, 8), (1, 15, 12)]


def test_the_second_slice_lies_the_asked_for_distance_away() -> None:
    volumes = coded(1, 20, 6, 6)
    for spacing, step in ((1.0, 3), (1.5, 2), (9.0, 1)):
        layout = GroupLayout(axial=1, coronal=1, sagittal=1, windows=1, step_mm=3.0)
        images = cut(volumes, (spacing, 1.0, 1.0), whole(volumes), layout, 0).images
        assert float(images[0, 1, 0, 0] - images[0, 0, 0, 0]) == 10000 * step


def test_windows_are_differentiable_with_respect_to_the_volume() -> None:
    volumes = torch.rand(1, 1, 6, 5, 4, dtype=torch.float64, requires_grad=True)
    layout = GroupLayout(axial=1, coronal=1, sagittal=1)
    extent = whole(volumes.detach())
    for group in range(3):

        def sliced(v: Tensor, group: int = group) -> Tensor:
            return cut(v, (2.0, 1.0, 1.0), extent, layout, group).images

        assert torch.autograd.gradcheck(sliced, volumes)


@given(seed=st.integers(0, 2**32 - 1))
def test_chance_comes_from_the_given_generator_alone(seed: int) -> None:
    volumes = coded(3, 40, 12, 12)
    layout = GroupLayout()

    def once() -> tuple[tuple[int, ...], Tensor]:
        generator = torch.Generator().manual_seed(seed)
        groups = draw_groups(layout, 6, generator)
        places = RandomPlaces(3, generator)
        return groups, cut(volumes, ISOTROPIC, whole(volumes), layout, 2, places).images

    (groups, images), (again, same) = once(), once()
    assert groups == again
    assert torch.equal(images, same)
    assert len(set(groups)) == 6
    assert groups == tuple(sorted(groups))
    low, high = layout.groups[2].low, layout.groups[2].high
    z = (images[:, 0, 0, 0] % 1e6) // 10000 / 39
    assert ((z > low - 0.02) & (z < high + 0.02)).all()


def test_more_groups_than_there_are_means_all() -> None:
    assert draw_groups(GroupLayout(), 99, torch.Generator()) == tuple(range(13))


def test_a_body_with_too_few_slices_is_refused_by_name() -> None:
    mask = torch.zeros(2, 1, 30, 30, 30)
    mask[:, :, 2:20, 2:20, 2:20] = 1
    mask[1, :, 6:] = 0
    check_extent(body_extent(mask[:1]), GroupLayout())
    with pytest.raises(
        VolumeError, match=rf"sub-2\.nii.*4 {wording.SLICES_ALONG_DEPTH}; at least 6"
    ):
        check_extent(body_extent(mask), GroupLayout(), ["sub-1.nii", "sub-2.nii"])


def test_volumes_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="extent"):
        cut(torch.zeros(2, 1, 5, 5, 5), ISOTROPIC, torch.zeros(1, 3, 2), GroupLayout(), 0)
    thin = torch.zeros(1, 1, 1, 5, 5)
    with pytest.raises(ValueError, match="2 slices"):
        cut(thin, ISOTROPIC, whole(thin), GroupLayout(), 0)
