"""One round of training under patient-level privacy: noisy steps, or a clipped sum.

Which window of a volume is drawn, which patients take part and what the noise is comes from the
operating system's entropy; nothing of it follows from the plan's seed, and a round that is
computed again is another round. No loss is computed for anybody to see: it would be a release.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from lift.config.plan import Plan, TrainingPlan
from lift.config.privacy import PatientGradients
from lift.device import training_autocast
from lift.generator.features import Features
from lift.mixer.base import Mixer
from lift.privacy.noise import SecureStream, add_noise
from lift.tasks.paired.losses import paired_loss
from lift.tasks.paired.private.engines import (
    GradientEngine,
    HookedGradients,
    PatientLoop,
    StepPlan,
    noisy_mean_step,
    patient_sum,
)
from lift.tasks.paired.private.patient_batches import PatientWindows, RowLosses
from lift.tasks.paired.windows import Batch, draw_window, make_batch
from lift.tasks.steps import TrainedRound, optimise

UNITS: Final = 2**40
"""Units per clip norm in which clipped sums travel: whole numbers add up exactly."""

PatientVolumes = Sequence[Features]
"""All volumes of one patient."""


def train_round_privately(
    mixer: Mixer,
    start: dict[str, Tensor],
    patients: Sequence[PatientVolumes],
    plan: Plan,
    privacy: PatientGradients,
    *,
    round_index: int,
    site: str,
    stream: SecureStream,
    report: Callable[[int], None] | None = None,
) -> TrainedRound:
    """`plan.training.steps` noisy optimiser steps from the mixer `start` (mode `patient-local`).

    Each step is one Poisson-subsampled Gaussian mechanism with the plan's noise multiplier and
    sampling rate; all that is done with its result is post-processing. A site without a training
    patient sends noise like any other.

    Args:
        mixer: an instance to train in; its numbers are overwritten.
        start: the received mixer.
        patients: training patients with their volumes.
        plan: the run's plan.
        privacy: its section.
        round_index: 1 for the first training round.
        site: for its public number of patients.
        stream: source of masks and noise.
        report: called after each step with its number (from 1).

    Raises:
        ConfigError: the engine cannot take this mixer's gradients by patient.

    Source: Abadi et al. 2016, arXiv:1607.00133, algorithm 1.
    """
    engine = make_engine(privacy)
    losses = row_losses(plan.training)
    windows = Windows(mixer, patients, plan.training, privacy)
    step_plan = StepPlan(
        privacy.clip_norm,
        privacy.noise_multiplier,
        privacy.sampling_rate,
        privacy.patients_of(site),
    )
    received = {name: tensor.to(mixer.device) for name, tensor in start.items()}

    def set_gradients(step: int) -> None:
        del step
        noisy = noisy_mean_step(engine, mixer, len(patients), windows, losses, step_plan, stream)
        for name, parameter in mixer.named_parameters():
            if parameter.requires_grad:
                # the pull back to the received mixer depends on no patient
                pull = plan.training.proximal * (parameter.detach() - received[name])
                parameter.grad = noisy.gradient[name].to(mixer.device) + pull

    values = optimise(mixer, start, plan, set_gradients, round_index, report)
    return TrainedRound(values, None)


def clipped_sum(
    mixer: Mixer,
    start: dict[str, Tensor],
    patients: Sequence[PatientVolumes],
    plan: Plan,
    privacy: PatientGradients,
    *,
    stream: SecureStream,
) -> dict[str, np.ndarray]:
    """One site's sum of clipped gradients at the mixer `start` (mode `patient-central`).

    It is exact and has no noise: whoever receives it must be trusted, and must add the noise.

    Returns:
        Trainable parameter -> whole units of `clip_norm` / `UNITS`, int64. With or without one
        patient they differ by at most `UNITS` in joint L2 norm: what rounding adds (half a unit
        for each number) fits into the share of the clip norm that clipping leaves free.

    Raises:
        ConfigError: the engine cannot take this mixer's gradients by patient.
    """
    mixer.load_values(start)
    engine = make_engine(privacy)
    losses = row_losses(plan.training)
    windows = Windows(mixer, patients, plan.training, privacy)
    private = patient_sum(
        engine,
        mixer,
        len(patients),
        windows,
        losses,
        privacy.clip_norm / (1 + engine.slack),
        privacy.sampling_rate,
        stream,
    )
    return {
        name: (tensor / privacy.clip_norm * UNITS).round().to(torch.int64).numpy()
        for name, tensor in private.total.items()
    }


def noisy_update(
    sums: Sequence[Mapping[str, np.ndarray]],
    privacy: PatientGradients,
    expected_patients: float,
    stream: SecureStream,
) -> dict[str, Tensor]:
    """The server's side of `patient-central`: minus the noisy mean gradient, float32.

    Args:
        sums: of the sites, in units; see :func:`clipped_sum`.
        privacy: the plan's section.
        expected_patients: sampling rate times the public number of patients of these sites.
        stream: source of the noise.
    """
    total = {name: np.sum([each[name] for each in sums], axis=0) for name in sorted(sums[0])}
    exact = {
        name: torch.from_numpy(np.asarray(units)).double() * (privacy.clip_norm / UNITS)
        for name, units in total.items()
    }
    noisy = add_noise(exact, privacy.noise_multiplier * privacy.clip_norm, stream)
    return {name: -tensor / expected_patients for name, tensor in noisy.items()}


def make_engine(privacy: PatientGradients) -> GradientEngine:
    """The plan's engine."""
    return PatientLoop() if privacy.engine == "loop" else HookedGradients()


def row_losses(settings: TrainingPlan) -> RowLosses:
    """The plan's loss of each window."""

    def losses(mixer: Mixer, batch: Batch) -> Tensor:
        with training_autocast(batch.target.device):
            prediction = mixer(batch.inputs)
        return paired_loss(prediction.float(), batch.target, batch.inputs.mask, settings.loss)

    return losses


class Windows:
    """A sampled patient's windows: some of each volume, drawn from entropy of their own.

    No generator is shared between patients: a patient more would move all later draws, and
    clipping would bound nothing.
    """

    def __init__(
        self,
        mixer: Mixer,
        patients: Sequence[PatientVolumes],
        settings: TrainingPlan,
        privacy: PatientGradients,
    ) -> None:
        self._mixer = mixer
        self._patients = patients
        self._settings = settings
        self._count = privacy.windows_per_volume

    def __call__(self, patient: int) -> PatientWindows:
        """All windows of one patient for one step."""
        generator = np.random.default_rng()
        batches = []
        for features in self._patients[patient]:
            # a mixer that runs the frozen decoder needs whole slices
            plane = features.pred.shape[2:] if self._mixer.pooled_names else None
            depth, height, width = self._settings.window
            size = (depth, height, width) if plane is None else (depth, plane[0], plane[1])
            for _ in range(self._count):
                window = draw_window(features, size, generator)
                batches.append(make_batch([features], [window], self._mixer, size))
        return batches
