"""A whole volume through the mixer, a chunk of slices at a time.

Cached and streamed features run the same code over the same chunks, so the results are
equal by construction. Peak memory depends on the chunk, never on the number of slices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lift.cohort.preprocessing import Prepared
from lift.device import AtOnce, inference_autocast, to_device
from lift.generator.base import SliceGenerator
from lift.generator.blocks import (
    SliceBlock,
    block_slices,
    generate_blocks,
    mask_box,
    pooled_means,
)
from lift.generator.features import Features
from lift.mixer.base import Mixer, MixerInputs
from lift.mixer.curves import apply_curves

_CHUNK_VOXELS: Final = 400_000
_LONGEST_CHUNK: Final = 64
_CPU: Final = torch.device("cpu")
# the coarsest grid of a mixer that sees no whole slices
_BOX_MULTIPLE: Final = 4
_ALL: Final = slice(None)
Floats = NDArray[np.float32]


class SliceStream(Protocol):
    """Where a chunk's slices come from; asked for in increasing order."""

    depth: int
    slice_shape: tuple[int, int]
    slice_spacing_mm: float

    @property
    def pooled(self) -> Mapping[str, Tensor]:
        """In-plane means of all slices by tap, (z, c); empty for most mixers."""
        ...

    def window(self, low: int, high: int) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Source, prediction, mask (float32) and taps of slices low..high-1.

        Source and mask are on the CPU, prediction and taps where they were computed or read.
        The prediction is the caller's own, to change; the others are not.
        """
        ...


def mix(
    mixer: Mixer,
    stream: SliceStream,
    *,
    chunk: int | None = None,
    report: Callable[[int, int], None] | None = None,
) -> Floats:
    """The mixed prediction of a whole volume, (z, 1, h, w), float32.

    Outside the mask nothing has an influence on a mixer and nothing is changed by it: it is
    given the box of a chunk's mask alone. One that sees whole slices is given these.

    Args:
        mixer: the trained mixer; its device is where everything runs.
        stream: the volume's slices.
        chunk: slices by chunk, by default :func:`chunk_slices` of the slice's shape; another
            size may differ by float kernels (1e-4 at most).
        report: called after each chunk with the slices done and their number.
    """
    mixer.eval()
    device = mixer.device
    depth = stream.depth
    at_once = AtOnce(chunk or chunk_slices(stream.slice_shape, device), device)
    pooled = {name: to_device(vectors[None], device) for name, vectors in stream.pooled.items()}
    done = 0

    def mix_chunk(slices: int) -> Floats:
        low, high = done, min(done + slices, depth)
        first, last = max(0, low - mixer.halo), min(depth, high + mixer.halo)
        source, pred, mask, taps = stream.window(first, last)
        own = slice(low - first, high - first)
        if not mask.any():
            return pred[own].cpu().numpy()
        box = (_ALL, _ALL) if mixer.pooled_names else mask_box(mask, _BOX_MULTIPLE)

        def crop(part: Tensor) -> Tensor:
            return to_device(part[None, :, :, box[0], box[1]], device)

        inputs = MixerInputs(
            source=crop(source),
            pred=crop(pred),
            mask=crop(mask),
            depth=torch.tensor([last - first]),
            start=torch.tensor([first], device=device),
            slice_spacing_mm=torch.tensor([stream.slice_spacing_mm], device=device),
            taps={name: crop(tap) for name, tap in taps.items()},
            pooled=pooled,
            pooled_depth=torch.tensor([depth], device=device) if pooled else None,
            wanted=own,
        )
        with torch.no_grad(), inference_autocast(device):
            mixed = mixer(inputs)[0, own].float()
        pred[own, :, box[0], box[1]] = mixed.to(pred.device)
        return pred[own].cpu().numpy()

    if depth == 0:
        raise ValueError("the volume has no slices")
    result = np.empty((depth, 1, *stream.slice_shape), dtype=np.float32)
    while done < depth:
        mixed = at_once.attempt(mix_chunk)
        result[done : done + len(mixed)] = mixed
        done += len(mixed)
        if report is not None:
            report(done, depth)
    return result


def chunk_slices(slice_shape: tuple[int, int], device: torch.device = _CPU) -> int:
    """Slices that one chunk adds to the result: 6 of 240 x 240, more of smaller ones.

    The halo comes on top, so a short chunk of small slices would mostly compute its halo. On a GPU
    a chunk is as long as a block.
    """
    if device.type != "cpu":
        return block_slices(slice_shape, device)
    height, width = slice_shape
    return max(1, min(_LONGEST_CHUNK, _CHUNK_VOXELS // (height * width)))


class CachedStream:
    """Slices whose features are already on disk or in memory."""

    def __init__(self, features: Features, mixer: Mixer) -> None:
        self._features = features
        self._tap_names = mixer.tap_names
        self.depth = features.depth
        self.slice_shape = (features.pred.shape[2], features.pred.shape[3])
        self.slice_spacing_mm = features.slice_spacing_mm
        self.pooled = {
            name: torch.from_numpy(np.array(features.pooled[name])) for name in mixer.pooled_names
        }

    def window(self, low: int, high: int) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Slices low..high-1 as tensors of their own (a memory map is never written to)."""
        part = self._features

        def cut(array: NDArray[np.generic]) -> Tensor:
            return torch.from_numpy(np.array(array[low:high]))

        taps = {name: cut(part.taps[name]) for name in self._tap_names}
        pred = torch.from_numpy(np.array(part.prediction((slice(low, high), _ALL, _ALL))))
        return cut(part.source), pred, cut(part.mask).float(), taps


