"""`run.json`, `rounds.jsonl`, `metrics.json`: written and read through `lift.records` alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from lift.records.metrics import Metrics
from lift.records.rounds import RoundRecord
from lift.records.run import RunRecord

ROOT: Final = Path(__file__).parents[2]
EVERYWHERE: Final = ("lift", "server/lift_server", "client/lift_client", "deploy")
# the tables of benchmarks are documents of their own, with some of the same words
PROGRAMS: Final = (*EVERYWHERE[:3], "deploy/lift_simulation")
# names that other records have too: settings, plans, bundles, journals, counts
SHARED: Final = {
    *("round", "kind", "bytes", "seconds", "loss", "validation_psnr_db", "epsilon", "statistics"),
    *("resumed", "shipped", "counted"),
}
SHARED_OF_RUNS: Final = {
    *("name", "kind", "phantom", "data_statement", "runs_tried", "plan", "plan_digest", "bundle"),
    *("generator", "mixer", "versions", "sites", "guard", "privacy", "journal", "ledger", "said"),
    *("shipped", "chosen", "command", "started", "finished", "complete", "seconds", "folds"),
    *("ledger_heads", "gain"),
}
SHARED_OF_METRICS: Final = {"sites", "patients"}
ROUND_KEYS: Final = set(RoundRecord.model_fields) - SHARED
RUN_KEYS: Final = set(RunRecord.model_fields) - SHARED_OF_RUNS
METRICS_KEYS: Final = set(Metrics.model_fields) - SHARED_OF_METRICS


def keys_of(source: str, *, written: bool) -> Iterator[str]:
    """Keys that a module spells: of `x[...]`, `x.get(...)` and, where asked, of `{...: x}`."""
    for node in ast.walk(ast.parse(source)):
        keys: list[ast.expr | None] = []
        if isinstance(node, ast.Subscript):
            keys = [node.slice]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            keys = [node.args[0]] if node.func.attr in {"get", "pop", "setdefault"} else []
        elif isinstance(node, ast.Dict) and written:
            keys = list(node.keys)
        for key in keys:
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                yield key.value


def spelt(packages: tuple[str, ...], keys: set[str], *, written: bool) -> dict[str, list[str]]:
    """The modules outside `lift.records` that spell any of these keys."""
    modules = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    assert len(modules) > 200
    found = {
        str(path.relative_to(ROOT)): sorted(
            keys.intersection(keys_of(path.read_text("utf-8"), written=written))
        )
        for path in modules
        if path.parent.name != "records"
    }
    return {name: own for name, own in found.items() if own}


def test_no_module_outside_records_reads_a_rounds_line_by_its_keys() -> None:
    assert {"asked", "answered", "refused", "joined", "sent_again", "verdicts"} <= ROUND_KEYS
    assert spelt(EVERYWHERE, ROUND_KEYS, written=False) == {}


def test_no_program_spells_a_key_of_run_json_or_metrics_json() -> None:
    assert {"settings_digest", "epsilon_met", "loss_trend", "update_bytes"} <= RUN_KEYS
    assert {"pooled", "comparisons", "cross_site", "field_of_view", "spectra"} <= METRICS_KEYS
    assert spelt(PROGRAMS, RUN_KEYS | METRICS_KEYS, written=True) == {}


def test_a_key_that_is_spelt_elsewhere_is_found() -> None:
    assert list(keys_of('line["asked"]', written=False)) == ["asked"]
    assert list(keys_of('line.get("refused")', written=False)) == ["refused"]
    assert list(keys_of('{"pooled": 1}', written=True)) == ["pooled"]
    assert list(keys_of('{"pooled": 1}', written=False)) == []
    assert list(keys_of("line.asked", written=True)) == []
