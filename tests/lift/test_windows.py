"""Windows lie inside the volume, and what lies beyond a volume is padding."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lift.generator.features import Features
from lift.mixer.base import Mixer
from lift.tasks.paired.windows import Window, draw_window, make_batch, make_inputs
from tests.lift.small_world import (
    SIZE,
    features_of,
    random_mixer,
    small_cohort,
    small_generator,
    small_plan,
    small_prepared,
)

GENERATOR = small_generator()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


sides = st.integers(1, 30)


def mixer_of(kind: str) -> Mixer:
    return random_mixer(small_plan(kind), GENERATOR)  # type: ignore[arg-type]  # a MixerKind


def bare(depth: int, height: int, width: int, share: float = 1.0, seed: int = 0) -> Features:
    """Only what drawing a window looks at is of interest."""
    rng = np.random.default_rng(seed)
    shape = (depth, 1, height, width)
    values = rng.random(shape, dtype=np.float32)
    mask = (rng.random(shape) < share).astype(np.uint8)
    return Features(values, values, values, mask, {}, {}, 1.0)


@given(sides, sides, sides, st.tuples(sides, sides, sides), st.integers(0, 1000))
def test_windows_lie_inside_the_volume_and_are_as_large_as_it_allows(
    depth: int, height: int, width: int, size: tuple[int, int, int], seed: int
) -> None:
    window = draw_window(bare(depth, height, width), size, np.random.default_rng(seed))
    whole = (depth, height, width)
    assert window.size == tuple(min(n, k) for n, k in zip(whole, size, strict=True))
    for start, length, limit in zip(window.start, window.size, whole, strict=True):
        assert 0 <= start <= limit - length
    assert np.zeros(whole)[window.box].shape == window.size


@given(st.integers(0, 1000))
def test_the_same_generator_draws_the_same_window(seed: int) -> None:
    features = bare(20, 20, 20, 0.3)
    one, other = (draw_window(features, (4, 5, 6), np.random.default_rng(seed)) for _ in range(2))
    assert one == other


def test_every_place_of_the_volume_is_drawn() -> None:
    features, generator = bare(6, 5, 4), np.random.default_rng(0)
    drawn = {draw_window(features, (4, 4, 3), generator).start for _ in range(400)}
    assert drawn == {(z, y, x) for z in range(3) for y in range(2) for x in range(2)}


def test_windows_are_drawn_where_the_mask_is() -> None:
    features = bare(8, 40, 40, 0.0)
    features.mask[:, :, :20, :20] = 1  # a quarter of the plane
    generator = np.random.default_rng(0)
    windows = [draw_window(features, (8, 4, 4), generator) for _ in range(300)]
    shares = [features.mask[w.box[0], 0, w.box[1], w.box[2]].mean() for w in windows]
    # one try would find it in about 3 of 10 windows, eight in all but 0.7^8 = 6%
    assert np.mean(np.array(shares) >= 0.1) > 0.85


def test_an_empty_mask_still_gives_a_window() -> None:
    window = draw_window(bare(6, 6, 6, 0.0), (2, 2, 2), np.random.default_rng(0))
    assert window.size == (2, 2, 2)


def test_a_batch_holds_the_windows_voxels_in_contiguous_slices() -> None:
    mixer, patients = mixer_of("zrefine"), small_cohort(GENERATOR)
    size = (3, 4, 6)
    windows = [Window((1, 2, 5), size), Window((6, 0, 0), size), Window((0, 12, 18), size)]
    batch = make_batch(patients, windows, mixer, size)
    inputs = batch.inputs
    for row, (features, window) in enumerate(zip(patients, windows, strict=True)):
        (z, y, x), (first, top, left) = window.size, window.start
        here = (
            slice(first, first + z),
            slice(None),
            slice(top, top + y),
            slice(left, left + x),
        )
        assert features.target is not None
        np.testing.assert_array_equal(inputs.source[row], features.source[here])
        np.testing.assert_array_equal(inputs.pred[row], features.pred[here])
        np.testing.assert_array_equal(inputs.mask[row], features.mask[here])
        np.testing.assert_array_equal(batch.target[row], features.target[here])
        for name in ("feat", "enc0"):
            np.testing.assert_array_equal(inputs.taps[name][row], features.taps[name][here])
    assert inputs.depth.tolist() == [3, 3, 3]
    assert inputs.start.tolist() == [1, 6, 0]
    assert inputs.slice_spacing_mm.tolist() == [2.0, 2.0, 2.0]
    assert {t.dtype for t in (inputs.source, inputs.pred, inputs.mask, batch.target)} == {
        torch.float32
    }
    assert inputs.pooled == {}
    assert inputs.pooled_depth is None
    assert set(inputs.taps) == {"feat", "enc0"}


def test_what_is_smaller_than_the_window_is_padded_with_mask_0() -> None:
    mixer = mixer_of("zrefine")
    features = features_of(small_prepared(2, size=(4, 8)), GENERATOR, "zrefine")
    features = dataclasses.replace(features, mask=np.ones_like(features.mask))
    size = (5, 8, 8)
    window = draw_window(features, size, np.random.default_rng(0))
    inputs = make_inputs([features], [window], mixer, size)
    assert inputs.pred.shape == (1, 5, 1, 8, 8)
    assert inputs.taps["feat"].shape == (1, 5, 4, 8, 8)
    assert inputs.depth.tolist() == [2]
    inside = torch.zeros(5, 1, 8, 8)
    inside[:2, :, :4] = 1
    assert torch.equal(inputs.mask[0], inside)
    for part in (inputs.source, inputs.pred, *inputs.taps.values()):
        assert not bool(part[0].masked_select(inside == 0).any())
    # and the padding changes nothing
    bare_inputs = make_inputs([features], [window], mixer, window.size)
    with torch.no_grad():
        padded, alone = mixer(inputs)[:, :2, :, :4], mixer(bare_inputs)
    torch.testing.assert_close(padded, alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("multipliers", [(1, 2, 2), (1, 1, 1, 1)])
@pytest.mark.parametrize("size", [SIZE, (20, 9), (9, 20), (7, 5), (1, 1)])
def test_pooled_mixers_get_whole_slices_of_any_size(
    size: tuple[int, int], multipliers: tuple[int, ...]
) -> None:
    generator = small_generator(multipliers=multipliers)
    features = features_of(small_prepared(5, size=size), generator, "pooled_bigru")
    mixer = random_mixer(small_plan("pooled_bigru"), generator)
    whole = (3, *size)
    window = Window((1, 0, 0), whole)
    inputs = make_inputs([features], [window], mixer, whole)
    for name in mixer.tap_names:
        np.testing.assert_array_equal(inputs.taps[name][0], features.taps[name][1:4])
    np.testing.assert_array_equal(inputs.pooled["bottleneck"][0], features.pooled["bottleneck"])
    assert inputs.pooled_depth is not None
    assert inputs.pooled_depth.tolist() == [5]
    with torch.no_grad():
        assert mixer(inputs).shape == (1, 3, 1, *size)


def test_pooled_vectors_of_shorter_volumes_are_padded() -> None:
    patients = small_cohort(GENERATOR, "pooled_bigru", depths=(4, 6))
    mixer = mixer_of("pooled_bigru")
    whole = (4, *SIZE)
    windows = [Window((0, 0, 0), whole), Window((2, 0, 0), whole)]
    inputs = make_inputs(patients, windows, mixer, whole)
    assert inputs.pooled["bottleneck"].shape[:2] == (2, 6)
    assert not bool(inputs.pooled["bottleneck"][0, 4:].any())
    assert inputs.pooled_depth is not None
    assert inputs.pooled_depth.tolist() == [4, 6]


def test_training_needs_a_target() -> None:
    features = dataclasses.replace(small_cohort(GENERATOR)[0], target=None)
    with pytest.raises(ValueError, match="target"):
        make_batch([features], [Window((0, 0, 0), (2, 4, 4))], mixer_of("zrefine"), (2, 4, 4))
