"""The networks behind a frozen generator, and the wrapper that freezes them.

Every normalisation is per slice (group or instance norm): a slice's result never depends on
the other slices of its batch.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lift.config.base import Settings
from lift.config.generator import (
    GeneratorCard,
    MonaiBasicUNetConfig,
    MonaiSegResNetConfig,
    MonaiUNetConfig,
    NetworkConfig,
    UNetConfig,
)
from lift.device import device_of
from lift.errors import ConfigError
from lift.generator.base import Tap


def neighbour_channels(source: Tensor, context_slices: int) -> Tensor:
    """Each slice with its neighbours as channels: (z, n_source * (2 * context_slices + 1), h, w).

    Channels are ordered by slice offset, then by source. The first and the last slice are
    repeated beyond the ends.

    Args:
        source: contiguous slices of one volume, (z, n_source, h, w).
        context_slices: neighbours on either side; 0 gives `source` back.
    """
    if context_slices == 0:
        return source
    depth = source.shape[0]
    slices = torch.arange(depth, device=source.device)
    shifts = range(-context_slices, context_slices + 1)
    return torch.cat([source[(slices + shift).clamp(0, depth - 1)] for shift in shifts], dim=1)


class SliceNetwork(nn.Module, ABC):
    """A trainable 2D network: (n, input channels, h, w) -> (n, 1, h, w), any h, w >= 1."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """The prediction, (n, 1, h, w)."""


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each with group norm and SiLU, beside a 1x1 shortcut."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        # at least two channels a group: a 1 x 1 map must still have something to normalise
        groups = math.gcd(n_out // 2, 8)
        self.conv1 = nn.Conv2d(n_in, n_out, 3, padding=1)
        self.norm1 = nn.GroupNorm(groups, n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, n_out)
        self.shortcut = nn.Identity() if n_in == n_out else nn.Conv2d(n_in, n_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, n_out, h, w) from (n, n_in, h, w)."""
        hidden = F.silu(self.norm1(self.conv1(x)))
        hidden = F.silu(self.norm2(self.conv2(hidden)))
        return cast("Tensor", hidden + self.shortcut(x))


