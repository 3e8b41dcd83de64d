"""The demo's report in a real browser.

The demo's run is a recorded one, see `recorded_run`; LIFT_DEMO names the folder of a real one.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from lift.report.page import write_report
from tests.server.live_world import round_line
from tests.web.conftest import DESKTOP, PHONE, Opener
from tests.web.recorded_run import SECTIONS, write_recorded_run
from tests.web.report_checks import check_figures, check_size

pytestmark = [pytest.mark.web, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the demo: of the folder that LIFT_DEMO names, or else of the recorded run."""
    folder = os.environ.get("LIFT_DEMO")
    if folder is not None:
        return (Path(folder) / "report.html").absolute()
    return write_report(write_recorded_run(tmp_path_factory.mktemp("demo")))


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_demos_report_is_whole(
    open_page: Opener, demo: Path, screenshots: Path, size: tuple[int, int], theme: str
) -> None:
    watched = open_page(demo.as_uri(), size=size, theme=theme)
    page = watched.page
    check_size(watched, demo)
    # timeline, curves, differences, flicker, smoothing, seconds, and six patients
    assert check_figures(watched) == 12
    anchors = page.locator("main > section").evaluate_all("found => found.map(one => one.id)")
    assert tuple(anchors) == SECTIONS
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
    watched = open_page(path.as_uri())
    check_size(watched, path)
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
    page.wait_for_function(
        "before => {"
        " const panes = document.querySelector('.viewer').querySelectorAll('.viewer-pane');"
        " const now = [...panes].map(pane => pane.dataset.positionMm);"
        " return new Set(now).size === 1 && now[0] !== before; }",
        arg=before[0],
    )
    assert viewer.locator(".viewer-phantom").count() == 3
    # any two of the three can be compared
    viewer.get_by_role("button", name="difference").click()
    shown = viewer.locator(".viewer-difference figcaption")
    assert "federated + curves \N{MINUS SIGN} target" in shown.inner_text()
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
