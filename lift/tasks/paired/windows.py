"""Windows of contiguous slices, drawn at random and put together as a mixer's batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lift.device import to_device
from lift.generator.features import Features
from lift.mixer.base import Mixer, MixerInputs

_TRIES: Final = 8
_ENOUGH_MASK: Final = 0.1


@dataclass(frozen=True)
class Window:
    """A box of one patient's volume: first slice, row and column, and its size."""

    start: tuple[int, int, int]
    size: tuple[int, int, int]

    @property
    def box(self) -> tuple[slice, slice, slice]:
        """Slices along depth, height and width."""
        z, y, x = (slice(a, a + n) for a, n in zip(self.start, self.size, strict=True))
        return z, y, x


@dataclass(frozen=True)
class Batch:
    """Mixer inputs beside the targets, (b, z, 1, h, w)."""

    inputs: MixerInputs
    target: Tensor


def draw_window(
    features: Features, size: tuple[int, int, int], generator: np.random.Generator
) -> Window:
    """A random window; of several tries the first that holds enough of the mask is taken.

    A side that is longer than the volume shrinks to the volume; :func:`make_batch` pads it.
    """
    whole = (features.pred.shape[0], *features.pred.shape[2:])
    fitted = (min(size[0], whole[0]), min(size[1], whole[1]), min(size[2], whole[2]))
    window = Window((0, 0, 0), fitted)
    for _ in range(_TRIES):
        first = [int(generator.integers(0, n - k + 1)) for n, k in zip(whole, fitted, strict=True)]
        window = Window((first[0], first[1], first[2]), fitted)
        z, y, x = window.box
        if features.mask[z, 0, y, x].mean() >= _ENOUGH_MASK:
            break
    return window


def make_batch(
    patients: Sequence[Features],
    windows: Sequence[Window],
    mixer: Mixer,
    size: tuple[int, int, int],
) -> Batch:
    """One window by patient as a batch on the mixer's device, padded with mask 0 up to `size`.

    Raises:
        ValueError: a patient has no target.
    """
    inputs = make_inputs(patients, windows, mixer, size)
    rows = []
    for features, window in zip(patients, windows, strict=True):
        if features.target is None:
            raise ValueError("training needs a target for every patient")
        rows.append(_padded(_cut(features.target, window), (size[0], 1, *size[1:])))
    return Batch(inputs, to_device(_stack(rows), mixer.device))


def make_inputs(
    patients: Sequence[Features],
    windows: Sequence[Window],
    mixer: Mixer,
    size: tuple[int, int, int],
) -> MixerInputs:
    """Mixer inputs of one window by patient, on its device; only what it declares is read.

    A tap of lower resolution than the slice comes whole in its plane: a mixer that declares
    one needs windows of whole slices.
    """
    device = mixer.device

    def gather(arrays: Sequence[NDArray[np.generic]]) -> Tensor:
        rows = []
        for features, array, window in zip(patients, arrays, windows, strict=True):
            if array.shape[2:] == features.pred.shape[2:]:
                shape, part = (size[0], array.shape[1], *size[1:]), _cut(array, window)
            else:
                shape, part = (size[0], *array.shape[1:]), array[window.box[0]]
            rows.append(_padded(part, shape))
        return to_device(_stack(rows), device)

    preds = [
        _padded(features.prediction(window.box), (size[0], 1, *size[1:]))
        for features, window in zip(patients, windows, strict=True)
    ]
    taps = {
        name: gather([features.taps[name] for features in patients]) for name in mixer.tap_names
    }
    pooled = {}
    pooled_depth = None
    for name in mixer.pooled_names:
        longest = max(features.depth for features in patients)
        rows = [
            _padded(features.pooled[name], (longest, features.pooled[name].shape[1]))
            for features in patients
        ]
        pooled[name] = to_device(_stack(rows), device)
        pooled_depth = torch.tensor([features.depth for features in patients], device=device)
    return MixerInputs(
        source=gather([features.source for features in patients]),
        pred=to_device(_stack(preds), device),
        mask=gather([features.mask for features in patients]),
        depth=torch.tensor([window.size[0] for window in windows]),
        start=torch.tensor([window.start[0] for window in windows], device=device),
        slice_spacing_mm=torch.tensor(
            [features.slice_spacing_mm for features in patients],
            dtype=torch.float32,
            device=device,
        ),
        taps=taps,
        pooled=pooled,
        pooled_depth=pooled_depth,
    )


def _cut(array: NDArray[np.generic], window: Window) -> NDArray[np.generic]:
    z, y, x = window.box
    return array[z, :, y, x]


def _padded(array: NDArray[np.generic], shape: tuple[int, ...]) -> NDArray[np.float32]:
    if array.shape == shape:
        return np.asarray(array, dtype=np.float32)
    result = np.zeros(shape, dtype=np.float32)
    result[tuple(slice(0, n) for n in array.shape)] = array
    return result


def _stack(rows: Sequence[NDArray[np.float32]]) -> Tensor:
    return torch.from_numpy(np.stack(rows))
