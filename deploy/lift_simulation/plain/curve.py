"""A training that goes on until its curve is flat or its budget is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import process_time
from typing import Final, Literal, Protocol

import torch
from torch import Tensor

from lift.config.plan import Plan
from lift.generator.features import Person
from lift.mixer.base import Mixer
from lift.tasks.paired.training import train_round
from lift_server.rounds.aggregation import mean_update, site_weights

_TOGETHER: Final = "pooled"
"""In place of a site's name, where all patients are in one place."""
_ENDLESS: Final = 1_000_000
"""Rounds of a plan whose learning rate does not fall, since the end of training is unknown."""

Mode = Literal["pooled", "fedavg"]
Values = dict[str, Tensor]
Advance = Callable[[int, Values], tuple[Values, int]]
"""Round (from 1) and numbers -> numbers after it, and the steps that it took."""


class Pace(Protocol):
    """How a training advances, and when its curve is flat; settings have these as keys."""

    @property
    def pooled_steps(self) -> int:
        """Steps of a pooled training between two states that its average counts."""

    @property
    def local_steps(self) -> int:
        """Steps of each site in a round."""

    @property
    def checkpoint_steps(self) -> int:
        """Steps, of all sites together, between two measurements of the curve."""

    @property
    def fewest_share(self) -> float:
        """Share of its budget before which no training is called flat."""

    @property
    def plateau_db(self) -> float:
        """What counts as a gain over the last third of the steps."""

    @property
    def sharpness(self) -> float:
        """Of the average over a training's states; see :func:`averaged`."""


@dataclass(frozen=True)
class Point:
    """One measurement of a curve: steps of all sites together, and a PSNR."""

    steps: int
    psnr_db: float


@dataclass(frozen=True)
class Trained:
    """What a training came to.

    Attributes:
        values: the kept checkpoint's numbers.
        kept: its steps.
        curve: every checkpoint.
        stopped: by a plateau, or by the budget of steps.
        core_s: processor seconds of training and measuring the curve.
        advance_s: of training alone.
    """

    values: Values
    kept: int
    curve: tuple[Point, ...]
    stopped: Literal["plateau", "budget"]
    core_s: float
    advance_s: float


def is_plateau(curve: Sequence[Point], gain_db: float, fewest: float) -> bool:
    """Whether the best figure rose by less than `gain_db` over the last third of the steps.

    Args:
        curve: checkpoints by rising steps.
        gain_db: what counts as a gain.
        fewest: steps before which a flat curve says nothing.
    """
    if not curve or curve[-1].steps < fewest:
        return False
    before = [point.psnr_db for point in curve if 3 * point.steps <= 2 * curve[-1].steps]
    if not before:
        return False
    return max(point.psnr_db for point in curve) - max(before) < gain_db


def averaged(average: Values | None, values: Values, index: int, sharpness: float) -> Values:
    """A running average of a training's states that forgets its beginning at any length.

    State i of n counts in proportion to about i ** sharpness: a rate that does not fall leaves a
    noise in the numbers that this takes away.

    Args:
        average: over the states before; None at first.
        values: the newest state.
        index: its number, from 1.
        sharpness: 3 is about the last quarter of the states.

    Source: Karras et al. 2024, arXiv:2312.02696, section 3.1.
    """
    if average is None:
        return values
    kept = (1 - 1 / index) ** (sharpness + 1)
    return {name: kept * average[name] + (1 - kept) * values[name] for name in values}


def train(
    advance: Advance,
    start: Values,
    measure: Callable[[Values], float],
    pace: Pace,
    *,
    most_steps: int,
    keep_best: bool,
    report: Callable[[int], None] | None = None,
) -> Trained:
    """Advance until the curve of the averaged states is flat, or `most_steps` are taken.

    Args:
        advance: one round.
        start: numbers at first.
        measure: numbers -> PSNR of the patients that the curve is of, dB.
        pace: checkpoints and plateau.
        most_steps: the budget.
        keep_best: keep the best checkpoint, as validation patients allow; else the last.
        report: called after each round with the steps taken.
    """
    began = process_time()
    values, average = start, None
    curve: list[Point] = []
    checkpoints: list[Values] = []
    steps = index = 0
    advance_s = 0.0
    stopped: Literal["plateau", "budget"] = "budget"
    while steps < most_steps:
        index += 1
        at = process_time()
        values, taken = advance(index, values)
        advance_s += process_time() - at
        steps += taken
        average = averaged(average, values, index, pace.sharpness)
        if report is not None:
            report(steps)
        last = curve[-1].steps if curve else 0
        if steps < most_steps and steps - last < pace.checkpoint_steps:
            continue
        curve.append(Point(steps, measure(average)))
        checkpoints.append(average)
        if is_plateau(curve, pace.plateau_db, pace.fewest_share * most_steps):
            stopped = "plateau"
            break
    best = max(range(len(curve)), key=lambda i: curve[i].psnr_db) if keep_best else len(curve) - 1
    return Trained(
        checkpoints[best],
        curve[best].steps,
        tuple(curve),
        stopped,
        process_time() - began,
        advance_s,
    )


def rounds_of(
    mode: Mode,
    network: Mixer,
    patients: Mapping[str, Sequence[Person]],
    plan: Plan,
    pace: Pace,
) -> Advance:
    """How a network advances: on all patients at once, or as an average of sites' trainings.

    Args:
        mode: which.
        network: trained in; its numbers are overwritten.
        patients: site -> training patients, as the network sees them; a site may have none.
        plan: of the model.
        pace: steps of a round.
    """
    joined = {site: list(found) for site, found in sorted(patients.items()) if found}
    if mode == "pooled":
        joined = {_TOGETHER: [person for found in joined.values() for person in found]}
    steps = pace.pooled_steps if mode == "pooled" else pace.local_steps
    training = plan.training.model_copy(update={"steps": steps})
    federation = plan.federation.model_copy(update={"rounds": _ENDLESS})
    endless = plan.model_copy(update={"training": training, "federation": federation})
    weights = site_weights({site: len(found) for site, found in joined.items()}, plan.aggregation)

    def advance(index: int, values: Values) -> tuple[Values, int]:
        ends = {
            site: train_round(network, values, found, endless, round_index=index, site=site).values
            for site, found in joined.items()
        }
        if mode == "pooled":
            return ends[_TOGETHER], steps
        # weights add up to 1: the mean of the ends is the start and the mean of the updates
        mean = mean_update(ends, weights)
        return {name: tensor.to(torch.float32) for name, tensor in mean.items()}, steps * len(ends)

    return advance
