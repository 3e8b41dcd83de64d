"""What several mixers share: convolutions that keep axis 0 the patient, and the z-taps.

Every trainable layer is a module of its own that is called once by forward pass and whose
weight is touched nowhere else: per-patient gradients are computed from what goes in and out
of a module, and would silently miss any other use.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from lift.errors import ConfigError
from lift.mixer.base import FrozenParts
from lift.mixer.differences import SHIFTS


class ZTaps(nn.Module):
    """The z-filter's trainable taps, 0 until set: (b, z, 6, h, w) -> (b, z, 1, h, w)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(len(SHIFTS), 1, 1, bias=False)
        nn.init.zeros_(self.conv.weight)

    def forward(self, differences: Tensor) -> Tensor:
        """sum_k w_k D_k, from differences in the order of `SHIFTS`."""
        mixed: Tensor = self.conv(differences.transpose(1, 2))
        return mixed.transpose(1, 2)

    def set_taps(self, taps: Tensor) -> None:
        """Copy (6,) taps of any float type."""
        self.conv.weight.data.copy_(taps.view_as(self.conv.weight))


def plane_conv(channels_in: int, channels_out: int) -> nn.Conv3d:
    """A 3 x 3 convolution in the slice plane, on (b, c, z, h, w); zeros beyond its borders."""
    return nn.Conv3d(channels_in, channels_out, (1, 3, 3), padding=(0, 1, 1))


def apply_plane_conv(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """`conv` of :func:`plane_conv` on (b, c, z, h, w).

    Without gradients the slices become the batch of a 2D convolution, for which CPUs have much
    faster kernels than for a single volume; with gradients the module is called, once, so that
    axis 0 stays the patient.
    """
    if torch.is_grad_enabled():
        result: Tensor = conv(x)
        return result
    b, c, z, h, w = x.shape
    slices = x.transpose(1, 2).reshape(b * z, c, h, w)
    flat = conv2d(slices, conv.weight.squeeze(2), conv.bias, padding=1)
    return flat.view(b, z, -1, h, w).transpose(1, 2)


def volume_conv(channels_in: int, channels_out: int) -> nn.Conv3d:
    """A 3 x 3 x 3 convolution that uses up one slice at either end (see `replicate_depth`)."""
    return nn.Conv3d(channels_in, channels_out, 3, padding=(0, 1, 1))


def apply_volume_conv(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """`conv` of :func:`volume_conv` on (b, c, z + 2, h, w).

    Torch unfolds a single small volume on a CPU into all its neighbourhoods, which takes several
    times as long and hundreds of megabytes; it does not do so for a batch. Without gradients such
    a volume becomes a batch of two, whose halves share slices.
    """
    depth = x.shape[2] - 2
    if torch.is_grad_enabled() or x.device.type != "cpu" or x.shape[0] > 1 or depth < 2:
        whole: Tensor = conv(x)
        return whole
    half = -(-depth // 2)
    first, second = conv(torch.cat([x[:, :, : half + 2], x[:, :, depth - half :]]))
    return torch.cat([first[:, :half], second[:, 2 * half - depth :]], dim=1)[None]


def zero_layer(layer: nn.Conv3d) -> None:
    """Set weight and bias to 0: a last layer that changes nothing at first."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def require_taps(kind: str, frozen: FrozenParts, names: Sequence[str], *, stride: int) -> None:
    """Refuse a generator that lacks one of `names`, or has it at another stride.

    Raises:
        ConfigError: says which tap is missing and what to use instead.
    """
    missing = [name for name in names if frozen.tap_strides.get(name) != stride]
    if missing:
        offered = ", ".join(f"{n} (stride {s})" for n, s in sorted(frozen.tap_strides.items()))
        raise ConfigError(
            f"the mixer '{kind}' does not fit the generator",
            where="mixer.kind",
            seen=f"it needs the feature {' and '.join(missing)} at stride {stride}; "
            f"the generator offers {offered or 'none'}",
            remedy=_USE_LITE,
        )


def require_head(kind: str, frozen: FrozenParts) -> Tensor:
    """The weight of the generator's linear head on `feat`, (channels,).

    Raises:
        ConfigError: the generator has no such head.
    """
    if frozen.head_weight is None:
        raise ConfigError(
            f"the mixer '{kind}' does not fit the generator",
            where="mixer.kind",
            seen="it needs a linear 1x1 head on 'feat'; the generator has none",
            remedy=_USE_LITE,
        )
    return frozen.head_weight.detach().cpu().clone()


_USE_LITE = "Use `kind: zrefine_lite`, which needs no features, or another generator."
