"""What every mixer guarantees: its start, its size, and what may influence a voxel."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lift.config.plan import MixerKind, MixerPlan
from lift.errors import ConfigError
from lift.mixer.base import FrozenParts, MixerInputs
from lift.mixer.build import build_mixer
from lift.mixer.pooled_bigru import PooledBiGRU
from lift.mixer.z_filter import apply_z_filter
from lift.mixer.zdiff import ZDiff
from tests.lift.mixer_cases import (
    KINDS,
    TAPS,
    Decoder,
    frozen_parts,
    make_inputs,
    make_mixer,
    window,
)
from tests.lift.small_world import mixer_needs

every_mixer = pytest.mark.parametrize("kind", KINDS)
Z_FILTERED = {"zrefine", "zrefine_lite", "pyramid", "zdiff"}


@pytest.mark.parametrize(
    ("kind", "count"),
    [("zrefine", 4559), ("zrefine_lite", 2831), ("zdiff", 414), ("zconv", 1416)],
)
def test_parameter_counts_are_the_specified_ones(kind: MixerKind, count: int) -> None:
    assert make_mixer(kind).parameter_count() == count


def test_the_paper_size_of_the_pooled_mixer_has_its_parameters() -> None:
    frozen = FrozenParts({"bottleneck": 256}, {"bottleneck": 8}, 1, None, Decoder())
    mixer = build_mixer(MixerPlan(kind="pooled_bigru", width=128), frozen, seed=0)
    assert mixer.parameter_count() == 434_176


@given(
    width=st.integers(1, 24),
    n_source=st.integers(1, 4),
    channels=st.sampled_from([(12, 12), (1, 2), (32, 16)]),
)
def test_the_2d_control_is_never_smaller_than_zrefine(
    width: int, n_source: int, channels: tuple[int, int]
) -> None:
    names = ("feat", "enc0")
    full = FrozenParts(
        dict(zip(names, channels, strict=True)), dict.fromkeys(names, 1), n_source, None, None
    )
    cases: list[tuple[FrozenParts, MixerKind]] = [
        (full, "zrefine"),
        (FrozenParts({}, {}, n_source), "zrefine_lite"),
    ]
    for frozen, kind in cases:
        rival = build_mixer(MixerPlan(kind=kind, width=width), frozen, seed=0)
        control = build_mixer(MixerPlan(kind="control_2d", width=width), frozen, seed=0)
        assert control.parameter_count() >= rival.parameter_count()
        assert control.tap_names == rival.tap_names


@every_mixer
@pytest.mark.parametrize("n_source", [1, 3])
def test_at_first_a_mixer_is_exactly_its_z_filter_or_the_identity(
    kind: MixerKind, n_source: int
) -> None:
    mixer = make_mixer(kind, n_source, trained=False)
    inputs = make_inputs([7, 4], n_source=n_source)
    expected = inputs.pred
    assert mixer.has_z_filter == (kind in Z_FILTERED)
    if mixer.has_z_filter:
        expected = apply_z_filter(inputs.pred, inputs.mask, TAPS)
        assert not torch.equal(expected, inputs.pred)
    assert torch.equal(mixer(inputs), expected)


@every_mixer
def test_without_a_fitted_filter_a_mixer_starts_as_the_identity(kind: MixerKind) -> None:
    inputs = make_inputs([5])
    assert torch.equal(
        build_mixer(MixerPlan(kind=kind), frozen_parts(), seed=1)(inputs), inputs.pred
    )


def soiled(inputs: MixerInputs, seed: int) -> MixerInputs:
    """The same batch with other voxels (some NaN) wherever nothing may be looked at."""
    random = torch.Generator().manual_seed(seed)

    def dirty(values: Tensor, outside: Tensor) -> Tensor:
        noise = 50 * torch.randn(values.shape, generator=random)
        noise[torch.rand(values.shape, generator=random) < 0.3] = torch.nan
        return torch.where(outside, noise, values)

    def outside_of(tap: Tensor) -> Tensor:
        stride = -(-inputs.mask.shape[-1] // tap.shape[-1])
        if stride == 1:
            return inputs.mask == 0
        inside = torch.zeros(*tap.shape[:2], 1, *tap.shape[3:], dtype=torch.bool)
        for y, x in itertools.product(*(range(n) for n in tap.shape[3:])):
            rows, columns = (slice(stride * i, stride * (i + 1)) for i in (y, x))
            inside[..., y, x] = inputs.mask[..., rows, columns].flatten(3).any(-1)
        return ~inside

    assert inputs.pooled_depth is not None
    vectors = inputs.pooled["bottleneck"]
    is_padding = torch.arange(vectors.shape[1]) >= inputs.pooled_depth[:, None]
    return dataclasses.replace(
        inputs,
        source=dirty(inputs.source, inputs.mask == 0),
        pred=dirty(inputs.pred, inputs.mask == 0),
        taps={name: dirty(tap, outside_of(tap)) for name, tap in inputs.taps.items()},
        pooled={"bottleneck": dirty(vectors, is_padding.unsqueeze(-1))},
    )


@every_mixer
@pytest.mark.parametrize("n_source", [1, 3])
def test_nothing_outside_mask_and_depth_has_any_influence(kind: MixerKind, n_source: int) -> None:
    mixer = make_mixer(kind, n_source)
    inputs = make_inputs([6, 3, 1], n_source=n_source)
    corner = inputs.mask.clone()
    corner[..., 4:, 4:] = 0  # a whole cell of the coarsest feature
    inputs = dataclasses.replace(inputs, mask=corner)
    inside = inputs.mask > 0

    def gradients(result: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(result[inside].square().sum(), list(mixer.parameters())))

    result = mixer(inputs)
    of_result = gradients(result)
    assert not torch.equal(result, inputs.pred)
    for seed in range(3):
        dirty = soiled(inputs, seed)
        again = mixer(dirty)
        assert all(map(torch.equal, gradients(again), of_result))
        assert torch.equal(again[inside], result[inside])
        assert torch.equal(again[~inside].nan_to_num(), dirty.pred[~inside].nan_to_num())


@every_mixer
def test_a_patient_in_a_batch_gets_the_result_it_gets_alone(kind: MixerKind) -> None:
    mixer = make_mixer(kind)
    depths = [7, 3, 1]
    inputs = make_inputs(depths, slices=8)
    result = mixer(inputs)
    for patient, depth in enumerate(depths):
        alone = mixer(window(inputs, 0, depth, patient))
        largest = float((result - inputs.pred).detach().abs().max())
        tolerance = 1e-6 * max(1.0, largest)  # other shapes may use other float kernels
        torch.testing.assert_close(result[patient, :depth], alone[0], rtol=0, atol=tolerance)
        assert torch.equal(result[patient, depth:], inputs.pred[patient, depth:])


@every_mixer
def test_rows_and_columns_added_outside_the_mask_have_no_influence(kind: MixerKind) -> None:
    mixer = make_mixer(kind)
    inputs = make_inputs([5, 3], size=(8, 8))

    def padded(v: Tensor) -> Tensor:
        cell = v.shape[-1] // 2  # of the size of one cell of the coarsest feature
        return pad(v, (cell, 2 * cell, cell, cell))

    wide = dataclasses.replace(
        inputs,
        source=padded(inputs.source),
        pred=padded(inputs.pred),
        mask=padded(inputs.mask),
        taps={name: padded(inputs.taps[name]) for name in mixer.tap_names},
    )
    result = mixer(inputs)
    tolerance = 1e-6 * max(1.0, float((result - inputs.pred).detach().abs().max()))
    torch.testing.assert_close(mixer(wide)[..., 4:-4, 4:-8], result, rtol=0, atol=tolerance)


@every_mixer
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_volumes_of_very_few_slices_work(kind: MixerKind, depth: int) -> None:
    inputs = make_inputs([depth], before=0, after=0)
    result = make_mixer(kind)(inputs)
    assert result.shape == inputs.pred.shape
    assert torch.isfinite(result).all()
    assert not torch.equal(result, inputs.pred)


@every_mixer
def test_gradients_reach_every_parameter(kind: MixerKind) -> None:
    mixer = make_mixer(kind)
    mixer(make_inputs([5, 4])).square().sum().backward()
    for name, parameter in mixer.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name


@every_mixer
def test_the_first_step_moves_the_last_layer(kind: MixerKind) -> None:
    mixer = make_mixer(kind, trained=False)
    mixer(make_inputs([5, 4])).square().sum().backward()
    last = {name: p.grad for name, p in mixer.named_parameters() if "out." in name}
    assert last
    assert all(grad is not None and float(grad.abs().max()) > 0 for grad in last.values())


def test_zdiff_is_symmetric_in_depth_with_its_box_filter() -> None:
    mixer = make_mixer("zdiff", trained=False)
    mixer.start_from((TAPS + TAPS.flip(0)) / 2)
    assert isinstance(mixer, ZDiff)
    nn.init.normal_(mixer.out.weight, generator=torch.Generator().manual_seed(0))
    inputs = make_inputs([9])
    turned = dataclasses.replace(
        inputs,
        source=inputs.source.flip(1),
        pred=inputs.pred.flip(1),
        mask=inputs.mask.flip(1),
        taps={name: tap.flip(1) for name, tap in inputs.taps.items()},
    )
    torch.testing.assert_close(mixer(turned).flip(1), mixer(inputs), rtol=0, atol=2e-6)


def test_zdiff_counts_an_absent_neighbour_as_the_centre() -> None:
    mixer = make_mixer("zdiff")
    assert isinstance(mixer, ZDiff)
    inputs = make_inputs([6])
    f, mask = inputs.taps["feat"] * inputs.mask, inputs.mask
    result = mixer._contrast(f.transpose(1, 2), mask.transpose(1, 2))[0].transpose(0, 1)
    kernel = mixer.along_z.weight[:, 0, :, 0, 0]
    for d, y, x in itertools.product(range(6), range(9), range(8)):
        if mask[0, d, 0, y, x] > 0:
            centre = f[0, d, :, y, x]
            expected = -centre
            for i, k in enumerate(range(-3, 4)):
                is_there = 0 <= d + k < 6 and bool(mask[0, d + k, 0, y, x] > 0)
                expected = expected + kernel[:, i] * (f[0, d + k, :, y, x] if is_there else centre)
            torch.testing.assert_close(result[d, :, y, x], expected, rtol=0, atol=1e-5)


def test_the_2d_control_sees_no_other_slice() -> None:
    inputs = make_inputs([6])
    other = make_inputs([6], seed=1)
    keep = (torch.arange(6) == 2).view(1, 6, 1, 1, 1)
    changed = dataclasses.replace(
        inputs,
        source=torch.where(keep, inputs.source, other.source),
        pred=torch.where(keep, inputs.pred, other.pred),
        mask=torch.where(keep, inputs.mask, other.mask),
        taps={n: torch.where(keep, tap, other.taps[n]) for n, tap in inputs.taps.items()},
    )
    control, zrefine = make_mixer("control_2d"), make_mixer("zrefine")
    assert torch.equal(control(inputs)[:, 2], control(changed)[:, 2])
    assert not torch.equal(zrefine(inputs)[:, 2], zrefine(changed)[:, 2])


def test_the_recurrence_is_a_bidirectional_gru() -> None:
    mixer = make_mixer("pooled_bigru")
    assert isinstance(mixer, PooledBiGRU)
    depths = torch.tensor([6, 4])
    x = torch.randn(2, 6, 14, generator=torch.Generator().manual_seed(0))
    valid = (torch.arange(6) < depths[:, None]).unsqueeze(-1)
    oracle = nn.GRU(14, 8, batch_first=True, bidirectional=True)
    with torch.no_grad():
        for suffix, direction in (("", mixer.forwards), ("_reverse", mixer.backwards)):
            for part, layer in (("ih", direction.of_input), ("hh", direction.of_state)):
                getattr(oracle, f"weight_{part}_l0{suffix}").copy_(layer.weight)
                getattr(oracle, f"bias_{part}_l0{suffix}").copy_(layer.bias)
    packed, _ = oracle(pack_padded_sequence(x, depths, batch_first=True))
    expected, _ = pad_packed_sequence(packed, batch_first=True)
    forwards = mixer.forwards(x, valid)
    backwards = mixer.backwards(x.flip(1), valid.flip(1)).flip(1)
    result = torch.cat([forwards, backwards], -1) * valid
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)


def test_the_pooled_mixer_sees_slices_outside_its_window() -> None:
    mixer = make_mixer("pooled_bigru")
    inputs = make_inputs([4], before=5, after=5)
    for row in (0, 13):
        vectors = inputs.pooled["bottleneck"].clone()
        vectors[:, row] += 1
        changed = dataclasses.replace(inputs, pooled={"bottleneck": vectors})
        assert not torch.equal(mixer(changed), mixer(inputs))


@every_mixer
def test_the_same_seed_gives_the_same_mixer_and_leaves_the_global_state_alone(
    kind: MixerKind,
) -> None:
    frozen = frozen_parts()
    before = torch.random.get_rng_state()
    first, same, other = (
        build_mixer(MixerPlan(kind=kind), frozen, seed=seed).values()
        for seed in (2**62, 2**62, 2**62 + 1)
    )
    needs = mixer_needs(MixerPlan(kind=kind), frozen)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    mixer = make_mixer(kind)
    assert needs == (mixer.tap_names, mixer.pooled_names)


@every_mixer
def test_nothing_frozen_is_part_of_a_mixer(kind: MixerKind) -> None:
    mixer = make_mixer(kind)
    assert set(mixer.values()) == set(mixer.state_dict())
    assert all(parameter.requires_grad for parameter in mixer.parameters())


@pytest.mark.parametrize(
    ("kind", "frozen"),
    [
        ("zrefine", FrozenParts({"feat": 12}, {"feat": 1}, 1)),
        ("zrefine", FrozenParts({"feat": 12, "enc0": 12}, {"feat": 1, "enc0": 2}, 1)),
        ("zdiff", FrozenParts({}, {}, 1, torch.ones(12))),
        ("zdiff", FrozenParts({"feat": 12}, {"feat": 1}, 1)),
        ("zconv", FrozenParts({"feat": 12}, {"feat": 1}, 1)),
        ("pooled_bigru", FrozenParts({"enc0": 12}, {"enc0": 1}, 1, None, Decoder())),
        ("pooled_bigru", FrozenParts({"bottleneck": 12}, {"bottleneck": 8}, 1)),
    ],
)
def test_a_generator_that_lacks_a_part_is_refused_with_a_remedy(
    kind: MixerKind, frozen: FrozenParts
) -> None:
    with pytest.raises(ConfigError, match=f"'{kind}' does not fit") as refusal:
        mixer_needs(MixerPlan(kind=kind), frozen)
    assert "zrefine_lite" in refusal.value.remedy
    assert mixer_needs(MixerPlan(kind="zrefine_lite"), frozen) == ((), ())
