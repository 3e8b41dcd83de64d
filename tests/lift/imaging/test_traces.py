"""The same voxels under two names, and letters drawn into the corner."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lift.inspection import traces
from lift.inspection.traces import burnt_in_text, check_duplicates, content_digest
from tests.lift.imaging.made import phantom

Array = NDArray[Any]
# 5 x 3 letters: L I F T
LETTERS = (
    ("x..", "x..", "x..", "x..", "xxx"),
    ("xxx", ".x.", ".x.", ".x.", "xxx"),
    ("xxx", "x..", "xx.", "x..", "x.."),
    ("xxx", ".x.", ".x.", ".x.", ".x."),
)


def counts() -> Array:
    rng = np.random.default_rng(91)
    return rng.integers(-1000, 3000, (14, 11, 12)).astype(np.int16)


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.astype(np.float32),
        lambda v: v.astype(np.float64) * 0.37 + 12,
        lambda v: v.astype(">i4"),
        lambda v: v[::-1],
        lambda v: v[:, ::-1, ::-1],
        lambda v: np.asfortranarray(v).transpose(2, 0, 1),
        lambda v: v.transpose(1, 2, 0)[::-1].astype(np.float32),
    ],
)
def test_one_volume_has_one_digest_however_it_is_stored(change: Callable[[Array], Array]) -> None:
    assert content_digest(change(counts())) == content_digest(counts())


def test_a_cube_with_swapped_axes_has_one_digest() -> None:
    cube = np.random.default_rng(92).standard_normal((9, 9, 9))
    assert content_digest(cube.transpose(2, 1, 0)[:, ::-1]) == content_digest(cube)


def test_another_volume_has_another_digest() -> None:
    changed = counts()
    changed[3, 4, 5] = 3000
    others = [changed, counts()[:-1], np.roll(counts(), 1, axis=0), counts() // 16]
    digests = {content_digest(volume) for volume in [counts(), *others]}
    assert len(digests) == 5


def test_the_same_voxels_under_two_names_are_named() -> None:
    other = content_digest(counts() // 16)
    one = content_digest(counts())
    again = content_digest(counts()[::-1].astype(np.float32))
    digests = {("b", "t1"): one, ("a", "t1"): again, ("c", "t1"): other}
    found = check_duplicates(digests)
    assert set(found) == {("a", "t1"), ("b", "t1")}
    assert found["a", "t1"] == found["b", "t1"]
    assert found["a", "t1"].verdict == "veto"
    assert found["a", "t1"].seen.endswith("names: a/t1, b/t1")
    assert found["a", "t1"].remedy
    assert check_duplicates({("a", "t1"): one, ("c", "t1"): other}) == {}
    assert check_duplicates({}) == {}


def test_a_duplicate_in_training_and_test_is_said_to_be_one() -> None:
    digests = {("a", "t1"): "x", ("b", "t1"): "x"}
    apart = check_duplicates(digests, {"a": "train", "b": "test"})
    together = check_duplicates(digests, {"a": "train", "b": "train"})
    assert "several parts" in apart["a", "t1"].seen
    assert "several parts" not in together["a", "t1"].seen


@pytest.mark.parametrize("voxels", [np.zeros((0, 2, 2)), np.full((2, 2, 2), np.nan)])
def test_a_digest_needs_finite_voxels(voxels: Array) -> None:
    with pytest.raises(ValueError, match="finite"):
        content_digest(voxels)


def written(
    voxels: Array, white: float, *, slices: slice = slice(None), letters: int = 4, skip: int = 0
) -> Array:
    """Letters in the front corner of each slice, `skip` rows lower from letter to letter."""
    found = voxels.copy()
    for index, rows in enumerate(LETTERS[:letters]):
        for row, text in enumerate(rows):
            for column, dot in enumerate(text):
                if dot == "x":
                    place = 2 + 5 * index + column, found.shape[1] - 3 - row - skip * index
                    found[(*place, slices)] = white
    return found


def head() -> tuple[Array, Array, float]:
    scan = phantom(61, whole_head=True)
    return scan.t1, scan.mask, float(np.percentile(scan.t1[scan.mask], 99))


def test_letters_in_a_corner_are_suspected() -> None:
    voxels, mask, white = head()
    found = burnt_in_text(written(voxels, white), mask)
    assert found.finding.verdict == "warn"
    assert found.marks == 4
    assert found.repeats == 1.0
    assert "corners" in found.finding.remedy


def test_letters_in_a_ct_and_on_another_axis_are_suspected() -> None:
    scan = phantom(61, whole_head=True)
    inscribed = written(scan.ct, 1500.0)
    assert burnt_in_text(inscribed, scan.mask).marks == 4
    turned, mask = np.moveaxis(inscribed, 2, 0), np.moveaxis(scan.mask, 2, 0)
    assert burnt_in_text(turned, mask, axis=0).marks == 4


def test_clean_volumes_are_not_suspected() -> None:
    scan = phantom(61, whole_head=True)
    brain = phantom(61, whole_head=False)
    for voxels, mask in ((scan.t1, scan.mask), (scan.ct, scan.mask), (brain.flair, brain.mask)):
        found = burnt_in_text(voxels, mask)
        assert found.finding.verdict == "use"
        assert found.marks == 0


@pytest.mark.parametrize(
    ("limit", "disabled", "white_share", "options"),
    [
        ("LEAST_REPEATS", 0.0, 1.0, {"slices": slice(0, 27)}),
        ("FEWEST_MARKS", 1, 1.0, {"letters": 2}),
        ("FEWEST_PIXELS", 0, 1.0, {"letters": 3}),
        ("LEAST_BRIGHTNESS", 0.1, 0.42, {}),
    ],
)
def test_each_limit_is_what_leaves_other_marks_out(
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
    disabled: float,
    white_share: float,
    options: dict[str, Any],
) -> None:
    voxels, mask, white = head()
    if limit == "FEWEST_MARKS":
        monkeypatch.setattr(traces, "FEWEST_PIXELS", 10)
    if limit == "FEWEST_PIXELS":
        monkeypatch.setattr(traces, "FEWEST_PIXELS", 60)
    marked = written(voxels, white * white_share, **options)
    assert burnt_in_text(marked, mask).marks == 0
    monkeypatch.setattr(traces, limit, disabled)
    assert burnt_in_text(marked, mask).marks > 0


def test_marks_must_lie_in_one_line() -> None:
    voxels, mask, white = head()
    assert burnt_in_text(written(voxels, white, skip=6), mask).marks == 0


@pytest.mark.parametrize(("limit", "disabled"), [("LEAST_EDGE", -9.0), ("MOST_SIDE", 9.0)])
def test_blurred_and_long_things_are_no_letters(
    monkeypatch: pytest.MonkeyPatch, limit: str, disabled: float
) -> None:
    voxels, mask, white = head()
    marked = voxels.copy()
    if limit == "LEAST_EDGE":
        # broad slopes: bright in the middle, dark only far away
        x, y = np.meshgrid(*(np.arange(n) for n in marked.shape[:2]), indexing="ij")
        for middle in (6, 59):
            glow = white * np.clip(1.1 - np.hypot(x - middle, y - 84) / 10, 0, None)
            marked = np.maximum(marked, glow[:, :, None])
        monkeypatch.setattr(traces, "FEWEST_MARKS", 1)
    else:
        for row in (1, 4, 7):
            marked[2:60, row] = white
        monkeypatch.setattr(traces, "FEWEST_MARKS", 1)
    assert burnt_in_text(marked, mask).marks == 0
    monkeypatch.setattr(traces, limit, disabled)
    assert burnt_in_text(marked, mask).marks > 0


def test_a_volume_without_outside_is_not_suspected() -> None:
    full = np.ones((20, 20, 20))
    assert burnt_in_text(full, full).marks == 0
    with pytest.raises(ValueError, match="one shape"):
        burnt_in_text(full, full[1:])
