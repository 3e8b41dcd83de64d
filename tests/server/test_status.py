"""What the running server writes is what `lift-server status` reads."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from lift.protocol.messages import Kind
from lift.records.rounds import RoundRecord
from lift_server.sites.provisioning import init_folder, load_settings
from lift_server.watch.board import show
from lift_server.watch.status import STATUS_FILE, ServerStatus, SiteStatus, StatusFile
from lift_server.watch.status_view import describe, is_alive, read_status


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    init_folder(tmp_path / "fed", ["localhost"], "trial")
    return tmp_path / "fed"


@pytest.fixture
def written(folder: Path) -> StatusFile:
    return StatusFile(load_settings(folder).state / STATUS_FILE, rounds=5)


def read(folder: Path) -> ServerStatus:
    found = read_status(load_settings(folder))
    assert found is not None
    return found


def test_every_field_that_is_read_is_written(folder: Path, written: StatusFile) -> None:
    written.connected(["north"])
    written.end("stopped")
    data = json.loads((load_settings(folder).state / STATUS_FILE).read_text())
    assert set(data) == set(ServerStatus.model_fields)
    assert set(data["sites"]["north"]) == set(SiteStatus.model_fields)


def test_a_round_goes_from_asked_to_answered_or_missing(folder: Path, written: StatusFile) -> None:
    with written.kept():
        assert (read(folder).phase, read(folder).rounds) == ("waiting", 5)
        assert is_alive(read(folder))
    written.connected(["north", "valley"])
    written.asking(2, Kind.TRAIN, ["north", "valley"], 60.0)
    found = read(folder)
    assert (found.phase, found.round, found.deadline_s) == ("round", 2, 60.0)
    assert {site.state for site in found.sites.values()} == {"asked"}
    written.connected(["north", "harbour"])
    written.round_done(RoundRecord(round=1, refused={"valley": "no_answer"}))
    found = read(folder)
    assert {name: site.state for name, site in found.sites.items()} == {
        "harbour": "idle",
        "north": "answered",
        "valley": "missing",
    }
    assert {name for name, site in found.sites.items() if site.online} == {"harbour", "north"}
    # a site that went away keeps the time of its last contact
    assert found.sites["valley"].last_contact is not None
    assert found.pid == os.getpid()
    assert describe(load_settings(folder), datetime.now(UTC))["summary"].startswith("round 2 of 5")


def test_the_verdicts_after_the_last_round_are_not_counted_as_a_round(
    folder: Path, written: StatusFile
) -> None:
    written.asking(6, Kind.GUARD, ["north"], 60.0)
    assert read(folder).round == 5


def test_the_cards_that_sites_shared_are_shown(folder: Path) -> None:
    settings = load_settings(folder)
    card = {
        "site": "north",
        "made": "2026-11-23",
        "floor": 5,
        **dict.fromkeys(("persons", "usable", "warned", "vetoed"), 10),
        **dict.fromkeys(("train", "validation", "test"), 0),
        "channels": [{"channel": "t1n", "modality": "MR", "persons": 10}],
    }
    statistics = {"north": {"data_card": card}, "valley": {"data_card": None}, "old": {}}
    record = {"round": 0, "kind": "statistics", "statistics": statistics}
    settings.output.mkdir(parents=True, exist_ok=True)
    (settings.output / "rounds.jsonl").write_text(json.dumps(record) + "\n")
    now = datetime.now(UTC)
    shown = describe(settings, now)
    assert shown["data_cards"] == {"north": card}
    console = Console(width=160)
    with console.capture() as capture:
        show(console, "trial", shown, now)
    assert "Data card of site 'north'" in capture.get()
    assert "t1n (MR)" in capture.get()