class UNet(SliceNetwork):
    """A residual U-Net with a linear 1x1 head; average pooling down, nearest neighbour up.

    Width 32 with multipliers 1, 2, 4, 8 and three sources costs 21 GFLOP a slice of 240 x 240
    (2 FLOP per multiply-add) and has 2.1 M parameters: the row w = 32 of method.md 3.4.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        widths = [config.width * multiplier for multiplier in config.multipliers]
        self.widths = tuple(widths)
        self.stem = nn.Conv2d(config.input_channels, widths[0], 3, padding=1)
        self.encoder = nn.ModuleList(
            ResidualBlock(n_in, n_out)
            for n_in, n_out in zip([widths[0], *widths[:-1]], widths, strict=True)
        )
        self.decoder = nn.ModuleList(
            ResidualBlock(deep + skip, skip) for skip, deep in reversed(list(pairwise(widths)))
        )
        self.head = nn.Conv2d(widths[0], 1, 1)

    @property
    def encoder_tap_names(self) -> tuple[str, ...]:
        """`enc0`, `enc1`, ..., `bottleneck`: from full resolution to the deepest level."""
        return (*(f"enc{level}" for level in range(len(self.widths) - 1)), "bottleneck")

    @property
    def taps(self) -> dict[str, Tap]:
        """Every encoder level, and `feat`, the last decoder feature."""
        levels = enumerate(zip(self.encoder_tap_names, self.widths, strict=True))
        return {name: Tap(width, 2**level) for level, (name, width) in levels} | {
            "feat": Tap(self.widths[0], 1)
        }

    def encode(self, x: Tensor) -> list[Tensor]:
        """All encoder levels of (n, input channels, h, w), level i with side ceil(h / 2**i)."""
        sides = x.shape[-2:]
        hidden = self.stem(_pad_to(x, self._padded(sides)))
        levels = []
        for level, block in enumerate(self.encoder):
            hidden = block(F.avg_pool2d(hidden, 2) if level else hidden)
            levels.append(_crop_to(hidden, _sides_at(sides, level)))
        return levels

    def decode(self, levels: Sequence[Tensor]) -> Tensor:
        """`feat`, (n, width, h, w), from all encoder levels as :meth:`encode` gives them."""
        sides = levels[0].shape[-2:]
        padded = self._padded(sides)
        whole = [_pad_to(tensor, _sides_at(padded, level)) for level, tensor in enumerate(levels)]
        hidden = whole[-1]
        for block, skip in zip(self.decoder, reversed(whole[:-1]), strict=True):
            above = F.interpolate(hidden, scale_factor=2.0, mode="nearest")
            hidden = block(torch.cat([above, skip], dim=1))
        return _crop_to(hidden, sides)

    def forward(self, x: Tensor) -> Tensor:
        """The prediction, (n, 1, h, w)."""
        return cast("Tensor", self.head(self.decode(self.encode(x))))

    def _padded(self, sides: Sequence[int]) -> tuple[int, int]:
        stride = 2 ** (len(self.widths) - 1)
        return _round_up(sides[0], stride), _round_up(sides[1], stride)


class MonaiNetwork(SliceNetwork):
    """One of MONAI's 2D networks, for slices of any size; it exposes no taps."""

    def __init__(self, body: nn.Module, stride: int) -> None:
        super().__init__()
        self.body = body
        self._stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """The prediction, (n, 1, h, w)."""
        sides = x.shape[-2:]
        # instance norm refuses a deepest map of 1 x 1, hence at least twice the stride
        height, width = (max(_round_up(side, self._stride), 2 * self._stride) for side in sides)
        return _crop_to(self.body(_pad_to(x, (height, width))), sides)


