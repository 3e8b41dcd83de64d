"""A whole volume on the device: in blocks of some size, in one piece, and what it asks for."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lift.cohort.preprocessing import Prepared
from lift.generator.networks import FrozenGenerator, neighbour_channels
from lift.mixer.base import Mixer, MixerInputs
from lift.tasks.paired.synthesis import Floats, GeneratedStream, mix
from lift_benchmarks.bench.example import example_plan
from lift_benchmarks.bench.flops import empty_inputs
from lift_benchmarks.gpu.roof import Work, work_of


def in_blocks(
    prepared: Prepared, generator: FrozenGenerator, mixer: Mixer, block: int | None
) -> Floats:
    """The mixed volume, (z, 1, h, w); `block` slices at once in generator and mixer."""
    rows = len(prepared.source) if block is None else block
    return mix(mixer, GeneratedStream(prepared, generator, mixer, block=rows), chunk=rows)


def in_one_piece(
    prepared: Prepared, generator: FrozenGenerator, mixer: Mixer, dtype: torch.dtype
) -> Floats:
    """The mixed volume, (z, 1, h, w), computed in one number format."""
    device = generator.device
    source = torch.from_numpy(prepared.source).to(device)
    depth = len(source)
    x = neighbour_channels(source, generator.context_slices)
    half = dtype != torch.float32
    with torch.no_grad(), torch.autocast(device.type, dtype if half else None, enabled=half):
        pred, taps = generator.predict(x, mixer.tap_names)
        inputs = MixerInputs(
            source=source[None],
            pred=pred.float()[None],
            mask=torch.from_numpy(np.asarray(prepared.mask, np.float32)).to(device)[None],
            depth=torch.tensor([depth]),
            start=torch.tensor([0], device=device),
            slice_spacing_mm=torch.tensor([prepared.spacing_mm[0]], device=device),
            taps={name: tap[None] for name, tap in taps.items()},
        )
        mixed: Floats = mixer.eval()(inputs)[0].float().cpu().numpy()
    return mixed


def work_of_volume(
    generator: FrozenGenerator, mixer: Mixer, shape: tuple[int, int, int], dtype: torch.dtype
) -> Work:
    """What one volume asks of the device: generator and mixer on all of it, in one format.

    Args:
        generator: it is on `meta` afterwards.
        mixer: likewise.
        shape: slices, rows and columns.
        dtype: of weights and features.
    """
    depth, height, width = shape
    n_source = len(example_plan().task.source)
    network, mixed = generator.to("meta", dtype), mixer.to("meta", dtype)

    def source() -> Tensor:
        return torch.empty(1, depth, n_source, height, width, dtype=dtype)

    def run() -> None:
        _, taps = network.predict(source()[0], mixed.tap_names)
        mixed(empty_inputs(source(), {name: tap[None] for name, tap in taps.items()}))

    return work_of(run)
