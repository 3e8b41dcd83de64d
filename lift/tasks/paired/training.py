"""Local training of one round. Only the mixer's parameters get gradients.

Everything that is random or scheduled follows from the plan, the round's index and the
site's name, never from an earlier round's state: a site that restarts computes the same
update bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from torch import Tensor

from lift.config.plan import Plan, TrainingPlan
from lift.device import training_autocast
from lift.errors import DataError
from lift.generator.features import Person, examinations
from lift.mixer.base import Mixer
from lift.randomness import derive_seed
from lift.tasks.paired.losses import paired_loss
from lift.tasks.paired.windows import Batch, draw_window, make_batch
from lift.tasks.steps import TrainedRound, take_steps


def train_round(
    mixer: Mixer,
    start: dict[str, Tensor],
    patients: Sequence[Person],
    plan: Plan,
    *,
    round_index: int,
    site: str,
    report: Callable[[int], None] | None = None,
) -> TrainedRound:
    """Take `plan.training.steps` optimiser steps from the mixer `start`.

    A fresh AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) each round; the learning rate
    warms up linearly and falls as a cosine over the whole run's steps.

    Args:
        mixer: an instance to train in; its numbers are overwritten.
        start: the received mixer.
        patients: training patients with their volumes, in a fixed order.
        plan: the run's plan.
        round_index: 1 for the first training round.
        site: part of the seed: sites draw different windows.
        report: called after each step with its number (from 1).

    Raises:
        DataError: there is no training patient.
    """
    if not patients:
        raise DataError(
            "cannot train: the site has no training patient",
            where=site,
            seen="0 training patients; at least 1 is needed",
            remedy="Add patients or change the split; nothing was sent.",
        )
    settings = plan.training

    def step_losses(step: int, at_once: int) -> Iterator[Tensor]:
        seed = (plan.seed, round_index, site, step)
        for batch in draw_batches(mixer, patients, settings, seed, at_once=at_once):
            share = len(batch.target) / settings.patients_per_step
            yield share * batch_loss(mixer, batch, settings)

    rows = settings.patients_per_step
    return take_steps(
        mixer, start, plan, step_losses, round_index, report, rows=rows, setting="training.window"
    )


def draw_batches(
    mixer: Mixer,
    patients: Sequence[Person],
    settings: TrainingPlan,
    seed: tuple[int, int, str, int],
    *,
    at_once: int | None = None,
) -> Iterator[Batch]:
    """One step's windows: distinct patients while there are enough, one window of each.

    A patient is a person: of several volumes one is drawn, so that nobody counts more than others.
    All of them are one batch, or batches of `at_once`. A mixer that runs the frozen decoder needs
    whole slices, which must not be padded (the decoder normalises over the slice): there each
    patient is a batch.
    """
    run_seed, round_index, site, step = seed
    generator = np.random.default_rng(
        derive_seed(run_seed, "round", round_index, "site", site, "step", step)
    )
    count = settings.patients_per_step
    chosen = generator.choice(len(patients), count, replace=len(patients) < count)
    found = [examinations(patients[int(i)]) for i in chosen]
    # nothing is drawn for a person with one volume
    picked = [one[int(generator.integers(len(one))) if len(one) > 1 else 0] for one in found]
    if mixer.pooled_names:
        for features in picked:
            size = (settings.window[0], *features.pred.shape[2:])
            window = draw_window(features, size, generator)
            yield make_batch([features], [window], mixer, size)
        return
    windows = [draw_window(features, settings.window, generator) for features in picked]
    length = at_once or count
    for i in range(0, count, length):
        yield make_batch(picked[i : i + length], windows[i : i + length], mixer, settings.window)


def batch_loss(mixer: Mixer, batch: Batch, settings: TrainingPlan) -> Tensor:
    """Mean loss over the batch's patients, a scalar."""
    with training_autocast(batch.target.device):
        prediction = mixer(batch.inputs)
    # the loss in float32: squared differences of half-precision numbers lose what is learned
    return paired_loss(prediction.float(), batch.target, batch.inputs.mask, settings.loss).mean()
