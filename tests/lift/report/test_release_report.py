"""The report of a release is made of public extracts, and shows them alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lift.records.extract import PUBLIC_ROUNDS_FILE, public_metrics, public_rounds, public_run
from lift.records.metrics import read_metrics
from lift.records.run import read_run_record
from lift.report.page import render_report
from lift.report.read import read_rounds, read_run
from tests.lift.report.example_run import SITES, write_example_run, write_json
from tests.lift.report.test_report import Page, is_rounding_of, resolve

AUDITS: dict[str, Any] = {"sites": {}, "missing": [], "training": None}


def release_of(run: Path, out: Path) -> Path:
    """The records that a release of this run would hold."""
    out.mkdir()
    public_run(read_run_record(run)).write(out)
    public_metrics(read_metrics(run)).write(out)
    lines = public_rounds(read_rounds(run / "rounds.jsonl")[0])
    text = "".join(f"{line.model_dump_json()}\n" for line in lines)
    (out / PUBLIC_ROUNDS_FILE).write_text(text)
    return out


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("released")
    return release_of(write_example_run(folder / "run", patients=0), folder / "release")


def test_every_number_of_it_stands_in_the_extracts(release: Path) -> None:
    page = Page(render_report(release, AUDITS).decode())
    rounds = (release / PUBLIC_ROUNDS_FILE).read_text().splitlines()
    loaded = {name: json.loads((release / name).read_text()) for name in ("run.json",)}
    loaded["metrics.json"] = json.loads((release / "metrics.json").read_text())
    loaded[PUBLIC_ROUNDS_FILE] = [json.loads(line) for line in rounds]
    assert {key.split("#")[0] for key, _, _ in page.numbers} == set(loaded)
    for key, value, shown in page.numbers:
        found = resolve(loaded, key)
        assert float(value) == found, key
        assert is_rounding_of(shown, found), key


def test_it_names_no_site_and_no_time(release: Path) -> None:
    text = render_report(release, AUDITS).decode()
    for word in (*SITES, "example scanner", "2026-01-02", "lift-simulate --config", "18236"):
        assert word not in text, word
    words = Page(text).text
    assert "All sites together, from numbers that each reported" in words
    assert "fewer than 3 sites gave one" in words
    assert "not finished" not in words


def test_a_run_s_own_folder_has_no_extract(tmp_path: Path, release: Path) -> None:
    assert read_run(write_example_run(tmp_path / "run", patients=0)).extract is None
    assert read_run(release).extract is not None


def test_what_a_mapper_s_sites_said_is_left_out_of_fewer_than_three(tmp_path: Path) -> None:
    run = write_example_run(tmp_path / "run", patients=0)
    record = json.loads((run / "run.json").read_text())
    record["shipped"] = "mapper"
    record["said"] = {"helped": 1, "harmed": 0, "undecided": 0, "silent": 1}
    write_json(run / "run.json", record)
    shipped = read_run(release_of(run, tmp_path / "release")).shipped
    assert shipped is not None
    assert "by noise" not in shipped.sentence
    assert not re.search(r"\d", shipped.sentence)
    own = read_run(run).shipped
    assert own is not None
    assert "1 of the sites found" in own.sentence
