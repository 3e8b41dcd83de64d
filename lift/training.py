"""Local training of one round: only the mixer's numbers get gradients.

Everything that is random or scheduled follows from the plan, the round's index and the
site's name, never from an earlier round's state: a site that restarts computes the same
update bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from lift.config.plan import Plan, TrainingPlan
from lift.device import AtOnce, training_autocast
from lift.errors import DataError
from lift.features import Features
from lift.losses import paired_loss
from lift.mixer.base import Mixer
from lift.mixer.trained import TrainedPart
from lift.randomness import derive_seed
from lift.windows import Batch, draw_window, make_batch


@dataclass(frozen=True)
class TrainedRound:
    """The mixer after one round's local steps, and the mean loss over them.

    Attributes:
        values: the mixer's numbers.
        loss: None where it must not leave: under differential privacy.
        sums: for `patient-central` alone: what leaves instead of an update, in fixed point;
            `values` is then the received mixer.
    """

    values: dict[str, Tensor]
    loss: float | None
    sums: dict[str, np.ndarray] | None = None


def train_round(
    mixer: Mixer,
    start: dict[str, Tensor],
    patients: Sequence[Features],
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
        patients: training patients, in a fixed order.
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
    return take_steps(mixer, start, plan, step_losses, round_index, report, rows=rows)


def take_steps(
    part: TrainedPart,
    start: dict[str, Tensor],
    plan: Plan,
    step_losses: Callable[[int, int], Iterable[Tensor]],
    round_index: int,
    report: Callable[[int], None] | None = None,
    *,
    rows: int = 1,
) -> TrainedRound:
    """The optimiser steps of one round down a loss: what paired and unconditional training share.

    Args:
        part: what is trained; its numbers are overwritten.
        start: the received numbers.
        plan: the run's plan.
        step_losses: takes a step (from 0) and the rows that go to the device at once; gives the
            terms of the step's loss with the part's numbers as they are, one after the other.
        round_index: 1 for the first training round.
        report: called after each step with its number (from 1).
        rows: of a step; 1 where its loss cannot be had in terms.

    Raises:
        DeviceMemoryError: one row alone does not fit into the device's memory.
    """
    # read once, after the last step: reading a number of a GPU waits for all that it has to do
    losses: list[Tensor] = []
    at_once = AtOnce(rows, part.device)
    anchors = {name: tensor.to(part.device) for name, tensor in start.items()}

    def pull() -> Tensor:
        squares = (
            (p - anchors[name]).square().sum()
            for name, p in part.named_parameters()
            if p.requires_grad
        )
        distance = sum(squares, start=torch.zeros((), device=part.device))
        return 0.5 * plan.training.proximal * distance

    def descend(step: int, at_once: int) -> Tensor:
        # an attempt that did not fit has left gradients behind
        part.zero_grad(set_to_none=True)
        total: Tensor | None = None
        for term in step_losses(step, at_once):
            loss = term + pull() if total is None and plan.training.proximal > 0 else term
            loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
            total = loss.detach() if total is None else total + loss.detach()
        if total is None:
            raise ValueError("a step without a loss")
        return total

    def set_gradients(step: int) -> None:
        losses.append(at_once.attempt(partial(descend, step)))

    values = optimise(part, start, plan, set_gradients, round_index, report)
    return TrainedRound(values, float(np.mean(torch.stack(losses).tolist())))


def optimise(
    part: TrainedPart,
    start: dict[str, Tensor],
    plan: Plan,
    set_gradients: Callable[[int], None],
    round_index: int,
    report: Callable[[int], None] | None = None,
) -> dict[str, Tensor]:
    """The part's numbers after one round's AdamW steps along whatever gradients are set.

    Args:
        part: what is trained; its numbers are overwritten.
        start: the received numbers.
        plan: the run's plan.
        set_gradients: fills the parameters' `grad`, which is empty, for a step (from 0).
        round_index: 1 for the first training round.
        report: called after each step with its number (from 1).
    """
    settings = plan.training
    # evaluation leaves a mixer in the other mode, in which a GPU's GRU has no gradient
    part.train()
    part.load_values(start)
    trained = [parameter for parameter in part.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(
        trained,
        lr=settings.learning_rate,
        betas=(0.9, 0.99),
        weight_decay=settings.weight_decay,
    )
    for step in range(settings.steps):
        position = (round_index - 1) * settings.steps + step
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(settings, position, plan.total_steps)
        optimiser.zero_grad(set_to_none=True)
        set_gradients(step)
        torch.nn.utils.clip_grad_norm_(trained, settings.gradient_clip)
        optimiser.step()
        if report is not None:
            report(step + 1)
    return part.values()


def draw_batches(
    mixer: Mixer,
    patients: Sequence[Features],
    settings: TrainingPlan,
    seed: tuple[int, int, str, int],
    *,
    at_once: int | None = None,
) -> Iterator[Batch]:
    """One step's windows: distinct patients while there are enough, one window of each.

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
    picked = [patients[int(i)] for i in chosen]
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


def learning_rate(settings: TrainingPlan, position: int, total_steps: int) -> float:
    """The rate at one step of the run: linear warm-up, then a half cosine down to 0."""
    warm = min(1.0, (position + 1) / (settings.warmup_steps + 1))
    cosine = 0.5 * (1.0 + math.cos(math.pi * position / max(total_steps, 1)))
    return settings.learning_rate * warm * cosine
