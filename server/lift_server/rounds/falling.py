"""What becomes of a round that shows that the mixer has become worse.

A site's validation PSNR of round r is of the mixer that the round began with, which the rounds
before it made. Everything here follows from the record of rounds, so a resumed run decides as an
uninterrupted one does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median_high

from lift.config.plan import Plan
from lift.config.privacy import NoPrivacy
from lift.errors import FallError
from lift.records.rounds import Fall, RoundRecord

Psnr = Mapping[str, float | None]
_FEWEST_SITES = 2


def left_out(records: Sequence[RoundRecord]) -> dict[str, int]:
    """Sites that were left out -> the round that showed the fall."""
    falls = [(record.round, record.fall) for record in records if record.fall is not None]
    return {fall.left_out: index for index, fall in falls if fall.left_out is not None}


def fall_of(records: Sequence[RoundRecord], psnr_db: Psnr, plan: Plan) -> Fall | None:
    """The fall that this round's validation shows; None where there is none.

    The change of a round is the median over the sites of the change of their own validation PSNR
    since the best round: one site that lies moves it no further than the sites beside it. Of an
    even number the higher of the two in the middle counts: one of two sites alone shows no fall.

    The site to leave out is the one whose updates were farthest from the mean of the others', in
    sum over the rounds that made the mixer what it is: the server has no data of its own to try
    the mixer without each site. Nobody is named where a round of them had fewer than three.

    Args:
        records: of the rounds before.
        psnr_db: of this round, by site.
        plan: tolerance, and what is done. Under every privacy mode there is no fall: no noise
            covers what going back would tell of the validation patients.
    """
    rules = plan.aggregation
    if rules.fall_tolerance_db is None or not isinstance(plan.privacy, NoPrivacy):
        return None
    best = _best(records)
    if best is None:
        return None
    change = _change(best.validation_psnr_db, psnr_db)
    if change is None or change >= -rules.fall_tolerance_db:
        return None
    back = [record.round for record in records if record.fall and record.fall.went_back]
    since = max([best.round, *(index + 1 for index in back)])
    made = [record for record in records if record.round >= since]
    farthest = _farthest(made)
    return Fall(
        by_db=-change,
        best_round=best.round,
        action=rules.on_fall,
        farthest=farthest,
        left_out=farthest if rules.on_fall == "go-back" else None,
    )


def stop_after(fall: Fall, round_index: int) -> FallError:
    """The end of a run whose plan wants a decision. The mixer is the best one again."""
    named = (
        f"farthest from the others since then: {fall.farthest}"
        if fall.farthest
        else "no site stands out"
    )
    remove = f"`lift-server remove-site DIR {fall.farthest or 'SITE'}`"
    return FallError(
        f"the sites' validation fell in round {round_index}",
        where="aggregation.fall_tolerance_db, aggregation.on_fall",
        seen=f"{fall.by_db:.2f} dB below round {fall.best_round}, median over the sites; {named}",
        remedy=f"The mixer that round {fall.best_round} began with is the current one again. "
        f"Call the sites; {remove} leaves one out. Run the same command again to go on.",
    )


def _best(records: Sequence[RoundRecord]) -> RoundRecord | None:
    """The round that began with the best mixer so far."""
    best: RoundRecord | None = None
    for record in records:
        if record.fall is not None or len(_told(record.validation_psnr_db)) < _FEWEST_SITES:
            continue
        change = (
            None if best is None else _change(best.validation_psnr_db, record.validation_psnr_db)
        )
        if best is None or (change is not None and change > 0):
            best = record
    return best


def _change(before: Psnr, now: Psnr) -> float | None:
    """Median over the sites, dB; None where fewer than two told both."""
    old, new = _told(before), _told(now)
    changes = [new[site] - old[site] for site in sorted(new) if site in old]
    return median_high(changes) if len(changes) >= _FEWEST_SITES else None


def _told(psnr_db: Psnr) -> dict[str, float]:
    return {site: value for site, value in psnr_db.items() if value is not None}


def _farthest(records: Sequence[RoundRecord]) -> str | None:
    if not records or any(not record.distances for record in records):
        return None
    sums: dict[str, float] = {}
    for record in records:
        for site, distance in record.distances.items():
            sums[site] = sums.get(site, 0.0) + distance
    return max(sorted(sums), key=lambda site: sums[site])
