"""Small patients for the tests of the gradient engines, and the loss that they are trained with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from lift.config.plan import LossPlan
from lift.mixer.base import Mixer
from lift.tasks.paired.losses import paired_loss
from lift.tasks.paired.private.engines import GradientEngine
from lift.tasks.paired.private.patient_batches import PatientWindows
from lift.tasks.paired.windows import Batch
from tests.lift.mixer_cases import make_inputs

C = 0.7
"""The clip norm of the tests."""

SLICES = 5


def make_patient(
    seed: int,
    *,
    windows: int = 1,
    depth: int = 4,
    scale: float = 1.0,
    size: tuple[int, int] = (8, 8),
) -> list[Batch]:
    """One batch by window: `depth` valid slices of 5, all values multiplied by `scale`."""
    return [
        make_batch([depth], scale=scale, size=size, seed=100 * seed + number)
        for number in range(windows)
    ]


def make_batch(
    depths: Sequence[int], *, scale: float = 1.0, size: tuple[int, int] = (8, 8), seed: int = 0
) -> Batch:
    """Random windows and targets of about `scale`; volumes are of different lengths."""
    given = make_inputs(depths, size=size, slices=SLICES, after=seed % 4, seed=seed)
    random = torch.Generator().manual_seed(seed + 10_000)
    # like the feature cache: taps pass through float16, pictures do not
    taps = {name: scale * tap.half().float() for name, tap in given.taps.items()}
    inputs = dataclasses.replace(
        given,
        source=scale * given.source,
        pred=scale * given.pred,
        taps=taps,
        pooled={name: scale * vectors for name, vectors in given.pooled.items()},
    )
    return Batch(inputs, scale * torch.randn(given.pred.shape, generator=random))


def losses(mixer: Mixer, batch: Batch) -> Tensor:
    """The paired loss of each row."""
    prediction = mixer(batch.inputs)
    return paired_loss(prediction, batch.target, batch.inputs.mask, LossPlan())


def joint_norm(values: dict[str, Tensor]) -> float:
    return float(sum(tensor.double().square().sum() for tensor in values.values()) ** 0.5)


def minus(first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, Tensor]:
    assert list(first) == list(second)
    return {name: first[name] - second[name] for name in first}


def mean_gradient(mixer: Mixer, windows: PatientWindows) -> dict[str, Tensor]:
    """The plain gradient of the mean over a patient's windows, without any engine."""
    mixer.zero_grad()
    torch.autograd.backward(torch.cat([losses(mixer, batch) for batch in windows]).mean())
    result = {name: p.grad.double() for name, p in mixer.named_parameters() if p.grad is not None}
    mixer.zero_grad()
    return {name: result[name] for name in sorted(result)}


def cohort(windows: int, scale: float, count: int = 3) -> list[list[Batch]]:
    return [
        make_patient(seed, windows=windows, depth=2 + seed % 4, scale=scale)
        for seed in range(count)
    ]


def influences(
    engine: GradientEngine, mixer: Mixer, patients: Sequence[PatientWindows]
) -> list[float]:
    """How far the sum moves, in units of C, when each patient is taken out."""

    def total(of: Sequence[PatientWindows]) -> dict[str, Tensor]:
        return engine.sum_of_clipped_gradients(mixer, of, losses, C).total

    whole = total(patients)
    return [
        joint_norm(minus(whole, total([*patients[:i], *patients[i + 1 :]]))) / C
        for i in range(len(patients))
    ]
