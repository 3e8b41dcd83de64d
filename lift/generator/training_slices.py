"""Slices for pre-training: volumes in memory, and random windows of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lift.config.generator import PretrainConfig
from lift.randomness import derive_seed

GAIN_SD: Final = 0.05
"""Standard deviation of the logarithm of a source's random gain."""
GAMMA_SD: Final = 0.1
"""Standard deviation of the logarithm of a source's random exponent."""


@dataclass(frozen=True)
class TrainingPatient:
    """One volume as pre-training keeps it in memory.

    Attributes:
        subject: whose it is: a subject is never both trained on and validated on.
        source: normalised, (z, n_source, h, w), float16.
        target: normalised, (z, 1, h, w), float16.
        mask: where the loss is taken, (z, 1, h, w), bool.
    """

    subject: str
    source: NDArray[np.float16]
    target: NDArray[np.float16]
    mask: NDArray[np.bool_]


def split_by_subject(
    patients: Sequence[TrainingPatient], validation_share: float, seed: int
) -> tuple[list[TrainingPatient], list[TrainingPatient]]:
    """Training and validation patients, no subject in both.

    `validation_share` of the subjects, rounded, are for validation: at least one when the share
    is above 0 and there are two subjects, and never all of them.
    """
    subjects = sorted({patient.subject for patient in patients})
    rng = np.random.default_rng(derive_seed(seed, "validation"))
    count = round(validation_share * len(subjects))
    if validation_share > 0:
        count = max(count, 1)
    count = min(count, len(subjects) - 1)
    chosen = {subjects[int(i)] for i in rng.permutation(len(subjects))[:count]}
    return (
        [patient for patient in patients if patient.subject not in chosen],
        [patient for patient in patients if patient.subject in chosen],
    )


def draw_batch(
    config: PretrainConfig, patients: Sequence[TrainingPatient], rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Random slices as network input, target and mask, (n, channels, h, w), float32.

    A patient uniformly, then one of its slices that hold mask; a random window (zeros around a
    slice that is smaller); left-right flips unless the plane is sagittal; gain and gamma of
    each source. The batch's sides are those of its largest slice, at most `config.window`.
    """
    drawn = [patients[int(i)] for i in rng.integers(len(patients), size=config.batch_slices)]
    height = min(config.window[0], max(patient.mask.shape[-2] for patient in drawn))
    width = min(config.window[1], max(patient.mask.shape[-1] for patient in drawn))
    reach = config.network.context_slices
    items = []
    for patient in drawn:
        depth = int(rng.choice(np.flatnonzero(patient.mask.any(axis=(1, 2, 3)))))
        slices = np.clip(np.arange(depth - reach, depth + reach + 1), 0, len(patient.mask) - 1)
        channels = [
            _jittered(patient.source[slices].astype(np.float32), rng).reshape(
                -1, *patient.mask.shape[-2:]
            ),
            patient.target[depth].astype(np.float32),
            patient.mask[depth].astype(np.float32),
        ]
        # left and right are alike in axial and coronal slices; sagittal ones run front to back
        flip = config.preprocessing.plane != "sagittal" and rng.random() < 0.5
        stack = np.concatenate(channels)[..., :: -1 if flip else 1]
        items.append(_windowed(stack, (height, width), rng))
    stacked = torch.from_numpy(np.stack(items))
    return stacked[:, :-2].contiguous(), stacked[:, -2:-1], stacked[:, -1:]


def _jittered(source: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Another gain and gamma for each source of (slices, n_source, h, w); zero stays zero."""
    shape = (1, source.shape[1], 1, 1)
    gain = np.exp(GAIN_SD * rng.standard_normal(shape)).astype(np.float32)
    gamma = np.exp(GAMMA_SD * rng.standard_normal(shape)).astype(np.float32)
    return np.minimum(gain * source**gamma, np.float32(1))


def _windowed(
    stack: NDArray[np.float32], sides: tuple[int, int], rng: np.random.Generator
) -> NDArray[np.float32]:
    """A random window of (channels, h, w), with zeros where the slice is smaller."""
    out = np.zeros((stack.shape[0], *sides), np.float32)
    cut, place = [], []
    for size, side in zip(stack.shape[1:], sides, strict=True):
        offset = int(rng.integers(abs(size - side) + 1))
        length = min(size, side)
        inner, outer = (offset, 0) if size > side else (0, offset)
        cut.append(slice(inner, inner + length))
        place.append(slice(outer, outer + length))
    out[:, place[0], place[1]] = stack[:, cut[0], cut[1]]
    return out
