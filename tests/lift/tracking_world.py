"""Records of rounds as a run writes them, and what has to be logged of them, said once more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import numpy as np

from lift.records.metrics import Metrics
from lift.records.rounds import RoundRecord
from lift.tracking.base import About

ABOUT = About("glioma", "ab" * 32, phantom=True)
SITES = ("east", "north", "west")
HOSTILE = (
    "<script>alert(1)</script>",
    "../../outside/passwd",
    "\u202egro.evil\u202c",
    "name " * 60,
    "a\x00b\nc",
    "",
    ".",
    "\udcff",
    "s3://bucket/key",
)
METRICS: Final = Metrics.model_validate(
    {
        "sites": {},
        "pooled": {
            "federated": {"psnr_db": {"value": 21.5, "low": 20.0, "n": 4}, "ssim": {"value": None}},
            "local_only:east": {"psnr_db": {"value": 19.25}},
        },
    }
)


def record(number: int, sites: tuple[str, ...] = SITES) -> dict[str, Any]:
    """One line of `rounds.jsonl`: the first site tells no loss, the last one is refused."""
    values = {site: 0.1 * number + 0.01 * i for i, site in enumerate(sites)}
    line: dict[str, Any] = {
        "round": number,
        "kind": "train" if number else "statistics",
        "asked": list(sites),
        "answered": list(sites),
        "counted": dict.fromkeys(sites[:-1], 0.5),
        "refused": {sites[-1]: "policy"},
        "bytes": {site: 1000 * number + i for i, site in enumerate(sites)},
        "sent_again": {},
        "seconds": 0.125 + number,
        "epsilon": 1.5 * number if number % 2 else None,
    }
    if number:
        line["loss"] = {
            site: value if i else None for i, (site, value) in enumerate(values.items())
        }
        line["validation_psnr_db"] = {site: 20 + value for site, value in values.items()}
    return line


def line(number: int, sites: tuple[str, ...] = SITES) -> RoundRecord:
    """The same, read."""
    return RoundRecord.model_validate(record(number, sites))


def write_rounds(path: Path, count: int, sites: tuple[str, ...] = SITES) -> None:
    """The record after so many rounds, round 0 included."""
    lines = [json.dumps(record(number, sites)) + "\n" for number in range(count)]
    path.write_text("".join(lines), encoding="utf-8")


def expected(path: Path) -> dict[str, dict[int, float]]:
    """Tag -> step -> value of a record whose sites have plain names, worked out by hand."""
    found: dict[str, dict[int, float]] = {}
    for text in path.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        figures: dict[str, float] = {
            "round/seconds": line["seconds"],
            "round/counted": len(line["counted"]),
            "round/refused": len(line["refused"]),
        }
        if line["epsilon"] is not None:
            figures["privacy/epsilon"] = line["epsilon"]
        for site, size in line["bytes"].items():
            figures[f"bytes_by_site/{site}"] = size
        for key in ("loss", "validation_psnr_db"):
            told = {s: v for s, v in line.get(key, {}).items() if v is not None}
            for site, value in told.items():
                figures[f"{key}_by_site/{site}"] = value
            if told:
                figures[f"{key}/mean"] = float(np.mean(list(told.values())))
        for tag, value in figures.items():
            found.setdefault(tag, {})[line["round"]] = value
    return found


def rounded(figures: dict[str, dict[int, float]]) -> dict[str, dict[int, float]]:
    """To float32, what an event file holds; two means may differ in the last bit of float64."""
    return {
        tag: {step: float(np.float32(value)) for step, value in steps.items()}
        for tag, steps in figures.items()
    }
