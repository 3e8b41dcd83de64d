"""A generator that normalises over the mask: a crop changes nothing, and nothing outside counts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from lift.cohort.preprocessing import Prepared
from lift.config.generator import GeneratorCard, UNetConfig
from lift.config.plan import MixerKind
from lift.errors import GeneratorError
from lift.generator.blocks import generate_blocks, mask_box
from lift.generator.bundle import load_bundle, save_bundle
from lift.generator.card import CARD_FILE, builtin_bundle, list_builtin
from lift.generator.features import compute_features
from lift.generator.networks import FrozenGenerator, SliceNorm, neighbour_channels
from lift.mixer.base import MixerInputs
from lift.tasks.paired.synthesis import CachedStream, GeneratedStream, mix
from tests.gpu.fake_cuda import fake_cuda
from tests.lift.mixer_cases import KINDS
from tests.lift.small_world import (
    CPU,
    features_of,
    random_mixer,
    same_features,
    small_generator,
    small_plan,
    small_prepared,
)

every_mixer = pytest.mark.parametrize("kind", KINDS)
TAPS = ("bottleneck", "enc0", "enc1", "feat")


def with_mask(box: tuple[int, int, int, int], size: tuple[int, int], depth: int = 3) -> Prepared:
    """A random patient whose mask has holes inside rows and columns of a box, and none around."""
    prepared = small_prepared(depth, size=size)
    mask = np.zeros_like(prepared.mask)
    top, bottom, left, right = box
    inner = np.random.default_rng(1).random((depth, 1, bottom - top, right - left)) > 0.2
    mask[:, :, top:bottom, left:right] = inner
    # the box is the mask's own
    mask[:, :, top, left] = mask[:, :, bottom - 1, right - 1] = 1.0
    return dataclasses.replace(prepared, mask=mask)


def tensors(prepared: Prepared) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(prepared.source), torch.from_numpy(prepared.mask)


def around(prepared: Prepared, before: int, after: int) -> Prepared:
    """The same patient in a larger picture that is not 0 around the mask."""
    sides = ((0, 0), (0, 0), (before, after), (before, after))
    return dataclasses.replace(
        prepared,
        source=np.pad(prepared.source, sides, constant_values=0.7),
        mask=np.pad(prepared.mask, sides),
    )


BOXES = [
    ((5, 11, 6, 17), (23, 29)),  # in the middle of odd sides
    ((0, 5, 0, 7), (13, 18)),  # at the upper and left border
    ((9, 13, 12, 18), (13, 18)),  # at the lower and right border, which is no multiple
    ((0, 9, 0, 10), (9, 10)),  # the whole picture
    ((5, 6, 6, 7), (11, 9)),  # one voxel
]


@pytest.mark.parametrize(("box", "size"), BOXES)
def test_a_crop_that_holds_the_mask_gives_the_whole_picture_s_result(
    box: tuple[int, int, int, int], size: tuple[int, int]
) -> None:
    generator = small_generator(over="mask")
    x, mask = tensors(with_mask(box, size))
    whole, taps = generator.predict(x, TAPS, mask=mask)
    assert generator.crop_stride == 4
    rows, columns = mask_box(mask, 4)
    cropped, parts = generator.predict(x[..., rows, columns], TAPS, mask=mask[..., rows, columns])
    torch.testing.assert_close(cropped, whole[..., rows, columns], rtol=0, atol=1e-5)
    for name, part in parts.items():
        stride = generator.taps[name].stride
        first = (rows.start // stride, columns.start // stride)
        place = [slice(a, a + n) for a, n in zip(first, part.shape[2:], strict=True)]
        torch.testing.assert_close(part, taps[name][:, :, place[0], place[1]], rtol=0, atol=1e-4)


def test_a_crop_changes_the_result_of_statistics_over_the_picture() -> None:
    generator = small_generator()
    x, mask = tensors(with_mask(*BOXES[0]))
    rows, columns = mask_box(mask, 4)
    whole, _ = generator.predict(x)
    cropped, _ = generator.predict(x[..., rows, columns])
    inside = mask[..., rows, columns] > 0
    assert float((cropped - whole[..., rows, columns])[inside].abs().max()) > 1e-3
    assert generator.crop_stride is None


def test_a_crop_that_starts_between_multiples_of_the_stride_changes_the_result() -> None:
    generator = small_generator(over="mask")
    x, mask = tensors(with_mask(*BOXES[0]))
    whole, _ = generator.predict(x, mask=mask)
    cropped, _ = generator.predict(x[..., 3:, 3:], mask=mask[..., 3:, 3:])
    assert float((cropped - whole[..., 3:, 3:]).abs().max()) > 1e-3


@given(
    sides=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    multiple=st.sampled_from([1, 4, 8]),
    seed=st.integers(0, 99),
)
@settings(max_examples=50)
def test_the_box_holds_the_mask_and_begins_at_a_multiple(
    sides: tuple[int, int], multiple: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    mask = torch.from_numpy(random.random((2, 1, *sides)) > random.uniform(0.3, 0.99))
    mask[0, 0, random.integers(sides[0]), random.integers(sides[1])] = True
    rows, columns = mask_box(mask, multiple)
    assert int(mask[..., rows, columns].sum()) == int(mask.sum())
    for side, box, axis in ((sides[0], rows, -1), (sides[1], columns, -2)):
        assert box.start % multiple == 0
        assert box.stop == side or box.stop % multiple == 0
        # no smaller box does
        held = mask.any(axis).flatten(0, -2).any(0)
        assert held[box.start : box.start + multiple].any()
        assert held[max(box.start, box.stop - multiple) : box.stop].any()


@every_mixer
def test_nothing_outside_the_mask_has_an_influence(kind: MixerKind) -> None:
    generator = small_generator(over="mask")
    mixer = random_mixer(small_plan(kind), generator)
    prepared = small_prepared()
    other = dataclasses.replace(
        prepared, source=np.where(prepared.mask > 0, prepared.source, np.float32(np.nan))
    )
    one, two = (mix(mixer, GeneratedStream(each, generator, mixer)) for each in (prepared, other))
    assert one.tobytes() == two.tobytes()
    assert not one[prepared.mask == 0].any()
    assert one[prepared.mask > 0].any()


@every_mixer
def test_a_wider_picture_gives_the_same_volume(kind: MixerKind) -> None:
    generator = small_generator(over="mask")
    mixer = random_mixer(small_plan(kind), generator)
    prepared = small_prepared()
    wide = around(prepared, 8, 11)
    one, two = (mix(mixer, GeneratedStream(each, generator, mixer)) for each in (prepared, wide))
    # taps are rounded to float16, whose steps two kernels may take differently
    bound = 5e-3 * max(1.0, float(np.abs(one).max()))
    np.testing.assert_allclose(two[:, :, 8:-11, 8:-11], one, rtol=0, atol=bound)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "pooled_bigru"])
def test_a_mixer_s_box_gives_what_the_whole_slices_give(kind: MixerKind) -> None:
    generator = small_generator()
    mixer = random_mixer(small_plan(kind), generator)
    features = features_of(with_mask((9, 17, 6, 15), (24, 28), 6), generator, kind)
    seen = []
    mixer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].pred.shape[-2:]))
    result = mix(mixer, CachedStream(features, mixer))
    assert set(seen) == {(12, 12)}
    stream = CachedStream(features, mixer)
    source, pred, mask, taps = stream.window(0, 6)
    with torch.no_grad():
        whole = mixer(
            MixerInputs(
                source=source[None],
                pred=pred[None],
                mask=mask[None],
                depth=torch.tensor([6]),
                start=torch.tensor([0]),
                slice_spacing_mm=torch.tensor([2.0]),
                taps={name: tap[None] for name, tap in taps.items()},
            )
        )[0].numpy()
    assert np.abs(whole - features.pred).max() > 1e-3
    bound = 1e-5 * max(1.0, float(np.abs(whole).max()))
    np.testing.assert_allclose(result, whole, rtol=0, atol=bound)


@every_mixer
def test_cached_and_streamed_features_are_equal_bit_for_bit(kind: MixerKind) -> None:
    generator = small_generator(over="mask")
    mixer = random_mixer(small_plan(kind), generator)
    prepared = with_empty_slices()
    cached = mix(mixer, CachedStream(features_of(prepared, generator, kind), mixer))
    streamed = mix(mixer, GeneratedStream(prepared, generator, mixer))
    assert cached.tobytes() == streamed.tobytes()


def with_empty_slices() -> Prepared:
    """Slices 0 to 8 and 11 hold no mask: all of the first block, and one of the second."""
    prepared = small_prepared(14)
    prepared.mask[:9] = prepared.mask[11] = 0.0
    return prepared


@pytest.mark.parametrize("context_slices", [0, 1])
@pytest.mark.parametrize("box", [None, *(box for box, _ in BOXES)])
def test_blocks_of_boxes_are_the_whole_pictures(
    context_slices: int, box: tuple[int, int, int, int] | None
) -> None:
    generator = small_generator(over="mask", context_slices=context_slices)
    # among the boxes some begin between the multiples of the stride
    size = dict(BOXES).get(box or (0, 0, 0, 0), (0, 0))
    prepared = with_empty_slices() if box is None else with_mask(box, size, 9)
    x = neighbour_channels(torch.from_numpy(prepared.source), context_slices)
    whole, taps = generator.predict(x, TAPS, mask=torch.from_numpy(prepared.mask))
    blocks = [block for _, block in generate_blocks(generator, prepared, TAPS)]
    torch.testing.assert_close(torch.cat([b.pred for b in blocks]), whole, rtol=0, atol=1e-5)
    for name in TAPS:
        found = torch.cat([block.taps[name] for block in blocks]).float()
        torch.testing.assert_close(found, taps[name], rtol=0, atol=5e-3)


def test_empty_slices_and_the_surroundings_are_not_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = small_generator(over="mask")
    prepared = around(with_empty_slices(), 16, 16)
    seen: list[tuple[int, ...]] = []
    predict = FrozenGenerator.predict

    def spy(self: FrozenGenerator, x: Tensor, *args: object, **kwargs: object) -> object:
        seen.append(tuple(x.shape))
        return predict(self, x, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(FrozenGenerator, "predict", spy)
    features = compute_features(prepared, generator, ("enc0",), ("bottleneck",))
    # of 14 slices of 48 x 56, block 0 to 7 is empty; the others' box is 16 x 24
    assert seen == [(6, 2, 16, 24)]
    assert not features.pooled["bottleneck"][:9].any()
    assert features.pooled["bottleneck"][9].any()


def test_pooled_means_are_those_of_the_mask_whatever_lies_around() -> None:
    generator = small_generator(over="mask")
    prepared = small_prepared()
    one = compute_features(prepared, generator, (), ("bottleneck",))
    two = compute_features(around(prepared, 8, 11), generator, (), ("bottleneck",))
    np.testing.assert_allclose(one.pooled["bottleneck"], two.pooled["bottleneck"], atol=5e-3)
    assert np.abs(one.pooled["bottleneck"]).max() > 0.05


def test_statistics_over_a_mask_are_those_of_its_voxels() -> None:
    random = torch.Generator().manual_seed(0)
    x = 3 + torch.randn(2, 6, 7, 5, generator=random)
    mask = (torch.rand(2, 1, 7, 5, generator=random) > 0.4).float()
    norm = SliceNorm(3, 6)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2, generator=random)
        norm.bias.uniform_(-1, 1, generator=random)
        result = norm(x.clone(), mask)
    for n, group in np.ndindex(2, 3):
        channels = slice(2 * group, 2 * group + 2)
        inside = np.broadcast_to(mask[n].numpy() > 0, (2, 7, 5))
        values = x[n, channels].numpy().astype(np.float64)
        expected = (values - values[inside].mean()) / np.sqrt(values[inside].var() + norm.eps)
        expected = expected * norm.weight.detach()[channels, None, None].numpy()
        expected += norm.bias.detach()[channels, None, None].numpy()
        found = result[n, channels].numpy()
        np.testing.assert_allclose(found[inside], expected[inside], atol=1e-5)


def test_a_full_mask_gives_group_norm() -> None:
    x = torch.randn(2, 8, 9, 7, generator=torch.Generator().manual_seed(0))
    norm = SliceNorm(4, 8)
    torch.testing.assert_close(norm(x, torch.ones(2, 1, 9, 7)), norm(x), rtol=0, atol=1e-5)


def test_decode_of_the_taps_is_the_prediction() -> None:
    generator = small_generator(over="mask")
    x, mask = tensors(with_mask(*BOXES[0]))
    pred, taps = generator.predict(x, generator.encoder_tap_names, mask=mask)
    assert torch.equal(generator.decode(taps, mask), pred)


def test_a_missing_mask_is_refused() -> None:
    generator = small_generator(over="mask")
    with pytest.raises(ValueError, match="needs the mask"):
        generator.predict(torch.zeros(1, 2, 8, 8))


@every_mixer
def test_a_volume_on_a_device_is_that_of_the_cpu(kind: MixerKind) -> None:
    prepared = with_empty_slices()

    def volume(device: torch.device) -> NDArray[np.float32]:
        generator = small_generator(over="mask")
        mixer = random_mixer(small_plan(kind), generator).to(device)
        return mix(mixer, GeneratedStream(prepared, generator.to(device), mixer))

    expected = volume(CPU)
    with fake_cuda():
        found = volume(torch.device("cuda"))
    # half precision there
    bound = 0.03 * max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound)


# --- bundles


@pytest.mark.parametrize("name", [name for name in list_builtin() if "slices" not in name])
def test_shipped_cards_and_fingerprints_are_what_they_were(name: str) -> None:
    folder = builtin_bundle(name)
    written = json.loads((folder / CARD_FILE).read_bytes())
    generator = load_bundle(folder, expected_fingerprint=written["fingerprint"], device=CPU)
    assert generator.fingerprint == written["fingerprint"]
    assert generator.card.model_dump(mode="json") == written
    assert generator.crop_stride is None
    assert json.loads(generator.card.network.canonical_json()) == written["network"]
    assert "normalise_over" not in written["network"]


def test_the_two_rules_are_two_networks() -> None:
    picture, mask = (UNetConfig(n_source=1, normalise_over=over) for over in ("picture", "mask"))
    assert picture.canonical_json() == UNetConfig(n_source=1).canonical_json()
    assert picture.digest() != mask.digest()
    # the same weights: the feature cache tells them apart by the fingerprint
    assert small_generator().fingerprint != small_generator(over="mask").fingerprint


def test_a_bundle_comes_back_with_its_rule(tmp_path: Path) -> None:
    generator = small_generator(over="mask")
    save_bundle(tmp_path, generator.network, generator.card)
    loaded = load_bundle(tmp_path, expected_fingerprint=generator.fingerprint, device=CPU)
    prepared = small_prepared()
    needs = TAPS, ("bottleneck",)
    assert same_features(
        compute_features(prepared, loaded, *needs), compute_features(prepared, generator, *needs)
    )


def test_an_older_program_refuses_the_rule_as_a_newer_format(tmp_path: Path) -> None:
    generator = small_generator(over="mask")
    assert (generator.card.format_version, small_generator().card.format_version) == (2, 1)
    save_bundle(tmp_path, generator.network, generator.card)
    card = json.loads((tmp_path / CARD_FILE).read_bytes())
    (tmp_path / CARD_FILE).write_text(json.dumps(card | {"format_version": 1}))
    with pytest.raises(GeneratorError, match="needs format_version 2"):
        load_bundle(tmp_path, expected_fingerprint=None, device=CPU)


def test_a_card_without_the_rule_is_of_the_first_format() -> None:
    card = small_generator().card.model_dump(mode="json")
    assert GeneratorCard.from_data(card, "test").format_version == 1
