"""A real browser: Debian's Chromium, driven by Playwright; nothing leaves this machine.

`make test-web` installs both. Every page that a test opens is watched: an error in its console or
a request to another host fails the test.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page, Request

# `make test` neither needs nor installs a browser; `make test-web` does both
if find_spec("playwright") is None or find_spec("axe_playwright_python") is None:
    collect_ignore_glob = ["test_*.py"]

DESKTOP = (1280, 900)
PHONE = (390, 844)
# what else Chromium does by itself has no place on a closed network
_QUIET = (
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-gpu",
    # WebGL without a graphics card
    "--enable-unsafe-swiftshader",
)
_LOCAL_SCHEMES = frozenset({"file", "data", "blob", "about"})
_SERIOUS = frozenset({"serious", "critical"})


@dataclass
class Watched:
    """A page, and what it said and asked for."""

    page: Page
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def check(self, own_host: str | None = None) -> None:
        """No error was logged, and nothing but local files and `own_host` was asked for."""
        assert self.errors == []
        foreign = [
            url
            for url in self.requests
            if urlsplit(url).scheme not in _LOCAL_SCHEMES and urlsplit(url).netloc != own_host
        ]
        assert foreign == []

    def serious_faults(self) -> list[str]:
        """What axe-core finds serious or critical, as `rule: elements`."""
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(self.page).response["violations"]
        return [
            f"{fault['id']}: {[node['html'][:120] for node in fault['nodes']][:4]}"
            for fault in found
            if fault["impact"] in _SERIOUS
        ]


Opener = Callable[..., Watched]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium without a window; its absence fails, for it is what is tested with."""
    program = os.environ.get("LIFT_CHROMIUM") or shutil.which("chromium")
    if program is None:
        pytest.fail("no Chromium: `make test-web` installs it, or name it in LIFT_CHROMIUM")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=list(_QUIET))
        try:
            yield started
        finally:
            started.close()


@contextmanager
def _opened(
    browser: Browser, url: str, size: tuple[int, int], theme: str, wait: str
) -> Iterator[Watched]:
    width, height = size
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if theme == "dark" else "light",
        reduced_motion="reduce",
    )
    page = context.new_page()
    watched = Watched(page)

    def said(message: ConsoleMessage) -> None:
        if message.type == "error":
            watched.errors.append(message.text)

    def asked(request: Request) -> None:
        watched.requests.append(request.url)

    page.on("console", said)
    page.on("pageerror", lambda error: watched.errors.append(str(error)))
    page.on("request", asked)
    page.goto(url, wait_until="load" if wait == "load" else "commit")
    try:
        yield watched
    finally:
        context.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Opener]:
    """`open_page(url, size=DESKTOP, theme="light")` gives a watched page, closed with the test."""
    with ExitStack() as stack:

        def opener(
            url: str, size: tuple[int, int] = DESKTOP, theme: str = "light", wait: str = "load"
        ) -> Watched:
            return stack.enter_context(_opened(browser, url, size, theme, wait))

        yield opener


@pytest.fixture(scope="session")
def screenshots() -> Path:
    """Where pictures of the pages go, for people to look at."""
    folder = Path(os.environ.get("LIFT_SCREENSHOTS") or "out/screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
