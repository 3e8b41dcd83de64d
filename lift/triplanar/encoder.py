"""Frozen feature encoders: from images to the vectors in which distributions are compared.

An encoder is named by its digest. Statistics made with different encoders live in different
spaces and are never added.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lift.config.decoder import PyramidName
from lift.triplanar.digests import digest_of

_GRIDS: Final = (4, 4, 2)
_UNIFORM_BITS: Final = 21


@dataclass(frozen=True)
class PyramidForm:
    """Sizes of a random pyramid.

    Attributes:
        version: part of the digest; a form never changes under its version.
        channels: of the three scales.
        pixels: side of the small image that goes along.
    """

    version: int
    channels: tuple[int, int, int]
    pixels: int

    @property
    def size(self) -> int:
        """Features of an image."""
        textures = sum(n * grid**2 for n, grid in zip(self.channels, _GRIDS, strict=True))
        return self.pixels**2 + textures


FORMS: Final[Mapping[PyramidName, PyramidForm]] = {
    "texture": PyramidForm(version=1, channels=(12, 24, 32), pixels=4),
    "shape": PyramidForm(version=2, channels=(8, 16, 32), pixels=8),
}
"""`texture` sees edges and little of where they are; `shape` sees outlines as well."""


class Encoder(Protocol):
    """Images (n, 1, h, w) in [0, 1], of any size, to features (n, `size`), float32.

    Frozen: no parameter has a gradient, yet the features are differentiable with respect to
    the images. A row depends on its own image only.
    """

    @property
    def size(self) -> int:
        """Features of an image."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 over architecture and weights, taken when the encoder was made."""
        ...

    def __call__(self, images: Tensor) -> Tensor:
        """The features."""
        ...


class FrozenEncoder(nn.Module):
    """A frozen network, with its digest.

    Args:
        network: (n, channels, h, w) -> (n, size).
        description: plain data that names the architecture; part of the digest.
        size: features of an image.
        channels: the image is repeated so often (RGB networks).
    """

    def __init__(
        self, network: nn.Module, description: dict[str, object], *, size: int, channels: int = 1
    ) -> None:
        super().__init__()
        self.network = network
        self.size = size
        self._channels = channels
        self.requires_grad_(requires_grad=False)
        self.eval()
        self.digest = digest_of(description, network.state_dict())

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, whatever an enclosing module is put into."""
        return super().train(mode=False)

    def forward(self, images: Tensor) -> Tensor:
        """Features (n, size) of images (n, 1, h, w)."""
        if images.dim() != 4 or images.shape[1] != 1:
            raise ValueError(f"images are {tuple(images.shape)}; needed (n, 1, h, w)")
        features: Tensor = self.network(images.expand(-1, self._channels, -1, -1))
        return features


class RandomPyramid(FrozenEncoder):
    """A fixed-seed random pyramid: no trained weights, nothing to download or to trust.

    Three scales of a 3x3 convolution and an absolute value, halved each time; features are the
    means over 4x4, 4x4 and 2x2 fields, and the image itself at a few pixels: 720 numbers
    (`texture`, 4x4 pixels) or 576 (`shape`, 8x8).

    The weights are uniform numbers made from integers: the same bits on every machine. Frechet
    distances in this space are comparable with each other, never with published ones. Train and
    evaluate with different seeds.

    Source: method 5.5 (2); the form follows scattering networks (Bruna and Mallat 2013).
    """

    def __init__(self, seed: int, form: PyramidName = "texture") -> None:
        chosen = FORMS[form]
        description = {
            "encoder": "random_pyramid",
            "version": chosen.version,
            "channels": chosen.channels,
            "grids": _GRIDS,
        }
        pyramid = _Pyramid(seed, chosen)
        super().__init__(pyramid, description, size=chosen.size)
        self.maps = pyramid.maps
        """Images (n, 1, h, w) to the three scales before their means, each half of the last."""


class _Pyramid(nn.Module):
    def __init__(self, seed: int, form: PyramidForm) -> None:
        super().__init__()
        self._pixels = form.pixels
        bits = np.random.Philox(key=seed)
        n_in = 1
        for level, n_out in enumerate(form.channels):
            weight = _uniform(bits, (n_out, n_in, 3, 3)) * math.sqrt(3 / (9 * n_in))
            if level == 0:
                # edges, not brightness: brightness is what the low-resolution pixels tell
                weight = weight - weight.mean(axis=(2, 3), keepdims=True)
            self.register_buffer(f"weight{level}", torch.from_numpy(weight.astype(np.float32)))
            n_in = n_out

    def forward(self, x: Tensor) -> Tensor:
        features = [F.adaptive_avg_pool2d(x, self._pixels).flatten(1)]
        for found, grid in zip(self.maps(x), _GRIDS, strict=True):
            features.append(F.adaptive_avg_pool2d(found, grid).flatten(1))
        return torch.cat(features, dim=1)

    def maps(self, x: Tensor) -> list[Tensor]:
        found = []
        for level in range(len(_GRIDS)):
            x = halved(F.conv2d(x, self.get_buffer(f"weight{level}"), padding=1).abs())
            found.append(x)
        return found


def halved(x: Tensor) -> Tensor:
    """Means of 2x2 fields; what is left over at an odd edge is a field of its own.

    As `avg_pool2d` with `ceil_mode`, which is three times slower on CPUs than this convolution.
    """
    _, channels, height, width = x.shape
    if height % 2 or width % 2:
        x = F.pad(x, (0, width % 2, 0, height % 2), mode="replicate")
    field = x.new_full((channels, 1, 2, 2), 0.25)
    return F.conv2d(x, field, stride=2, groups=channels)


def _uniform(bits: np.random.Philox, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers in (-1, 1), odd multiples of 2**-21: numpy keeps raw bits the same for ever."""
    raw = bits.random_raw(math.prod(shape)) >> np.uint64(64 - _UNIFORM_BITS)
    steps: np.ndarray = (2 * raw.astype(np.float64) + 1) * 0.5**_UNIFORM_BITS - 1
    return steps.reshape(shape)
