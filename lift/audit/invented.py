"""Canaries for a mixer: random windows with targets so far away that every gradient is clipped."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lift.audit.canary import Canaries, flat
from lift.config.plan import Plan
from lift.config.privacy import PatientGradients
from lift.generator.base import SliceGenerator
from lift.generator.features import Features
from lift.mixer.base import Mixer
from lift.randomness import derive_seed
from lift.tasks.paired.private.engines import PatientLoop
from lift.tasks.paired.private.training import Windows, row_losses

_SLICES: Final = 4
_LEAST_SIDE: Final = 4
_TIMES_CLIP: Final = 100.0
_FIRST_CONTRAST: Final = 100.0
_CANDIDATES: Final = 3
_MOVE: Final = 0.2


def window_of(mixer: Mixer, generator: SliceGenerator) -> tuple[int, int, int]:
    """Slices, rows and columns of a canary: as small as the mixer's taps allow."""
    names = generator.taps if mixer.pooled_names else mixer.tap_names
    stride = max((generator.taps[name].stride for name in names), default=1)
    side = max(_LEAST_SIDE, 2 * stride)
    return _SLICES, side, side


def moved_values(mixer: Mixer, seed: int) -> dict[str, Tensor]:
    """The mixer's numbers moved at random, so that no layer is at 0 and all have gradients.

    A release must be private whatever mixer a site receives: this is one of them.
    """
    random = torch.Generator().manual_seed(derive_seed(seed, "audit", "mixer") % 2**62)
    return {
        name: tensor + _MOVE * torch.randn(tensor.shape, generator=random)
        for name, tensor in mixer.values().items()
    }


def invent_canaries(
    mixer: Mixer,
    start: dict[str, Tensor],
    generator: SliceGenerator,
    plan: Plan,
    privacy: PatientGradients,
    *,
    count: int,
    volumes: int = 1,
) -> Canaries:
    """Canaries that the mixer `start` tells apart; the same arguments give the same ones.

    Volumes are one window large, so that the draw of windows changes nothing, and a canary's
    volumes are all the same. Of three times as many candidates those are kept that are least
    like each other. Targets are moved away until gradients are about a hundred clip norms long
    and more, which the squared error allows.

    Args:
        mixer: an instance to measure gradients in; its numbers are overwritten.
        start: the mixer of the audit.
        generator: for the shapes of taps; it is not run.
        plan: the audited plan: its window must be :func:`window_of`, its loss squared.
        privacy: its section.
        count: canaries, at most half of the mixer's parameters.
        volumes: of each canary.

    Raises:
        ValueError: there are more canaries than the mixer can tell apart.
    """
    if not 0 < count <= mixer.parameter_count() // 2:
        raise ValueError(
            f"count must be from 1 to half of {mixer.parameter_count()} parameters (seen: {count})"
        )
    mixer.load_values(start)
    seeds = [derive_seed(plan.seed, "audit", "canary", n) for n in range(_CANDIDATES * count)]
    contrast = _FIRST_CONTRAST
    size = plan.training.window
    trial = [_invented(mixer, generator, size, seed, contrast) for seed in seeds]
    _, norms = _measured(mixer, trial, plan, privacy)
    contrast *= max(1.0, _TIMES_CLIP * privacy.clip_norm / max(float(np.median(norms)), 1e-9))
    candidates = [_invented(mixer, generator, size, seed, contrast) for seed in seeds]
    directions, norms = _measured(mixer, candidates, plan, privacy)
    kept = most_different(directions, count)
    return Canaries(
        tuple((candidates[index],) * volumes for index in kept),
        directions[kept],
        min(norms[index] for index in kept) / privacy.clip_norm,
    )


def most_different(directions: NDArray[np.float64], count: int) -> list[int]:
    """Indices of `count` rows, each the one with most of its length outside the span of earlier."""
    rest = directions.copy()
    kept: list[int] = []
    for _ in range(count):
        lengths = np.sum(rest * rest, axis=1)
        lengths[kept] = -1.0
        best = int(np.argmax(lengths))
        kept.append(best)
        unit = rest[best] / np.sqrt(lengths[best])
        rest -= np.outer(rest @ unit, unit)
    return kept


def _measured(
    mixer: Mixer, candidates: list[Features], plan: Plan, privacy: PatientGradients
) -> tuple[NDArray[np.float64], list[float]]:
    """Clipped gradients over the clip norm, (candidates, parameters), and norms before."""
    engine = PatientLoop()
    losses = row_losses(plan.training)
    windows = Windows(mixer, [[each] for each in candidates], plan.training, privacy)
    rows: list[NDArray[np.float64]] = []
    norms: list[float] = []
    for index in range(len(candidates)):
        found = engine.sum_of_clipped_gradients(mixer, [windows(index)], losses, privacy.clip_norm)
        rows.append(flat(found.total) / privacy.clip_norm)
        norms += found.norms
    return np.stack(rows), norms


def _invented(
    mixer: Mixer,
    generator: SliceGenerator,
    size: tuple[int, int, int],
    seed: int,
    contrast: float,
) -> Features:
    """One volume of independent normal numbers; its target is `contrast` away."""
    random = np.random.default_rng(seed)
    depth, height, width = size

    def image(channels: int, stride: int = 1) -> NDArray[np.float32]:
        shape = (depth, channels, -(-height // stride), -(-width // stride))
        return random.standard_normal(shape, dtype=np.float32)

    taps = {name: generator.taps[name] for name in mixer.tap_names}
    pred = image(1)
    return Features(
        source=image(generator.n_source),
        pred=pred,
        target=pred + np.float32(contrast) * image(1),
        mask=np.ones((depth, 1, height, width), dtype=np.uint8),
        taps={n: image(tap.channels, tap.stride).astype(np.float16) for n, tap in taps.items()},
        pooled={
            name: random.standard_normal((depth, generator.taps[name].channels), dtype=np.float32)
            for name in mixer.pooled_names
        },
        slice_spacing_mm=2.0,
    )
