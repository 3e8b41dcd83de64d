"""A volume mixed in chunks is the volume mixed at once; the halo is as large as it must be."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from lift.config.plan import MixerKind
from lift.mixer.base import Mixer, MixerInputs
from tests.lift.mixer_cases import KINDS, make_inputs, make_mixer, window

DEPTH = 31
every_mixer = pytest.mark.parametrize("kind", KINDS)


def in_chunks(mixer: Mixer, inputs: MixerInputs, chunk: int, halo: int) -> Tensor:
    parts = []
    for low in range(0, DEPTH, chunk):
        high = min(low + chunk, DEPTH)
        first, last = max(0, low - halo), min(DEPTH, high + halo)
        parts.append(mixer(window(inputs, first, last))[:, low - first : high - first])
    return torch.cat(parts, dim=1)


@every_mixer
@pytest.mark.parametrize("chunk", [1, 7, 16])
def test_chunks_with_their_halo_give_the_whole_volume(kind: MixerKind, chunk: int) -> None:
    mixer = make_mixer(kind)
    inputs = make_inputs([DEPTH], before=0, after=0)
    with torch.no_grad():
        whole = mixer(inputs)
        streamed = in_chunks(mixer, inputs, chunk, mixer.halo)
        assert not torch.equal(whole, inputs.pred)
        # other chunks may meet other float kernels: a bound relative to the largest value
        bound = 1e-5 * max(1.0, float(whole.abs().max()))
        torch.testing.assert_close(streamed, whole, rtol=0, atol=bound)
        if mixer.halo > 0:
            too_short = in_chunks(mixer, inputs, chunk, mixer.halo - 1)
            assert float((too_short - whole).abs().max()) > 1e-3


@every_mixer
def test_slices_beyond_the_halo_have_no_influence(kind: MixerKind) -> None:
    mixer = make_mixer(kind)
    inputs = make_inputs([DEPTH])
    other = make_inputs([DEPTH], seed=1)
    middle = DEPTH // 2
    near = (torch.arange(DEPTH) - middle).abs() <= mixer.halo
    keep = near.view(1, DEPTH, 1, 1, 1)
    changed = dataclasses.replace(
        inputs,
        source=torch.where(keep, inputs.source, other.source),
        pred=torch.where(keep, inputs.pred, other.pred),
        mask=torch.where(keep, inputs.mask, other.mask),
        taps={n: torch.where(keep, tap, other.taps[n]) for n, tap in inputs.taps.items()},
    )
    assert torch.equal(mixer(inputs)[:, middle], mixer(changed)[:, middle])
