"""Volumes of a trained mapper, from its `mixer.safetensors`: a set for the judge to look at."""

from __future__ import annotations

from pathlib import Path

import torch

from lift.metrics.volume_sets import ImageVolume
from lift.mixer.finished import read_mixer
from lift.tasks.unconditional.bundle import load_decoder
from lift.tasks.unconditional.learning import settings_of
from lift.tasks.unconditional.sampling import generate_volume, latent_mapper


def mapper_volumes(mixer: Path, bundle: Path, *, count: int, seed: int = 0) -> list[ImageVolume]:
    """Generated volumes on the plan's own grid, as a run's evaluation sees them.

    Args:
        mixer: a run's `mixer.safetensors`.
        bundle: of the decoder that it was trained with.
        count: of volumes.
        seed: of the series.
    """
    finished = read_mixer(mixer)
    decoder = load_decoder(
        bundle,
        expected_fingerprint=finished.plan.generator_fingerprint,
        device=torch.device("cpu"),
    )
    settings = settings_of(finished.plan)
    mapper = latent_mapper(finished.plan, decoder, finished.values)
    pixel = decoder.card.network.pixel_mm
    spacing = (settings.slice_spacing_mm, pixel, pixel)
    return [
        ImageVolume(
            torch.from_numpy(
                generate_volume(
                    mapper,
                    decoder,
                    seed=seed,
                    index=i,
                    slices=settings.slices,
                    slice_spacing_mm=settings.slice_spacing_mm,
                )
            ),
            spacing,
        )
        for i in range(count)
    ]
