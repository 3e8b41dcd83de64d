"""What the pyramid adds to the laws of every mixer: grids and reach in the plane, and sizes."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from lift.config.plan import MixerKind, MixerPlan
from lift.mixer.base import FrozenParts, MixerInputs
from lift.mixer.build import build_mixer
from lift.mixer.pyramid import _on_finer_grid, _pooled
from tests.lift.mixer_cases import make_inputs, make_mixer
from tests.lift.small_world import mixer_needs

REACH = 15
"""Pixels in the plane, on either side, that a pixel's result may depend on."""
FEATURES = {"feat": 12, "enc0": 12}


def in_plane(inputs: MixerInputs, rows: slice, columns: slice) -> MixerInputs:
    """The same slices, cut in their plane."""

    def cut(v: Tensor) -> Tensor:
        return v[..., rows, columns]

    return dataclasses.replace(
        inputs,
        source=cut(inputs.source),
        pred=cut(inputs.pred),
        mask=cut(inputs.mask),
        taps={name: cut(inputs.taps[name]) for name in FEATURES},
    )


@pytest.mark.parametrize(
    ("width", "count"), [(3, 5_065), (7, 24_101), (8, 31_055), (15, 104_317), (30, 406_177)]
)
def test_parameter_counts_by_width_are_the_specified_ones(width: int, count: int) -> None:
    assert make_mixer("pyramid", width=width).parameter_count() == count


@pytest.mark.parametrize(
    ("frozen", "taps"),
    [
        (FrozenParts(FEATURES, dict.fromkeys(FEATURES, 1), 1), ("feat", "enc0")),
        (FrozenParts(FEATURES, {"feat": 1, "enc0": 2}, 1), ("feat",)),
        (FrozenParts({}, {}, 3), ()),
    ],
)
def test_any_generator_will_do_and_features_are_used_where_they_are_offered(
    frozen: FrozenParts, taps: tuple[str, ...]
) -> None:
    assert mixer_needs(MixerPlan(kind="pyramid"), frozen) == (taps, ())
    mixer = build_mixer(MixerPlan(kind="pyramid"), frozen, seed=0)
    inputs = make_inputs([4, 2], n_source=frozen.n_source)
    assert torch.equal(mixer(inputs), inputs.pred)


@pytest.mark.parametrize("size", [(37, 41), (1, 1), (2, 5), (3, 4), (6, 7)])
@pytest.mark.parametrize("depth", [1, 4])
def test_odd_planes_are_as_if_continued_outside_the_mask(size: tuple[int, int], depth: int) -> None:
    mixer = make_mixer("pyramid")
    inputs = make_inputs([depth], size=size, before=0, after=0)
    mask = inputs.mask.clone()
    mask[..., 0, 0] = 1
    inputs = dataclasses.replace(inputs, mask=mask)

    def continued(v: Tensor) -> Tensor:
        return pad(v, (0, -v.shape[-1] % 4 + 4, 0, -v.shape[-2] % 4 + 4), value=torch.nan)

    wide = dataclasses.replace(
        inputs,
        source=continued(inputs.source),
        pred=continued(inputs.pred),
        mask=continued(inputs.mask).nan_to_num(),
        taps={name: continued(inputs.taps[name]) for name in FEATURES},
    )
    result = mixer(inputs)
    assert result.shape == inputs.pred.shape
    changed = result != inputs.pred
    assert torch.equal(changed, mask > 0)
    # other shapes may use other float kernels
    bound = 1e-5 * max(1.0, float((result - inputs.pred).detach().abs().max()))
    torch.testing.assert_close(mixer(wide)[..., : size[0], : size[1]], result, rtol=0, atol=bound)


def test_pooling_takes_the_mean_inside_the_mask_and_its_way_back_is_exact() -> None:
    values = [[1.0, 2.0, 0.0], [0.0, 6.0, 0.0], [0.0, 0.0, 9.0], [0.0, 0.0, 0.0]]
    inside = [[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    h, mask = (torch.tensor(rows)[None, None, None] for rows in (values, inside))
    pooled, coarse = _pooled(h, mask)
    assert pooled[0, 0, 0].tolist() == [[3.0, 0.0], [0.0, 9.0]]
    assert coarse[0, 0, 0].tolist() == [[1.0, 0.0], [0.0, 1.0]]
    back = _on_finer_grid(pooled, h)[0, 0, 0]
    assert back.tolist() == [[3, 3, 0], [3, 3, 0], [0, 0, 9], [0, 0, 9]]


def test_a_crop_on_the_coarsest_grid_has_the_slices_result_away_from_its_borders() -> None:
    mixer = make_mixer("pyramid")
    inputs = make_inputs([2], size=(5, 80))
    whole = mixer(inputs)
    scale = max(1.0, float((whole - inputs.pred).detach().abs().max()))

    def error(first: int, near: int) -> float:
        """From `near` pixels inside the borders of columns first..first+47."""
        crop = in_plane(inputs, slice(None), slice(first, first + 48))
        part = mixer(crop)
        assert torch.equal(part != crop.pred, crop.mask > 0)
        there = slice(near, 48 - near)
        expected = whole[..., first : first + 48]
        return float((part - expected)[..., there].detach().abs().max()) / scale

    for first in (4, 8, 20):
        assert error(first, REACH) < 1e-5
    # what holds no more: nearer to a border, and off the grid
    assert error(8, 2) > 1e-4
    assert all(error(first, REACH) > 1e-4 for first in (1, 2, 3))


def test_it_sees_farther_in_the_plane_than_zrefine_and_not_beyond_its_reach() -> None:
    inputs = make_inputs([1], size=(1, 64), before=0, after=0)
    inputs = dataclasses.replace(inputs, mask=torch.ones_like(inputs.mask))

    def reach(kind: MixerKind) -> int:
        mixer = make_mixer(kind)
        whole, farthest = mixer(inputs), 0
        for column in range(28, 36):
            pred = inputs.pred.clone()
            pred[..., column] += 10
            moved = (mixer(dataclasses.replace(inputs, pred=pred)) - whole).abs().flatten() > 0
            seen = moved.nonzero().flatten()
            farthest = max(farthest, int(seen.max()) - column, column - int(seen.min()))
        return farthest

    assert reach("zrefine") == 3
    assert reach("pyramid") == REACH


def test_without_gradients_the_result_is_the_same() -> None:
    mixer = make_mixer("pyramid")
    inputs = make_inputs([7, 4, 1], size=(9, 11))
    expected = mixer(inputs)
    with torch.no_grad():
        found = mixer(inputs)
    bound = 1e-5 * max(1.0, float((expected - inputs.pred).detach().abs().max()))
    torch.testing.assert_close(found, expected, rtol=0, atol=bound)


def test_results_and_gradients_are_the_same_bits_each_time() -> None:
    mixer = make_mixer("pyramid")
    inputs = make_inputs([5, 3], size=(13, 10))
    seen = []
    for _ in range(3):
        result = mixer(inputs)
        gradients = torch.autograd.grad(result.square().sum(), list(mixer.parameters()))
        seen.append([result.detach(), *gradients])
    for first, second in pairwise(seen):
        assert all(map(torch.equal, first, second))