def build_network(config: NetworkConfig, *, seed: int) -> SliceNetwork:
    """A new network, its weights drawn from `seed`; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not the GPUs', which are not restored
        if isinstance(config, UNetConfig):
            return UNet(config)
        return _build_monai(config)


def _build_monai(
    config: MonaiBasicUNetConfig | MonaiUNetConfig | MonaiSegResNetConfig,
) -> MonaiNetwork:
    # MONAI takes seconds to import, and most runs do not need it
    from monai.networks.nets.basic_unet import BasicUNet
    from monai.networks.nets.segresnet import SegResNet
    from monai.networks.nets.unet import UNet as MonaiUNet

    shared: dict[str, Any] = {
        "spatial_dims": 2,
        "in_channels": config.input_channels,
        "out_channels": 1,
    }
    match config:
        case MonaiBasicUNetConfig():
            body, levels = BasicUNet(**shared, features=config.features), 5
        case MonaiUNetConfig():
            levels = len(config.channels)
            body = MonaiUNet(
                **shared,
                channels=config.channels,
                strides=[2] * (levels - 1),
                num_res_units=config.residual_units,
                norm=("instance", {"affine": True}),
            )
        case MonaiSegResNetConfig():
            levels = len(config.blocks)
            body = SegResNet(
                **shared,
                init_filters=config.width,
                blocks_down=config.blocks,
                blocks_up=(1,) * (levels - 1),
            )
    return MonaiNetwork(body, 2 ** (levels - 1))


def network_fingerprint(config: Settings, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the architecture and every tensor's name, dtype, shape and bytes.

    Args:
        config: the architecture; its canonical JSON is hashed.
        tensors: all parameters and buffers by name, in any order and on any device.
    """
    digest = hashlib.sha256(config.canonical_json().encode() + b"\n")
    for name in sorted(tensors):
        values = tensors[name].detach().cpu().contiguous().numpy()
        digest.update(f"{name} {values.dtype.name} {list(values.shape)}\n".encode())
        digest.update(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()


class FrozenGenerator(nn.Module):
    """A frozen network: the implementation of `SliceGenerator` (see `base`).

    Freezing happens in place: evaluation mode for ever, no gradient for any parameter.
    """

    def __init__(self, network: SliceNetwork, card: GeneratorCard) -> None:
        super().__init__()
        self.network = network
        self.card = card
        self.n_source = card.network.n_source
        self.context_slices = card.network.context_slices
        self.taps: Mapping[str, Tap] = network.taps if isinstance(network, UNet) else {}
        self.requires_grad_(requires_grad=False)
        self.eval()

    @property
    def device(self) -> torch.device:
        """See `SliceGenerator`: the one owner of the device of a paired task."""
        return device_of(self)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, whatever an enclosing module is put into."""
        return super().train(mode=False)

    def predict(
        self, x: Tensor, tap_names: tuple[str, ...] = ()
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Prediction and asked-for taps, without gradients; see `SliceGenerator.predict`.

        Raises:
            ConfigError: the network has no such tap.
            ValueError: `x` has the wrong number of channels.
        """
        for name in tap_names:
            if name not in self.taps:
                raise self._no_such_feature(f"tap '{name}'")
        if x.ndim != 4 or x.shape[1] != self.card.network.input_channels:
            raise ValueError(
                f"input is {tuple(x.shape)}; needed (n, {self.card.network.input_channels}, h, w)"
            )
        if x.device.type == "cuda":
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            if not isinstance(self.network, UNet):
                return self.network(x), {}
            levels = self.network.encode(x)
            feat = self.network.decode(levels)
            available = dict(zip(self.encoder_tap_names, levels, strict=True)) | {"feat": feat}
            return self.network.head(feat), {name: available[name] for name in tap_names}

    def decode(self, taps: Mapping[str, Tensor]) -> Tensor:
        """Prediction (n, 1, h, w) from all encoder taps, differentiable with respect to them.

        The taps of :meth:`predict` give its prediction back. Other number formats (the cache's
        float16) are brought to the weights' own.

        Raises:
            ConfigError: the network exposes no taps.
        """
        if not isinstance(self.network, UNet):
            raise self._no_such_feature("decoder that starts from taps")
        dtype = self.network.head.weight.dtype
        levels = [taps[name].to(dtype) for name in self.encoder_tap_names]
        return cast("Tensor", self.network.head(self.network.decode(levels)))

    @property
    def encoder_tap_names(self) -> tuple[str, ...]:
        """The taps that :meth:`decode` needs; none for a network without taps."""
        return self.network.encoder_tap_names if isinstance(self.network, UNet) else ()

    @property
    def head_weight(self) -> Tensor | None:
        """Weight of the linear head on `feat`, (channels,), or None for a network without taps."""
        return self.network.head.weight.flatten() if isinstance(self.network, UNet) else None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the weights as they are in memory now, computed on every call."""
        return network_fingerprint(self.card.network, self.network.state_dict())

    def _no_such_feature(self, feature: str) -> ConfigError:
        return ConfigError(
            f"the frozen generator has no {feature}",
            where="mixer.kind",
            seen=f"network '{self.card.network.name}' has the taps {sorted(self.taps) or 'none'}",
            remedy="Choose the mixer zrefine_lite, which needs no taps, or a bundle with 'unet'.",
        )


def _round_up(side: int, multiple: int) -> int:
    return -(-side // multiple) * multiple


def _sides_at(sides: Sequence[int], level: int) -> tuple[int, int]:
    stride = 2**level
    return -(-sides[0] // stride), -(-sides[1] // stride)


def _pad_to(x: Tensor, sides: tuple[int, int]) -> Tensor:
    """`x` with zeros added below and to the right, up to `sides`."""
    below, right = sides[0] - x.shape[-2], sides[1] - x.shape[-1]
    return F.pad(x, (0, right, 0, below)) if below or right else x


def _crop_to(x: Tensor, sides: Sequence[int]) -> Tensor:
    return x[..., : sides[0], : sides[1]]
