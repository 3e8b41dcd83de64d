"""A volume through the frozen generator, some slices at a time, and only where the body is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import max_pool2d

from lift.device import AtOnce, inference_autocast, to_device
from lift.generator.base import SliceGenerator, Tap
from lift.generator.networks import neighbour_channels

Floats = NDArray[np.float32]
PlaneBox = tuple[slice, slice]
"""Rows and columns of a part of a picture."""

_VOXELS: Final = 100_000
_LONGEST: Final = 8
BLOCKS: Final = (_VOXELS, _LONGEST)
"""Which slices make a block on a CPU: other blocks may give other bits."""
_GPU_VOXELS: Final = 32 * 240 * 240
_GPU_LONGEST: Final = 64
_CPU: Final = torch.device("cpu")


class Slices(Protocol):
    """What the generator is given of a patient: `lift.cohort.preprocessing.Prepared` has it."""

    @property
    def source(self) -> Floats:
        """(z, n_source, h, w), in [0, 1]."""
        ...

    @property
    def mask(self) -> Floats:
        """0 or 1, (z, 1, h, w)."""
        ...


@dataclass(frozen=True)
class SliceBlock:
    """What the frozen generator gives for some consecutive slices."""

    pred: Tensor
    taps: dict[str, Tensor]


def block_slices(slice_shape: tuple[int, int], device: torch.device = _CPU) -> int:
    """Slices per forward pass, always cut at the same places: equal results by construction.

    Few on a CPU, whose caches are small; on a GPU 32 of 240 x 240, which keep it busy.
    """
    height, width = slice_shape
    voxels, longest = BLOCKS if device.type == "cpu" else (_GPU_VOXELS, _GPU_LONGEST)
    return max(1, min(longest, voxels // (height * width)))


def generate_blocks(
    generator: SliceGenerator,
    prepared: Slices,
    tap_names: tuple[str, ...],
    *,
    first: int = 0,
    size: int | None = None,
    device: torch.device = _CPU,
) -> Iterator[tuple[int, SliceBlock]]:
    """Blocks of `size` slices from `first` (a multiple of that) to the end.

    Where a block does not fit into the device's memory, it and all later ones are shorter.

    A generator with a `crop_stride` runs on the box of the block's mask alone, and not at all
    where that is empty.

    Args:
        generator: the frozen generator; it computes on its own device.
        prepared: the volume.
        tap_names: the features that are needed.
        first: where to begin.
        size: by default :func:`block_slices` of the slice's shape.
        device: where the blocks are wanted.

    Yields the block's first slice and its prediction (n, 1, h, w, float32) and taps (float16).

    Raises:
        DeviceMemoryError: one slice does not fit.
    """
    depth, _, *shape = prepared.source.shape
    at_once = AtOnce(size or block_slices((shape[0], shape[1]), generator.device), generator.device)
    start = first
    while start < depth:
        block = at_once.attempt(partial(_block, generator, prepared, tap_names, device, start))
        yield start, block
        start += len(block.pred)


def _block(
    generator: SliceGenerator,
    prepared: Slices,
    tap_names: tuple[str, ...],
    device: torch.device,
    start: int,
    size: int,
) -> SliceBlock:
    """What the generator gives for `size` slices from `start`, or as many as there are."""
    depth = len(prepared.source)
    reach = generator.context_slices
    stop = min(start + size, depth)
    indices = np.clip(np.arange(start - reach, stop + reach), 0, depth - 1)
    rows = torch.from_numpy(np.ascontiguousarray(prepared.source[indices]))
    x = neighbour_channels(rows, reach)[reach : reach + stop - start]
    if generator.crop_stride is None:
        return _predicted(generator, x, None, tap_names, device)
    mask = torch.from_numpy(np.array(prepared.mask[start:stop], dtype=np.float32))
    block = _empty_block(generator, tap_names, mask, device)
    if mask.any():
        box = mask_box(mask, generator.crop_stride)
        x, mask = (part[:, :, box[0], box[1]] for part in (x, mask))
        found = _predicted(generator, x, mask, tap_names, device)
        _paste(block.pred, found.pred, 1, box)
        for name, tap in found.taps.items():
            _paste(block.taps[name], tap, generator.taps[name].stride, box)
    return block


def _predicted(
    generator: SliceGenerator,
    x: Tensor,
    mask: Tensor | None,
    tap_names: tuple[str, ...],
    device: torch.device,
) -> SliceBlock:
    """One forward pass of the slices `x`; `mask` for a generator that needs it."""
    there = generator.device
    inside = None if mask is None else to_device(mask, there)
    with torch.no_grad(), inference_autocast(there):
        pred, taps = generator.predict(to_device(x, there), tap_names, mask=inside)
    return SliceBlock(
        pred.float().to(device),
        {name: tap.to(torch.float16).to(device) for name, tap in taps.items()},
    )


def mask_box(mask: Tensor, multiple: int) -> PlaneBox:
    """Rows and columns of the mask's box, which begins and, in the picture, ends at a multiple.

    Args:
        mask: (..., h, w), not empty.
        multiple: of pixels.
    """
    found = []
    for axis in (-2, -1):
        inside = mask.movedim(axis, 0).flatten(1).any(1).nonzero()
        stop = (int(inside[-1]) // multiple + 1) * multiple
        found.append(slice(int(inside[0]) // multiple * multiple, min(stop, mask.shape[axis])))
    return found[0], found[1]


def _empty_block(
    generator: SliceGenerator, tap_names: tuple[str, ...], mask: Tensor, device: torch.device
) -> SliceBlock:
    """What a generator with a `crop_stride` gives where the mask, (n, 1, h, w), is empty."""

    def zeros(tap: Tap) -> Tensor:
        sides = (-(-side // tap.stride) for side in mask.shape[2:])
        return torch.zeros(len(mask), tap.channels, *sides, dtype=torch.float16, device=device)

    return SliceBlock(
        torch.zeros_like(mask, device=device),
        {name: zeros(generator.taps[name]) for name in tap_names},
    )


def _paste(whole: Tensor, part: Tensor, stride: int, box: PlaneBox) -> None:
    rows, columns = (
        slice(side.start // stride, side.start // stride + n)
        for side, n in zip(box, part.shape[2:], strict=True)
    )
    whole[:, :, rows, columns] = part


def pooled_means(generator: SliceGenerator, block: SliceBlock, name: str, mask: Floats) -> Tensor:
    """In-plane means of a tap, (n, c): over the picture, or over the mask of a generator with it.

    Args:
        generator: gave the block.
        block: n slices.
        name: of the tap.
        mask: of the same slices, (n, 1, h, w).
    """
    tap = block.taps[name].float()
    if generator.crop_stride is None:
        return tap.mean((2, 3))
    inside = to_device(torch.from_numpy(np.array(mask, dtype=np.float32)), tap.device)
    cells = max_pool2d(inside, generator.taps[name].stride, ceil_mode=True)
    return tap.sum((2, 3)) / cells.sum((2, 3)).clamp(min=1)
