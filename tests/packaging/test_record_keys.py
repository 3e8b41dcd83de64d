"""A round's line is read through the model in `lift.records` alone, never by its keys."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Final

from lift.records.rounds import RoundRecord

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = ("lift", "server/lift_server", "client/lift_client", "deploy")
# names that other records have too
SHARED: Final = {"round", "kind", "bytes", "seconds", "loss", "validation_psnr_db", "epsilon"}
SHARED_TOO: Final = {"statistics", "resumed", "shipped", "counted"}
KEYS: Final = set(RoundRecord.model_fields) - SHARED - SHARED_TOO


def reads(source: str) -> list[str]:
    """Keys of a round's line that a module reads by their names."""
    found = []
    for node in ast.walk(ast.parse(source)):
        key: ast.expr | None = None
        if isinstance(node, ast.Subscript):
            key = node.slice
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            key = node.args[0] if node.func.attr == "get" else None
        if isinstance(key, ast.Constant) and key.value in KEYS:
            found.append(str(key.value))
    return found


def test_no_module_outside_records_reads_a_rounds_line_by_its_keys() -> None:
    modules = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert len(modules) > 200
    found = {
        str(path.relative_to(ROOT)): keys
        for path in modules
        if path.parent.name != "records" and (keys := reads(path.read_text("utf-8")))
    }
    assert found == {}


def test_a_key_that_is_read_elsewhere_is_found() -> None:
    assert {"asked", "answered", "refused", "joined", "sent_again", "verdicts"} <= KEYS
    assert reads('line["asked"]') == ["asked"]
    assert reads('line.get("refused")') == ["refused"]
    assert reads("line.asked") == []
