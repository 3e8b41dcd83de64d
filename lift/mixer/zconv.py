"""zconv: residual blocks of normalised depthwise convolutions along depth."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from lift.mixer.base import FrozenParts, Mixer, MixerInputs
from lift.mixer.differences import keep_inside
from lift.mixer.layers import require_head, require_taps

_BLOCKS = 2
_REACH = 2


class ZConv(Mixer):
    """Two blocks at f = `feat` (method 5.2 a2), read out by the generator's own head.

    A block: f <- f + W2 gelu(W1 conv(LayerNorm(f))), with a depthwise convolution of five
    slices, zeros beyond the volume and the mask, and LayerNorm over the channels of one voxel
    (their mean is 0, so those zeros are neutral). y = P + head . (f' - f). W2 starts at 0: at
    first the prediction is unchanged. Twelve channels: 1,416 parameters.

    Args:
        frozen: needs `feat` at stride 1 and the linear head on it.

    Raises:
        ConfigError: the generator lacks the tap or the head.
    """

    kind: ClassVar[str] = "zconv"
    has_z_filter: ClassVar[bool] = False
    tap_names = ("feat",)
    halo = _BLOCKS * _REACH

    def __init__(self, frozen: FrozenParts) -> None:
        super().__init__()
        require_taps(self.kind, frozen, self.tap_names, stride=1)
        channels = frozen.tap_channels["feat"]
        self.blocks = nn.ModuleList(_Block(channels) for _ in range(_BLOCKS))
        self.head_weight: Tensor
        self.register_buffer("head_weight", require_head(self.kind, frozen), persistent=False)

    def forward(self, inputs: MixerInputs) -> Tensor:
        """See :meth:`Mixer.forward`."""
        inside = inputs.mask.movedim(2, -1)
        f = keep_inside(inputs.taps["feat"].to(inputs.pred), inputs.mask).movedim(2, -1)
        # summed apart from f: 0 at first exactly, whatever the size of f
        delta = torch.zeros_like(f)
        for block in self.blocks:
            delta = delta + block(f + delta, inside)
        correction = (delta * self.head_weight).sum(-1).unsqueeze(2)
        return inputs.pred + keep_inside(correction, inputs.mask)


class _Block(nn.Module):
    """What one block adds to (b, z, h, w, c), 0 outside the mask (b, z, h, w, 1)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.along_z = nn.Conv3d(
            channels, channels, (2 * _REACH + 1, 1, 1), padding=(_REACH, 0, 0), groups=channels
        )
        self.expand = nn.Linear(channels, 2 * channels)
        self.out = nn.Linear(2 * channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, f: Tensor, inside: Tensor) -> Tensor:
        normalised = (self.norm(f) * inside).permute(0, 4, 1, 2, 3)
        along = self.along_z(normalised).permute(0, 2, 3, 4, 1)
        added: Tensor = self.out(gelu(self.expand(along))) * inside
        return added
