"""Membership inference on a released mixer of the paired task: was this patient trained on?

Three attacks, each a score by patient from the patient's loss:

- `loss_threshold`: minus the loss under the released mixer. What is easy looks like a member,
  so this attack is weak (Yeom et al. 2018, arXiv:1709.01604).
- `start_mixer`: the loss under the mixer that the run started from, minus that under the
  released one: what training gained.
- `reference_models`: the mean loss under reference mixers that did not see this patient, minus
  that under the released one: how much easier the patient is for this mixer than for others
  (difficulty calibration, Watson et al. 2022, arXiv:2111.08440). A full likelihood ratio
  (Carlini et al. 2022, arXiv:2112.03570) needs the spread of many more reference mixers.

The references are trained at the site as an attacker would: on halves of all its patients,
members and held-out ones alike, without privacy. Nothing of them is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from lift.audit.scores import AttackFigures, attack_figures, require_enough
from lift.config.plan import LossPlan, Plan
from lift.config.privacy import NoPrivacy
from lift.errors import ConfigError, DataError
from lift.generator.features import Features
from lift.mixer.base import Mixer
from lift.randomness import derive_seed
from lift.tasks.paired.losses import paired_loss
from lift.tasks.paired.predictions import mixed
from lift.tasks.paired.training import train_round

Volumes = Sequence[Features]
Cohort = Mapping[str, Volumes]
"""Patient -> all volumes of that patient."""

LOSSES: Final = "losses of patients"
REFERENCE_STEPS: Final = "steps of reference mixers"
REFERENCES: Final = 4
"""Reference mixers; half of them did not see a given patient."""


def membership(
    members: Cohort,
    others: Cohort,
    mixer: Mixer,
    released: Mapping[str, Tensor],
    start: Mapping[str, Tensor],
    plan: Plan,
    *,
    seed: int,
    references: int = REFERENCES,
    report: Callable[[str, int, int], None] | None = None,
) -> dict[str, AttackFigures]:
    """Return ATTACK -> how well it separates the site's training patients from held-out ones.

    The same arguments give the same figures; they depend on neither the order of patients nor
    on what `mixer` held. No patient's loss is logged or returned.

    Args:
        members: the training patients, each with all its volumes; a patient's loss is the mean
            over them.
        others: patients of the site that no training saw: held out of the z-filter too.
        mixer: an instance to run and train in; its numbers are overwritten.
        released: numbers of the mixer that is attacked.
        start: numbers that the run started from; the references start there as well.
        plan: the run's plan. References take all its rounds at this site alone, without privacy.
        seed: of the halves, the references' training and the intervals.
        references: an even number of reference mixers: each two see the two halves of one
            random division, so that each patient is unseen by exactly one of them.
        report: called with what was done, how much of it and of how much: after each optimiser
            step of the references, and after each patient's loss.

    Raises:
        DataError: fewer than 5 members or others, a patient is on both sides, or a loss is
            not finite.
        ConfigError: `references` is odd or below 2, or the plan is of another task.
        ValueError: a patient has no volume or no target, or values do not fit the mixer.
    """
    require_enough(len(members), len(others))
    _check(members, others, plan, references)
    names = [*sorted(members), *sorted(others)]
    cohort = [(members if name in members else others)[name] for name in names]
    loss = plan.training.loss

    known, losses_of_all = 0, (2 + references // 2) * len(names)

    def losses(values: Mapping[str, Tensor], patients: Sequence[int]) -> list[float]:
        nonlocal known
        mixer.load_values(values)
        found = []
        for i in patients:
            found.append(patient_loss(mixer, cohort[i], loss))
            known += 1
            if report is not None:
                report(LOSSES, known, losses_of_all)
        return found

    everyone = range(len(names))
    under_released = np.asarray(losses(released, everyone))
    under_start = np.asarray(losses(start, everyone))
    unseen = np.zeros(len(names))
    halves = complementary_halves(len(names), references, seed=derive_seed(seed, "halves"))
    alone = reference_plan(plan)
    for index, half in enumerate(halves):
        values = _train_reference(
            mixer,
            start,
            [cohort[i] for i in half],
            alone.model_copy(update={"seed": derive_seed(seed, "reference", index)}),
            _counted(report, index * alone.total_steps, references * alone.total_steps),
        )
        seen = set(half)
        rest = [i for i in everyone if i not in seen]
        unseen[rest] += losses(values, rest)
    scores = {
        "loss_threshold": -under_released,
        "start_mixer": under_start - under_released,
        "reference_models": unseen / (references // 2) - under_released,
    }
    if not all(np.isfinite(values).all() for values in scores.values()):
        raise DataError(
            "cannot audit this mixer",
            where="the patients' losses",
            seen="a loss that is not finite; every patient needs a finite one",
            remedy="Check that the mixer belongs to the plan, and its training for divergence.",
        )
    count = len(members)
    return {
        attack: attack_figures(
            values[:count].tolist(), values[count:].tolist(), seed=derive_seed(seed, attack)
        )
        for attack, values in scores.items()
    }


def patient_loss(mixer: Mixer, volumes: Volumes, plan: LossPlan) -> float:
    """Mean over a patient's volumes of the paired loss of the whole volume inside the mask.

    The whole volume and no random windows: the same each time. The MS-SSIM term is left out,
    which asks for slices of a least size.
    """
    pointwise = plan.model_copy(update={"ms_ssim_weight": 0.0})
    found = []
    for features in volumes:
        if features.target is None:
            raise ValueError("this needs a patient with a target")
        # float64: the differences between mixers may be a millionth of the loss
        prediction, target, mask = (
            torch.from_numpy(np.array(array, dtype=np.float64))[None]
            for array in (mixed(mixer, features), features.target, features.mask)
        )
        found.append(float(paired_loss(prediction, target, mask, pointwise)))
    return float(np.mean(found))


def complementary_halves(count: int, halves: int, *, seed: int) -> list[list[int]]:
    """Random halves of `count` patients (by index, sorted); 2 i and 2 i + 1 together are all.

    Of each two a patient is in exactly one. Who is a member plays no part in it.
    """
    rng = np.random.default_rng(seed)
    found: list[list[int]] = []
    for _ in range(halves // 2):
        order = rng.permutation(count).tolist()
        found += [sorted(order[: count // 2]), sorted(order[count // 2 :])]
    return found


def reference_plan(plan: Plan) -> Plan:
    """The plan by which a reference mixer is trained: the run's own, without privacy.

    `patient-central` takes one step a round, which the server's optimiser joins together. At
    one site alone these are the steps of a single round.
    """
    update: dict[str, object] = {"privacy": NoPrivacy(mode="none")}
    if plan.privacy.mode == "patient-central":
        update["training"] = plan.training.model_copy(update={"steps": plan.total_steps})
        update["federation"] = plan.federation.model_copy(update={"rounds": 1})
    return plan.model_copy(update=update)


def _train_reference(
    mixer: Mixer,
    start: Mapping[str, Tensor],
    patients: Sequence[Volumes],
    plan: Plan,
    report: Callable[[int], None],
) -> dict[str, Tensor]:
    values = dict(start)
    for round_index in range(1, plan.federation.rounds + 1):
        before = (round_index - 1) * plan.training.steps

        def done(step: int, before: int = before) -> None:
            report(before + step)

        values = train_round(
            mixer,
            values,
            patients,
            plan,
            round_index=round_index,
            site="reference",
            report=done,
        ).values
    return values


def _counted(
    report: Callable[[str, int, int], None] | None, before: int, total: int
) -> Callable[[int], None]:
    def done(steps: int) -> None:
        if report is not None:
            report(REFERENCE_STEPS, before + steps, total)

    return done


def _check(members: Cohort, others: Cohort, plan: Plan, references: int) -> None:
    if plan.task.kind != "paired":
        raise ConfigError(
            "cannot audit this run for membership by its loss",
            where="task.kind",
            seen=f"{plan.task.kind}; a paired task is needed",
            remedy="Look for copies among its generated volumes instead.",
        )
    if references < 2 or references % 2:
        raise ConfigError(
            "cannot audit with this number of reference mixers",
            where="references",
            seen=f"{references}; an even number from 2 on is needed",
            remedy="Take 4, or more where time allows: they come in complementary pairs.",
        )
    if set(members) & set(others):
        raise DataError(
            "cannot audit: patients are on both sides",
            where="members and held-out patients",
            seen="a patient who is both; each must be one of them",
            remedy="Give the split of the run that trained the mixer.",
        )
    if not all(volumes for cohort in (members, others) for volumes in cohort.values()):
        raise ValueError("each patient needs a volume")
