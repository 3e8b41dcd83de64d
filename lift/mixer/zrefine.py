"""zrefine: a fitted z-filter, refined by two small convolutions on through-plane differences."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import silu

from lift.mixer.base import FrozenParts, Mixer, MixerInputs
from lift.mixer.differences import SHIFTS, keep_inside, replicate_depth, z_differences
from lift.mixer.layers import (
    ZTaps,
    apply_plane_conv,
    apply_volume_conv,
    plane_conv,
    require_taps,
    volume_conv,
    zero_layer,
)
from lift.mixer.stack import first_hidden, offered_features, stacked_channels


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
        self.z_taps = ZTaps()
        self.first = plane_conv(stacked_channels(frozen, self._features), width)
        self.second = volume_conv(width, width)
        self.out = plane_conv(width, 1)
        zero_layer(self.out)

    def forward(self, inputs: MixerInputs) -> Tensor:
        """See :meth:`Mixer.forward`."""
        near = _near(inputs, self.computed_halo)
        mask = inputs.mask[:, near]
        of_pred = z_differences(inputs.pred, inputs.mask)
        inside = mask.transpose(1, 2)
        h = first_hidden(self.first, inputs, of_pred, self.tap_names, near) * inside
        depth = (inputs.depth - near.start).clamp(1, near.stop - near.start)
        h = (h + silu(apply_volume_conv(self.second, replicate_depth(h, depth, 1)))) * inside
        correction = self.z_taps(of_pred[:, near])
        correction = correction + apply_plane_conv(self.out, h).transpose(1, 2)
        mixed = inputs.pred[:, near] + keep_inside(correction, mask)
        if inputs.wanted is None:
            return mixed
        return torch.cat([inputs.pred[:, : near.start], mixed, inputs.pred[:, near.stop :]], dim=1)

    @property
    def computed_halo(self) -> int:
        """One slice, the reach of `second`: what lies farther is seen in differences alone."""
        return 1

    def start_from(self, taps: Tensor) -> None:
        """Set the z-filter's taps, (6,)."""
        self.z_taps.set_taps(taps)


class ZRefineLite(ZRefine):
    """zrefine without the generator's features: for any generator, with almost no cache.

    One source channel at width 8: 2,831 parameters.
    """

    kind: ClassVar[str] = "zrefine_lite"
    _features: ClassVar[tuple[str, ...]] = ()


def _near(inputs: MixerInputs, reach: int) -> slice:
    """The wanted slices and `reach` neighbours on either side, as far as there are any."""
    depth = inputs.pred.shape[1]
    if inputs.wanted is None:
        return slice(0, depth)
    return slice(max(0, inputs.wanted.start - reach), min(depth, inputs.wanted.stop + reach))


class Control2D(Mixer):
    """zrefine without reach along depth, to measure the effect of its parameters alone.

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
        self.tap_names = offered_features(frozen)
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
        zero_layer(self.out)

    def forward(self, inputs: MixerInputs) -> Tensor:
        """See :meth:`Mixer.forward`."""
        mask = inputs.mask
        parts = [inputs.source, inputs.pred, *(inputs.taps[name] for name in self.tap_names)]
        x = torch.cat([keep_inside(part, mask) for part in parts], dim=2).transpose(1, 2)
        inside = mask.transpose(1, 2)
        h = silu(apply_plane_conv(self.first, x)) * inside
        h = (h + silu(apply_plane_conv(self.second, h))) * inside
        return inputs.pred + keep_inside(apply_plane_conv(self.out, h).transpose(1, 2), mask)
