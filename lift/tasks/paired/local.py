"""A mixer of one site: the federated mixer after more local steps, or trained alone.

Both are trained at the site, on its own patients and without noise. Their numbers stay there: the
file that keeps one is no finished mixer, and no command takes it for one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import safetensors
import safetensors.torch
from torch import Tensor

from lift.config.plan import Plan
from lift.errors import CheckpointError
from lift.files import file_digest, write_atomically
from lift.generator.features import Person
from lift.mixer.base import Mixer
from lift.mixer.finished import FinishedMixer
from lift.randomness import derive_seed
from lift.strict_json import parse_json
from lift.tasks.paired.contrast import OwnMixer, SiteModel, read_site_model
from lift.tasks.paired.training import train_round

OWN_MIXER_FILE: Final = "site-mixer.safetensors"
"""In a site's work folder, beside its curves: a mixer of its own, where it chose one."""
LEARNING_RATE: Final = 5e-3
"""Chosen on validation patients of four phantom sites, for as many steps as the run had: 50 steps
at 2e-3 gave .2 dB over the run's mixer, 300 at this rate 1.2, .5, .4 and .7 (docs/lab-notes.md)."""
_CARD: Final = "own mixer"
_STATEMENT: Final = "chosen at a site, never to leave"


def local_steps(
    mixer: Mixer,
    values: Mapping[str, Tensor],
    patients: Sequence[Person],
    plan: Plan,
    steps: int,
    learning_rate: float,
    site: str,
    *,
    report: Callable[[int], None] | None = None,
) -> dict[str, Tensor]:
    """A finished mixer after some more optimiser steps on one site's training patients.

    A warm-up and a half cosine of their own; windows follow from the plan's seed, the site and the
    step, and are others than those of the run.

    Args:
        mixer: an instance of the plan's; its numbers are overwritten.
        values: the finished mixer; they are not changed.
        patients: the site's training patients, each under its own curves, in a fixed order.
        plan: the run's plan.
        steps: 0 gives `values` again.
        learning_rate: the highest.
        site: its name.
        report: called after each step with its number (from 1).

    Raises:
        DataError: there is no training patient.
        ValueError: fewer than 0 steps.
    """
    if steps < 0:
        raise ValueError(f"{steps} steps")
    if steps == 0:
        return dict(values)
    training = plan.training.model_copy(update={"steps": steps, "learning_rate": learning_rate})
    own = plan.model_copy(
        update={
            "seed": derive_seed(plan.seed, "local steps"),
            "training": training,
            "federation": plan.federation.model_copy(update={"rounds": 1}),
        }
    )
    return train_round(
        mixer, dict(values), patients, own, round_index=1, site=site, report=report
    ).values


def train_alone(
    mixer: Mixer,
    start: Mapping[str, Tensor],
    patients: Sequence[Person],
    plan: Plan,
    site: str,
    *,
    report: Callable[[int, int], None] | None = None,
) -> dict[str, Tensor]:
    """A mixer of one site alone: the plan's rounds and steps without any other site, or noise.

    Args:
        mixer: an instance of the plan's; its numbers are overwritten.
        start: where training begins.
        patients: the site's training patients, as the mixer is to see them, in a fixed order.
        plan: the run's plan.
        site: its name.
        report: called after each round with its number (from 1) and that of all.

    Raises:
        DataError: there is no training patient.
    """
    values = dict(start)
    rounds = plan.federation.rounds
    for index in range(1, rounds + 1):
        values = train_round(mixer, values, patients, plan, round_index=index, site=site).values
        if report is not None:
            report(index, rounds)
    return values


def write_own_mixer(path: Path, values: Mapping[str, Tensor], plan: Plan, method: str) -> OwnMixer:
    """Keep a site's own mixer, for translations at this site alone; mode 0600.

    Raises:
        OSError: the disk refuses.
    """
    card = {"plan_digest": plan.digest(), "method": method, "statement": _STATEMENT}
    # one entry: the order of several is not the same in two processes
    metadata = {_CARD: json.dumps(card, sort_keys=True)}
    tensors = {name: tensor.contiguous() for name, tensor in sorted(values.items())}
    write_atomically(path, safetensors.torch.save(tensors, metadata=metadata), mode=0o600)
    return OwnMixer(method, file_digest(path))


def with_site(
    finished: FinishedMixer, curves: Path | None
) -> tuple[FinishedMixer, SiteModel | None]:
    """The mixer that a site uses, and its curves; without a file the run's mixer and None.

    Args:
        finished: the run's.
        curves: the site's; its own mixer, where it chose one, lies beside them.

    Raises:
        DataError: the file is not one of a site's curves.
        CheckpointError: the site's own mixer is missing, another one, or of another plan.
    """
    if curves is None:
        return finished, None
    site = read_site_model(curves, len(finished.plan.task.source))
    if site.own is not None:
        finished = with_own_mixer(finished, curves.with_name(OWN_MIXER_FILE), site.own)
    return finished, site


def with_own_mixer(finished: FinishedMixer, path: Path, own: OwnMixer) -> FinishedMixer:
    """The run's mixer with the numbers that a site's curves name in place of its own.

    Args:
        finished: the run's.
        path: the site's own mixer.
        own: what the site's curves say of it.

    Raises:
        CheckpointError: the file is missing, another one, or of another plan.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as stream:
            card = parse_json((stream.metadata() or {}).get(_CARD, "{}"))
            values = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        seen = "" if file_digest(path) == own.digest else "it is not the one that was chosen"
        if not seen and card.get("plan_digest") != finished.plan.digest():
            seen = "it belongs to the mixer of another plan"
    except (OSError, safetensors.SafetensorError, ValueError, AttributeError):
        values, seen = {}, "missing or damaged"
    if seen:
        raise CheckpointError(
            "cannot use this site's own mixer, which its curves name",
            where=path.name,
            seen=seen,
            remedy="Nothing was written. Put it back beside the curves, or choose again: "
            "lift-client choose --site site.yaml --mixer MIXER.",
        )
    return replace(finished, values=values)
