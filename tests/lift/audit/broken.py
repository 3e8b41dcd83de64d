"""Pipelines with a privacy bug each, for an audit to find; no other code may use them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lift.config.plan import Plan
from lift.config.privacy import PatientGradients
from lift.generator.features import Features
from lift.mixer.base import Mixer
from lift.privacy.noise import SecureStream, add_noise, poisson_sample
from lift.randomness import derive_seed
from lift.tasks.paired.private.engines import PatientLoop
from lift.tasks.paired.private.training import Windows, row_losses

Patients = Sequence[Sequence[Features]]
Released = list[Mapping[str, Tensor]]
Chosen = Callable[[Patients, int], Patients]
_NEVER = 1e18


@dataclass(frozen=True)
class World:
    """What every pipeline is made of: the mixer's values are the audit's start."""

    mixer: Mixer
    plan: Plan
    privacy: PatientGradients
    steps: int
    stream: SecureStream

    @property
    def noise_std(self) -> float:
        return self.privacy.noise_multiplier * self.privacy.clip_norm

    def clipped(self, patients: Patients, clip_norm: float) -> dict[str, Tensor]:
        windows = Windows(self.mixer, patients, self.plan.training, self.privacy)
        losses = row_losses(self.plan.training)
        each = (windows(index) for index in range(len(patients)))
        return PatientLoop().sum_of_clipped_gradients(self.mixer, each, losses, clip_norm).total

    def poisson(self, patients: Patients) -> Patients:
        chosen = poisson_sample(len(patients), self.privacy.sampling_rate, self.stream)
        return [patients[int(index)] for index in chosen]


def right(world: World, patients: Patients) -> Released:
    """No bug: the others differ from this one in a line."""
    return [
        add_noise(
            world.clipped(world.poisson(patients), world.privacy.clip_norm),
            world.noise_std,
            world.stream,
        )
        for _ in range(world.steps)
    ]


def without_noise(world: World, patients: Patients) -> Released:
    return [
        world.clipped(world.poisson(patients), world.privacy.clip_norm) for _ in range(world.steps)
    ]


def noise_over_batch(world: World, patients: Patients) -> Released:
    """The noise of a sum is added to a sum after it was divided by the expected batch."""
    batch = world.privacy.sampling_rate * world.privacy.patients_of("audit")
    return [
        add_noise(
            world.clipped(world.poisson(patients), world.privacy.clip_norm),
            world.noise_std / batch,
            world.stream,
        )
        for _ in range(world.steps)
    ]


def without_clipping(world: World, patients: Patients) -> Released:
    return [
        add_noise(world.clipped(world.poisson(patients), _NEVER), world.noise_std, world.stream)
        for _ in range(world.steps)
    ]


def clipped_by_volume(world: World, patients: Patients) -> Released:
    """Every volume of a patient is clipped by itself: eight volumes pull eight times."""
    released: Released = []
    for _ in range(world.steps):
        volumes = [[volume] for chosen in world.poisson(patients) for volume in chosen]
        total = world.clipped(volumes, world.privacy.clip_norm)
        released.append(add_noise(total, world.noise_std, world.stream))
    return released


def dealt_batches(world: World, patients: Patients) -> Released:
    """Once an epoch for every patient, in an order that follows from the plan's seed."""
    released: Released = []
    for step in range(world.steps):
        batch = [each for each in patients if step in steps_of(world, each)]
        total = world.clipped(batch, world.privacy.clip_norm)
        released.append(add_noise(total, world.noise_std, world.stream))
    return released


def steps_of(world: World, patient: Sequence[Features]) -> set[int]:
    """In which steps a patient takes part: one of each epoch, known to all who have the plan."""
    length = batches_by_epoch(world)
    name = hashlib.sha256(patient[0].pred.tobytes()).hexdigest()
    return {
        epoch * length + derive_seed(world.plan.seed, "order", epoch, name) % length
        for epoch in range(math.ceil(world.steps / length))
    }


def known_steps(world: World, patients: Patients) -> NDArray[np.float64]:
    """1 where a patient takes part in a step, (patients, steps)."""
    weights = np.zeros((len(patients), world.steps))
    for row, patient in enumerate(patients):
        weights[row, list(steps_of(world, patient))] = 1.0
    return weights


def batches_by_epoch(world: World) -> int:
    return round(1 / world.privacy.sampling_rate)
