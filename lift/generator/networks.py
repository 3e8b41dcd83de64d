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
from lift.mixer.differences import keep_inside


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
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The prediction, (n, 1, h, w).

        Args:
            x: (n, input channels, h, w).
            mask: 0 or 1, (n, 1, h, w), for a network that normalises over it.
        """


class SliceNorm(nn.GroupNorm):
    """Group norm whose statistics are those of each slice, or of its mask alone."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(n, c, h, w), and 0 outside a `mask` of 0 or 1, (n, 1, h, w).

        With a mask and without gradients `x` is overwritten: on a CPU new memory costs more than
        the sums.
        """
        if mask is None:
            return super().forward(x)
        mask = mask.to(x.dtype)
        each = self.num_channels // self.num_groups
        count = (mask.sum((2, 3), dtype=torch.float32) * each).clamp(min=1)

        def by_group(sums: Tensor) -> Tensor:
            """Means by group from sums by channel, (n, c), as a factor of each channel."""
            means = sums.reshape(-1, self.num_groups, each).sum(-1) / count
            return means.repeat_interleave(each, dim=1)[..., None, None]

        # in two passes: a difference of sums would lose a small variance beside a large mean
        x = _inside(x, mask)
        mean = by_group(x.sum((2, 3), dtype=torch.float32)).to(x.dtype)
        free = not torch.is_grad_enabled()
        x = x.addcmul_(mean, mask, value=-1) if free else x.addcmul(mean, mask, value=-1)
        variance = by_group(x.float().square().sum((2, 3)))
        factor = ((variance + self.eps).rsqrt() * self.weight[:, None, None]).to(x.dtype)
        offset = self.bias[:, None, None].to(x.dtype)
        x = x.mul_(factor) if free else x * factor
        return x.addcmul_(offset, mask) if free else x.addcmul(offset, mask)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each with group norm and SiLU, beside a 1x1 shortcut.

    With a mask nothing outside it has an influence, and the result is 0 there.
    """

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        # at least two channels a group: a 1 x 1 map must still have something to normalise
        groups = math.gcd(n_out // 2, 8)
        self.conv1 = nn.Conv2d(n_in, n_out, 3, padding=1)
        self.norm1 = SliceNorm(groups, n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1)
        self.norm2 = SliceNorm(groups, n_out)
        self.shortcut = nn.Identity() if n_in == n_out else nn.Conv2d(n_in, n_out, 1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(n, n_out, h, w) from (n, n_in, h, w), which a mask has set to 0 outside."""
        return self._rest(self.conv1(x), self.shortcut(x), mask)

    def above(self, deep: Tensor, skip: Tensor, mask: Tensor | None) -> Tensor:
        """:meth:`forward` of `deep` at twice its size (nearest neighbour) beside `skip`."""
        if mask is None:
            whole = F.interpolate(deep, scale_factor=2.0, mode="nearest")
            return self.forward(torch.cat([whole, skip], dim=1))
        n_deep = deep.shape[1]
        shortcut = cast("nn.Conv2d", self.shortcut)
        kernel, short = self.conv1.weight, shortcut.weight
        # each pixel of `deep` becomes four equal ones: half of the products can be shared
        hidden = F.conv_transpose2d(deep, _spread(kernel[:, :n_deep]), stride=2, padding=1)
        hidden = _sum(hidden, F.conv2d(skip, kernel[:, n_deep:], self.conv1.bias, padding=1))
        beside = F.interpolate(F.conv2d(deep, short[:, :n_deep]), scale_factor=2.0)
        beside = _sum(beside, F.conv2d(skip, short[:, n_deep:], shortcut.bias))
        return self._rest(hidden, beside, mask)

    def _rest(self, hidden: Tensor, beside: Tensor, mask: Tensor | None) -> Tensor:
        """All that follows the first convolution and the shortcut."""
        # SiLU of 0 is 0: nothing comes back outside the mask
        hidden = _silu(self.norm1(hidden, mask))
        hidden = _silu(self.norm2(self.conv2(hidden), mask))
        return _inside(_sum(hidden, beside), mask)


class UNet(SliceNetwork):
    """A residual U-Net with a linear 1x1 head; average pooling down, nearest neighbour up.

    Where it normalises over the mask, input, features and prediction are 0 outside the mask (a
    coarse cell is outside when all its pixels are), and so is what a convolution meets beyond the
    picture: any crop that holds the mask and starts at a multiple of the deepest stride gives the
    whole picture's result, to rounding.

    Width 32 with multipliers 1, 2, 4, 8 and three sources costs 21 GFLOP a slice of 240 x 240
    (2 FLOP per multiply-add) and has 2.1 M parameters: the row w = 32 of method.md 3.4.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        widths = [config.width * multiplier for multiplier in config.multipliers]
        self.widths = tuple(widths)
        self.over_mask = config.normalise_over == "mask"
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

    @property
    def stride(self) -> int:
        """Of the deepest level."""
        return int(2 ** (len(self.widths) - 1))

    def encode(self, x: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """All encoder levels of (n, input channels, h, w), level i with side ceil(h / 2**i)."""
        sides = x.shape[-2:]
        inside = self._insides(mask, sides)
        hidden = self._laid_out(_pad_to(x, self._padded(sides)))
        if inside[0] is not None:
            hidden = keep_inside(hidden, inside[0])
        hidden = _inside(self.stem(hidden), inside[0])
        levels = []
        for level, block in enumerate(self.encoder):
            hidden = block(F.avg_pool2d(hidden, 2) if level else hidden, inside[level])
            levels.append(_crop_to(hidden, _sides_at(sides, level)))
        return levels

    def decode(self, levels: Sequence[Tensor], mask: Tensor | None = None) -> Tensor:
        """`feat`, (n, width, h, w), from all encoder levels as :meth:`encode` gives them."""
        sides = levels[0].shape[-2:]
        padded = self._padded(sides)
        inside = self._insides(mask, sides)
        whole = [
            self._laid_out(_pad_to(tensor, _sides_at(padded, level)))
            for level, tensor in enumerate(levels)
        ]
        hidden = whole[-1]
        for level in reversed(range(len(self.widths) - 1)):
            block = cast("ResidualBlock", self.decoder[len(self.widths) - 2 - level])
            hidden = block.above(hidden, whole[level], inside[level])
        return _crop_to(hidden, sides)

    def read_out(self, feat: Tensor, mask: Tensor | None = None) -> Tensor:
        """The prediction, (n, 1, h, w), from `feat`."""
        pred = cast("Tensor", self.head(feat))
        return _inside(pred, mask if self.over_mask else None)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The prediction, (n, 1, h, w); see :meth:`SliceNetwork.forward`.

        Raises:
            ValueError: the network needs the mask.
        """
        return self.read_out(self.decode(self.encode(x, mask), mask), mask)

    def _insides(self, mask: Tensor | None, sides: Sequence[int]) -> list[Tensor | None]:
        """The mask at each level, of padded sides; None for a network that takes none."""
        if not self.over_mask:
            return [None] * len(self.widths)
        if mask is None:
            raise ValueError("a network that normalises over the mask needs the mask")
        level = _pad_to(mask, self._padded(sides))
        found: list[Tensor | None] = [level]
        for _ in self.widths[1:]:
            level = F.max_pool2d(level, 2)
            found.append(level)
        return found

    def _laid_out(self, x: Tensor) -> Tensor:
        # convolutions are up to twice as fast with the channels last; older networks keep their
        # layout, and with it their bits
        return x.contiguous(memory_format=torch.channels_last) if self.over_mask else x

    def _padded(self, sides: Sequence[int]) -> tuple[int, int]:
        return _round_up(sides[0], self.stride), _round_up(sides[1], self.stride)


class MonaiNetwork(SliceNetwork):
    """One of MONAI's 2D networks, for slices of any size; it exposes no taps."""

    def __init__(self, body: nn.Module, stride: int) -> None:
        super().__init__()
        self.body = body
        self._stride = stride

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The prediction, (n, 1, h, w); the mask has no influence."""
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
        over_mask = isinstance(network, UNet) and network.over_mask
        self.crop_stride = network.stride if isinstance(network, UNet) and over_mask else None
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
        self, x: Tensor, tap_names: tuple[str, ...] = (), *, mask: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Prediction and asked-for taps, without gradients; see `SliceGenerator.predict`.

        Raises:
            ConfigError: the network has no such tap.
            ValueError: `x` has the wrong number of channels, or the mask is missing.
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
            levels = self.network.encode(x, mask)
            feat = self.network.decode(levels, mask)
            available = dict(zip(self.encoder_tap_names, levels, strict=True)) | {"feat": feat}
            pred = self.network.read_out(feat, mask)
            return pred, {name: available[name] for name in tap_names}

    def decode(self, taps: Mapping[str, Tensor], mask: Tensor | None = None) -> Tensor:
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
        return self.network.read_out(self.network.decode(levels, mask), mask)

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


def _spread(kernel: Tensor) -> Tensor:
    """The transposed convolution, (in, out, 4, 4), that is `kernel` after doubling the picture.

    Args:
        kernel: (out, in, 3, 3), of padding 1.
    """
    for side in (2, 3):
        first, middle, last = kernel.unbind(side)
        # each sum is over the taps that meet one pixel of the coarser grid
        kernel = torch.stack([last, middle + last, first + middle, first], dim=side)
    return kernel.transpose(0, 1)


def _inside(x: Tensor, mask: Tensor | None) -> Tensor:
    """`x` with 0 where there is a mask that is 0; without gradients `x` is overwritten."""
    if mask is None:
        return x
    mask = mask.to(x.dtype)
    return x * mask if torch.is_grad_enabled() else x.mul_(mask)


def _sum(x: Tensor, other: Tensor) -> Tensor:
    """Their sum; without gradients `x` is overwritten."""
    return x + other if torch.is_grad_enabled() else x.add_(other)


def _silu(x: Tensor) -> Tensor:
    """SiLU; without gradients `x` is overwritten."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


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
