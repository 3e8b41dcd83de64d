"""The live page in a real browser, beside a real run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page

from tests.end_to_end.tiny_run import TinyRun, make_tiny_run
from tests.federation.browsers import answers
from tests.federation.test_live_page import page_of
from tests.federation.world import Federation, add_north, until
from tests.ports import free_port
from tests.server.live_world import HOSTILE, make_live
from tests.web.conftest import DESKTOP, PHONE, Opener

pytestmark = [pytest.mark.web, pytest.mark.timeout(300)]
ROUNDS = 60


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    tiny = make_tiny_run(tmp_path_factory.mktemp("volumes"))
    add_north(tiny)
    return tiny


@pytest.fixture
def federation(volumes: TinyRun, tmp_path: Path) -> Iterator[Federation]:
    made = Federation(tmp_path, volumes)
    yield made
    made.close()


def looks(page: Page) -> int:
    return int(page.locator("html").get_attribute("data-looks") or 0)


def wait_for_looks(page: Page, more: int) -> None:
    aim = looks(page) + more
    for _ in range(600):
        if looks(page) >= aim:
            return
        page.wait_for_timeout(100)
    raise AssertionError("the page does not ask")


def test_it_follows_a_real_run_and_survives_its_own_death(
    open_page: Opener, federation: Federation, screenshots: Path
) -> None:
    # the page ends with its server: long enough that all looks are over well before the run
    federation.make(federation={"rounds": ROUNDS})
    port = free_port()
    federation.write_server(federation.server_settings() | {"page_port": port, "phantom": True})
    server = federation.start_server()
    address = f"http://127.0.0.1:{port}/"
    until(lambda: answers(address[:-1]), 60, "the page answers")
    watched = open_page(address)
    page = watched.page
    page.wait_for_selector("html[data-looks]", state="attached")
    page.get_by_text("waiting for sites, 0 of 3 online").wait_for(timeout=30_000)
    page.screenshot(path=screenshots / "live-waiting.png", full_page=True)
    assert page.locator("#phantom").is_visible()
    federation.start_sites()
    until(lambda: len(federation.records()) >= 4, 120, "some rounds")
    wait_for_looks(page, 2)

    # by itself, without being loaded again
    done = int(page.locator("#done").inner_text().split()[0])
    assert 2 <= done <= len(federation.records())

    # what a browser says of a server that is gone is no fault of the page
    watched.check(own_host=urlsplit(address).netloc)
    os.kill(page_of(server.pid), signal.SIGKILL)
    page.wait_for_selector("#trouble:not([hidden])", timeout=30_000)
    assert "says nothing about the run" in page.locator("#trouble").inner_text()
    until(lambda: answers(address[:-1]), 60, "the page is started again")
    page.wait_for_selector("#trouble[hidden]", state="attached", timeout=60_000)
    later = int(page.locator("#done").inner_text().split()[0])
    assert later >= done

    assert page.locator("#site-rows tr").count() == 3
    assert page.locator("#site-rows .good").count() == 3
    assert page.locator("#charts figure").count() == 3
    assert page.locator("#timeline-box svg").first.is_visible()
    phone = open_page(address, size=PHONE, theme="dark")
    phone.page.wait_for_selector("#timeline-box svg")
    assert phone.page.evaluate("document.documentElement.scrollWidth") == PHONE[0]
    for name, shown in (("desktop-light", watched), ("phone-dark", phone)):
        shown.page.screenshot(path=screenshots / f"live-{name}.png", full_page=True)
        assert shown.serious_faults() == []
    phone.check(own_host=urlsplit(address).netloc)

    assert federation.wait_server() == 0, federation.log("server")
    records = federation.records()
    assert len(records) == ROUNDS + 1
    assert all(set(record["counted"]) == set(federation.sites) for record in records)


@pytest.fixture
def alone(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The page of a folder written by hand, served by `lift-server page`."""
    port = free_port()
    make_live(tmp_path / "fed", page_port=port, **request.param)
    entry = "from lift_server.cli import main; main()"
    command = [sys.executable, "-c", entry, "page", str(tmp_path / "fed")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        until(lambda: answers(f"http://127.0.0.1:{port}"), 30, "the page answers")
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)


CASES = {
    "hostile": {"strangers": HOSTILE},
    "fifty": {
        "sites": [f"site-{index:02d}" for index in range(50)],
        "rounds": 500,
        "planned": 600,
    },
    "noise": {"noise": True},
}


@pytest.mark.parametrize(
    ("alone", "name"), [(case, name) for name, case in CASES.items()], indirect=["alone"], ids=CASES
)
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_any_run_is_readable(
    open_page: Opener,
    alone: str,
    name: str,
    screenshots: Path,
    size: tuple[int, int],
    theme: str,
) -> None:
    watched = open_page(alone, size=size, theme=theme)
    page = watched.page
    page.wait_for_selector("#timeline-box svg")
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]
    device = "phone" if size == PHONE else "desktop"
    page.screenshot(path=screenshots / f"live-{name}-{device}-{theme}.png", full_page=True)
    if name == "hostile":
        buttons = page.locator("button.site")
        titles = {buttons.nth(k).get_attribute("title") for k in range(buttons.count())}
        assert set(HOSTILE) <= titles
        assert "<script>alert('x')</script>" in page.locator("#site-rows").inner_text()
    assert watched.serious_faults() == []
    watched.check(own_host=urlsplit(alone).netloc)


@pytest.mark.parametrize("alone", [CASES["fifty"]], indirect=True)
def test_a_site_is_picked_out_with_the_keyboard_alone(open_page: Opener, alone: str) -> None:
    page = open_page(alone).page
    page.wait_for_selector("#charts figure")
    assert page.locator(".picked").count() == 0
    button = page.locator("button.site").nth(3)
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    # in loss and validation; seconds are of all sites
    assert page.locator(".picked").count() == 2
    page.keyboard.press("Enter")
    assert page.locator(".picked").count() == 0
