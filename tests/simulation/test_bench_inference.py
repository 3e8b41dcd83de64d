"""The benchmark's count of a volume: what is run on each part of it, halos included."""

from __future__ import annotations

from typing import Final

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lift.generator.networks import FrozenGenerator
from lift.tasks.paired.synthesis import GeneratedStream, mix
from lift_benchmarks.bench.example import example_generator, example_mixer, example_prepared
from lift_benchmarks.bench.inference import Mask, Over, cropped, head_mask, volume_flops

# several chunks and blocks, the last ones shorter
SHAPE: Final = (47, 136, 128)


def generator_of(over: Over) -> FrozenGenerator:
    return example_generator(4, (1, 2), over)


def mask_of(share: float) -> Mask:
    """The upper rows of each slice, fewer and fewer."""
    depth, height, width = SHAPE
    mask = np.zeros((depth, 1, height, width), np.float32)
    for index in range(depth):
        rows = round(height * (1 - (1 - share) * index / (depth - 1)))
        mask[index, :, :rows, 3:] = 1.0
    return mask


@pytest.mark.parametrize("over", ["picture", "mask"])
@pytest.mark.parametrize("share", [1.0, 0.1])
def test_the_count_is_that_of_the_volume_that_is_run(over: Over, share: float) -> None:
    mask = mask_of(share)
    prepared = example_prepared(SHAPE)
    prepared.mask[:] = mask
    generator = generator_of(over)
    mixer = example_mixer(generator)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        mix(mixer, GeneratedStream(prepared, generator, mixer))
    counted = volume_flops(generator_of(over), example_mixer(generator_of(over)), mask)
    # of an odd number of slices the second convolution computes one twice
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_a_mask_saves_a_generator_that_normalises_over_it_the_surroundings() -> None:
    part, whole = np.zeros_like(mask_of(1.0)), np.ones_like(mask_of(1.0))
    part[:, :, :34, :32] = 1.0

    def share(over: Over) -> float:
        found = [
            volume_flops(generator_of(over), example_mixer(generator_of(over)), mask)
            for mask in (part, whole)
        ]
        return found[0] / found[1]

    assert share("mask") < 0.1
    # of the other kind only the mixer is spared
    assert share("picture") > 0.2


def test_the_head_fills_its_box() -> None:
    mask = head_mask((96, 128, 128))
    assert mask.shape == (96, 1, 128, 128)
    assert 0.15 < mask.mean() < 0.3
    box = cropped(mask)
    assert box.sum() == mask.sum()
    assert box.size < 0.7 * mask.size
