"""The viewer in a real browser: linked, windowed, swiped, subtracted; and nothing is fetched."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page
from scipy import ndimage

from tests.end_to_end.tiny_run import run_here
from tests.web.conftest import DESKTOP, PHONE, Opener, Watched

pytestmark = [pytest.mark.web, pytest.mark.timeout(300)]
# millimetres by voxel: a viewer that ignored them would show a squashed ball
SPACING_MM = (1.0, 2.0, 4.0)
SHAPE = (64, 32, 16)


def write_ball(path: Path, *, gain: float, radius_mm: float = 26.0) -> Path:
    """A ball in millimetres on an anisotropic grid, brighter upwards."""
    axes = [(np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(SHAPE, SPACING_MM, strict=True)]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    inside = x**2 + y**2 + z**2 < radius_mm**2
    affine = np.diag([*SPACING_MM, 1.0])
    affine[:3, 3] = [axis[0] for axis in axes]
    image = nib.Nifti1Image((inside * gain * (500 + 5 * z)).astype(np.float32), affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


@pytest.fixture(scope="module")
def balls(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("balls")
    return write_ball(folder / "a.nii.gz", gain=1.0), write_ball(folder / "b.nii.gz", gain=1.1)


@pytest.fixture(scope="module")
def standalone(balls: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("page") / "view.html"
    assert run_here("lift", "view", *balls, "--output", out, "--label", "PHANTOM balls").code == 0
    return out.as_uri()


@dataclass(frozen=True)
class Place:
    """Where every pane's crosshair is, in mm."""

    panes: tuple[tuple[float, ...], ...]


def place(page: Page) -> Place:
    found = page.locator(".viewer-pane:visible")
    texts = [found.nth(k).get_attribute("data-position-mm") or "" for k in range(found.count())]
    return Place(tuple(tuple(map(float, text.split())) for text in texts))


def ready(watched: Watched) -> Page:
    watched.page.wait_for_selector('.viewer[data-state="open"]', timeout=120_000)
    watched.page.wait_for_selector(".viewer-pane[data-position-mm]")
    return watched.page


