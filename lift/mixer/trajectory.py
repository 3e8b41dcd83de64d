"""The trajectory mapper: one latent vector of a volume to the latents of all its slices.

c(d) = s z[:L] + W MLP([z, gamma(d), v(d)]): z is the volume's one latent vector, gamma a Fourier
code of the position d in [0, 1] along the body, v a slow random variation. All slices share z,
so that a volume is of one patient; gamma tells where a slice lies; v lets it vary along the body
without flicker.

At the start every slice's latent has about unit variance, like the decoder's prior: elsewhere
the frozen decoder draws nothing that the loss could pull at.

Source: method 5.3.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor, nn

from lift.config.plan import MapperPlan
from lift.mixer.trained import TrainedPart

_SKIP: Final = 0.5
"""Share of the volume's own latent in every slice's at the start."""
_VARIATION: Final = 0.5
_WAVES: Final = 16


class TrajectoryMapper(TrainedPart):
    """See the module.

    Args:
        plan: sizes.
        slice_latent: L, numbers of the decoder's latent vector.
    """

    def __init__(self, plan: MapperPlan, slice_latent: int) -> None:
        super().__init__()
        self.plan = plan
        self.slice_latent = slice_latent
        inputs = plan.latent + 1 + 2 * plan.octaves + plan.variation_channels
        layers: list[nn.Module] = []
        for _ in range(plan.layers):
            layers += [nn.Linear(inputs, plan.width), nn.SiLU()]
            inputs = plan.width
        self.hidden = nn.Sequential(*layers)
        self.out = nn.Linear(inputs, slice_latent)
        nn.init.normal_(self.out.weight, std=1 / math.sqrt(inputs))
        nn.init.zeros_(self.out.bias)

    def draw(self, volumes: int, generator: torch.Generator) -> VolumeNoise:
        """All that is random in `volumes` new volumes, on the CPU: whatever their slices."""
        channels = self.plan.variation_channels
        return VolumeNoise(
            torch.randn(volumes, self.plan.latent, generator=generator),
            torch.randn(volumes, _WAVES, channels, generator=generator),
            torch.rand(volumes, _WAVES, channels, generator=generator),
            torch.randn(volumes, _WAVES, channels, generator=generator),
        )

    def forward(self, noise: VolumeNoise, position: Tensor) -> Tensor:
        """Slice latents, (b, z, L).

        Args:
            noise: of b volumes.
            position: of z slices along the body, in [0, 1], (z,), the same for all volumes.
        """
        b, z = len(noise.latent), len(position)
        inputs = torch.cat(
            [
                noise.latent[:, None].expand(-1, z, -1),
                position_code(position, self.plan.octaves).expand(b, -1, -1),
                _VARIATION * noise.variation(position, self.plan.variation_length),
            ],
            dim=2,
        )
        latents: Tensor = self.out(self.hidden(inputs))
        own = noise.latent[:, None, : self.slice_latent]
        shared = min(own.shape[2], self.slice_latent)
        return torch.cat([latents[..., :shared] + _SKIP * own, latents[..., shared:]], dim=2)


class VolumeNoise:
    """The random numbers of some volumes; slices are points on curves that they fix.

    Args:
        latent: one vector a volume, (b, latent), standard normal.
        frequency: of the variation's waves, (b, waves, channels), standard normal.
        phase: in turns, (b, waves, channels), uniform.
        amplitude: (b, waves, channels), standard normal.
    """

    def __init__(self, latent: Tensor, frequency: Tensor, phase: Tensor, amplitude: Tensor) -> None:
        self.latent = latent
        self._frequency = frequency
        self._phase = phase
        self._amplitude = amplitude

    def to(self, device: torch.device) -> VolumeNoise:
        """The same on another device."""
        parts = (self.latent, self._frequency, self._phase, self._amplitude)
        return VolumeNoise(*(part.to(device) for part in parts))

    def variation(self, position: Tensor, length: float) -> Tensor:
        """A Gaussian process of unit variance and this correlation length, (b, z, channels).

        Random waves of normal frequency have a Gaussian kernel (Rahimi and Recht 2007).
        """
        angle = self._frequency[:, None] / length * position[:, None, None]
        waves = self._amplitude[:, None] * torch.cos(angle + 2 * math.pi * self._phase[:, None])
        return waves.sum(2) * math.sqrt(2 / _WAVES)


def position_code(position: Tensor, octaves: int) -> Tensor:
    """2 d - 1, and sine and cosine of 2^k pi d / 2 for k < octaves, (z, 1 + 2 octaves)."""
    turns = 2.0 ** torch.arange(octaves, device=position.device) * math.pi / 2
    angle = position[:, None] * turns
    return torch.cat([2 * position[:, None] - 1, angle.sin(), angle.cos()], dim=1)


def slice_positions(slices: int, device: torch.device | None = None) -> Tensor:
    """Positions of a volume's slices along the body, (slices,): 0 first, 1 last, 0.5 for one."""
    if slices == 1:
        return torch.full((1,), 0.5, device=device)
    return torch.arange(slices, device=device) / (slices - 1)
