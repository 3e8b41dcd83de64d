"""Which figures a tracker gets, and under which tags.

| tag | step | value |
|---|---|---|
| `loss/mean`, `loss_by_site/SITE` | round, from 1 on | mean training loss |
| `validation_psnr_db/mean`, `validation_psnr_db_by_site/SITE` | round, from 1 on | quality in dB of the mixer that the round began with |
| `bytes_by_site/SITE` | round, from 0 on | size of the site's answer; absent where the plan protects patients |
| `round/seconds` | round, from 0 on | wall time of the exchange; absent where the plan protects patients |
| `round/counted`, `round/refused` | round, from 0 on | numbers of sites |
| `privacy/epsilon` | round, from 0 on | what is spent after the round; absent without noise |
| `pooled/METHOD/METRIC` | last round | `metrics.json` over all held-out patients |
| `final_by_site/SITE/METHOD/METRIC` | last round | the same by site, where nothing is pooled (`lift-server`) |

Round 0 is the exchange of statistics. A mean is over the sites that told a value, each counted
once. What a site did not tell is absent. The tags are fixed: dashboards may rely on them.
"""  # noqa: E501  # a table's rows cannot be broken

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from statistics import fmean
from typing import Final

from lift.records.metrics import Metrics, Table
from lift.records.rounds import RoundRecord

_PLAIN: Final = re.compile(r"[A-Za-z0-9_:-]{1,64}")
_OTHER: Final = re.compile(r"[^A-Za-z0-9_:-]+")
_LONGEST: Final = 48


def round_figures(record: RoundRecord) -> dict[str, float]:
    """Tag -> value of one line of `rounds.jsonl`; every value is finite."""
    figures: dict[str, float] = {}
    for key, by_site in (
        ("loss", record.loss),
        ("validation_psnr_db", record.validation_psnr_db),
    ):
        told = {site: value for site, value in by_site.items() if value is not None}
        if told:
            figures[f"{key}/mean"] = fmean(told[site] for site in sorted(told))
        figures |= {f"{key}_by_site/{tag_part(site)}": told[site] for site in sorted(told)}
    sizes = record.bytes
    figures |= {f"bytes_by_site/{tag_part(site)}": float(sizes[site]) for site in sorted(sizes)}
    figures |= {"round/counted": float(len(record.counted))}
    figures |= {"round/refused": float(len(record.refused))}
    if record.seconds is not None:
        figures["round/seconds"] = record.seconds
    if record.epsilon is not None:
        figures["privacy/epsilon"] = record.epsilon
    return figures


def final_figures(metrics: Metrics) -> dict[str, float]:
    """Tag -> value of `metrics.json`: what is pooled, or else what each site has."""
    if metrics.pooled:
        return _methods("pooled", metrics.pooled)
    figures: dict[str, float] = {}
    for site, found in metrics.sites.items():
        figures |= _methods(f"final_by_site/{tag_part(site)}", found.methods)
    return figures


def tag_part(name: str) -> str:
    """A name as one part of a tag: at most 64 letters, digits, `_`, `-`, `:`.

    Such a name stays as it is. Of any other one the odd characters become `_`, and a dot with
    eight digits of its SHA-256 follows: different names stay different, and no slash, markup or
    direction mark reaches a tracker.
    """
    if _PLAIN.fullmatch(name):
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{_OTHER.sub('_', name)[:_LONGEST]}.{digest[:8]}"


def _methods(prefix: str, methods: Mapping[str, Table]) -> dict[str, float]:
    return {
        f"{prefix}/{tag_part(method)}/{tag_part(metric)}": measure.value
        for method, table in methods.items()
        for metric, measure in table.items()
        if measure.value is not None
    }
