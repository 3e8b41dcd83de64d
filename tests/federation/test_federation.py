"""Real processes on 127.0.0.1 with TLS on: what a federation must do, and be equal to."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path

import pytest
import safetensors.numpy

from lift_client.gate.journal import JOURNAL_FILE, verify
from tests import wording
from tests.end_to_end.tiny_run import TinyRun
from tests.federation.network import ConnectProxy, TlsTap
from tests.federation.planting import PLANTED
from tests.federation.world import Federation, run, until
from tests.lift.event_files import read_events
from tests.lift.tracking_world import expected, rounded
from tests.opened_modes import open_to_others

pytestmark = pytest.mark.timeout(300)
PRIVATE = "ward7-MUELLER-19480311"


@pytest.fixture(scope="module")
def overheard(
    volumes: TinyRun, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Federation, ConnectProxy, TlsTap]]:
    """A run that is over; its sites dialled through a proxy, and one had no usable volume."""
    made = Federation(tmp_path_factory.mktemp("overheard"), volumes, sites=("east", "north"))
    proxy, tap = ConnectProxy(), TlsTap()
    try:
        made.make(
            federation={"rounds": 1, "deadline_s": 90.0, "quorum_sites": 1, "quorum_patients": 0.0}
        )
        made.break_site("north", PRIVATE)
        tap.stand_before(made)
        with proxy.running(), tap.running():
            made.start_server()
            for site in made.sites:
                made.start_site(site, HTTPS_PROXY=proxy.url, NO_PROXY="", no_proxy="")
            assert made.wait_server() == 0, made.log("server")
            made.close()
        yield made, proxy, tap
    finally:
        made.close()


def test_it_gives_the_simulations_mixer_bit_for_bit(finished: Federation, simulated: Path) -> None:
    real = (finished.out / "mixer.safetensors").read_bytes()
    assert real == (simulated / "mixer.safetensors").read_bytes()
    # the comparison sees a difference where there is one
    tensors = safetensors.numpy.load(real)
    assert any(tensor.any() for name, tensor in tensors.items() if name.startswith("mixer/"))


def test_every_round_stands_in_the_record(finished: Federation) -> None:
    records = finished.records()

    assert [record["round"] for record in records] == [0, 1, 2, 3, 4, 5]
    assert [record["kind"] for record in records] == ["statistics"] + ["train"] * 5
    for record in records:
        assert record["asked"] == record["answered"] == sorted(finished.sites)
        assert set(record["counted"]) == set(finished.sites)
        assert not record["refused"]
    run_record = json.loads((finished.out / "run.json").read_text(encoding="utf-8"))
    assert run_record["complete"]
    assert set(run_record["guard"]) == set(finished.sites)


def test_the_server_names_once_the_sites_that_declared_no_patients(finished: Federation) -> None:
    named = "no declared number of patients: " + ", ".join(sorted(finished.sites))
    assert " ".join(finished.log("server").split()).count(named) == 1


def test_what_a_federation_leaves_is_its_users_alone(finished: Federation) -> None:
    works = [finished.site(name) / "work" for name in finished.sites]
    for folder in (finished.server / "state", finished.out, *works):
        assert open_to_others(folder) == []
    names = {path.name for work in works for path in work.rglob("*")}
    assert {"split.json", "log.txt", "plan.json", "entry.json", "journal.jsonl"} <= names
    assert (finished.server / "state" / "superlink.db").is_file()


def test_the_event_file_holds_the_record_and_what_each_guard_said(finished: Federation) -> None:
    scalars = read_events(finished.out / "tensorboard").scalars
    rounds = rounded(expected(finished.out / "rounds.jsonl"))
    final = {tag: steps for tag, steps in scalars.items() if tag.startswith("final_by_site/")}
    assert scalars == rounds | final
    metrics = json.loads((finished.out / "metrics.json").read_text(encoding="utf-8"))
    assert final == rounded(
        {
            f"final_by_site/{site}/{method}/{metric}": {5: measure["value"]}
            for site, found in metrics["sites"].items()
            for method, table in found["methods"].items()
            for metric, measure in table.items()
        }
    )
    assert final


def test_the_journal_holds_all_that_left(finished: Federation) -> None:
    for site in finished.sites:
        reading = verify(finished.site(site) / "work" / JOURNAL_FILE)
        # a site of the tests notes that its image checks are off
        note, *sent = reading.lines
        assert (note.kind, note.bytes, note.receiver) == ("note", 0, "nobody")
        seen = [(line.kind, line.round) for line in sent]
        assert seen == [("statistics", 0), *(("train", k) for k in range(1, 6)), ("guard", 0)]
        address = finished.server_settings()["address"]
        assert {line.receiver for line in sent} == {address}


def test_the_finished_run_is_left_as_it_is(finished: Federation) -> None:
    before = (finished.out / "mixer.safetensors").read_bytes()

    finished.start_server()

    assert finished.wait_server() == 0
    assert wording.ALREADY_COMPLETE in finished.log("server")
    assert (finished.out / "mixer.safetensors").read_bytes() == before
    # but for a report that a killed server did not come to
    report = finished.out / "report.html"
    written = report.read_bytes()
    report.unlink()
    finished.start_server()
    assert finished.wait_server() == 0
    assert report.read_bytes() == written


def test_status_and_export_need_no_running_server(finished: Federation, tmp_path: Path) -> None:
    status = json.loads(run("lift-server", "status", finished.server, "--json"))
    assert status["phase"] == "done"
    run("lift-server", "export", finished.server, tmp_path / "release", "--without-audit")
    sums = (tmp_path / "release" / "SHA256SUMS").read_text(encoding="utf-8")
    assert "mixer.safetensors" in sums
    bundle = json.loads((tmp_path / "release" / "release.json").read_text(encoding="utf-8"))
    assert bundle["audits"]["missing"] == sorted(finished.sites)
    own = json.loads((finished.out / "run.json").read_text(encoding="utf-8"))
    released = json.loads((tmp_path / "release" / "run.json").read_text(encoding="utf-8"))
    assert set(own["guard"]) == set(finished.sites)
    assert not {"guard", "sites", "update_bytes", "finished", "command"} & released.keys()
    assert released["all_sites"]["number"] == len(own["sites"])
    assert released["plan"] == own["plan"]


def test_clients_stay_up_and_stop_when_told(finished: Federation) -> None:
    for site in finished.sites:
        farewell = finished.farewells[site]
        assert farewell.was_up
        assert farewell.code == 0
        (child,) = farewell.children
        until(partial(_gone, Path(f"/proc/{child}")), 20, "the child ends")


def _gone(path: Path) -> bool:
    return not path.exists()


@pytest.mark.slow
def test_below_the_quorum_nothing_is_aggregated(federation: Federation) -> None:
    federation.make(federation={"rounds": 1, "deadline_s": 5.0})
    settings = federation.server_settings()
    federation.write_server(settings | {"wait_for_sites_s": 12.0})
    # it dials before the server waits: the wait is not for its start
    federation.start_site("east")
    until(lambda: "event=connecting" in federation.site_log("east"), 60, "the site dials")
    federation.start_server()

    assert federation.wait_server() == 8
    log = federation.log("server")
    assert "[quorum, exit 8]" in log
    assert re.search(r"missing: north, west", log)
    assert "Traceback" not in log
    assert not federation.records()


@pytest.mark.slow
def test_a_tensor_that_no_answer_has_stays_at_its_site(federation: Federation) -> None:
    federation.make(federation={"rounds": 1, "quorum_sites": 2, "quorum_patients": 0.3})
    federation.start_server()
    for site in ("east", "west"):
        federation.start_site(site)
    federation.start_site("north", planting=True)

    assert federation.wait_server() == 0
    statistics, train = federation.records()
    assert statistics["refused"] == {}
    assert train["refused"] == {"north": "policy"}
    assert sorted(train["counted"]) == ["east", "west"]
    assert PLANTED in federation.site_log("north")
    lines = verify(federation.site("north") / "work" / "journal.jsonl").lines
    assert "failure" in [line.kind for line in lines]
    assert all(PLANTED not in [tensor.name for tensor in line.tensors] for line in lines)


@pytest.mark.slow
def test_a_removed_site_is_out_from_the_next_round_on(federation: Federation) -> None:
    federation.sites = ("east", "west")
    federation.make(
        federation={"rounds": 4, "deadline_s": 60.0, "quorum_sites": 1, "quorum_patients": 0.5}
    )
    federation.start_server()
    federation.start_sites()
    until(lambda: len(federation.records()) >= 2, 120, "a first round")
    with federation.held("east"):
        # no round can end meanwhile
        run("lift-server", "remove-site", federation.server, "west")
        known = len(federation.records())

    assert federation.wait_server() == 0, federation.log("server")
    records = federation.records()
    assert records[1]["asked"] == ["east", "west"]
    later = records[known + 1 :]
    assert later
    assert all(record["asked"] == ["east"] for record in later)


@pytest.mark.slow
def test_it_works_through_a_connect_proxy(
    overheard: tuple[Federation, ConnectProxy, TlsTap],
) -> None:
    federation, proxy, tap = overheard
    assert set(federation.records()[1]["counted"]) == {"east"}
    assert proxy.targets == {tap.address}


@pytest.mark.slow
def test_a_sites_failure_leaves_as_its_class_alone(
    overheard: tuple[Federation, ConnectProxy, TlsTap],
) -> None:
    federation, _, tap = overheard
    assert federation.records()[0]["refused"] == {"north": "data"}
    assert PRIVATE in federation.site_log("north")
    sent = tap.everything()
    assert len(sent) > 10_000
    assert b"/v1/fleet/push-messages" in sent
    for private in (PRIVATE, "MUELLER", str(federation.folder), "BraTS-TST"):
        assert private.encode() not in sent
    for name in ("superlink.db", "log.txt"):
        assert PRIVATE.encode() not in (federation.server / "state" / name).read_bytes()


@pytest.mark.slow
def test_a_dead_site_is_named_in_time(federation: Federation) -> None:
    federation.make(federation={"rounds": 1, "deadline_s": 100.0})
    federation.write_server(federation.server_settings() | {"wait_for_sites_s": 200.0})
    federation.start_server()
    federation.start_site("east")
    until(lambda: "waiting for 2 of" in federation.log("server"), 60, "east is there")

    federation.kill("east")
    began = datetime.now()
    until(lambda: "lost: east" in federation.log("server"), 45, "the server names the dead site")
    assert (datetime.now() - began).total_seconds() < 45
