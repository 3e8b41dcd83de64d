"""A small frozen network and random batches for the tests of the mixers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Final, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from lift.config.plan import MixerKind, MixerPlan
from lift.mixer.base import FrozenParts, Mixer, MixerInputs
from lift.mixer.build import build_mixer

KINDS: Final[tuple[MixerKind, ...]] = tuple(
    kind for kind in get_args(MixerKind) if kind != "trajectory_mapper"
)
TAPS: Final = torch.tensor([0.04, -0.03, 0.21, 0.17, 0.06, 0.02], dtype=torch.float64)
CHANNELS: Final = {"feat": 12, "enc0": 12, "enc1": 5, "bottleneck": 6}
STRIDES: Final = {"feat": 1, "enc0": 1, "enc1": 2, "bottleneck": 4}


class Decoder(nn.Module):
    """Frozen: from the encoder's features to a prediction, slice by slice."""

    def __init__(self) -> None:
        super().__init__()
        levels = ("enc0", "enc1", "bottleneck")
        self.mix = nn.Conv2d(sum(CHANNELS[name] for name in levels), 8, 3, padding=1)
        self.head = nn.Conv2d(8, 1, 1)
        self.requires_grad_(False)

    def forward(self, taps: Mapping[str, Tensor], _mask: Tensor) -> Tensor:
        size = taps["enc0"].shape[-2:]
        levels = [interpolate(taps[name], size=size) for name in ("enc0", "enc1", "bottleneck")]
        result: Tensor = self.head(torch.tanh(self.mix(torch.cat(levels, 1))))
        return result


def frozen_parts(n_source: int = 1) -> FrozenParts:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return FrozenParts(CHANNELS, STRIDES, n_source, torch.randn(CHANNELS["feat"]), Decoder())


def make_mixer(
    kind: MixerKind, n_source: int = 1, *, trained: bool = True, width: int = 8
) -> Mixer:
    """A mixer that starts from `TAPS`; trained: no parameter is at its start, none is 0."""
    mixer = build_mixer(MixerPlan(kind=kind, width=width), frozen_parts(n_source), seed=3)
    mixer.start_from(TAPS)
    if trained:
        random = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for parameter in mixer.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=random))
    return mixer


def make_inputs(
    depths: Sequence[int],
    *,
    n_source: int = 1,
    size: tuple[int, int] = (9, 8),
    slices: int | None = None,
    before: int = 2,
    after: int = 1,
    seed: int = 0,
) -> MixerInputs:
    """Random windows with holes in their masks; each volume goes on before and after it."""
    random = torch.Generator().manual_seed(seed)
    b, z = len(depths), max(depths) if slices is None else slices
    depth = torch.tensor(depths)
    is_valid = torch.arange(z) < depth[:, None]
    mask = (torch.rand(b, z, 1, *size, generator=random) > 0.25) * is_valid[..., None, None, None]

    def noise(channels: int, stride: int = 1) -> Tensor:
        rows, columns = (-(-n // stride) for n in size)
        return torch.randn(b, z, channels, rows, columns, generator=random)

    total = depth + before + after
    return MixerInputs(
        source=noise(n_source),
        pred=noise(1),
        mask=mask.float(),
        depth=depth,
        start=torch.full((b,), before),
        slice_spacing_mm=torch.full((b,), 2.0),
        taps={name: noise(CHANNELS[name], STRIDES[name]) for name in CHANNELS},
        pooled={"bottleneck": torch.randn(b, int(total.max()), 6, generator=random)},
        pooled_depth=total,
    )


def window(inputs: MixerInputs, low: int, high: int, patient: int | None = None) -> MixerInputs:
    """Slices low..high-1 of every patient, or of one patient alone; all of them must be valid."""
    rows = slice(None) if patient is None else slice(patient, patient + 1)

    def cut(tensor: Tensor) -> Tensor:
        return tensor[rows, low:high]

    total = inputs.pooled_depth
    assert total is not None
    longest = int(total[rows].max())
    return dataclasses.replace(
        inputs,
        source=cut(inputs.source),
        pred=cut(inputs.pred),
        mask=cut(inputs.mask),
        depth=torch.full_like(inputs.depth[rows], high - low),
        start=inputs.start[rows] + low,
        slice_spacing_mm=inputs.slice_spacing_mm[rows],
        taps={name: cut(tap) for name, tap in inputs.taps.items()},
        pooled={name: pool[rows, :longest] for name, pool in inputs.pooled.items()},
        pooled_depth=total[rows],
    )
