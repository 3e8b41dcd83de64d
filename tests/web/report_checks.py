"""What holds for a report in a browser, whatever run it is of."""

from __future__ import annotations

from pathlib import Path

from tests.web.conftest import Watched

LARGEST_BYTES = 10_000_000
# What a browser has to lay out grows with the sites, and hardly with the rounds: each has tables of
# methods and metrics with an interval in every cell. Seen: 8,874 with 3 sites and all rows, some
# hundreds more with 21 rounds; 58,637 with 50 sites and fewer rows.
MOST_NODES = 5_000
MOST_NODES_A_SITE = 1_700


def check_size(watched: Watched, path: Path, *, sites: int = 3) -> None:
    """The file and its elements are no more than a browser opens at once."""
    assert path.stat().st_size <= LARGEST_BYTES
    nodes = watched.page.evaluate("document.querySelectorAll('*').length")
    assert nodes < MOST_NODES + MOST_NODES_A_SITE * sites


def check_figures(watched: Watched) -> int:
    """Every picture on the page is there and has a size; how many there are."""
    pictures = watched.page.locator("figure img")
    for index in range(pictures.count()):
        assert pictures.nth(index).evaluate("node => node.complete && node.naturalWidth > 100")
        assert pictures.nth(index).get_attribute("alt")
    return int(pictures.count())
