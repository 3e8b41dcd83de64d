"""Whether the training loss was still falling at the end of a run, from the rounds' record.

The mean loss of the last third of the rounds is held against that of the middle third, at each site
by itself: sites have losses of different size, and not every site is in every round. The windows
of a round are drawn at random, so one round's loss is noisy: a fall counts where it is more than
`LEAST` and more than two standard errors of the scatter inside the thirds (on noise alone that
happens in at most 9 of 100 runs).

Imports neither torch nor an image library: the report needs it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Final, TypedDict

from lift.records.rounds import RoundRecord

FEWEST_ROUNDS: Final = 5
"""With fewer training rounds a third is no more than one round."""
LEAST: Final = 0.02
"""A fall of less than this share means nothing to anybody."""
_ERRORS: Final = 2.0
Losses = Mapping[str, float | None]
"""SITE -> mean training loss of one round; None if it must not be published."""


class LossTrend(TypedDict):
    """The trend of the loss at the end of training, as in `run.json`.

    Attributes:
        fall_percent: how far the last third's mean loss is below the middle third's, a geometric
            mean over sites; below 0 where it rose.
        still_falling: whether that is more than scatter.
    """

    fall_percent: float
    still_falling: bool


def loss_trend(runs: Sequence[Sequence[Losses]]) -> LossTrend | None:
    """The trend over one federation's training rounds, or over several (folds) together.

    Args:
        runs: of each federation the losses of its training rounds, in order.

    Returns:
        None with fewer than `FEWEST_ROUNDS` rounds, or where no site told its loss in both thirds.
    """
    falls: list[float] = []
    scatter: dict[tuple[str, int], list[float]] = {}
    for rounds in runs:
        if len(rounds) < FEWEST_ROUNDS:
            continue
        third = math.ceil(len(rounds) / 3)
        parts = {"last": rounds[-third:], "middle": rounds[-2 * third : -third]}
        for site in sorted({site for losses in rounds for site in losses}):
            told = {name: _logarithms(part, site) for name, part in parts.items()}
            if not all(told.values()):
                continue
            means = {name: fmean(values.values()) for name, values in told.items()}
            falls.append(means["middle"] - means["last"])
            for name, values in told.items():
                for place, value in values.items():
                    scatter.setdefault((name, place), []).append(value - means[name])
    if not falls:
        return None
    fall = fmean(falls)
    # sites of one round train from one mixer: their mean is what scatters from round to round
    by_round = [fmean(values) for values in scatter.values()]
    free = len(by_round) - 2
    error = 0.0
    if free > 0:
        variance = sum(value**2 for value in by_round) / free
        counts = [sum(name == part for name, _ in scatter) for part in ("last", "middle")]
        error = math.sqrt(variance * sum(1 / count for count in counts))
    return LossTrend(
        fall_percent=round(100 * (1 - math.exp(-fall)), 2),
        still_falling=fall > max(LEAST, _ERRORS * error),
    )


def of_records(runs: Sequence[Sequence[RoundRecord]]) -> LossTrend | None:
    """As :func:`loss_trend`, from the lines of each federation's `rounds.jsonl`."""
    return loss_trend([[line.loss for line in lines if line.kind == "train"] for lines in runs])


def _logarithms(rounds: Sequence[Losses], site: str) -> dict[int, float]:
    """Place of the round -> logarithm of the site's loss, if it reported one."""
    told = ((place, losses.get(site)) for place, losses in enumerate(rounds))
    return {place: math.log(loss) for place, loss in told if loss is not None and loss > 0}
