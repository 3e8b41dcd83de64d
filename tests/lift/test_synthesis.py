"""A volume from the cache and a volume streamed from its file are the same volume."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from lift.cohort.preprocessing import Prepared
from lift.config.plan import MixerKind
from lift.generator.blocks import block_slices
from lift.generator.features import Features
from lift.mixer.base import Mixer
from lift.mixer.z_filter import fit
from lift.tasks.paired.predictions import (
    filtered,
    median_filtered,
    mixed,
    patient_equations,
    patient_psnr_db,
)
from lift.tasks.paired.synthesis import CachedStream, GeneratedStream, chunk_slices, mix
from lift.tasks.paired.windows import Window, make_inputs
from tests.lift.mixer_cases import KINDS
from tests.lift.small_world import (
    SIZE,
    features_of,
    random_mixer,
    small_generator,
    small_plan,
    small_prepared,
)

GENERATOR = small_generator()
CONTEXT_GENERATOR = small_generator(context_slices=1)
every_mixer = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def case(kind: MixerKind, depth: int) -> tuple[Mixer, Prepared, Features]:
    prepared = small_prepared(depth)
    mixer = random_mixer(small_plan(kind), GENERATOR)
    return mixer, prepared, features_of(prepared, GENERATOR, kind)


@every_mixer
@pytest.mark.parametrize("depth", [1, 5, 19])
def test_cached_and_streamed_slices_give_the_same_bits(kind: MixerKind, depth: int) -> None:
    mixer, prepared, features = case(kind, depth)
    for chunk in (None, 4):
        cached = mix(mixer, CachedStream(features, mixer), chunk=chunk)
        streamed = mix(mixer, GeneratedStream(prepared, GENERATOR, mixer), chunk=chunk)
        assert cached.shape == (depth, 1, *SIZE)
        assert cached.dtype == np.float32
        assert cached.tobytes() == streamed.tobytes()
    # a mixer that reaches along depth has nothing to say on one slice; the others do
    if depth > 1 or kind == "control_2d":
        assert float(np.abs(cached - features.pred).max()) > 1e-3


@every_mixer
def test_a_generator_with_context_streams_the_same_bits(kind: MixerKind) -> None:
    prepared = small_prepared(11)
    mixer = random_mixer(small_plan(kind), CONTEXT_GENERATOR)
    features = features_of(prepared, CONTEXT_GENERATOR, kind)
    cached = mix(mixer, CachedStream(features, mixer), chunk=3)
    stream = GeneratedStream(prepared, CONTEXT_GENERATOR, mixer)
    assert cached.tobytes() == mix(mixer, stream, chunk=3).tobytes()


@every_mixer
def test_another_chunk_differs_by_rounding_alone(kind: MixerKind) -> None:
    mixer, _, features = case(kind, 19)
    whole = mix(mixer, CachedStream(features, mixer), chunk=19)
    for chunk in (1, 3, 8):
        other = mix(mixer, CachedStream(features, mixer), chunk=chunk)
        assert float(np.abs(other - whole).max()) <= 1e-4


@every_mixer
def test_a_mixed_volume_is_the_mixers_result_on_all_slices_at_once(kind: MixerKind) -> None:
    mixer, _, features = case(kind, 9)
    window = Window((0, 0, 0), (9, *SIZE))
    with torch.no_grad():
        expected = mixer(make_inputs([features], [window], mixer, window.size))[0]
    np.testing.assert_allclose(mixed(mixer, features), expected.numpy(), rtol=0, atol=1e-5)


@every_mixer
def test_outside_the_mask_the_prediction_stays(kind: MixerKind) -> None:
    mixer, _, features = case(kind, 7)
    result = mixed(mixer, features)
    outside = features.mask == 0
    assert result[outside].tobytes() == features.pred[outside].tobytes()
    assert bool((result[~outside] != features.pred[~outside]).any())


def test_what_lies_outside_the_mask_does_not_reach_inside() -> None:
    mixer, _, features = case("zrefine", 7)
    outside = features.mask == 0
    other = dataclasses.replace(features, pred=np.where(outside, 9.0, features.pred))
    inside = features.mask > 0
    assert mixed(mixer, other)[inside].tobytes() == (mixed(mixer, features)[inside].tobytes())


def test_an_untrained_mixer_is_the_fitted_filter() -> None:
    _, _, features = case("zrefine", 9)
    taps = fit(patient_equations(features), 1e-3)
    mixer = random_mixer(small_plan("zrefine"), GENERATOR)
    with torch.no_grad():
        for name, parameter in mixer.named_parameters():
            if name.startswith("out."):
                parameter.zero_()
    mixer.start_from(taps)
    expected = filtered(features, taps)
    assert float(np.abs(expected - features.pred).max()) > 1e-3
    np.testing.assert_allclose(mixed(mixer, features), expected, rtol=0, atol=1e-6)


def test_progress_counts_every_slice_once() -> None:
    mixer, _, features = case("control_2d", 7)
    seen: list[tuple[int, int]] = []
    mix(
        mixer,
        CachedStream(features, mixer),
        chunk=3,
        report=lambda done, depth: seen.append((done, depth)),
    )
    assert seen == [(3, 7), (6, 7), (7, 7)]


class Watched(GeneratedStream):
    """A stream that notes how many slices it holds when it is asked."""

    most_slices = 0

    def window(self, low: int, high: int) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        result = super().window(low, high)
        self.most_slices = max(self.most_slices, sum(len(block.pred) for block in self._kept))
        return result


@pytest.mark.parametrize("depth", [19, 60])
def test_streaming_keeps_a_chunk_and_its_halo_whatever_the_depth(depth: int) -> None:
    mixer = random_mixer(small_plan("zrefine"), GENERATOR)
    stream = Watched(small_prepared(depth, size=(4, 4)), GENERATOR, mixer)
    mix(mixer, stream, chunk=4)
    assert stream.most_slices <= 4 + 2 * mixer.halo + block_slices((4, 4))


@pytest.mark.parametrize(
    ("shape", "expected"), [((240, 240), 6), ((4, 4), 64), ((2000, 2000), 1), ((256, 256), 6)]
)
def test_a_chunk_has_about_as_many_voxels_whatever_its_slices(
    shape: tuple[int, int], expected: int
) -> None:
    assert chunk_slices(shape) == expected


def test_mixing_does_not_change_the_features() -> None:
    mixer, _, features = case("zrefine", 5)
    before = [features.pred.tobytes(), features.taps["feat"].tobytes()]
    features.pred.flags.writeable = False  # as a memory map would be
    mixed(mixer, features)
    assert [features.pred.tobytes(), features.taps["feat"].tobytes()] == before


def test_psnr_counts_the_mask_alone() -> None:
    _, _, features = case("control_2d", 5)
    inside = features.mask > 0
    assert features.target is not None
    # predictions are clipped to [0, 1] before they are judged
    target = 0.8 * features.target
    prediction = np.where(inside, target + 0.1, 50.0).astype(np.float32)
    assert patient_psnr_db(
        dataclasses.replace(features, target=target), prediction
    ) == pytest.approx(20.0, abs=1e-3)


def test_the_median_of_three_is_that_of_numpy_where_all_three_are_inside() -> None:
    _, _, features = case("control_2d", 7)
    stack = np.stack([np.roll(features.pred, shift, axis=0) for shift in (-1, 0, 1)])
    masks = np.stack([np.roll(features.mask, shift, axis=0) for shift in (-1, 0, 1)])
    inside = masks.min(0) > 0
    inside[[0, -1]] = False
    result = median_filtered(features)
    assert inside.any()
    np.testing.assert_array_equal(result[inside], np.median(stack, axis=0)[inside])


def test_what_needs_a_target_says_so() -> None:
    _, _, features = case("control_2d", 3)
    bare = dataclasses.replace(features, target=None)
    with pytest.raises(ValueError, match="target"):
        patient_psnr_db(bare, bare.pred)
    with pytest.raises(ValueError, match="target"):
        patient_equations(bare)
