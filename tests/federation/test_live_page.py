"""The live page beside a real run: many look at it, it dies, and the run does not notice."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.federation.world import Federation, children, until
from tests.ports import free_port
from tests.server.live_world import make_live

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]
BROWSERS = 100
# as often as page.js asks
EVERY_S = 3.0
MOST_CPU = 0.05
ROUNDS = 40


@pytest.fixture
def page(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The page of a run of 50 sites, alone; the process and its address."""
    sites = [f"site-{index:02d}" for index in range(50)]
    port = free_port()
    folder = tmp_path / "fed"
    make_live(folder, sites=sites, rounds=200, planned=300, page_port=port)
    entry = "from lift_server.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", entry, "page", str(folder)], stderr=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{port}"
    try:
        until(lambda: answers(address), 30, "the page answers")
        yield process, address
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)


def answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/state.json", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def browse(address: str, seconds: float) -> int:
    """A hundred browsers, each with a connection of its own, ask as the page does."""
    end = time.monotonic() + seconds

    async def one(offset: float) -> int:
        answered = 0
        async with httpx.AsyncClient(base_url=address, trust_env=False, timeout=20) as client:
            await asyncio.sleep(offset)
            for path in ("/", "/page.css", "/page.js", "/rounds.json"):
                (await client.get(path)).raise_for_status()
            while time.monotonic() < end:
                (await client.get("/state.json")).raise_for_status()
                answered += 1
                await asyncio.sleep(EVERY_S)
        return answered

    return sum(await asyncio.gather(*(one(EVERY_S * k / BROWSERS) for k in range(BROWSERS))))


def test_a_hundred_browsers_cost_less_than_a_twentieth_of_a_core(
    page: tuple[subprocess.Popen[bytes], str],
) -> None:
    process, address = page
    # opening the pages is not looking at them
    asyncio.run(browse(address, EVERY_S + 1))
    before, began = cpu_s(process.pid), time.monotonic()
    answered = asyncio.run(browse(address, 30))
    share = (cpu_s(process.pid) - before) / (time.monotonic() - began)

    assert answered > 0.8 * BROWSERS * 30 / EVERY_S
    assert share < MOST_CPU, f"{share:.1%} of a core for {answered} answers"


def test_a_killed_page_comes_back_and_the_run_is_whole(federation: Federation) -> None:
    # the page ends with its server: long enough that it is back well before the run's end
    federation.make(federation={"rounds": ROUNDS})
    port = free_port()
    settings = federation.server_settings() | {"page_port": port}
    federation.write_server(settings)
    server = federation.start_server()
    address = f"http://127.0.0.1:{port}"
    until(lambda: answers(address), 60, "the page answers before any site is there")
    until(lambda: f"live page: {address}/" in federation.log("server"), 20, "the operator is told")
    first = page_of(server.pid)
    federation.start_sites()
    until(lambda: len(federation.records()) >= 3, 120, "three rounds")

    os.kill(first, signal.SIGKILL)
    until(lambda: answers(address), 60, "the page answers again")
    assert page_of(server.pid) != first
    state = httpx.get(f"{address}/state.json", trust_env=False).json()
    assert state["rounds"] == ROUNDS
    assert set(state["sites"]) == set(federation.sites)

    assert federation.wait_server() == 0, federation.log("server")
    records = federation.records()
    assert len(records) == ROUNDS + 1
    assert all(set(record["counted"]) == set(federation.sites) for record in records)
    assert json.loads((federation.out / "run.json").read_text())["complete"]
    assert (federation.out / "report.html").is_file()
    # nobody is left behind
    until(lambda: not answers(address), 20, "the page ends with its server")


def page_of(server: int) -> int:
    """The page's process among the server's children."""
    (found,) = (
        child
        for child in children(server)
        if b"lift_server.live" in Path(f"/proc/{child}/cmdline").read_bytes()
    )
    return found
