"""Reports in a real browser: large volumes, many sites and rounds, and hostile names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lift.report.page import write_report
from tests.lift.report.example_run import SITES, write_example_run
from tests.server.live_world import HOSTILE
from tests.web.conftest import PHONE, Opener
from tests.web.many_sites import write_many_sites
from tests.web.recorded_run import write_recorded_run
from tests.web.report_checks import check_figures, check_size

pytestmark = [pytest.mark.web, pytest.mark.timeout(300)]
MANY = 50
# the grid of the demo's own volumes
DEMO_SHAPE = (91, 109, 60)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of 50 sites and 500 rounds."""
    return write_report(write_many_sites(tmp_path_factory.mktemp("many"), sites=MANY, rounds=500))


def test_volumes_of_the_demos_size_keep_the_page_small(open_page: Opener, tmp_path: Path) -> None:
    path = write_report(write_recorded_run(tmp_path / "run", shape=DEMO_SHAPE))
    watched = open_page(path.as_uri())
    check_size(watched, path)
    assert check_figures(watched) == 12
    watched.check()


def test_fifty_sites_and_five_hundred_rounds_are_readable(
    open_page: Opener, many: Path, screenshots: Path
) -> None:
    watched = open_page(many.as_uri())
    page = watched.page
    check_size(watched, many, sites=MANY)
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
