"""Slice decoders: a latent vector to a slice, frozen after pre-training; and the way back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Self

import torch
from torch import Tensor, nn

from lift.config.decoder import DecoderCard, DecoderConfig, PcaDecoderConfig, SliceDecoderConfig
from lift.device import device_of
from lift.generator.networks import network_fingerprint
from lift.tasks.unconditional.pca import PcaDecoder
from lift.tasks.unconditional.public_moments import PublicMoments
from lift.triplanar.encoder import Encoder
from lift.triplanar.projection import Projection
from lift.triplanar.standardise import Standardisation

_COARSE: Final = 4
_NEAREST_VARIANCE: Final = 0.001
_NEAREST_STEPS: Final = 300
_NEAREST_RATE: Final = 0.1
_SLICES_AT_ONCE: Final = 1024


class SliceDecoder(nn.Module):
    """Latents (n, latent), standard normal over public slices, to slices (n, 1, h, w) in (0, 1)."""

    def __init__(self, config: SliceDecoderConfig) -> None:
        super().__init__()
        self.config = config
        height, width = config.image
        convolutional = config.layers == "convolutional"
        units = config.hidden[:-1] if convolutional else config.hidden
        layers: list[nn.Module] = []
        size = config.latent
        for hidden in units:
            layers += [nn.Linear(size, hidden), nn.SiLU()]
            size = hidden
        self.dense = nn.Sequential(*layers)
        if convolutional:
            self._coarse = (config.hidden[-1], height // _COARSE, width // _COARSE)
            channels = config.hidden[-1]
            self.spread = nn.Linear(size, channels * (height // _COARSE) * (width // _COARSE))
            half = max(channels // 2, 4)
            self.image: nn.Module = nn.Sequential(
                nn.SiLU(),
                nn.Conv2d(channels, 4 * half, 3, padding=1),
                nn.PixelShuffle(2),
                nn.SiLU(),
                nn.Conv2d(half, 4, 3, padding=1),
                nn.PixelShuffle(2),
            )
        else:
            self._coarse = (1, height, width)
            self.spread = nn.Linear(size, height * width)
            self.image = nn.Identity()

    def forward(self, latents: Tensor) -> Tensor:
        """The slices."""
        spread = self.spread(self.dense(latents)).view(-1, *self._coarse)
        slices: Tensor = torch.sigmoid(self.image(spread))
        return slices

    def latents_of(self, voxels: Tensor) -> Tensor:
        """Latents (d, latent) of the nearest slices to one volume's (d, h, w); found by search."""
        parts = torch.split(voxels[:, None], _SLICES_AT_ONCE)
        return torch.cat([nearest_latents(self, part, self.config.latent) for part in parts])


class SliceEncoder(nn.Module):
    """Slices (n, 1, h, w) to mean and log-variance of their latents; lives in pre-training only."""

    def __init__(self, config: SliceDecoderConfig, channels: int) -> None:
        super().__init__()
        height, width = (side // 8 for side in config.image)
        levels = (1, channels, 2 * channels, 3 * channels)
        layers: list[nn.Module] = []
        for before, after in pairwise(levels):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.head = nn.Linear(levels[-1] * height * width, 2 * config.latent)

    def forward(self, slices: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, (n, latent) each."""
        mean, log_variance = self.head(self.body(slices)).chunk(2, dim=1)
        return mean, log_variance


AnyDecoder = PcaDecoder | SliceDecoder


def build_decoder(config: DecoderConfig) -> AnyDecoder:
    """A decoder of these sizes; its weights are to be loaded."""
    return PcaDecoder(config) if isinstance(config, PcaDecoderConfig) else SliceDecoder(config)


def nearest_latents(
    network: nn.Module, slices: Tensor, latent: int, steps: int = _NEAREST_STEPS
) -> Tensor:
    """Latents (n, latent) whose slices come nearest to given ones (n, 1, h, w), under the prior.

    Minimises the squared error over twice a small variance plus half the latent's square: what
    the decoder can do at best, whatever an encoder finds.
    """
    latents = torch.zeros(len(slices), latent, device=slices.device, requires_grad=True)
    optimiser = torch.optim.Adam([latents], lr=_NEAREST_RATE)
    with torch.enable_grad():
        for step in range(steps):
            rate = _NEAREST_RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
            optimiser.param_groups[0]["lr"] = rate
            error = (network(latents) - slices).square().sum() / (2 * _NEAREST_VARIANCE)
            loss = error + 0.5 * latents.square().sum()
            (latents.grad,) = torch.autograd.grad(loss, [latents])
            optimiser.step()
    return latents.detach()


@dataclass(frozen=True)
class PublicFeatures:
    """What ships beside the weights: how slices become the features of the drifting loss, and the
    moments of public volumes, which older bundles lack.
    """

    encoder: Encoder
    standardisation: Standardisation
    projection: Projection
    moments: PublicMoments | None = None


class FrozenDecoder(nn.Module):
    """A frozen decoder, with its card and its public features.

    Attributes:
        card: what the bundle says of itself.
        public: encoder, standardisation and projection of the drifting loss.
    """

    def __init__(self, network: AnyDecoder, card: DecoderCard, public: PublicFeatures) -> None:
        super().__init__()
        self.network = network
        self.card = card
        self.public = public
        # the encoder follows the decoder to its device
        self.encoder = public.encoder if isinstance(public.encoder, nn.Module) else None
        self.requires_grad_(requires_grad=False)
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where decoder and encoder are: the one owner of the device of an unconditional task."""
        return device_of(self)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, whatever an enclosing module is put into."""
        return super().train(mode=False)

    def forward(self, latents: Tensor) -> Tensor:
        """Slices of trajectories: (b, z, latent) to (b, 1, z, h, w), differentiable."""
        b, z, _ = latents.shape
        slices: Tensor = self.network(latents.flatten(0, 1))
        return slices.view(b, 1, z, *slices.shape[2:])

    def latents_of(self, voxels: Tensor) -> Tensor:
        """Latents that make one volume's slices again, as nearly as the decoder can.

        They depend on this volume alone, bit for bit on a CPU. The last
        `card.network.volume_latents` are the same for all its slices.

        Args:
            voxels: on the decoder's grid (`body_volume`), (d, h, w), values in [0, 1].

        Returns:
            (d, latent), float32, on the CPU.
        """
        with torch.no_grad():
            return self.network.latents_of(voxels.to(self.device)).cpu()

    def draw_slices(self, slices: int, generator: torch.Generator) -> Tensor:
        """Latents of slices that know nothing of each other, (slices, latent), on the CPU.

        Standard normal; those of the whole volume's grey scale are drawn once for all slices.
        """
        network = self.card.network
        latents = torch.randn(slices, network.latent, generator=generator)
        own = network.latent - network.volume_latents
        return torch.cat([latents[:, :own], latents[:1, own:].expand(slices, -1)], dim=1)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the weights as they are in memory now, computed on every call."""
        return decoder_fingerprint(self.card.network, self.network.state_dict())


def decoder_fingerprint(config: DecoderConfig, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the architecture and the weights, which are stored as float16."""
    return network_fingerprint(config, {name: tensor.half() for name, tensor in tensors.items()})
