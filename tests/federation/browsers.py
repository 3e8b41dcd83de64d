"""The live page in a process of its own, and browsers that look at it as page.js does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.federation.world import until
from tests.ports import free_port
from tests.server.live_world import make_live

BROWSERS = 100
EVERY_S = 3.0
"""As often as page.js asks."""
PATHS = ("/", "/page.css", "/page.js", "/rounds.json", "/state.json")
"""What a browser asks for when it opens the page."""


@contextlib.contextmanager
def running_page(folder: Path) -> Iterator[tuple[int, str]]:
    """The page of a run of 50 sites, alone: its process id and its address."""
    sites = [f"site-{index:02d}" for index in range(50)]
    port = free_port()
    make_live(folder, sites=sites, rounds=200, planned=300, page_port=port)
    entry = "from lift_server.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", entry, "page", str(folder)], stderr=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{port}"
    try:
        until(lambda: answers(address), 30, "the page answers")
        yield process.pid, address
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)


def answers(address: str) -> bool:
    """Whether the page is there."""
    try:
        return httpx.get(f"{address}/state.json", trust_env=False).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


async def open_pages(address: str) -> list[int]:
    """A hundred browsers open the page while all the others hold their connections; statuses."""
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(
                httpx.AsyncClient(base_url=address, trust_env=False, timeout=60)
            )
            for _ in range(BROWSERS)
        ]
        statuses = []
        for path in PATHS:
            found = await asyncio.gather(*(client.get(path) for client in clients))
            statuses += [answer.status_code for answer in found]
    return statuses


async def look(address: str, seconds: float) -> int:
    """A hundred browsers, each with a connection of its own, ask again and again; how often."""
    end = time.monotonic() + seconds

    async def one(offset: float) -> int:
        answered = 0
        async with httpx.AsyncClient(base_url=address, trust_env=False, timeout=20) as client:
            await asyncio.sleep(offset)
            for path in PATHS:
                (await client.get(path)).raise_for_status()
            while time.monotonic() < end:
                (await client.get("/state.json")).raise_for_status()
                answered += 1
                await asyncio.sleep(EVERY_S)
        return answered

    return sum(await asyncio.gather(*(one(EVERY_S * k / BROWSERS) for k in range(BROWSERS))))


def cpu_share(pid: int, address: str, seconds: float) -> tuple[float, int]:
    """What share of a core the page takes while they look, and the number of its answers."""
    # opening the pages is not looking at them
    asyncio.run(look(address, EVERY_S + 1))
    before, began = _cpu_s(pid), time.monotonic()
    answered = asyncio.run(look(address, seconds))
    return (_cpu_s(pid) - before) / (time.monotonic() - began), answered


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
