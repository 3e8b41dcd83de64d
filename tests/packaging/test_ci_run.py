"""`.ci/run` tells the minutes of its parts, and fails when a part fails or all takes too long."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
MAKE = """#!/bin/sh
echo "$1" >> "{folder}/made"
echo $(( $(cat "{folder}/clock") + {seconds} )) > "{folder}/clock"
[ "$1" != "{broken}" ] || exit 2
"""
DATE = """#!/bin/sh
cat "{folder}/clock"
"""
PARTS = ["install", "lint", "test", "web", "docs", "fuzz", "federation"]
TARGETS = [
    ".venv/.installed",
    "lint",
    "test-fast",
    "test-web",
    "docs",
    "test-fuzz",
    "test-federation",
]


def run(folder: Path, *, seconds: int, broken: str = "") -> subprocess.CompletedProcess[str]:
    """The script beside a `make` that takes so long for each target, by a clock of its own."""
    (folder / "clock").write_text("1700000000\n")
    for name, text in (("make", MAKE), ("date", DATE)):
        program = folder / name
        program.write_text(text.format(folder=folder, seconds=seconds, broken=broken))
        program.chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [PROJECT / ".ci" / "run"],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def minutes(stdout: str) -> dict[str, float]:
    """The table: part -> minutes."""
    return {name: float(value) for name, value in re.findall(r"(?m)^(\w+) +(\d+\.\d)", stdout)}


def test_every_part_is_made_in_order_and_its_minutes_are_told(tmp_path: Path) -> None:
    done = run(tmp_path, seconds=90)
    assert done.returncode == 0, done
    assert (tmp_path / "made").read_text().split() == TARGETS
    assert minutes(done.stdout) == {**dict.fromkeys(PARTS, 1.5), "total": 10.5}
    assert done.stderr == ""


@pytest.mark.parametrize(("seconds", "code"), [(471, 0), (472, 1)])
def test_a_run_of_more_than_55_minutes_fails(tmp_path: Path, seconds: int, code: int) -> None:
    """Seven parts: 54.9 minutes, and 55 minutes and 4 seconds."""
    done = run(tmp_path, seconds=seconds)
    assert done.returncode == code, done
    assert ("took too long" in done.stderr) == bool(code)
    assert minutes(done.stdout)["total"] == (55.0 if code else 54.9)


def test_a_part_that_fails_ends_the_run_with_what_was_so_far(tmp_path: Path) -> None:
    done = run(tmp_path, seconds=60, broken="test-web")
    assert done.returncode == 2, done
    assert minutes(done.stdout) == {"install": 1, "lint": 1, "test": 1, "web": 1, "total": 4}
    assert "failed, exit 2" in done.stdout
    assert (tmp_path / "made").read_text().split() == TARGETS[:4]


def test_the_targets_are_those_of_the_makefile() -> None:
    rules = re.findall(r"(?m)^([\w-]+):", (PROJECT / "Makefile").read_text())
    assert set(TARGETS[1:]) <= set(rules)
