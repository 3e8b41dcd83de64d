"""The optimiser steps of one round: what every task's local training shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from lift.config.plan import Plan, TrainingPlan
from lift.device import AtOnce
from lift.mixer.trained import TrainedPart


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


def take_steps(
    part: TrainedPart,
    start: dict[str, Tensor],
    plan: Plan,
    step_losses: Callable[[int, int], Iterable[Tensor]],
    round_index: int,
    report: Callable[[int], None] | None = None,
    *,
    rows: int = 1,
    setting: str = "",
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
        setting: of the plan, that makes one row smaller; empty: none does.

    Raises:
        DeviceMemoryError: one row alone does not fit into the device's memory.
    """
    # read once, after the last step: reading a number of a GPU waits for all that it has to do
    losses: list[Tensor] = []
    at_once = AtOnce(rows, part.device, setting)
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


def learning_rate(settings: TrainingPlan, position: int, total_steps: int) -> float:
    """The rate at one step of the run: linear warm-up, then a half cosine down to 0."""
    warm = min(1.0, (position + 1) / (settings.warmup_steps + 1))
    cosine = 0.5 * (1.0 + math.cos(math.pi * position / max(total_steps, 1)))
    return settings.learning_rate * warm * cosine
