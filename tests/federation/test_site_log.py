"""The faults of a bad Monday: the site's own log says the cause and what to do, in one line."""

from __future__ import annotations

import json
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lift.errors import EXIT_CODES
from tests.end_to_end.tiny_run import TinyRun
from tests.federation.world import Federation, run, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
WITHIN_S = 30.0
START_S = 120.0
SHIFTED = """
import time
from datetime import timedelta
plain = time.time
time.time = lambda: plain() + {seconds}
import flwr.supercore.date as date
now = date.now
date.now = lambda: now() + timedelta(seconds={seconds})
"""


def change(federation: Federation, name: str, **settings: object) -> None:
    """Change keys of site.yaml."""
    path = federation.site(name) / "site.yaml"
    data = yaml.safe_load(path.read_text(encoding="utf-8")) | settings
    path.write_text(yaml.safe_dump(data), encoding="utf-8")


def await_line(federation: Federation, name: str, pattern: str, *, starts: bool = False) -> str:
    """The line of the site's log with this pattern; it has to come in time.

    Args:
        federation: of the site.
        name: of the site.
        pattern: of the line.
        starts: the site was started just now: how long that takes is nobody's fault.
    """

    def find() -> re.Match[str] | None:
        return re.search(rf"^.*{pattern}.*$", federation.site_log(name), re.MULTILINE)

    try:
        until(lambda: find() is not None, WITHIN_S + (START_S if starts else 0.0), pattern)
    except TimeoutError:
        raise AssertionError(federation.site_log(name)) from None
    found = find()
    assert found is not None
    return found[0]


