"""The live page in a real browser, beside a run folder that this test writes as a server does.

That the page of a real server's run does the same is tested in `tests/federation`.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page

from lift.files import write_json_lines
from tests.federation.browsers import answers
from tests.federation.world import until
from tests.ports import free_port
from tests.server.live_world import HOSTILE, SITES, make_live, round_line, write_status
from tests.web.conftest import DESKTOP, PHONE, Opener

pytestmark = [pytest.mark.web, pytest.mark.timeout(300)]
PLANNED = 20


def all_online() -> dict[str, dict[str, object]]:
    """The sites as a server's status has them while all of them work."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {site: {"online": True, "last_contact": now, "state": "asked"} for site in SITES}


def wait_for_looks(page: Page, more: int) -> None:
    """Until the page has asked `more` times again."""
    page.wait_for_function(
        "aim => Number(document.documentElement.dataset.looks ?? 0) >= aim",
        arg=int(page.locator("html").get_attribute("data-looks") or 0) + more,
        timeout=60_000,
    )


def rounds_done(page: Page) -> int:
    return int(page.locator("#done").inner_text().split()[0])


@contextmanager
def serving(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """`lift-server page` on the folder, from its first answer on."""
    entry = "from lift_server.cli import main; main()"
    command = [sys.executable, "-c", entry, "page", str(folder)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        until(lambda: answers(f"http://127.0.0.1:{port}"), 60, "the page answers")
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait(20)


def test_it_follows_a_run_and_survives_its_own_death(
    open_page: Opener, tmp_path: Path, screenshots: Path
) -> None:
    folder, port = tmp_path / "fed", free_port()
    address = f"http://127.0.0.1:{port}/"
    config = make_live(folder, rounds=-1, planned=PLANNED, page_port=port, phantom=True)
    # as a server does before any site is there
    nothing = {"exchange": None, "round_started": None, "deadline_s": 0.0}
    write_status(config, (), 0, PLANNED, phase="waiting", **nothing)

    def write_rounds(count: int) -> None:
        lines = [round_line(index, SITES) for index in range(count + 1)]
        write_json_lines(config.output / "rounds.jsonl", lines)
        write_status(config, SITES, count + 1, PLANNED, sites=all_online())

    with serving(folder, port) as server:
        watched = open_page(address)
        page = watched.page
        page.get_by_text("waiting for sites, 0 of 3 online").wait_for(timeout=30_000)
        page.screenshot(path=screenshots / "live-waiting.png", full_page=True)
        assert page.locator("#phantom").is_visible()
        write_rounds(3)
        wait_for_looks(page, 2)

        # by itself, without being loaded again
        assert rounds_done(page) == 3

        # what a browser says of a server that is gone is no fault of the page
        watched.check(own_host=urlsplit(address).netloc)
        server.kill()
        page.wait_for_selector("#trouble:not([hidden])", timeout=60_000)
        assert "The run itself may be fine" in page.locator("#trouble").inner_text()
        page.screenshot(path=screenshots / "live-trouble.png", full_page=True)
    write_rounds(5)
    with serving(folder, port):
        page.wait_for_selector("#trouble[hidden]", state="attached", timeout=60_000)
        assert rounds_done(page) == 5

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


@pytest.fixture(scope="module")
def alone(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[str]:
    """The page of a folder written by hand, which no test changes."""
    folder, port = tmp_path_factory.mktemp("alone") / "fed", free_port()
    make_live(folder, page_port=port, **request.param)
    with serving(folder, port):
        yield f"http://127.0.0.1:{port}/"


CASES = {
    "hostile": {"strangers": HOSTILE},
    "fifty": {
        "sites": [f"site-{index:02d}" for index in range(50)],
        "rounds": 500,
        "planned": 600,
    },
    "noise": {"noise": True},
    "clips": {"clips": True},
}


@pytest.mark.parametrize(
    ("alone", "name"),
    [(case, name) for name, case in CASES.items()],
    indirect=["alone"],
    ids=CASES,
    scope="module",
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
    rows = page.locator("#clip-rows tr")
    assert page.locator("#no-clips").is_visible() is (name != "clips")
    if name == "clips":
        # the newest first
        assert [text.split("\t")[:4] for text in rows.all_inner_texts()] == [
            ["12", "harbour", "14.00", "0.143"],
            ["9", "harbour", "11.00", "0.182"],
            ["6", "harbour", "8.00", "0.250"],
            ["3", "harbour", "5.00", "0.400"],
        ]
        assert "harbour" in rows.nth(1).locator(".words").inner_text()
        assert page.locator("#clips-note").inner_text() == "Clipped: harbour in 4 rounds."
    else:
        assert rows.count() == 0
    assert watched.serious_faults() == []
    watched.check(own_host=urlsplit(alone).netloc)


@pytest.mark.parametrize("alone", [CASES["fifty"]], indirect=True, scope="module")
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
