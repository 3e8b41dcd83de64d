"""A streamed volume: its features are computed on the device, and stay there."""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
import pytest

from lift.tasks.paired.synthesis import GeneratedStream, mix
from tests.gpu.fake_cuda import CUDA, fake_cuda
from tests.lift.small_world import random_mixer, small_generator, small_plan, small_prepared

DEPTH: Final = 13
CHUNK: Final = 4
"""Slices: four chunks of them."""


@pytest.mark.parametrize("kind", ["zrefine", "zconv"])
@pytest.mark.parametrize("over", ["picture", "mask"])
def test_only_the_mixed_volume_comes_back(
    kind: Literal["zrefine", "zconv"], over: Literal["picture", "mask"]
) -> None:
    prepared = small_prepared(DEPTH)
    # a chunk without any mask comes back too
    prepared.mask[:CHUNK] = 0
    generator = small_generator(over=over)
    mixer = random_mixer(small_plan(kind), generator)
    expected = mix(mixer, GeneratedStream(prepared, generator, mixer), chunk=CHUNK)
    with fake_cuda() as device:
        there = generator.to(CUDA)
        moved = mixer.to(CUDA)
        device.reads.clear()
        device.uploads.clear()
        stream = GeneratedStream(prepared, there, moved, block=DEPTH)
        found = mix(moved, stream, chunk=CHUNK)
        reads, uploads = device.reads.total(), device.uploads.total()
    # the device computes in float16; values of this mixer reach 4
    np.testing.assert_allclose(found, expected, atol=0.05)
    # a chunk's prediction, and nothing else; a block's slices, a chunk's source, mask and numbers
    assert reads == -(-DEPTH // CHUNK)
    assert uploads <= 2 + 4 * reads
    assert not any("generator" in place for place in device.reads)
