"""A whole volume on the device: as the product streams it, and in blocks that stay there."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lift.cohort.preprocessing import Prepared
from lift.device import inference_autocast
from lift.generator.networks import FrozenGenerator, neighbour_channels
from lift.mixer.base import Mixer, MixerInputs
from lift.tasks.paired.synthesis import Floats, mix
from lift_benchmarks.bench.example import example_plan
from lift_benchmarks.gpu.roof import Work, work_of


class DeviceStream:
    """Slices whose features are computed in blocks and stay on the device: a `SliceStream`.

    Args:
        prepared: the patient.
        generator: on the device.
        mixer: says which taps are needed.
        block: slices that go through the generator at once.
    """

    def __init__(
        self, prepared: Prepared, generator: FrozenGenerator, mixer: Mixer, block: int
    ) -> None:
        self.depth = len(prepared.source)
        self.slice_shape = (prepared.source.shape[2], prepared.source.shape[3])
        self.slice_spacing_mm = prepared.spacing_mm[0]
        self.pooled: dict[str, Tensor] = {}
        device = generator.device
        self._source = torch.from_numpy(prepared.source).to(device)
        self._mask = torch.from_numpy(np.asarray(prepared.mask, np.float32)).to(device)
        x = neighbour_channels(self._source, generator.context_slices)
        preds, taps = [], []
        for rows in torch.split(x, block):
            with torch.no_grad(), inference_autocast(device):
                pred, found = generator.predict(rows, mixer.tap_names)
            preds.append(pred.float())
            taps.append(found)
        self._pred = torch.cat(preds)
        self._taps = {n: torch.cat([part[n] for part in taps]).half() for n in mixer.tap_names}

    def window(self, low: int, high: int) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """See `SliceStream`; on the device."""
        taps = {name: tap[low:high] for name, tap in self._taps.items()}
        return self._source[low:high], self._pred[low:high], self._mask[low:high], taps


def in_blocks(
    prepared: Prepared, generator: FrozenGenerator, mixer: Mixer, block: int | None
) -> Floats:
    """The mixed volume, (z, 1, h, w); `block` slices at once in generator and mixer."""
    rows = len(prepared.source) if block is None else block
    return mix(mixer, DeviceStream(prepared, generator, mixer, rows), chunk=rows)


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

    def draw(channels: int) -> Tensor:
        return torch.empty(1, depth, channels, height, width, dtype=dtype)

    def run() -> None:
        _, taps = network.predict(draw(n_source)[0], mixed.tap_names)
        mixed(
            MixerInputs(
                source=draw(n_source),
                pred=draw(1),
                mask=draw(1),
                depth=torch.tensor([depth], device="cpu"),
                start=torch.tensor([0], device="cpu"),
                slice_spacing_mm=torch.tensor([1.0], device="cpu"),
                taps={name: tap[None] for name, tap in taps.items()},
            )
        )

    return work_of(run)