@pytest.fixture(scope="module")
def server(volumes: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A server that runs and waits: its sites are never all there."""
    made = Federation(tmp_path_factory.mktemp("monday"), volumes)
    try:
        made.make()
        made.write_server(made.server_settings() | {"wait_for_sites_s": 900.0})
        made.start_server()
        until(lambda: "waiting for" in made.log("server"), 60, "the server")
        yield made
    finally:
        made.close()


@pytest.fixture
def waiting(server: Federation) -> Iterator[Federation]:
    """The same; the clients of a test end with it, as with a power cut, and leave no log."""
    yield server
    for name in [name for name in server.processes if name != "server"]:
        server.kill(name)
        shutil.rmtree(server.site(name) / "work", ignore_errors=True)
        del server.processes[name]


def test_connected_asked_answered_and_over(finished: Federation) -> None:
    federation = finished
    log = federation.site_log("east")
    events = ["event=connected", "event=asked", "event=answered", "event=run_over"]
    places = [log.find(event) for event in events]
    assert places == sorted(places)
    assert min(places) >= 0
    assert "kind=train round=5 outcome=reply" in log
    # one event a line, for whoever greps: none is a piece of the one before it
    heads = (
        *("test:", "privacy:", "connected:", "round", "after", "report:", "done:", "lost:"),
        *("waiting", "certificate:", "no declared number"),
    )
    terminal = federation.log("server")
    assert [line for line in terminal.splitlines() if not line.startswith(heads)] == []


def test_two_clients_of_one_machine_get_ports_by_themselves(waiting: Federation) -> None:
    port = yaml.safe_load((waiting.site("east") / "site.yaml").read_text())["local_port"]
    change(waiting, "north", local_port=port)
    waiting.start_site("east")
    await_line(waiting, "east", "event=connected", starts=True)
    waiting.start_site("north")
    assert f"port={port}" in await_line(waiting, "north", "event=local_port_taken", starts=True)
    await_line(waiting, "north", "event=connected")


def test_a_copied_key_is_refused_and_both_sides_are_told(waiting: Federation) -> None:
    twin = waiting.site("twin")
    shutil.copytree(waiting.site("east"), twin)
    waiting.start_site("east")
    await_line(waiting, "east", "event=connected", starts=True)
    waiting.start_site("twin")
    line = await_line(waiting, "twin", "event=not_connected cause=key", starts=True)
    assert "fix=" in line
    assert "key was copied" in await_line(waiting, "east", "event=key_used_twice")
    until(lambda: "key used twice" in waiting.log("server"), WITHIN_S, "the server's line")
    assert "east" in waiting.log("server").split("key used twice")[1]
    # the owner stays, and the twin never gets in
    assert "event=connected" not in waiting.site_log("twin")
    assert waiting.processes["east"].poll() is None


def test_with_log_format_json_every_line_is_an_object(waiting: Federation) -> None:
    terminal = waiting.folder / "east.terminal"
    # an earlier client of this site wrote there too
    written = terminal.stat().st_size if terminal.exists() else 0
    waiting.start_site("east", options=["--log-format", "json"])
    await_line(waiting, "east", '"event": "connected"', starts=True)
    told = waiting.log("east").encode()[written:].decode()
    for text in (waiting.site_log("east"), told.rpartition("\n")[0]):
        lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        assert len(lines) == len(text.splitlines())
        started = next(line for line in lines if line["event"] == "started")
        assert started["site"] == "east"
        assert started["level"] == "info"
        assert started["time"].endswith("Z")


def test_a_health_port_that_is_taken_ends_the_server_with_the_code_of_the_guide(
    volumes: TinyRun, tmp_path: Path
) -> None:
    made = Federation(tmp_path, volumes, sites=())
    made.make()
    with socket.create_server(("127.0.0.1", made.server_settings()["health_port"])):
        made.start_server()
        assert made.wait_server(60) == EXIT_CODES["connection"].number
        terminal = made.log("server")
        headline, seen, remedy = terminal.splitlines()[-3:]
        assert headline.startswith("lift-server: the health service's port is taken in health_port")
        assert "in use" in seen
        assert "Choose another health_port" in remedy
        # nothing of gRPC's own
        assert "grpc" not in terminal.lower()
        assert all(line.startswith(("test:", "privacy:")) for line in terminal.splitlines()[:-3])
        made.start_server(options=["--log-format", "json"])
        assert made.wait_server(60) == EXIT_CODES["connection"].number
        lines = [json.loads(line) for line in made.log("server")[len(terminal) :].splitlines()]
    assert lines[0]["message"].startswith("test:")
    assert (lines[-1]["event"], lines[-1]["exit"], lines[-1]["class"]) == ("ended", 4, "connection")
    assert lines[-1]["fix"].endswith("Choose another health_port, or null for none.")


def test_a_wrong_clock_is_named(waiting: Federation, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SHIFTED.format(seconds=600), encoding="utf-8")
    waiting.start_site("east", PYTHONPATH=str(tmp_path))
    line = await_line(waiting, "east", "event=not_connected cause=clock", starts=True)
    assert "s ahead of the server" in line
    assert "NTP" in line


def test_a_server_that_is_away_and_back(waiting: Federation) -> None:
    waiting.start_site("east")
    await_line(waiting, "east", "event=connected", starts=True)
    waiting.kill("server")
    assert "by itself" in await_line(waiting, "east", "event=server_away")
    assert "server is up" in await_line(waiting, "east", "event=not_connected cause=network")
    waiting.start_server()
    await_line(waiting, "east", "event=connected_again")


def test_a_server_that_was_moved_has_its_sites_again(waiting: Federation) -> None:
    """To another folder, by a copy of what the guide names; sites dial the same address."""
    waiting.start_site("east")
    await_line(waiting, "east", "event=connected", starts=True)
    waiting.kill("server")
    await_line(waiting, "east", "event=server_away")
    moved = waiting.server.rename(waiting.folder / "moved")
    waiting.server.symlink_to(moved)
    for file in (moved / "state").glob("superlink.db*"):
        file.unlink()
    said = len(waiting.log("server"))
    waiting.start_server()
    # its network process may have to start anew
    await_line(waiting, "east", "event=connected_again", starts=True)

    def online() -> bool:
        shown = json.loads(run("lift-server", "status", waiting.server, "--json"))
        return bool(shown["sites"]["east"]["online"])

    until(online, WITHIN_S, "the site at the moved server")
    assert "lost" not in waiting.log("server")[said:]
    after = waiting.site_log("east").split("event=server_away")[1]
    assert "cause=admission" not in after
    assert after.rstrip().endswith("event=connected_again")


def test_a_key_that_was_never_admitted_is_told(waiting: Federation) -> None:
    stranger = waiting.site("stranger")
    run("lift-client", "enroll", "north", "--folder", stranger)
    shutil.copytree(waiting.site("north") / "kit", stranger / "kit")
    shutil.copy(waiting.site("north") / "site.yaml", stranger)
    waiting.start_site("stranger")
    line = await_line(waiting, "stranger", "event=not_connected cause=admission", starts=True)
    assert "Send site.pub to the coordinator" in line


def test_a_site_that_was_removed_is_told(waiting: Federation) -> None:
    waiting.start_site("west")
    await_line(waiting, "west", "event=connected", starts=True)
    run("lift-server", "remove-site", waiting.server, "west")
    line = await_line(waiting, "west", "event=not_connected cause=admission")
    assert "was removed" in line
    assert "coordinator" in line
