"""The PCA decoder: public slices without their grey scale, by their principal axes.

A volume's grey scale is its mean m and standard deviation s over its whole box on the decoder's
grid. Slices are x = (v - m) / s, and x = mean + scores @ axes, where each axis is scaled so that
its score has unit variance over public slices. Two latents more say the grey scale: m and log s,
each less its mean over public volumes and over its standard deviation there.

Nothing is trained: for the squared error no linear decoder of as many axes is better on the
public slices. Source: Eckart and Young 1936, doi:10.1007/BF02288367.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from lift.config.decoder import PcaDecoderConfig
from lift.errors import DataError

_LEAST_SPREAD: Final = 1e-3
"""Standard deviation that m and log s have at least; of public volumes that are all alike."""
_LOG_SPREADS: Final = (math.log(1e-4), math.log(0.5))
"""What log s can be: values in [0, 1] spread by 0.5 at most."""
_LEAST_VARIANCE: Final = 1e-6
"""Of an axis, as a share of the first one's: below it there is none."""


class PcaDecoder(nn.Module):
    """Latents (n, axes + 2), unit variance over public slices, to slices (n, 1, h, w) in [0, 1].

    Attributes:
        mean: of the slices without grey scale, (h * w,).
        axes: a score of 1 along each, (axes, h * w).
        style: of m and of log s the mean and the standard deviation over volumes, (2, 2).
    """

    mean: Tensor
    axes: Tensor
    style: Tensor

    def __init__(self, config: PcaDecoderConfig) -> None:
        super().__init__()
        self.config = config
        pixels = config.image[0] * config.image[1]
        self.register_buffer("mean", torch.zeros(pixels))
        self.register_buffer("axes", torch.zeros(config.axes, pixels))
        self.register_buffer("style", torch.zeros(2, 2))

    def forward(self, latents: Tensor) -> Tensor:
        """The slices, clip(m + s * x, 0, 1).

        Gradients pass where the clip does nothing, and where they lead back inside: a pixel
        that is cut off is neither lost to a loss nor drawn further out.
        """
        scores, style = latents[:, : self.config.axes], latents[:, self.config.axes :]
        grey = self.style[:, 0] + style * self.style[:, 1]
        middle, log_spread = grey[:, :1], inward_clip(grey[:, 1:], *_LOG_SPREADS)
        slices = middle + log_spread.exp() * torch.addmm(self.mean, scores, self.axes)
        return inward_clip(slices, 0.0, 1.0).view(-1, 1, *self.config.image)

    def latents_of(self, voxels: Tensor) -> Tensor:
        """Latents (d, axes + 2) of one volume (d, h, w): least squares, in float64.

        A flat volume's log s is that of the smallest spread; it has no structure to find.
        """
        middle, spread = grey_scale(voxels)
        plain = ((voxels.double() - middle) / spread).flatten(1) - self.mean.double()
        axes = self.axes.double()
        # the axes are orthogonal but for their rounding to half precision
        scores = torch.linalg.solve(axes @ axes.T, axes @ plain.T).T
        grey = torch.stack([middle, spread.log()])
        style = (grey - self.style[:, 0].double()) / self.style[:, 1].double()
        return torch.cat([scores, style.expand(len(scores), -1)], dim=1).float()


def grey_scale(voxels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (never below 1e-4) of a volume, as float64 scalars."""
    values = voxels.double()
    least = math.exp(_LOG_SPREADS[0])
    return values.mean(), values.std(unbiased=False).clamp_min(least)


def fit_pca(
    config: PcaDecoderConfig, volumes: Iterable[Tensor], *, mirror: bool = False
) -> PcaDecoder:
    """The decoder of these public volumes; their order changes no bit of it.

    Args:
        config: number of axes and image.
        volumes: (d, h, w) each, in [0, 1].
        mirror: take each slice mirrored left to right as well.

    Raises:
        DataError: the slices do not vary in so many directions.
    """
    ordered = sorted(volumes, key=_content)
    slices, grey = _plain_slices(ordered, mirror=mirror)
    mean = slices.mean(0)
    axes = _principal_axes(slices - mean, config.axes)
    style = torch.stack([grey.mean(0), grey.std(0, unbiased=False).clamp_min(_LEAST_SPREAD)], 1)
    decoder = PcaDecoder(config)
    found = {"mean": mean, "axes": axes, "style": style}
    # what is stored is what is used: half precision, once
    decoder.load_state_dict({name: tensor.half().float() for name, tensor in found.items()})
    return decoder.eval()


def _content(voxels: Tensor) -> str:
    return hashlib.sha256(voxels.contiguous().numpy().tobytes()).hexdigest()


def _plain_slices(volumes: Sequence[Tensor], *, mirror: bool) -> tuple[Tensor, Tensor]:
    """All slices without their grey scale, (n, h * w), and m and log s by volume, float64."""
    slices, grey = [], []
    for voxels in volumes:
        middle, spread = grey_scale(voxels)
        plain = (voxels.double() - middle) / spread
        slices.append(plain.flatten(1))
        if mirror:
            slices.append(plain.flip(2).flatten(1))
        grey.append(torch.stack([middle, spread.log()]))
    return torch.cat(slices), torch.stack(grey)


def _principal_axes(centred: Tensor, count: int) -> Tensor:
    """Axes of (n, p) values, each times the standard deviation along it: (count, p).

    The largest entry of an axis is positive. Of the two covariances, of pixels and of slices,
    the smaller one is decomposed.
    """
    n, p = centred.shape
    of_pixels = p <= n
    covariance = (centred.T @ centred if of_pixels else centred @ centred.T) / n
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0)[:count], vectors.flip(1)[:, :count].T
    directions = int((values > _LEAST_VARIANCE * values[0]).sum())
    if directions < count:
        raise DataError(
            "cannot fit a PCA decoder",
            where="network.axes",
            seen=f"{n} public slices vary in {directions} directions; {count} are needed",
            remedy="Lower network.axes or add public volumes; nothing was written.",
        )
    axes = vectors * values.sqrt()[:, None] if of_pixels else vectors @ centred / math.sqrt(n)
    peak = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    scaled: Tensor = axes * peak.sign()
    return scaled


class _InwardClip(torch.autograd.Function):
    """Clamp whose gradient is kept where a step against it leads inside."""

    generate_vmap_rule = True

    @staticmethod
    def forward(values: Tensor, low: float, high: float) -> Tensor:
        return values.clamp(low, high)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float, float], output: Tensor) -> None:
        del output
        values, low, high = inputs
        ctx.save_for_backward(values < low, values > high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        below, above = ctx.saved_tensors
        (gradient,) = gradients
        outward = (below & (gradient > 0)) | (above & (gradient < 0))
        return gradient.masked_fill(outward, 0.0), None, None


def inward_clip(values: Tensor, low: float, high: float) -> Tensor:
    """Values in [low, high]; a gradient that would draw a clipped value further out is zero."""
    return cast("Tensor", _InwardClip.apply(values, low, high))  # type: ignore[no-untyped-call]
