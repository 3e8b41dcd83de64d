"""zrefine: a fitted z-filter, refined by two small convolutions on through-plane differences."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from lift.mixer.base import FrozenParts, Mixer, MixerInputs
from lift.mixer.differences import (
    SHIFTS,
    fill_differences,
    keep_inside,
    replicate_depth,
    z_differences,
)
from lift.mixer.layers import ZTaps, apply_plane_conv, plane_conv, require_taps, volume_conv

# differences are small beside the images: brought to their scale for the first convolution
_DIFFERENCE_GAIN = 4.0
_SLICES_AT_ONCE = 2


class ZRefine(Mixer):
    """The default mixer (method 10).

    With source S, prediction P, features F (`feat`) and E (`enc0`):

        x = [S, P, F, E, 4 D_k P, 4 D_k S];  h = silu(conv 1x3x3 (x))
        h = h + silu(conv 3x3x3 (h));        y = P + sum_k w_k D_k P + conv 1x3x3 (h)

    The last convolution starts at 0 and w at the fitted taps: at first this *is* the
    z-filter. One source channel and 12 + 12 feature channels at width 8: 4,559 parameters.

    Args:
        width: hidden channels.
        frozen: needs `feat` and `enc0` at stride 1.

    Raises:
        ConfigError: the generator lacks a tap.
    """

    kind: ClassVar[str] = "zrefine"
    has_z_filter: ClassVar[bool] = True
    _features: ClassVar[tuple[str, ...]] = ("feat", "enc0")

    def __init__(self, width: int, frozen: FrozenParts) -> None:
        super().__init__()
        require_taps(self.kind, frozen, self._features, stride=1)
        self.tap_names = self._features
        self.halo = max(SHIFTS) + 1
        images = frozen.n_source + 1
        features = sum(frozen.tap_channels[name] for name in self._features)
        self.z_taps = ZTaps()
        self.first = plane_conv(images + features + len(SHIFTS) * images, width)
        self.second = volume_conv(width, width)
        self.out = plane_conv(width, 1)
        _zero(self.out)

    def forward(self, inputs: MixerInputs) -> Tensor:
        """See :meth:`Mixer.forward`."""
        mask = inputs.mask
        of_pred = z_differences(inputs.pred, mask)
        inside = mask.transpose(1, 2)
        h = self._first_hidden(inputs, of_pred) * inside
        h = (h + silu(self.second(replicate_depth(h, inputs.depth, 1)))) * inside
        correction = self.z_taps(of_pred) + apply_plane_conv(self.out, h).transpose(1, 2)
        return inputs.pred + keep_inside(correction, mask)

    def start_from(self, taps: Tensor) -> None:
        """Set the z-filter's taps, (6,)."""
        self.z_taps.set_taps(taps)

    def _first_hidden(self, inputs: MixerInputs, of_pred: Tensor) -> Tensor:
        """silu(first(x)), (b, width, z, h, w).

        The first convolution has no reach along depth. Without gradients it runs a few slices
        at a time, because its input is by far the largest tensor of a streamed volume.
        """
        z = inputs.pred.shape[1]
        if torch.is_grad_enabled():
            return silu(self.first(self._first_inputs(inputs, of_pred, 0, z)))
        reach = max(SHIFTS)
        parts = []
        for low in range(0, z, _SLICES_AT_ONCE):
            high = min(low + _SLICES_AT_ONCE, z)
            start, stop = max(0, low - reach), min(z, high + reach)
            x = self._first_inputs(inputs, of_pred, start, stop)
            parts.append(silu(apply_plane_conv(self.first, x[:, :, low - start : high - start])))
        return torch.cat(parts, dim=2)

    def _first_inputs(self, inputs: MixerInputs, of_pred: Tensor, start: int, stop: int) -> Tensor:
        """[S, P, F, E, 4 D_k P, 4 D_k S] of slices start..stop-1 as (b, channels, z, h, w).

        The source's differences take no slice from beyond this range. Written part by part
        into one block: joining the parts would copy them twice more.
        """
        here = slice(start, stop)
        mask = inputs.mask[:, here]
        images = [inputs.source, inputs.pred, *(inputs.taps[name] for name in self.tap_names)]
        b, _, n_source, h, w = inputs.source.shape
        plain = sum(image.shape[2] for image in images)
        first, last = plain, plain + len(SHIFTS)
        block = inputs.pred.new_empty((b, last + len(SHIFTS) * n_source, stop - start, h, w))
        x = block.transpose(1, 2)
        at = 0
        for image in images:
            x[:, :, at : at + image.shape[2]] = image[:, here]
            at += image.shape[2]
        x[:, :, :plain].masked_fill_(mask == 0, 0.0)
        x[:, :, first:last] = _DIFFERENCE_GAIN * of_pred[:, here]
        fill_differences(x[:, :, last:], x[:, :, :n_source], mask, gain=_DIFFERENCE_GAIN)
        return block


class ZRefineLite(ZRefine):
    """zrefine without the generator's features: for any generator, with almost no cache.

    One source channel at width 8: 2,831 parameters.
    """

    kind: ClassVar[str] = "zrefine_lite"
    _features: ClassVar[tuple[str, ...]] = ()


class Control2D(Mixer):
    """zrefine's form with no reach along depth: what its parameters alone are worth.

    No differences, no z-filter, a second convolution of 1x3x3. It sees `feat` and `enc0`
    where the generator offers them, and has at least twice zrefine's hidden channels and at
    least as many parameters as the zrefine that this generator allows.

    Args:
        width: hidden channels of the zrefine that it is compared with.
        frozen: any generator.
    """

    kind: ClassVar[str] = "control_2d"
    has_z_filter: ClassVar[bool] = False

    def __init__(self, width: int, frozen: FrozenParts) -> None:
        super().__init__()
        offered = ("feat", "enc0")
        self.tap_names = tuple(name for name in offered if frozen.tap_strides.get(name) == 1)
        self.halo = 0
        images = frozen.n_source + 1
        channels = images + sum(frozen.tap_channels[name] for name in self.tap_names)
        rival = 9 * width * (channels + len(SHIFTS) * images) + 27 * width**2 + 11 * width + 7
        own = 2 * width
        while 9 * own * channels + 9 * own**2 + 11 * own + 1 < rival:
            own += 1
        self.first = plane_conv(channels, own)
        self.second = plane_conv(own, own)
        self.out = plane_conv(own, 1)
        _zero(self.out)

    def forward(self, inputs: MixerInputs) -> Tensor:
        """See :meth:`Mixer.forward`."""
        mask = inputs.mask
        parts = [inputs.source, inputs.pred, *(inputs.taps[name] for name in self.tap_names)]
        x = torch.cat([keep_inside(part, mask) for part in parts], dim=2).transpose(1, 2)
        inside = mask.transpose(1, 2)
        h = silu(apply_plane_conv(self.first, x)) * inside
        h = (h + silu(apply_plane_conv(self.second, h))) * inside
        return inputs.pred + keep_inside(apply_plane_conv(self.out, h).transpose(1, 2), mask)


def _zero(layer: nn.Conv3d) -> None:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
