"""Figures of an attack, from one score per patient. A higher score means a likelier member.

A *member* is a patient whose data trained what is attacked; the *others* are patients of the
same kind who were held out. Nothing of a single patient is in the figures: they are rounded to
two decimals, numbers of patients are rounded down to a multiple of 5, and below 5 of either
kind there are none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from lift.errors import DataError
from lift.metrics.synthrad import Floats

CAVEAT: Final = (
    "An AUC near 0.5 is no proof of privacy: an attack that fails says that this attack failed."
)
"""Said beside every figure of an audit."""

FEWEST: Final = 5
"""Patients of either kind below which there are no figures, and the step of their counts."""

LARGEST_FPR: Final = 0.01
"""False alarms allowed where the rate of found members is read."""

DECIMALS: Final = 2

_SAMPLES: Final = 2000
_TAIL: Final = 0.025
_BLOCK: Final = 200


@dataclass(frozen=True)
class AttackFigures:
    """How well an attack tells members from others.

    Attributes:
        auc: probability that a random member has a higher score than a random other, a tie
            counting half; .5 is guessing.
        auc_low: lower end of its 95% interval, bootstrapped over patients.
        auc_high: upper end.
        tpr: share of members found when at most 1% of the others are taken for members.
        fpr_of_tpr: share of the others that then really are, to three decimals: n others allow
            no rate between 0 and 1 / n, so below 100 of them it is 0.
        members: number of members, rounded down to a multiple of 5.
        others: number of held-out patients, likewise.
    """

    CAVEAT: ClassVar[str] = CAVEAT

    auc: float
    auc_low: float
    auc_high: float
    tpr: float
    fpr_of_tpr: float
    members: int
    others: int


def attack_figures(
    members: Sequence[float], others: Sequence[float], *, seed: int
) -> AttackFigures:
    """The figures of one attack; the order of patients does not matter.

    The interval is the percentile bootstrap of `lift.metrics.intervals`, members and others
    drawn apart. With few patients it is rather too narrow, and of no width at an AUC of 0 or 1.

    Args:
        members: a score for each patient whose data trained the model.
        others: a score for each held-out patient.
        seed: of the bootstrap.

    Raises:
        DataError: fewer than 5 members or 5 others.
        ValueError: a score is not finite.

    Source: Fawcett 2006 (AUC as a rank statistic); Carlini et al. 2022, arXiv:2112.03570 (why
    the rate at few false alarms says more than the AUC).
    """
    require_enough(len(members), len(others))
    own = np.sort(np.asarray(members, dtype=np.float64))
    rest = np.sort(np.asarray(others, dtype=np.float64))
    if not (np.isfinite(own).all() and np.isfinite(rest).all()):
        raise ValueError("an attack needs one finite score for each patient")
    low, high = _auc_interval(own, rest, seed)
    tpr, fpr = tpr_at_fpr(own, rest)
    return AttackFigures(
        auc=round(auc(own, rest), DECIMALS),
        auc_low=round(low, DECIMALS),
        auc_high=round(high, DECIMALS),
        tpr=round(tpr, DECIMALS),
        fpr_of_tpr=round(fpr, DECIMALS + 1),
        members=rounded_count(len(own)),
        others=rounded_count(len(rest)),
    )


def auc(members: Floats, others: Floats) -> float:
    """Share of pairs in which the member's score is the higher one; a tie counts half."""
    return float(_wins(members, others).mean())


def tpr_at_fpr(
    members: Floats, others: Floats, *, largest_fpr: float = LARGEST_FPR
) -> tuple[float, float]:
    """Share of members at or above a threshold, and share of others: at most `largest_fpr`.

    The threshold is the lowest member's score that allows it, so that the second share is no
    larger than the first needs. Without such a score both are 0.
    """
    # the small number: 0.07 * 100 is a little more than 7, and 0.29 * 100 a little less than 29
    allowed = math.floor(largest_fpr * len(others) + 1e-9)
    falling = np.sort(others)[::-1]
    barrier = falling[allowed] if allowed < len(falling) else -math.inf
    found = members[members > barrier]
    if not len(found):
        return 0.0, 0.0
    return len(found) / len(members), float((others >= found.min()).mean())


def rounded_count(count: int) -> int:
    """A number of patients as it may be published: rounded down to a multiple of 5."""
    return count // FEWEST * FEWEST


def require_enough(members: int, others: int) -> None:
    """Refuse figures over so few patients that they reveal single ones.

    Raises:
        DataError: fewer than 5 members or 5 others.
    """
    for role, count in {"training": members, "held-out": others}.items():
        if count < FEWEST:
            raise DataError(
                f"cannot audit with so few {role} patients",
                where=f"the {role} patients",
                seen=f"fewer than {FEWEST}; at least {FEWEST} of each kind are needed",
                remedy="Nothing was computed: figures over so few say things of single patients. "
                "Add patients, or hold more of them out.",
            )


def _wins(members: Floats, others: Floats) -> Floats:
    """(members, others): 1 where the member's score is higher, 0.5 at a tie, else 0."""
    column, row = members[:, None], others[None, :]
    wins: Floats = (column > row) + 0.5 * (column == row)
    return wins


def _auc_interval(members: Floats, others: Floats, seed: int) -> tuple[float, float]:
    wins = _wins(members, others)
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(0, _SAMPLES, _BLOCK):
        # how often each patient is drawn: the AUC is bilinear in these
        own = _drawn(rng, len(members))
        rest = _drawn(rng, len(others))
        draws.append(((own @ wins) * rest).sum(axis=1) / wins.size)
    low, high = np.quantile(np.concatenate(draws), [_TAIL, 1 - _TAIL])
    return float(low), float(high)


def _drawn(rng: np.random.Generator, count: int) -> Floats:
    times: Floats = rng.multinomial(count, np.full(count, 1 / count), size=_BLOCK).astype(float)
    return times
