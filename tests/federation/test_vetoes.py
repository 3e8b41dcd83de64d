"""Whom the image checks veto takes no part in a real federation, and an override is on record."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lift_client.gate.journal import JOURNAL_FILE, verify
from tests.end_to_end.tiny_run import TinyRun
from tests.federation.world import Federation, run
from tests.vetoed import ACCEPTED, GREY, REASON, UNPAIRED, VETOED, make_sites, without_vetoed

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return make_sites(tmp_path_factory.mktemp("vetoed"))


@pytest.fixture(scope="module")
def over(phantoms: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A run that is over. East accepted one of its vetoed patients; everybody looked at images."""
    made = Federation(
        tmp_path_factory.mktemp("over"),
        phantoms,
        sites=tuple(VETOED),
        site_changes={"policy__image_checks": True},
    )
    try:
        made.make(federation={"rounds": 1, "deadline_s": 120.0})
        made.write_server(made.server_settings() | {"phantom": True})
        path = made.site("east") / "site.yaml"
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        path.write_text(yaml.safe_dump(settings | {"accept": {ACCEPTED: REASON}}), encoding="utf-8")
        made.start_server()
        made.start_sites()
        assert made.wait_server() == 0, made.log("server")
        made.stop_sites()
        yield made
    finally:
        made.close()


def test_they_are_named_at_the_site_and_counted_at_the_server(over: Federation) -> None:
    for site, patients in VETOED.items():
        log = over.site_log(site)
        split = (over.site(site) / "work" / "split.json").read_text(encoding="utf-8")
        for patient in patients:
            refusals = [line for line in log.splitlines() if "event=patient_refused" in line]
            assert any(patient in line for line in refusals)
            assert patient not in split
            assert patient not in over.log("server")
    assert all("background t1n" in line for line in _refusals(over, "east"))
    assert all("pairing t2f" in line for line in _refusals(over, "west"))
    record = json.loads((over.out / "run.json").read_text(encoding="utf-8"))
    # rounded up to the plan's step
    refused = {entry["name"]: entry["refused"] for entry in record["sites"]}
    assert refused == dict.fromkeys(VETOED, 5)
    assert not any(entry.get("left_out") for entry in record["sites"])
    for name in (*GREY, UNPAIRED, ACCEPTED):
        assert name not in (over.out / "run.json").read_text(encoding="utf-8")


def test_the_override_trains_and_stands_in_the_journal(over: Federation) -> None:
    work = over.site("east") / "work"
    assert ACCEPTED in (work / "split.json").read_text(encoding="utf-8")
    notes = [line for line in verify(work / JOURNAL_FILE).lines if line.kind == "note"]
    assert [REASON in line.purpose for line in notes] == [True]
    assert ACCEPTED not in (work / JOURNAL_FILE).read_text(encoding="utf-8")
    assert any(
        "event=patient_accepted" in line and ACCEPTED in line and REASON in line
        for line in over.site_log("east").splitlines()
    )
    plain = verify(over.site("west") / "work" / JOURNAL_FILE).lines
    assert not any(line.kind == "note" for line in plain)


def test_the_hospitals_own_report_names_them(over: Federation) -> None:
    for site, patients in VETOED.items():
        run("lift-client", "report", "--site", over.site(site) / "site.yaml")
        page = (over.site(site) / "work" / "report" / "report.html").read_text(encoding="utf-8")
        assert all(patient in page for patient in patients)
        assert "left out" in page


def test_it_equals_a_simulation_and_a_run_without_them(
    over: Federation, phantoms: TinyRun, tmp_path: Path
) -> None:
    real = (over.out / "mixer.safetensors").read_bytes()
    plan = over.server_settings()["plan"]
    clean = without_vetoed(phantoms, tmp_path / "clean")
    runs = {
        "checked": (phantoms, True, {ACCEPTED: REASON}),
        "clean": (clean, False, {}),
        "unchecked": (phantoms, False, {}),
        "nobody-accepted": (phantoms, True, {}),
    }
    same = {}
    for out, (made, checks, accept) in runs.items():
        sites = [
            {
                "name": site,
                "data": {"layout": "brats", "root": str(made.site(site))},
                "accept": accept if site == "east" else {},
            }
            for site in VETOED
        ]
        changes: dict[str, object] = {"sites": sites, "image_checks": checks, "plan": plan}
        done = made.simulate(f"real-{out}", **changes, synthesis_patients=0)
        assert done.code == 0, done.stderr
        same[out] = real == (made.folder / f"real-{out}" / "mixer.safetensors").read_bytes()
    assert same == {"checked": True, "clean": True, "unchecked": False, "nobody-accepted": False}


def _refusals(over: Federation, site: str) -> list[str]:
    lines = [x for x in over.site_log(site).splitlines() if "event=patient_refused" in x]
    assert lines
    return lines
