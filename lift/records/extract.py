"""The public extracts of a run's records: what a release holds, by the marks of their models.

`run.json`, `rounds.jsonl` and `metrics.json` are the coordinator's own records. They name who was
refused and why, each site's verdict, loss and spacings, and what sites said of their cohorts.
Whoever gets a release gets these extracts in their place: keys that are declared `Public`, and
sums and means over the sites.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, TypeVar

from lift.records.metrics import Comparisons, Measure, Metrics, Record, SiteFigures, Table
from lift.records.rounds import RoundRecord, mean_of
from lift.records.rows import of_one_site
from lift.records.run import AllSites, RunRecord

PUBLIC_ROUNDS_FILE: Final = "rounds-public.jsonl"
FEWEST_TOLD: Final = 3
"""Smallest number of sites for a mean, or a count of verdicts. With two, each would know the
other's."""
_DECIMALS: Final = 6
Row = TypeVar("Row")


class PublicRound(Record):
    """One line of `rounds-public.jsonl`."""

    round: int
    kind: str
    asked: int
    """Number of sites that were asked."""
    counted: int
    """Number of sites that counted."""
    loss: float | None = None
    """Mean training loss over the sites that reported one; None if fewer than three did."""
    epsilon: float | None = None
    """Spent after this round; None without noise."""
    shipped: str | None = None
    """Of the line after the last round: what is released."""

    @classmethod
    def of(cls, line: RoundRecord) -> PublicRound:
        """What is public of one line of the coordinator's record."""
        told = [loss for loss in line.loss.values() if loss is not None]
        loss = mean_of(line.loss) if len(told) >= FEWEST_TOLD else None
        return cls(
            round=line.round,
            kind=line.kind,
            asked=len(line.asked),
            counted=len(line.counted),
            loss=None if loss is None else round(loss, _DECIMALS),
            epsilon=line.epsilon,
            shipped=line.shipped,
        )


def public_rounds(lines: Sequence[RoundRecord]) -> tuple[PublicRound, ...]:
    """The extract of a whole record, in its order."""
    return tuple(PublicRound.of(line) for line in lines)


def public_run(record: RunRecord) -> RunRecord:
    """What is public of `run.json`."""
    said = record.said
    told = said is not None and said.number >= FEWEST_TOLD
    return record.public().updated(
        **({"all_sites": _all_sites(record)} if record.sites else {}),
        **({"said": said} if told else {}),
    )


def public_metrics(metrics: Metrics) -> Metrics:
    """What is public of `metrics.json`: figures of all sites together.

    A server has figures by site alone. Its extract has their means over patients, without
    intervals, where three sites or more told one.
    """
    extract = metrics.public()
    if not metrics.pooled:
        return extract.updated(pooled=_means(metrics.sites))
    found: dict[str, object] = {"pooled": _of_all_sites(extract.pooled)}
    if metrics.comparisons.pooled:
        found["comparisons"] = Comparisons(pooled=_of_all_sites(extract.comparisons.pooled))
    if extract.spectra is not None:
        power_db = _of_all_sites(extract.spectra.power_db)
        found["spectra"] = extract.spectra.updated(power_db=power_db)
    return extract.updated(**found)


def _of_all_sites(rows: Mapping[str, Row]) -> dict[str, Row]:
    """The rows without those of one site's mixer."""
    return {name: row for name, row in rows.items() if not of_one_site(name)}


def _all_sites(record: RunRecord) -> AllSites:
    patients = Counter[str]()
    for site in record.sites:
        patients.update(site.patients)
    verdicts = Counter(guard.verdict for guard in record.guard.values())
    return AllSites(
        number=len(record.sites),
        patients=dict(patients),
        verdicts=dict(sorted(verdicts.items())) if verdicts.total() >= FEWEST_TOLD else None,
    )


def _means(sites: Mapping[str, SiteFigures]) -> dict[str, Table]:
    found: dict[str, dict[str, list[Measure]]] = {}
    for _, site in sorted(sites.items()):
        for method, table in site.methods.items():
            for metric, measure in table.items():
                if measure.value is not None and measure.n:
                    found.setdefault(method, {}).setdefault(metric, []).append(measure)
    return {
        method: table
        for method, metrics in found.items()
        if (
            table := {
                metric: _mean(measures)
                for metric, measures in metrics.items()
                if len(measures) >= FEWEST_TOLD
            }
        )
    }


def _mean(measures: Sequence[Measure]) -> Measure:
    """The mean over all patients of some sites' means."""
    patients = sum(measure.n or 0 for measure in measures)
    total = math.fsum((measure.value or 0.0) * (measure.n or 0) for measure in measures)
    return Measure(value=round(total / patients, _DECIMALS), n=patients, unit=measures[0].unit)
