"""The live page beside a real run: many look at it, it dies, and the run does not notice."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from lift_server.watch.live.snapshot import Snapshots
from tests.federation.browsers import BROWSERS, PATHS, answers, open_pages, running_page
from tests.federation.world import Federation, children, until
from tests.ports import free_port
from tests.server.live_world import make_live
from tests.structure import differences, structure

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]
ROUNDS = 12


def test_a_hundred_browsers_at_once_are_all_answered(tmp_path: Path) -> None:
    with running_page(tmp_path / "fed") as (_, address):
        statuses = asyncio.run(open_pages(address))
    assert statuses == [httpx.codes.OK] * (BROWSERS * len(PATHS))


def test_a_killed_page_comes_back_and_the_run_is_whole(
    federation: Federation, tmp_path: Path
) -> None:
    federation.sites = ("east", "north")
    federation.make(federation={"rounds": ROUNDS})
    port = free_port()
    settings = federation.server_settings() | {"page_port": port, "phantom": True}
    federation.write_server(settings)
    server = federation.start_server()
    address = f"http://127.0.0.1:{port}"
    until(lambda: answers(address), 60, "the page answers before any site is there")
    until(lambda: f"live page: {address}/" in federation.log("server"), 20, "the operator is told")
    waiting = "waiting for sites, 0 of 2 online"
    until(lambda: state_of(address)["summary"] == waiting, 60, "the page says who is missing")
    first = page_of(server.pid)
    federation.start_sites()
    until(lambda: len(federation.records()) >= 3, 120, "three rounds")

    os.kill(first, signal.SIGKILL)
    known = len(federation.records())
    until(lambda: len(federation.records()) > known, 60, "a round ends without the page")
    # the page ends with its server: the run must not end before it is back
    with federation.held("north"):
        until(lambda: answers(address), 60, "the page answers again")
        assert page_of(server.pid) != first
        state = state_of(address)
    assert state["rounds"] == ROUNDS
    assert state["rounds_done"] >= known - 1
    assert set(state["sites"]) == set(federation.sites)
    assert state["phantom"]
    # the browser's tests look at a folder that is written by hand
    config = make_live(tmp_path / "by-hand", sites=federation.sites, rounds=3)
    by_hand = json.loads(Snapshots(config).latest().state)
    assert differences(*(structure(one, federation.sites) for one in (state, by_hand))) == []

    assert federation.wait_server() == 0, federation.log("server")
    records = federation.records()
    assert len(records) == ROUNDS + 1
    assert all(set(record["counted"]) == set(federation.sites) for record in records)
    assert json.loads((federation.out / "run.json").read_text())["complete"]
    assert (federation.out / "report.html").is_file()
    # nobody is left behind
    until(lambda: not answers(address), 20, "the page ends with its server")


def state_of(address: str) -> dict[str, Any]:
    """What the page shows but the rounds."""
    return dict(httpx.get(f"{address}/state.json", trust_env=False).json())


def page_of(server: int) -> int:
    """The page's process among the server's children."""
    (found,) = (
        child
        for child in children(server)
        if b"lift_server.watch.live" in Path(f"/proc/{child}/cmdline").read_bytes()
    )
    return found
