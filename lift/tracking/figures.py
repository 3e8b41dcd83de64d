"""What trackers are told of a round, under tags that are stable.

===========================  ==========================================================
tag                          figure
===========================  ==========================================================
`loss/mean`, `loss/SITE`     training loss
`validation_psnr_db/...`     PSNR of the sites' validation patients before the round
`round/seconds`              what the round took
`round/counted`              sites whose update counted
`round/missed`               sites that were asked and did not count
`round/bytes`                bytes of all answers
`privacy/epsilon`            epsilon so far, of a patient whose site was always asked
`final/METHOD/METRIC`        figures over all sites' test patients, once, at the end
===========================  ==========================================================
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any, Final

from lift.round_record import Outcome, RoundRecord, mean_of, outcome

_LONGEST: Final = 40
_PLAIN: Final = re.compile(r"[A-Za-z0-9_-]{1,40}")


def round_figures(record: RoundRecord) -> dict[str, float]:
    """Tag -> figure of one training round; what a site did not tell is left out."""
    figures: dict[str, float | None] = {
        "round/seconds": record.seconds,
        "round/counted": float(len(record.counted)),
        "round/missed": float(
            sum(outcome(record, site) is not Outcome.COUNTED for site in record.asked)
        ),
        "round/bytes": float(sum(record.bytes.values())),
        "privacy/epsilon": record.epsilon,
    }
    for name, values in (
        ("loss", record.loss),
        ("validation_psnr_db", record.validation_psnr_db),
    ):
        figures[f"{name}/mean"] = mean_of(values)
        figures |= {f"{name}/{tag_of(site)}": value for site, value in values.items()}
    return {tag: value for tag, value in figures.items() if value is not None}


def final_figures(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Tag -> figure over all sites, of `metrics.json`."""
    return {
        f"final/{tag_of(method)}/{tag_of(metric)}": float(figure["value"])
        for method, table in metrics.get("pooled", {}).items()
        for metric, figure in table.items()
        if figure.get("value") is not None
    }


def tag_of(name: str) -> str:
    """A name as a part of a tag: plain ones as they are, of others a stem and a hash.

    No two names share a tag, whatever stands in them: slashes would make folders.
    """
    if _PLAIN.fullmatch(name):
        return name
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:10]
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", name)[: _LONGEST - len(digest) - 1]
    return f"{stem}.{digest}"
