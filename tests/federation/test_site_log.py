"""The faults of a bad Monday: the site's own log says the cause and what to do, in one line."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.end_to_end.tiny_run import TinyRun
from tests.federation.world import Federation, run, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
WITHIN_S = 30.0
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


def await_line(federation: Federation, name: str, pattern: str) -> str:
    """The line of the site's log with this pattern; it has to come in time."""

    def find() -> re.Match[str] | None:
        return re.search(rf"^.*{pattern}.*$", federation.site_log(name), re.MULTILINE)

    try:
        until(lambda: find() is not None, WITHIN_S, pattern)
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
    await_line(waiting, "east", "event=connected")
    waiting.start_site("north")
    assert f"port={port}" in await_line(waiting, "north", "event=local_port_taken")
    await_line(waiting, "north", "event=connected")


def test_a_copied_key_is_refused_and_both_sides_are_told(waiting: Federation) -> None:
    twin = waiting.site("twin")
    shutil.copytree(waiting.site("east"), twin)
    waiting.start_site("east")
    await_line(waiting, "east", "event=connected")
    waiting.start_site("twin")
    line = await_line(waiting, "twin", "event=not_connected cause=key")
    assert "fix=" in line
    assert "key was copied" in await_line(waiting, "east", "event=key_used_twice")
    until(lambda: "key used twice" in waiting.log("server"), WITHIN_S, "the server's line")
    assert "east" in waiting.log("server").split("key used twice")[1]
    # the owner stays, and the twin never gets in
    assert "event=connected" not in waiting.site_log("twin")
    assert waiting.processes["east"].poll() is None


def test_a_wrong_clock_is_named(waiting: Federation, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SHIFTED.format(seconds=600), encoding="utf-8")
    waiting.start_site("east", PYTHONPATH=str(tmp_path))
    line = await_line(waiting, "east", "event=not_connected cause=clock")
    assert "s ahead of the server" in line
    assert "NTP" in line


def test_a_server_that_is_away_and_back(waiting: Federation) -> None:
    waiting.start_site("east")
    await_line(waiting, "east", "event=connected")
    waiting.kill("server")
    assert "by itself" in await_line(waiting, "east", "event=server_away")
    assert "server is up" in await_line(waiting, "east", "event=not_connected cause=network")
    waiting.start_server()
    await_line(waiting, "east", "event=connected_again")


def test_a_site_that_was_never_admitted_or_was_removed_is_told(waiting: Federation) -> None:
    waiting.start_site("west")
    await_line(waiting, "west", "event=connected")
    run("lift-server", "remove-site", waiting.server, "west")
    line = await_line(waiting, "west", "event=not_connected cause=admission")
    assert "was removed" in line
    assert "coordinator" in line
