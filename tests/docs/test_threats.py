"""Each row of SECURITY.md's table of threats names the tests that show it, and they exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEADINGS = ["threat", "defence", "where in the code", "what is left", "shown by"]
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def rows_of(text: str) -> list[list[str]]:
    """Cells of each row of the table of threats, its headings first."""
    section = text.partition("\n## Threats\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in table if not set("".join(row)) <= set("-")]


def faults(text: str) -> list[str]:
    """What is wrong with the table; empty where every row is shown by tests that exist."""
    headings, *rows = rows_of(text)
    found = [] if headings == HEADINGS else [f"headings: {headings}"]
    for row in rows:
        if len(row) != len(HEADINGS):
            found.append(f"{row[0]}: {len(row)} cells")
            continue
        named = _TEST.findall(row[-1])
        left = _TEST.sub("", row[-1]).replace(",", "").strip()
        if not named:
            found.append(f"{row[0]}: no test")
        if left:
            found.append(f"{row[0]}: not a test: {left}")
        found += [f"{row[0]}: no {file}::{name}" for file, name in named if not exists(file, name)]
    return found


def exists(file: str, name: str) -> bool:
    """Whether a file has a test function of this name, at its top or in a class."""
    path = ROOT / file
    if not path.is_file():
        return False
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    return any(node.name == name for node in functions)


def security() -> str:
    return (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def test_every_threat_names_tests_that_exist() -> None:
    assert faults(security()) == []
    assert len(rows_of(security())) > 15


def changed(text: str, cells: Sequence[str]) -> str:
    """The document with one more row."""
    last = "| " + " | ".join(rows_of(text)[-1]) + " |"
    assert text.count(last) == 1
    return text.replace(last, f"{last}\n| {' | '.join(cells)} |")


@pytest.mark.parametrize(
    ("shown_by", "seen"),
    [
        ("", "flood: no test"),
        ("see below", "flood: no test"),
        ("`tests/docs/test_threats.py::test_nobody_wrote`", "flood: no tests/docs/test_threats.py"),
        ("`tests/docs/no_such_file.py::test_it`", "flood: no tests/docs/no_such_file.py"),
        (
            "`tests/docs/test_threats.py::test_every_threat_names_tests_that_exist`, by hand",
            "flood: not a test: by hand",
        ),
    ],
)
def test_a_threat_without_a_test_that_exists_is_found(shown_by: str, seen: str) -> None:
    text = changed(security(), ["flood", "a limit", "`lift/files.py`", "all", shown_by])
    assert any(fault.startswith(seen) for fault in faults(text))


def test_a_row_that_lacks_a_cell_is_found() -> None:
    text = changed(security(), ["flood", "a limit", "`lift/files.py`", "all"])
    assert faults(text) == ["flood: 4 cells"]
