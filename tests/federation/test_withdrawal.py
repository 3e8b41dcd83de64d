"""A patient withdraws after a real run: the run is named, and the folder forgets the name."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.federation.world import Federation, run

pytestmark = pytest.mark.timeout(300)
SITE = "east"


def holding(folder: Path, name: str) -> list[str]:
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if name in path.name or (path.is_file() and name.encode() in path.read_bytes())
    )


def test_the_run_that_used_the_patient_is_named_and_the_name_is_gone(
    finished: Federation, tmp_path: Path
) -> None:
    site = shutil.copytree(finished.site(SITE), tmp_path / SITE)
    work, settings = site / "work", site / "site.yaml"
    # other tests may have had the report of this site
    shutil.rmtree(work / "report", ignore_errors=True)
    who = json.loads((work / "split.json").read_text())["train"][0]
    person = who.rpartition("-")[0]
    assert holding(work, person) == ["split.json"]
    assert person not in (work / "patients-used.json").read_text()
    told = run("lift-client", "withdraw", who, "--site", settings)
    digest = json.loads((finished.out / "run.json").read_text())["plan_digest"]
    (used,) = [line for line in told.splitlines() if line.startswith("used in: ")]
    assert digest[:16] in used
    assert used.endswith("training; rounds 1-5, guard, statistics")
    assert "not known" not in told
    # as many as other tests of this federation had made
    assert re.search("removed: [1-9][0-9]* entries of the cache", told) is not None
    assert holding(work, person) == []
    assert "complete" in run("lift-client", "journal", "--verify", "--site", settings)
