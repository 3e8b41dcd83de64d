"""What else makes one volume in one forward pass: 3D networks of MONAI, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from torch import nn

from lift_benchmarks.bench.example import SOURCES
from lift_simulation.plain.networks import PlainUNet


def _basic(width: int) -> nn.Module:
    return PlainUNet(width, len(SOURCES), seed=0).network.eval()


def _nnunet() -> nn.Module:
    """The widths that nnU-Net plans for a volume of this size; 31 M parameters."""
    from monai.networks.nets.dynunet import DynUNet

    filters = (32, 64, 128, 256, 320, 320)
    network: nn.Module = DynUNet(
        spatial_dims=3,
        in_channels=len(SOURCES),
        out_channels=1,
        kernel_size=[3] * len(filters),
        strides=[1, *[2] * (len(filters) - 1)],
        upsample_kernel_size=[2] * (len(filters) - 1),
        filters=filters,
    )
    return network.eval()


RIVALS: Final[dict[str, Callable[[], nn.Module]]] = {
    "unet_3d": lambda: _basic(32),
    "unet_3d_half": lambda: _basic(16),
    "nnunet_one_pass": _nnunet,
}
"""Name -> the network; a side of a volume is a multiple of 32."""
