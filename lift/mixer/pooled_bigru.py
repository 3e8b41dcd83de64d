"""pooled_bigru: the paper's kind of context, a recurrent network over pooled slice features."""

from __future__ import annotations

import math
from typing import ClassVar, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from lift.errors import ConfigError
from lift.mixer.base import FrozenParts, Mixer, MixerInputs
from lift.mixer.differences import keep_inside

_OCTAVES: Final = 4


class PooledBiGRU(Mixer):
    """A bidirectional GRU over all slices that scales and shifts the bottleneck (method 5.2 b).

    The in-plane means of the bottleneck of *every* slice, with a Fourier code of the slice's
    place in the volume, go through a GRU in both directions; a linear layer turns its states
    into a scale and a shift by channel and slice, and the frozen decoder shows what they do:

        y = P + decode(bottleneck * (1 + scale) + shift) - decode(bottleneck)

    The linear layer starts at 0: at first the prediction is unchanged, bit by bit.

    Features are set to 0 outside the mask before they are decoded (a cell of a coarse feature
    is outside when all its voxels are), in both terms of the difference. C = 256 channels and
    128 units: 434,176 parameters.

    Args:
        width: units of the GRU in each direction.
        frozen: needs a decoder, and every tap that it starts from (all but `feat`).

    Raises:
        ConfigError: the generator lacks the decoder or the bottleneck.
    """

    kind: ClassVar[str] = "pooled_bigru"
    has_z_filter: ClassVar[bool] = False
    pooled_names = ("bottleneck",)
    halo = 0

    def __init__(self, width: int, frozen: FrozenParts) -> None:
        super().__init__()
        if frozen.decode is None or "bottleneck" not in frozen.tap_channels:
            raise ConfigError(
                f"the mixer '{self.kind}' does not fit the generator",
                where="mixer.kind",
                seen="it needs the feature 'bottleneck' and a decoder; the generator lacks one",
                remedy="Use `kind: zrefine_lite`, which needs no features, or another generator.",
            )
        channels = frozen.tap_channels["bottleneck"]
        self.tap_names = tuple(name for name in frozen.tap_channels if name != "feat")
        # kept inside its container: a decoder that is a module must not become a part of this one
        self._frozen = frozen
        self.forwards = _Direction(channels + 2 * _OCTAVES, width)
        self.backwards = _Direction(channels + 2 * _OCTAVES, width)
        self.out = nn.Linear(2 * width, 2 * channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, inputs: MixerInputs) -> Tensor:
        """See :meth:`Mixer.forward`."""
        scale, shift = self._window(inputs).chunk(2, dim=-1)
        taps = {name: self._inside(name, inputs) for name in self.tap_names}
        original = taps["bottleneck"]
        moved = original * (1 + scale[..., None, None]) + shift[..., None, None]
        moved = self._kept("bottleneck", moved, inputs.mask)
        with torch.no_grad():
            before = self._by_slice(taps, inputs.mask)
        after = self._by_slice({**taps, "bottleneck": moved}, inputs.mask)
        change = (after - before).view_as(inputs.pred)
        return inputs.pred + keep_inside(change, inputs.mask)

    def _window(self, inputs: MixerInputs) -> Tensor:
        """Scale and shift of the window's slices, (b, z, 2 * channels)."""
        vectors, depth = inputs.pooled["bottleneck"], inputs.pooled_depth
        if depth is None:
            raise ValueError("pooled_bigru needs `pooled_depth` beside `pooled`")
        index = torch.arange(vectors.shape[1], device=vectors.device)
        valid = (index < depth[:, None]).unsqueeze(-1)
        place = index / (depth[:, None] - 1).clamp(min=1)
        x = torch.cat([vectors.masked_fill(~valid, 0.0), _fourier(place).to(vectors)], dim=-1)
        states = torch.cat(
            [self.forwards(x, valid), self.backwards(x.flip(1), valid.flip(1)).flip(1)], dim=-1
        )
        # a window's padding may reach beyond the volume: any row will do there
        rows = inputs.start[:, None] + torch.arange(inputs.pred.shape[1], device=vectors.device)
        patient = torch.arange(vectors.shape[0], device=vectors.device)[:, None]
        film: Tensor = self.out(states[patient, rows.clamp(max=vectors.shape[1] - 1)])
        return film

    def _inside(self, name: str, inputs: MixerInputs) -> Tensor:
        return self._kept(name, inputs.taps[name].to(inputs.pred), inputs.mask)

    def _kept(self, name: str, tap: Tensor, mask: Tensor) -> Tensor:
        """A tap with 0 in the cells that hold no voxel of the mask."""
        stride = self._frozen.tap_strides[name]
        coarse = max_pool2d(mask.flatten(0, 1), stride, ceil_mode=True)
        return keep_inside(tap, coarse.view(*mask.shape[:2], *coarse.shape[1:]))

    def _by_slice(self, taps: dict[str, Tensor], mask: Tensor) -> Tensor:
        # slices become rows of a batch here, which only frozen layers may see
        decode = self._frozen.decode
        if decode is None:
            raise ValueError("the generator has no decoder")
        by_slice = {name: tap.flatten(0, 1) for name, tap in taps.items()}
        return decode(by_slice, mask.flatten(0, 1))


class _Direction(nn.Module):
    """One direction of a GRU: (b, z, c) and valid (b, z, 1) -> states (b, z, units).

    From linear layers, for which per-patient gradients are right without replacing modules.
    The state does not change at a slice that is not valid, and starts at 0.
    """

    def __init__(self, channels: int, units: int) -> None:
        super().__init__()
        self.units = units
        self.of_input = nn.Linear(channels, 3 * units)
        self.of_state = nn.Linear(units, 3 * units)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        state = x.new_zeros(x.shape[0], self.units)
        states = []
        for given, is_valid in zip(self.of_input(x).unbind(1), valid.unbind(1), strict=True):
            reset_x, update_x, new_x = given.chunk(3, dim=-1)
            reset_h, update_h, new_h = self.of_state(state).chunk(3, dim=-1)
            update = torch.sigmoid(update_x + update_h)
            new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
            state = torch.where(is_valid, (1 - update) * new + update * state, state)
            states.append(state)
        return torch.stack(states, dim=1)


def _fourier(place: Tensor) -> Tensor:
    """Sine and cosine of pi * 2^i * place in [0, 1], (b, z) -> (b, z, 2 * octaves)."""
    rate = math.pi * 2.0 ** torch.arange(_OCTAVES, device=place.device)
    angle = place.unsqueeze(-1) * rate
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
