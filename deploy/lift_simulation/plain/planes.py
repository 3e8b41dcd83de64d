"""The frozen 2D generator in three planes, without a new parameter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from lift.generator.base import SliceGenerator
from lift.generator.blocks import generate_blocks
from lift.generator.features import Features

Floats = NDArray[np.float32]
_TURNED: Final = ((2, 1, 0, 3), (3, 1, 2, 0))
"""(z, c, h, w) seen as slices along h, and along w; each is its own inverse."""


@dataclass(frozen=True)
class _Turned:
    """See `lift.generator.blocks.Slices`."""

    source: Floats
    mask: Floats


def three_planes(
    generator: SliceGenerator, features: Features, spacing_mm: tuple[float, float, float]
) -> Floats:
    """The mean of the generator's predictions in three planes, (z, 1, h, w).

    Slices across the plan's plane would be stretched where slices are thick, so the sources are
    first interpolated along depth to square pixels, and the predictions brought back. The generator
    has seen no such slice: it was trained in one plane.

    Args:
        generator: frozen.
        features: of the patient; `pred` is the prediction in the plan's plane.
        spacing_mm: along depth, height and width.

    Source: the idea of PlaneCycle (arXiv:2603.04165), which changes the plane from layer to layer
    of one network. That needs volumes at every layer and one spacing in all directions; here each
    plane has a pass of its own.
    """
    source = np.asarray(features.source)
    depth = source.shape[0]
    square = max(1, round(depth * spacing_mm[0] / spacing_mm[1]))
    volume = _along_depth(torch.from_numpy(np.array(source)), square).numpy()
    inside = _along_depth(torch.from_numpy(np.array(features.mask, dtype=np.float32)), square) > 0
    total = np.array(features.pred)
    for turn in _TURNED:
        turned = _Turned(
            np.ascontiguousarray(volume.transpose(turn)),
            np.ascontiguousarray(inside.float().numpy().transpose(turn)),
        )
        made = torch.cat([block.pred for _, block in generate_blocks(generator, turned, ())])
        total += _along_depth(made.permute(turn), depth).numpy()
    mean = total / (1 + len(_TURNED)) * np.asarray(features.mask)
    return mean.astype(np.float32)


def _along_depth(volume: Tensor, depth: int) -> Tensor:
    """A volume (z, c, h, w) with another number of slices over the same extent, linearly."""
    z, c, h, w = volume.shape
    if z == depth:
        return volume
    lines = volume.permute(1, 2, 3, 0).reshape(1, c * h * w, z)
    return interpolate(lines, size=depth, mode="linear").reshape(c, h, w, depth).permute(3, 0, 1, 2)