class GeneratedStream:
    """Slices whose features are computed when they are asked for, and forgotten behind.

    A mixer that sees the whole volume costs a first pass that keeps one vector by slice.

    Args:
        prepared: the volume.
        generator: the frozen generator; features stay on its device.
        mixer: says which features are needed.
        curves: under which the prediction is given; None: as it is.
        block: slices that go through the generator at once; by default as many as suit the device.
    """

    def __init__(
        self,
        prepared: Prepared,
        generator: SliceGenerator,
        mixer: Mixer,
        curves: Tensor | None = None,
        *,
        block: int | None = None,
    ) -> None:
        self._prepared = prepared
        self._curves = curves
        self._tap_names = mixer.tap_names
        self.depth = int(prepared.source.shape[0])
        self.slice_shape = (prepared.source.shape[2], prepared.source.shape[3])
        self.slice_spacing_mm = prepared.spacing_mm[0]
        self.pooled: dict[str, Tensor] = {}
        if mixer.pooled_names:
            vectors: dict[str, list[Tensor]] = {name: [] for name in mixer.pooled_names}
            for start, made in generate_blocks(
                generator, prepared, mixer.pooled_names, size=block, device=generator.device
            ):
                here = prepared.mask[start : start + len(made.pred)]
                for name in mixer.pooled_names:
                    vectors[name].append(pooled_means(generator, made, name, here))
            self.pooled = {name: torch.cat(parts) for name, parts in vectors.items()}
        self._blocks = generate_blocks(
            generator, prepared, self._tap_names, size=block, device=generator.device
        )
        self._kept: list[SliceBlock] = []
        self._first = 0
        self._done = 0

    def window(self, low: int, high: int) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Slices low..high-1; slices before `low` are forgotten."""
        here = self._features_of(low, high)
        pred = here.pred.clone()
        source = torch.from_numpy(np.array(self._prepared.source[low:high]))
        mask = torch.from_numpy(np.array(self._prepared.mask[low:high], dtype=np.float32))
        if self._curves is not None:
            device = pred.device
            pred = apply_curves(
                pred, to_device(source, device), to_device(mask, device), self._curves
            )
        return source, pred, mask, here.taps

    def _features_of(self, low: int, high: int) -> SliceBlock:
        """Slices `low` to `high` - 1 in one piece, which takes the place of what it was made of.

        Where memory ends nothing is lost, and a shorter window needs less.
        """
        while self._done < high:
            start, block = next(self._blocks)
            self._kept.append(block)
            self._done = start + len(block.pred)
        needed, later = [], []
        at = self._first
        for block in self._kept:
            n = len(block.pred)
            first, stop = (min(max(edge - at, 0), n) for edge in (low, high))
            if first < stop:
                needed.append(_part(block, first, stop))
            if stop < n:
                later.append(_part(block, stop, n))
            at += n
        joined = needed[0] if len(needed) == 1 else _joined(needed)
        self._kept, self._first = [joined, *later], low
        return joined


def _part(block: SliceBlock, first: int, stop: int) -> SliceBlock:
    """Some slices of a block, in its memory."""
    taps = {name: tap[first:stop] for name, tap in block.taps.items()}
    return SliceBlock(block.pred[first:stop], taps)


def _joined(parts: list[SliceBlock]) -> SliceBlock:
    """Consecutive blocks as one, copied."""
    taps = {name: torch.cat([part.taps[name] for part in parts]) for name in parts[0].taps}
    return SliceBlock(torch.cat([part.pred for part in parts]), taps)
