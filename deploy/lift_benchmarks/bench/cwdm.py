"""The denoising network of cWDM, as large and as costly as the published one.

cWDM (Friedrich et al. 2024, arXiv:2411.17203) runs a DDPM on the eight Haar sub-bands of a
volume. Its network is the plain 3D U-Net of guided diffusion (Dhariwal and Nichol 2021,
arXiv:2105.05233) with the settings below: no attention anywhere, skips by concatenation,
time added (not scaled) into every residual block, and changes of scale inside residual blocks.

The weights are random: this network is here to be counted and timed, and its output means
nothing. Axes are (batch, channel, height, width, depth), the published order.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lift.errors import ConfigError

BASE_CHANNELS: Final = 64
CHANNEL_MULTIPLES: Final = (1, 2, 2, 4, 4)
BLOCKS_PER_LEVEL: Final = 2
NORM_GROUPS: Final = 32
TIME_CHANNELS: Final = 4 * BASE_CHANNELS
# eight sub-bands each of the noisy target and of three condition volumes
IN_CHANNELS: Final = 32
OUT_CHANNELS: Final = 8
# denoising steps for one volume in the published protocol
STEPS: Final = 1000
# a BraTS volume, cropped to 224 x 224 and padded to 160 slices, after one Haar level
BRATS_SIZE: Final = (112, 112, 80)
STRIDE: Final[int] = 2 ** (len(CHANNEL_MULTIPLES) - 1)


def _embed_time(step: Tensor) -> Tensor:
    """Cosines, then sines, of `step` (b,) at geometric frequencies 1 ... 1e-4: (b, base)."""
    half = BASE_CHANNELS // 2
    index = torch.arange(half, dtype=torch.float32, device=step.device)
    angle = step.float()[:, None] * torch.exp(-math.log(10_000.0) * index / half)
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class _ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions beside a shortcut; resampling, if any, before the first one."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(NORM_GROUPS, in_channels)
        self.conv_in = nn.Conv3d(in_channels, out_channels, 3, padding=1)
        self.time = nn.Linear(TIME_CHANNELS, out_channels)
        self.norm_out = nn.GroupNorm(NORM_GROUPS, out_channels)
        self.conv_out = nn.Conv3d(out_channels, out_channels, 3, padding=1)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = nn.Conv3d(in_channels, out_channels, 1)

    def resample(self, x: Tensor) -> Tensor:
        """`x` on the grid of the block's output: here the same grid."""
        return x

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Output on the resampled grid, for features `x` and time features `time` (b, 256)."""
        hidden = self.conv_in(self.resample(F.silu(self.norm_in(x))))
        hidden = hidden + self.time(F.silu(time))[:, :, None, None, None]
        hidden = self.conv_out(F.silu(self.norm_out(hidden)))
        return torch.add(self.shortcut(self.resample(x)), hidden)


class _HalvingBlock(_ResidualBlock):
    def resample(self, x: Tensor) -> Tensor:
        """Means over cells of 2 x 2 x 2 voxels."""
        return F.avg_pool3d(x, kernel_size=2)


class _DoublingBlock(_ResidualBlock):
    def resample(self, x: Tensor) -> Tensor:
        """Each voxel repeated in a cell of 2 x 2 x 2."""
        return F.interpolate(x, scale_factor=2.0, mode="nearest")


class CwdmUnet(nn.Module):
    """cWDM's 3D U-Net: 81.51 M parameters, 7.169 TFLOP a step on 112 x 112 x 80."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(
            nn.Linear(BASE_CHANNELS, TIME_CHANNELS),
            nn.SiLU(),
            nn.Linear(TIME_CHANNELS, TIME_CHANNELS),
        )
        self.stem = nn.Conv3d(IN_CHANNELS, BASE_CHANNELS, 3, padding=1)
        channels = BASE_CHANNELS
        skips = [channels]
        widths = [BASE_CHANNELS * multiple for multiple in CHANNEL_MULTIPLES]

        self.encoder = nn.ModuleList()
        for level, width in enumerate(widths):
            if level > 0:
                self.encoder.append(_HalvingBlock(channels, channels))
                skips.append(channels)
            for _ in range(BLOCKS_PER_LEVEL):
                self.encoder.append(_ResidualBlock(channels, width))
                channels = width
                skips.append(channels)

        self.middle = nn.ModuleList(_ResidualBlock(channels, channels) for _ in range(2))

        self.decoder = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            # one block for each skip of the level: its blocks', and the one it began with
            for _ in range(BLOCKS_PER_LEVEL + 1):
                self.decoder.append(_ResidualBlock(channels + skips.pop(), width))
                channels = width
            if level > 0:
                self.decoder.append(_DoublingBlock(channels, channels))

        self.norm_out = nn.GroupNorm(NORM_GROUPS, channels)
        self.head = nn.Conv3d(channels, OUT_CHANNELS, 3, padding=1)

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        """Predicted clean sub-bands (b, 8, h, w, d) of one denoising step.

        Args:
            x: noisy sub-bands, then the conditions', (b, 32, h, w, d); h, w and d are
                multiples of 16.
            step: the diffusion step of each volume, (b,).

        Raises:
            ConfigError: a side of the grid is not a positive multiple of 16.
        """
        grid = tuple(x.shape[2:])
        if any(side < STRIDE or side % STRIDE for side in grid):
            raise ConfigError(
                "cannot run the cWDM network on this grid",
                where="benchmark",
                seen=f"the sub-bands are {' x '.join(map(str, grid))} voxels;"
                f" every side must be a positive multiple of {STRIDE}",
                remedy=f"Pad the volume so that its sides are multiples of {2 * STRIDE} voxels.",
            )
        time = self.time(_embed_time(step).to(x.dtype))
        hidden = self.stem(x)
        skips = [hidden]
        for block in self.encoder:
            hidden = block(hidden, time)
            skips.append(hidden)
        for block in self.middle:
            hidden = block(hidden, time)
        for block in self.decoder:
            if not isinstance(block, _DoublingBlock):
                hidden = torch.cat([hidden, skips.pop()], dim=1)
            hidden = block(hidden, time)
        prediction: Tensor = self.head(F.silu(self.norm_out(hidden)))
        return prediction
