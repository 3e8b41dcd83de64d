"""The run folder of many sites and many rounds: invented figures, no volumes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from tests.lift.report import example_run
from tests.server.live_world import round_line


def write_many_sites(folder: Path, *, sites: int, rounds: int) -> Path:
    """The folder; every site has the first example site's form."""
    names = [f"site-{index:02d}" for index in range(sites)]
    first = example_run.SITES[0]
    folder.mkdir(parents=True, exist_ok=True)
    record = example_run.example_record()
    record["sites"] = [{**copy.deepcopy(record["sites"][0]), "name": name} for name in names]
    record["guard"] = {name: copy.deepcopy(record["guard"][first]) for name in names}
    example_run.write_json(folder / "run.json", record)
    lines = [json.dumps(round_line(index, names)) + "\n" for index in range(rounds + 1)]
    (folder / "rounds.jsonl").write_text("".join(lines), encoding="utf-8")
    metrics: dict[str, Any] = example_run.example_metrics()
    compared = metrics["comparisons"]["sites"][first]
    metrics["sites"] = {name: copy.deepcopy(metrics["sites"][first]) for name in names}
    metrics["comparisons"]["sites"] = {name: copy.deepcopy(compared) for name in names}
    metrics["cross_site"] = {}
    example_run.write_json(folder / "metrics.json", metrics)
    return folder
