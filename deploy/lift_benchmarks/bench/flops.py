"""Floating-point operations of a network, counted without computing anything.

One counter for both sides of every ratio: PyTorch's, which counts a multiplication and an
addition as 2 FLOPs and sees convolutions, matrix products and attention only. Normalisation,
activations, resampling and sums are free. Tensors are on the `meta` device (shapes without
values), so a step on a full BraTS volume is counted in about a second, without memory for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from lift.mixer.base import Mixer, MixerInputs
from lift_benchmarks.bench.cwdm import BRATS_SIZE, IN_CHANNELS, CwdmUnet


def count_flops(function: Callable[[], object]) -> int:
    """FLOPs of one call of `function`, without gradients.

    Tensors and modules that `function` makes are on `meta` unless it names another device;
    those that it closes over must be there already, or they are really computed with (a mix
    is an error of PyTorch). A branch on a tensor's value cannot run on `meta`.
    """
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        function()
    return int(counter.get_total_flops())


def cwdm_flops_per_step(size: tuple[int, int, int] = BRATS_SIZE) -> int:
    """FLOPs of one denoising step of cWDM for one volume.

    Args:
        size: grid of the Haar sub-bands in voxels, half the volume's in each direction.

    Raises:
        ConfigError: a side is not a positive multiple of 16.
    """
    return count_flops(lambda: CwdmUnet()(torch.empty(1, IN_CHANNELS, *size), torch.zeros(1)))


def unet2d_flops_per_slice(
    network: nn.Module, in_channels: int, size: tuple[int, int] = (240, 240)
) -> int:
    """FLOPs of `network(x)` for one slice `x` of (1, in_channels, height, width).

    The network may be on any device and in any mode; its parameters and buffers are neither
    used nor changed, only their shapes are read.
    """
    state = chain(network.named_parameters(), network.named_buffers())
    shapes = {name: torch.empty_like(value, device="meta") for name, value in state}
    return count_flops(
        lambda: functional_call(network, shapes, (torch.empty(1, in_channels, *size),))
    )


def empty_inputs(source: torch.Tensor, taps: Mapping[str, torch.Tensor]) -> MixerInputs:
    """A mixer's inputs for one whole volume whose values do not matter.

    Args:
        source: (1, z, n_source, h, w).
        taps: by name, (1, z, channels, h / stride, w / stride).
    """
    _, depth, _, height, width = source.shape
    one = (1, depth, 1, height, width)
    # numbers, no data to compute with: the depth is read on the CPU
    return MixerInputs(
        source=source,
        pred=torch.empty(one, dtype=source.dtype),
        mask=torch.empty(one, dtype=source.dtype),
        depth=torch.tensor([depth], device="cpu"),
        start=torch.tensor([0], device="cpu"),
        slice_spacing_mm=torch.tensor([1.0], device="cpu"),
        taps=taps,
    )


def mixer_flops_per_slice(
    mixer: Mixer, n_source: int, taps: Mapping[str, int], side: int, slices: int = 16
) -> float:
    """FLOPs of a mixer by slice of side x side, over a window of so many slices.

    Args:
        mixer: is moved to `meta`.
        n_source: source channels.
        taps: tap name -> channels, at full resolution.
        side: of a slice.
        slices: of the window.
    """
    mixer = mixer.to("meta")

    def draw(channels: int) -> torch.Tensor:
        return torch.empty(1, slices, channels, side, side)

    def run() -> torch.Tensor:
        found = {name: draw(channels) for name, channels in taps.items()}
        result: torch.Tensor = mixer(empty_inputs(draw(n_source), found))
        return result

    return count_flops(run) / slices
