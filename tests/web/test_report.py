"""The run report in a real browser: the demo's own, one of many sites, and one of hostile names."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from lift.report.page import write_report
from tests.lift.report.example_run import SITES, write_example_run
from tests.server.live_world import HOSTILE, round_line
from tests.web.conftest import DESKTOP, PHONE, Opener, Watched
from tests.web.many_sites import write_many_sites

pytestmark = [pytest.mark.web, pytest.mark.timeout(300)]
LARGEST_BYTES = 10_000_000
OPENS_MS = 2000


@pytest.fixture(scope="module")
def demo() -> Path:
    """The report of `make demo`, which `make test-web` runs first."""
    folder = os.environ.get("LIFT_DEMO")
    if folder is None:
        pytest.skip("NO DEMO: `make test-web` makes it; LIFT_DEMO names its folder")
    return (Path(folder) / "report.html").absolute()


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of 50 sites and 500 rounds."""
    return write_report(write_many_sites(tmp_path_factory.mktemp("many"), sites=50, rounds=500))


def opened_in_ms(watched: Watched) -> float:
    timing = "performance.getEntriesByType('navigation')[0].loadEventEnd"
    watched.page.wait_for_function(f"() => {timing} > 0")
    return float(watched.page.evaluate(timing))


def check_figures(watched: Watched) -> int:
    """Every picture on the page is there and has a size; how many there are."""
    pictures = watched.page.locator("figure img")
    for index in range(pictures.count()):
        assert pictures.nth(index).evaluate("node => node.complete && node.naturalWidth > 100")
        assert pictures.nth(index).get_attribute("alt")
    return int(pictures.count())


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_demos_report_is_whole(
    open_page: Opener, demo: Path, screenshots: Path, size: tuple[int, int], theme: str
) -> None:
    assert demo.stat().st_size <= LARGEST_BYTES
    watched = open_page(demo.as_uri(), size=size, theme=theme)
    page = watched.page
    assert opened_in_ms(watched) < OPENS_MS
    # timeline, curves, differences, flicker, smoothing, seconds, and six patients
    assert check_figures(watched) == 12
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]
    assert page.locator(".banner").inner_text().startswith("PHANTOM")
    name = f"report-{'phone' if size == PHONE else 'desktop'}-{theme}"
    page.screenshot(path=screenshots / f"{name}.png", full_page=True)
    assert watched.serious_faults() == []
    watched.check()


def test_three_sites_and_twenty_rounds_stay_small(
    open_page: Opener, demo: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for name in ("run.json", "metrics.json", "synthesis"):
        source = demo.parent / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, _made(run) / name)
    lines = [json.dumps(round_line(index, ("harbour", "north", "valley"))) for index in range(21)]
    (run / "rounds.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    path = write_report(run)
    assert path.stat().st_size <= LARGEST_BYTES
    watched = open_page(path.as_uri())
    assert opened_in_ms(watched) < OPENS_MS
    assert check_figures(watched) == 12
    watched.check()


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def test_the_demos_volumes_scroll_together(
    open_page: Opener, demo: Path, screenshots: Path
) -> None:
    watched = open_page(demo.as_uri())
    page = watched.page
    viewer = page.locator(".viewer").first
    viewer.get_by_role("button", name="Open the viewer").click()
    page.wait_for_selector('.viewer[data-state="open"]', timeout=120_000)
    panes = viewer.locator(".viewer-pane")
    assert panes.count() == 3
    before = [panes.nth(k).get_attribute("data-position-mm") for k in range(3)]
    panes.first.locator("canvas").focus()
    for _ in range(4):
        page.keyboard.press("ArrowUp")
    page.wait_for_timeout(500)
    after = [panes.nth(k).get_attribute("data-position-mm") for k in range(3)]
    assert len(set(after)) == 1
    assert after != before
    assert viewer.locator(".viewer-phantom").count() == 3
    # any two of the three can be compared
    viewer.get_by_role("button", name="difference").click()
    shown = viewer.locator(".viewer-difference figcaption")
    assert "federated \N{MINUS SIGN} target" in shown.inner_text()
    viewer.get_by_label("with").select_option("no mixer")
    page.wait_for_function(
        "() => document.querySelector('.viewer-difference figcaption')"
        ".textContent.includes('no mixer')"
    )
    told = dict(
        part.rsplit(": ", 1)
        for part in viewer.locator(".viewer-position").inner_text().split(" · ")[1:]
    )
    minus = float(told["no mixer \N{MINUS SIGN} target"])
    assert minus == pytest.approx(float(told["no mixer"]) - float(told["target"]), abs=2)
    viewer.screenshot(path=screenshots / "report-viewer-difference.png")
    viewer.get_by_label("compare").select_option("no mixer")
    assert viewer.get_by_label("with").input_value() == "0"
    viewer.get_by_role("button", name="side by side").click()
    viewer.screenshot(path=screenshots / "report-viewer.png")
    assert watched.serious_faults() == []
    watched.check()


def test_fifty_sites_and_five_hundred_rounds_are_readable(
    open_page: Opener, many: Path, screenshots: Path
) -> None:
    watched = open_page(many.as_uri())
    page = watched.page
    assert opened_in_ms(watched) < OPENS_MS
    assert check_figures(watched) == 5
    page.screenshot(path=screenshots / "report-many.png", full_page=True)
    # a folded site opens, and shows its own figures
    folded = page.locator("#sites details").nth(7)
    folded.locator("summary").click()
    assert "site-07" in folded.inner_text()
    assert folded.locator("table").first.is_visible()
    assert page.evaluate("document.documentElement.scrollHeight") < 20_000
    assert watched.serious_faults() == []
    watched.check()
    phone = open_page(many.as_uri(), size=PHONE)
    assert phone.page.evaluate("document.documentElement.scrollWidth") == PHONE[0]


def test_hostile_names_are_text(open_page: Opener, tmp_path: Path, screenshots: Path) -> None:
    folder = write_example_run(tmp_path / "run", patients=1)
    for name in ("run.json", "rounds.jsonl", "metrics.json"):
        text = (folder / name).read_text(encoding="utf-8")
        for site, hostile in zip(SITES, HOSTILE[:2], strict=True):
            text = text.replace(json.dumps(site), json.dumps(hostile))
        (folder / name).write_text(text, encoding="utf-8")
    watched = open_page(write_report(folder).as_uri(), size=PHONE)
    text = watched.page.locator("body").inner_text()
    for hostile in HOSTILE[:2]:
        assert hostile in re.sub(r"\s", "", text) or hostile in text
    assert watched.page.evaluate("document.documentElement.scrollWidth") == PHONE[0]
    watched.page.screenshot(path=screenshots / "report-hostile.png", full_page=True)
    watched.check()