def moved(page: Page, before: Place) -> Place:
    """The place once it is another one."""
    for _ in range(100):
        now = place(page)
        if now != before and len(set(now.panes)) == 1:
            return now
        page.wait_for_timeout(50)
    raise AssertionError(f"nothing moved, or not together: {before} {place(page)}")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_scrolling_one_volume_moves_both(
    open_page: Opener, standalone: str, screenshots: Path, size: tuple[int, int], theme: str
) -> None:
    watched = open_page(standalone, size=size, theme=theme)
    page = ready(watched)
    name = f"viewer-{'phone' if size == PHONE else 'desktop'}-{theme}"
    page.screenshot(path=screenshots / f"{name}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]
    assert page.locator(".viewer-pane").count() == 2
    first = page.locator(".viewer-pane canvas").first
    box = first.bounding_box()
    assert box is not None

    start = place(page)
    assert len(set(start.panes)) == 1
    page.mouse.move(box["x"] + box["width"] * 0.15, box["y"] + box["height"] / 2)
    page.mouse.wheel(0, 240)
    scrolled = moved(page, start)
    first.focus()
    page.keyboard.press("ArrowUp")
    up = moved(page, scrolled)
    # one slice upwards is 4 mm in this volume
    assert up.panes[0][2] - scrolled.panes[0][2] == pytest.approx(SPACING_MM[2], abs=0.11)
    page.keyboard.press("ArrowRight")
    right = moved(page, up)
    assert right.panes[0][0] - up.panes[0][0] == pytest.approx(SPACING_MM[0], abs=0.11)
    slider = page.get_by_label("down to up")
    slider.focus()
    page.keyboard.press("Home")
    lowest = moved(page, right)
    assert lowest.panes[0][2] < -25
    assert watched.serious_faults() == []
    watched.check()


def test_a_ball_is_round_whatever_the_spacing_of_its_voxels(
    open_page: Opener, standalone: str
) -> None:
    page = ready(open_page(standalone))
    # the whole ball, its dark half too
    page.get_by_label("black at").fill("0")
    page.get_by_label("white at").fill("600")
    page.get_by_label("white at").press("Enter")
    page.wait_for_selector('.viewer-pane[data-window="0 600"]')
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
    png = page.locator(".viewer-pane canvas").first.screenshot()
    colours = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    # what is grey and bright: neither the crosshair, which is orange, nor small letters
    grey = (colours.min(axis=2) > 90) & (np.ptp(colours, axis=2) < 20)
    labels, found = ndimage.label(ndimage.binary_closing(grey, iterations=3))
    sizes = [
        (rows.stop - rows.start, columns.stop - columns.start)
        for rows, columns in ndimage.find_objects(labels)
    ]
    balls = [(rows, columns) for rows, columns in sizes if rows > 40 and columns > 40]
    assert found >= 3
    assert len(balls) == 3, sizes
    for rows, columns in balls:
        # voxels of 4 mm make a rough ball of 52 mm
        assert columns / rows == pytest.approx(1.0, abs=0.12), balls


def test_a_ct_opens_in_the_bone_window_and_an_mr_in_its_own(
    open_page: Opener, standalone: str, tmp_path: Path
) -> None:
    ball = nib.load(write_ball(tmp_path / "mr.nii.gz", gain=1.0))
    # air around a ball of bone
    ct = nib.Nifti1Image(ball.get_fdata(dtype=np.float32) * 3 - 1000, ball.affine)
    nib.save(ct, tmp_path / "ct.nii.gz")
    out = tmp_path / "view.html"
    assert run_here("lift", "view", tmp_path / "ct.nii.gz", "--output", out).code == 0
    page = ready(open_page(out.as_uri()))
    assert page.locator(".viewer-pane").first.get_attribute("data-window") == "-500 1500"
    page = ready(open_page(standalone))
    assert page.locator(".viewer-pane").first.get_attribute("data-window") != "-500 1500"


def test_window_swipe_and_difference_act(
    open_page: Opener, standalone: str, screenshots: Path
) -> None:
    watched = open_page(standalone)
    page = ready(watched)
    low, high = page.get_by_label("black at"), page.get_by_label("white at")
    low.fill("100")
    high.fill("300")
    high.press("Enter")
    for index in range(2):
        pane = page.locator(".viewer-pane").nth(index)
        assert pane.get_attribute("data-window") == "100 300"
    page.get_by_role("button", name="auto").click()
    assert page.locator(".viewer-pane").first.get_attribute("data-window") != "100 300"

    page.get_by_role("button", name="swipe").click()
    divider = page.get_by_label("Divider of the swipe")
    divider.focus()
    before = (
        page.locator(".viewer-canvas").nth(1).evaluate("node => getComputedStyle(node).clipPath")
    )
    for _ in range(10):
        divider.press("ArrowRight")
    after = (
        page.locator(".viewer-canvas").nth(1).evaluate("node => getComputedStyle(node).clipPath")
    )
    assert before != after
    assert "60%" in after
    page.screenshot(path=screenshots / "viewer-swipe.png")

    page.get_by_role("button", name="difference").click()
    page.wait_for_selector(".viewer-difference[data-position-mm]")
    minus = "\N{MINUS SIGN}"
    shown = page.locator(".viewer-position").inner_text()
    values = dict(part.rsplit(": ", 1) for part in shown.split(" · ")[1:])
    told = float(values[f"b.nii.gz {minus} a.nii.gz"])
    expected = float(values["b.nii.gz"]) - float(values["a.nii.gz"])
    assert told == pytest.approx(expected, abs=0.6)
    assert expected > 20
    page.screenshot(path=screenshots / "viewer-difference.png", full_page=True)
    assert watched.serious_faults() == []
    watched.check()


def test_volumes_on_two_grids_are_linked_in_millimetres_and_not_subtracted(
    open_page: Opener, balls: tuple[Path, Path], tmp_path: Path
) -> None:
    image = nib.load(balls[0])
    other = nib.Nifti1Image(np.asarray(image.dataobj)[4:-4], image.affine)
    other.header.set_xyzt_units("mm")
    nib.save(other, tmp_path / "c.nii.gz")
    out = tmp_path / "view.html"
    assert run_here("lift", "view", balls[0], tmp_path / "c.nii.gz", "--output", out).code == 0
    watched = open_page(out.as_uri())
    page = ready(watched)
    for name in ("swipe", "difference"):
        assert page.get_by_role("button", name=name).is_disabled()
    assert "different ones" in page.locator(".viewer").inner_text()
    page.locator(".viewer-pane canvas").first.focus()
    start = place(page)
    page.keyboard.press("ArrowDown")
    for _ in range(100):
        now = place(page)
        if now != start:
            break
        page.wait_for_timeout(50)
    one, two = now.panes
    assert one == pytest.approx(two, abs=0.11)
    watched.check()


@pytest.fixture
def served(balls: tuple[Path, Path]) -> Iterator[str]:
    """The address that `lift view` prints."""
    entry = "from lift.cli import main; main()"
    command = [sys.executable, "-c", entry, "view", *map(str, balls), "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        yield line.split()[1]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)
        process.stdout.close()


def test_the_served_page_asks_its_own_server_alone(open_page: Opener, served: str) -> None:
    watched = open_page(served)
    page = ready(watched)
    start = place(page)
    page.locator(".viewer-pane canvas").first.focus()
    page.keyboard.press("ArrowUp")
    moved(page, start)
    watched.check(own_host=urlsplit(served).netloc)
    assert any(url.endswith("/volume/1") for url in watched.requests)


def test_without_webgl_the_page_says_so_in_words(open_page: Opener, standalone: str) -> None:
    watched = open_page("about:blank")
    watched.page.add_init_script("HTMLCanvasElement.prototype.getContext = () => null;")
    watched.page.goto(standalone)
    watched.page.wait_for_selector('.viewer[data-state="unsupported"]')
    assert "cannot draw volumes" in watched.page.locator(".viewer").inner_text()
    watched.check()
