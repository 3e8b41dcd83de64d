"""Whether a trained slice decoder is better than a PCA with the same number of latents."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from lift.config.decoder import STYLE_LATENTS, PcaDecoderConfig, SliceDecoderConfig
from lift.errors import GeneratorError
from lift.tasks.unconditional.decoder import AnyDecoder
from lift.tasks.unconditional.pca import PcaDecoder, fit_pca

logger = logging.getLogger(__name__)
MARGIN_DB: Final = 0.25
"""What a trained decoder has to be better by than a PCA with as many latents."""


def ceiling_psnr_db(network: AnyDecoder, volumes: Sequence[Tensor]) -> float:
    """Mean PSNR of the nearest slices that a decoder can make, in dB; whatever their order.

    Args:
        network: on the CPU.
        volumes: (d, h, w) each, in [0, 1].
    """
    figures = []
    for voxels in volumes:
        with torch.no_grad():
            made = network(network.latents_of(voxels))[:, 0]
        error = float((made - voxels).double().square().mean())
        figures.append(-10 * math.log10(max(error, 1e-14)))
    return round(math.fsum(figures) / len(figures), 3)


def equal_pca(network: SliceDecoderConfig, volumes: Sequence[Tensor]) -> PcaDecoder:
    """The PCA decoder of these volumes, (d, h, w) each, with as many latents as a network has.

    The latents of the grey scale count. Fewer where the slices are fewer.
    """
    config = PcaDecoderConfig(
        name="pca",
        axes=min(network.latent - STYLE_LATENTS, sum(map(len, volumes)) - 1),
        image=network.image,
        pixel_mm=network.pixel_mm,
    )
    return fit_pca(config, volumes)


def check_worth(psnr_db: float, pca_psnr_db: float, *, allow_weaker: bool) -> bool:
    """Whether a trained decoder is not better than a PCA by `MARGIN_DB`, where that is allowed.

    Args:
        psnr_db: of held-out slices that the decoder reconstructs.
        pca_psnr_db: of the same by a PCA with as many latents.
        allow_weaker: log it and go on.

    Raises:
        GeneratorError: it is not, and it is not allowed.
    """
    if psnr_db >= pca_psnr_db + MARGIN_DB:
        return False
    if allow_weaker:
        logger.warning(
            "event=decoder_weaker_than_pca psnr_db=%.3f pca_psnr_db=%.3f", psnr_db, pca_psnr_db
        )
        return True
    raise GeneratorError(
        "the trained slice decoder is not worth its place",
        where="network",
        seen=f"held-out slices: {psnr_db:.2f} dB; a PCA with as many latents {pca_psnr_db:.2f} dB; "
        f"needed: {MARGIN_DB} dB more than that",
        remedy="No bundle was written; the checkpoint is kept. Choose network.name pca, train "
        "longer or with a smaller noise_variance, or set allow_weaker_than_pca: true.",
    )
