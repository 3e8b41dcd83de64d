"""The trained slice decoder: a variational autoencoder, of which the decoder stays.

Latents are brought to mean 0 and covariance 1 over the public slices, and this is folded into
the decoder's first layer: a standard normal vector is a likely slice.

Source: Kingma and Welling 2014, arXiv:1312.6114.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lift.config.decoder import DecoderPretrainConfig, SliceDecoderConfig
from lift.generator.pretraining import (
    CHECKPOINT_FILE,
    Report,
    check_finite,
    rate_factor,
    resume_training,
    write_training,
)
from lift.randomness import derive_seed
from lift.tasks.unconditional.decoder import SliceDecoder, SliceEncoder

logger = logging.getLogger(__name__)
_WEIGHT_DECAY: Final = 1e-2
_GRADIENT_CLIP: Final = 100.0
_FEWEST_VARIANCE: Final = 1e-4


def train_decoder(
    config: DecoderPretrainConfig,
    network: SliceDecoderConfig,
    slices: Tensor,
    *,
    work: Path,
    device: torch.device,
    report: Report | None,
) -> SliceDecoder:
    """A decoder of public slices (n, 1, h, w); from the checkpoint in `work`, if it fits.

    Args:
        config: how to train.
        network: its sizes.
        slices: what to train on.
        work: for the checkpoint.
        device: where to train.
        report: called after each step with steps done, steps in all, and the step's loss.

    Raises:
        GeneratorError: the training diverged.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(config.seed, "weights"))
        pair = nn.ModuleDict(
            {
                "encoder": SliceEncoder(network, config.encoder_channels),
                "decoder": SliceDecoder(network),
            }
        ).to(device)
    optimiser = torch.optim.AdamW(
        pair.parameters(), lr=config.learning_rate, weight_decay=_WEIGHT_DECAY
    )
    run = _run_digest(config, slices)
    first = resume_training(work / CHECKPOINT_FILE, run, pair, optimiser)
    for step in range(first, config.steps):
        generator = torch.Generator().manual_seed(derive_seed(config.seed, "step", step))
        batch = draw_slices(slices, config, generator).to(device)
        optimiser.param_groups[0]["lr"] = config.learning_rate * rate_factor(step, config.steps)
        mean, log_variance = pair["encoder"](batch)
        noise = torch.randn(mean.shape, generator=generator).to(device)
        made = pair["decoder"](mean + noise * (log_variance / 2).exp())
        error = (made - batch).square().sum((1, 2, 3)).mean() / (2 * config.noise_variance)
        prior = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(1).mean()
        optimiser.zero_grad()
        (error + prior).backward()
        norm = torch.nn.utils.clip_grad_norm_(pair.parameters(), _GRADIENT_CLIP)
        value = float((error + prior).detach())
        check_finite(value, float(norm), step)
        optimiser.step()
        done = step + 1
        if done % config.checkpoint_steps == 0 or done == config.steps:
            write_training(work / CHECKPOINT_FILE, run, done, pair, optimiser)
        if step == first or done % config.checkpoint_steps == 0 or done == config.steps:
            logger.info("event=pretraining step=%d loss=%.5f", done, value)
        if report is not None:
            report(done, config.steps, value)
    decoder = pair["decoder"]
    assert isinstance(decoder, SliceDecoder)  # noqa: S101  # made above
    _normalise_latents(decoder, pair["encoder"], slices, device)
    return decoder


def draw_slices(
    slices: Tensor, config: DecoderPretrainConfig, generator: torch.Generator
) -> Tensor:
    """A batch of shifted, mirrored slices of other contrasts, (n, 1, h, w)."""
    n, reach = config.batch_slices, config.shift_px
    batch = slices[torch.randint(len(slices), (n,), generator=generator)]
    height, width = batch.shape[2:]
    gamma = torch.exp(config.gamma_sd * torch.randn(n, generator=generator))
    batch = batch.clamp(0, 1) ** gamma[:, None, None, None]
    mirror = torch.rand(n, generator=generator) < 0.5
    if config.mirrors:
        batch = torch.where(mirror[:, None, None, None], batch.flip(3), batch)
    if reach:
        down, right = torch.randint(2 * reach + 1, (2, n), generator=generator)
        padded = F.pad(batch, (reach, reach, reach, reach), mode="replicate")
        rows = down[:, None] + torch.arange(height)
        columns = right[:, None] + torch.arange(width)
        batch = padded[torch.arange(n)[:, None, None], 0, rows[:, :, None], columns[:, None]]
        batch = batch[:, None]
    return batch


def _normalise_latents(
    decoder: SliceDecoder, encoder: nn.Module, slices: Tensor, device: torch.device
) -> None:
    """Fold mean and covariance of the public slices' latents into the decoder's first layer."""
    with torch.no_grad():
        means = torch.cat([encoder(part.to(device))[0].cpu() for part in torch.split(slices, 256)])
        means = means.double()
        values, axes = torch.linalg.eigh(torch.cov(means.T))
        root = (axes * values.clamp_min(_FEWEST_VARIANCE).sqrt()) @ axes.T
        first = decoder.dense[0]
        assert isinstance(first, nn.Linear)  # noqa: S101  # every decoder starts so
        weight = first.weight.double().cpu()
        first.bias.add_((weight @ means.mean(0)).to(first.bias))
        first.weight.copy_(weight @ root)


def _run_digest(config: DecoderPretrainConfig, slices: Tensor) -> str:
    deciding = config.model_dump(
        mode="json",
        exclude={
            "cohorts",
            "training_data",
            "licence",
            "checkpoint_steps",
            "allow_weaker_than_pca",
        },
    )
    digest = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode())
    digest.update(slices.numpy().tobytes())
    return digest.hexdigest()
