"""zdiff: a z-filter, refined by gated depth differences of the generator's last feature."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from lift.mixer.base import FrozenParts, Mixer, MixerInputs
from lift.mixer.differences import SHIFTS, keep_inside, z_differences
from lift.mixer.layers import ZTaps, require_head, require_taps


class ZDiff(Mixer):
    """The mixer for small budgets (method 5.2 a, on the z-filter base of method 10).

    With f = `feat`, per channel and voxel:

        u = sum_k w_k f[d + k] - f[d];  gate = sigmoid(Linear(LayerNorm(f)))
        y = P + z-filter(P) + head . W_o (u * gate)

    k runs over -radius..radius. A neighbour outside the volume or the mask counts as the
    centre, so that its difference is 0. w starts as the box filter and W_o at 0: at first
    this *is* the z-filter, and symmetric in depth as far as its taps are. Twelve channels at
    radius 3: 414 parameters.

    Args:
        radius: reach of the features' kernel, in slices.
        frozen: needs `feat` at stride 1 and the linear head on it.

    Raises:
        ConfigError: the generator lacks the tap or the head.
    """

    kind: ClassVar[str] = "zdiff"
    has_z_filter: ClassVar[bool] = True
    tap_names = ("feat",)

    def __init__(self, radius: int, frozen: FrozenParts) -> None:
        super().__init__()
        require_taps(self.kind, frozen, self.tap_names, stride=1)
        channels = frozen.tap_channels["feat"]
        self.halo = max(*SHIFTS, radius)
        self._radius = radius
        self.z_taps = ZTaps()
        size = 2 * radius + 1
        self.along_z = nn.Conv3d(channels, channels, (size, 1, 1), groups=channels, bias=False)
        nn.init.constant_(self.along_z.weight, 1 / size)
        self.norm = nn.LayerNorm(channels)
        self.gate = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels, bias=False)
        nn.init.zeros_(self.out.weight)
        self.head_weight: Tensor
        self.register_buffer("head_weight", require_head(self.kind, frozen), persistent=False)

    def forward(self, inputs: MixerInputs) -> Tensor:
        """See :meth:`Mixer.forward`."""
        mask = inputs.mask
        f = keep_inside(inputs.taps["feat"].to(inputs.pred), mask)
        u = self._contrast(f.transpose(1, 2), mask.transpose(1, 2)).permute(0, 2, 3, 4, 1)
        gate = torch.sigmoid(self.gate(self.norm(f.movedim(2, -1))))
        delta = (self.out(u * gate) * self.head_weight).sum(-1).unsqueeze(2)
        correction = self.z_taps(z_differences(inputs.pred, mask)) + delta
        return inputs.pred + keep_inside(correction, mask)

    def start_from(self, taps: Tensor) -> None:
        """Set the z-filter's taps, (6,)."""
        self.z_taps.set_taps(taps)

    def _contrast(self, f: Tensor, mask: Tensor) -> Tensor:
        """sum_k w_k f[d + k] - f[d] with absent neighbours replaced by the centre.

        The absent ones' share is f[d] times the sum of *their* taps, which is the same
        convolution of their indicator. Both go through it in one call, side by side along
        the width, on which a kernel of width 1 does not act.
        """
        width = f.shape[-1]
        present = mask.expand_as(f)
        ends = (0, 0, 0, 0, self._radius, self._radius)
        # beyond the volume there is no slice: nothing present
        absent = 1 - pad(present, ends)
        values = pad(f, ends)
        filtered, share = self.along_z(torch.cat([values, absent], dim=-1)).split(width, dim=-1)
        contrast: Tensor = filtered + f * share - f
        return contrast
