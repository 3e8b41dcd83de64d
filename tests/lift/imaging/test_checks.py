"""Each check on what it is for, with its limit and with the limit switched off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from lift.inspection import checks
from lift.inspection.body import find_body
from lift.inspection.checks import (
    check_background,
    check_ct,
    check_field_of_view,
    check_foreground,
    check_grid,
    check_mr,
)
from lift.inspection.finding import Finding, Verdict, worst
from tests.lift.imaging.made import phantom

Array = NDArray[Any]
SHAPE = (40, 44, 36)


def ball(radius: float = 14.0, *, middle_z: float = 17.5) -> NDArray[np.bool_]:
    x, y, z = np.indices(SHAPE)
    inside = (x - 19.5) ** 2 + (y - 21.5) ** 2 + (z - middle_z) ** 2 < radius**2
    return np.asarray(inside)


def ct(*, metal: int = 0, offset: float = 0.0, scale: float = 1.0) -> Array:
    rng = np.random.default_rng(81)
    values = np.where(ball(), 40.0, -1000.0) + rng.normal(0, 15, SHAPE)
    values.ravel()[np.flatnonzero(ball())[:metal]] = 3071
    return np.rint(values * scale + offset)


def mr() -> Array:
    rng = np.random.default_rng(82)
    signal = np.where(ball(), 300.0, 0.0)
    return np.asarray(np.hypot(signal + rng.normal(0, 12, SHAPE), rng.normal(0, 12, SHAPE)))


def affine(sizes: tuple[float, float, float], *, tilt: float = 0.0, shear: float = 0.0) -> Array:
    turn = np.deg2rad(tilt)
    matrix = np.array(
        [[1, 0, 0], [0, np.cos(turn), -np.sin(turn)], [0, np.sin(turn), np.cos(turn)]]
    )
    matrix[:, 2] += np.tan(np.deg2rad(shear)) * matrix[:, 1]
    whole = np.eye(4)
    whole[:3, :3] = matrix @ np.diag(sizes)
    return whole


def background(voxels: Array) -> Finding:
    return check_background(voxels, find_body(voxels, (2.0, 2.0, 2.0)))


def signed(*, noise: float = 6.0) -> Array:
    """As phase-sensitive inversion recovery: tissue on both sides of a grey background."""
    rng = np.random.default_rng(83)
    tissue = np.where(np.indices(SHAPE)[0] % 8 < 3, -200.0, 300.0)
    return np.where(ball(), tissue, 0.0) + rng.normal(0, noise, SHAPE)


def test_good_volumes_pass_every_check() -> None:
    head = phantom(61, whole_head=True)
    found = [
        background(mr()),
        background(head.t1),
        background(phantom(61, whole_head=False).flair),
        check_foreground(ball()),
        check_field_of_view(ball(), (2.0, 2.0, 2.0)),
        check_grid(affine((1.0, 1.0, 5.0), tilt=12)),
        check_ct(ct(metal=1)),
        check_mr(mr()),
        check_ct(head.ct),
        check_mr(head.t1),
        check_mr(np.rint(head.t1 / head.t1.max() * 255).astype(np.uint8)),
        check_mr(phantom(61, whole_head=False).flair),
    ]
    assert [one.verdict for one in found] == ["use"] * len(found)
    assert not any(one.remedy for one in found)
    assert worst(found) == "use"


Case = tuple[str, Callable[[], Finding], Verdict, str, object]
CASES: list[Case] = [
    ("LEAST_FOREGROUND", lambda: check_foreground(ball(3.0)), "veto", "body", 0.0),
    ("DOUBTFUL_FOREGROUND", lambda: check_foreground(ball(6.5)), "warn", "body", 0.0),
    (
        "LEAST_EXTENT_MM",
        lambda: check_field_of_view(ball(6.0), (1.0, 1.0, 1.0)),
        "veto",
        "the body measures 1",
        0.0,
    ),
    (
        "MOST_END_AREA",
        lambda: check_field_of_view(ball(middle_z=30.0), (2.0, 2.0, 2.0)),
        "warn",
        "the last slice holds",
        1.0,
    ),
    ("SPACING_MM", lambda: check_grid(affine((1.0, 1.0, 12.0))), "veto", "12 mm", (0.0, 99.0)),
    ("SPACING_MM", lambda: check_grid(affine((1e-3,) * 3)), "veto", "0.001", (0.0, 99.0)),
    ("MOST_TILT_DEG", lambda: check_grid(affine((1.0,) * 3, tilt=40)), "warn", "40 deg", 90.0),
    ("MOST_SHEAR_DEG", lambda: check_grid(affine((1.0,) * 3, shear=15)), "veto", "15.0 d", 90.0),
    ("LEAST_AIR", lambda: check_ct(ct()[14:26, 16:28, 12:24]), "warn", "air", 0.0),
    (
        "LEAST_SOFT_TISSUE",
        lambda: check_ct(ct(offset=-1024.0)),
        "veto",
        "between -150 and 150",
        0.0,
    ),
    ("MOST_METAL", lambda: check_ct(ct(metal=200)), "warn", "metal", 1.0),
    (
        "PADDING_HU",
        lambda: check_ct(np.where(np.arange(36) < 3, -3024.0, ct())),
        "warn",
        "padding",
        -np.inf,
    ),
    ("FEWEST_LEVELS", lambda: check_mr(np.rint(mr() / 12)), "veto", "distinct", 0),
    (
        "MOST_NEGATIVE",
        lambda: check_mr((mr() - mr().mean()) / mr().std()),
        "warn",
        "below 0",
        1.0,
    ),
]


@pytest.mark.parametrize(("limit", "check", "verdict", "seen", "disabled"), CASES)
def test_each_limit_is_what_finds_the_fault(
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
    check: Callable[[], Finding],
    verdict: Verdict,
    seen: str,
    disabled: object,
) -> None:
    found = check()
    assert found.verdict == verdict
    assert seen in found.seen
    assert found.needed
    assert found.remedy
    assert worst([found, check_mr(mr())]) == verdict
    monkeypatch.setattr(checks, limit, disabled)
    assert check().verdict != verdict


@pytest.mark.parametrize(
    ("voxels", "remedy"),
    [(ct(offset=1100.0), "intercept"), (np.clip(ct() / 4 + 128, 0, 255), "8 bits")],
)
def test_a_ct_without_values_below_zero_is_refused(voxels: Array, remedy: str) -> None:
    found = check_ct(voxels)
    assert found.verdict == "veto"
    assert remedy in found.remedy


@pytest.mark.parametrize(("limit", "disabled"), [("LEAST_BORDER", 1.0), ("MOST_BORDER_SPREAD", 0)])
def test_an_inverted_mr_is_refused(
    monkeypatch: pytest.MonkeyPatch, limit: str, disabled: float
) -> None:
    for voxels in (mr(), phantom(61, whole_head=True).t1, phantom(61, whole_head=False).flair):
        found = check_mr(voxels.max() - voxels)
        assert found.verdict == "veto"
        assert "inverted" in found.remedy
    monkeypatch.setattr(checks, limit, disabled)
    assert check_mr(voxels.max() - voxels).verdict == "use"


@pytest.mark.parametrize("noise", [0.0, 6.0, 90.0])
def test_a_grey_background_has_its_own_reason(noise: float) -> None:
    found = background(signed(noise=noise))
    assert (found.check, found.verdict) == ("background", "veto")
    assert "signed" in found.remedy
    # the same tissue on a dark background passes
    assert background(np.where(ball(), signed(noise=noise) + 500.0, 0.0)).verdict == "use"


def test_an_offset_is_told_though_the_body_can_be_found() -> None:
    found = background(mr() + 200.0)
    assert found.verdict == "warn"
    assert "offset" in found.remedy
    assert background(mr() + 10.0).verdict == "use"


def test_an_inverted_image_has_no_second_reason() -> None:
    assert background(mr().max() - mr()).verdict != "veto"


def test_a_tight_crop_is_no_grey_background() -> None:
    found = check_background(signed()[10:30, 12:32, 8:28], np.ones((20, 20, 20), np.bool_))
    assert found.verdict == "warn"
    assert "cropped tightly" in found.remedy


def test_a_crop_without_air_is_not_inverted() -> None:
    assert check_mr(mr()[10:30, 12:32, 8:28]).verdict == "use"
    brain = phantom(61, whole_head=False)
    assert check_mr(brain.t1[20:40, 20:45, 20:40]).verdict == "use"


def test_a_neck_may_be_cut_and_a_vertex_may_not() -> None:
    below, above = ball(middle_z=5.0), ball(middle_z=30.0)
    size = (2.0, 2.0, 2.0)
    assert check_field_of_view(below, size).verdict == "use"
    assert check_field_of_view(below, size, may_be_cut=(False, False)).verdict == "warn"
    assert check_field_of_view(above, size).verdict == "warn"
    assert check_field_of_view(above, size, may_be_cut=(True, True)).verdict == "use"
    turned = np.moveaxis(above, 2, 0)
    assert check_field_of_view(turned, size, axis=0).verdict == "warn"


def test_an_empty_mask_is_refused() -> None:
    nothing = np.zeros(SHAPE)
    assert check_foreground(nothing).verdict == "veto"
    assert check_field_of_view(nothing, (1.0, 1.0, 1.0)).verdict == "veto"


def test_an_affine_that_is_none_is_refused() -> None:
    assert check_grid(np.full((4, 4), np.nan)).verdict == "veto"
    assert check_grid(np.zeros((4, 4))).verdict == "veto"


def test_noise_without_an_image_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(93)
    noise = np.rint(100 * np.hypot(*rng.standard_normal((2, 40, 40, 30))))
    found = check_mr(noise)
    assert found.verdict == "veto"
    assert "nothing in common" in found.seen
    monkeypatch.setattr(checks, "LEAST_LIKENESS", -1.0)
    assert "nothing in common" not in check_mr(noise).seen


@pytest.mark.parametrize("background", ["tenths", "attenuation", "cut out", "cropped"])
def test_what_lies_around_the_body_must_be_air(background: str) -> None:
    scan = phantom(61, whole_head=True)
    inside = np.argwhere(scan.mask)
    middle = tuple(slice(int(m) - 12, int(m) + 12) for m in inside.mean(0))
    voxels, verdict = {
        "tenths": (scan.ct / 10, "veto"),
        "attenuation": (0.19 * (1 + scan.ct / 1000), "veto"),
        # somebody replaced the air: doubtful, but HU
        "cut out": (np.where(scan.mask, scan.ct, 0), "warn"),
        "cropped": (scan.ct[middle], "warn"),
    }[background]
    found = check_ct(voxels)
    assert found.verdict == verdict
    assert ("around the body" in found.seen) == (verdict == "veto")


def parcels(shape: tuple[int, int, int], count: int, codes: Array) -> Array:
    """A ball of that many regions, each with its code."""
    rng = np.random.default_rng(91)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    inside = x * x + y * y + z * z < 0.8
    seeds = np.zeros(shape, int)
    for number, place in enumerate(rng.permutation(np.argwhere(inside))[:count]):
        seeds[tuple(place)] = number + 1
    nearest = ndimage.distance_transform_edt(
        seeds == 0, return_distances=False, return_indices=True
    )
    return np.asarray(np.where(inside, codes[seeds[tuple(nearest)] - 1], 0))


BIG = (60, 66, 54)
LABEL_MAPS: dict[str, Callable[[], Array]] = {
    "40": lambda: parcels(BIG, 40, np.arange(1, 41)),
    "180 codes": lambda: parcels(BIG, 180, np.random.default_rng(1).permutation(12_175)[:180]),
    "400": lambda: parcels(BIG, 400, np.arange(1, 401)).astype(np.float32),
    "400 scaled": lambda: parcels(BIG, 400, np.arange(1, 401)) * 0.37,
    "signed": lambda: parcels(BIG, 200, np.arange(-100, 100)),
    "2500 tiny": lambda: parcels(BIG, 2500, np.arange(1, 2501)),
    "resampled mask": lambda: ndimage.zoom(
        (parcels(BIG, 1, np.ones(1))).astype(float), 1.3, order=1
    ),
    "smoothed mask": lambda: ndimage.gaussian_filter(
        parcels(BIG, 1, np.ones(1)).astype(float), 1.2
    ),
}


@pytest.mark.parametrize("name", LABEL_MAPS)
def test_a_label_map_of_any_number_of_labels_is_no_mr(name: str) -> None:
    found = check_mr(LABEL_MAPS[name]())
    assert found.verdict != "use"
    assert "label map" in found.remedy


def phase(*, masked: bool, unsigned: bool) -> Array:
    rng = np.random.default_rng(92)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in BIG], indexing="ij")
    inside = x * x + y * y + z * z < 0.7
    angle = np.angle(np.exp(1j * (6 * x + 9 * y * z + 4 * z + rng.normal(0, 0.1, BIG))))
    angle = np.where(inside, angle, 0.0 if masked else rng.uniform(-np.pi, np.pi, BIG))
    if not unsigned:
        return np.asarray(angle)
    whole = np.rint((angle + np.pi) / (2 * np.pi) * 4095)
    return np.asarray(np.where(inside, whole, 0) if masked else whole)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("offset", [0, -2048, 10_000])
def test_a_phase_image_is_no_mr(masked: bool, unsigned: bool, offset: float) -> None:
    found = check_mr(phase(masked=masked, unsigned=unsigned) + offset)
    assert found.verdict == "veto"
    assert "phase" in found.remedy


def test_the_limits_are_what_finds_labels_and_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, angles = LABEL_MAPS["400"](), phase(masked=True, unsigned=True)
    monkeypatch.setattr(checks, "DOUBTFUL_PLATEAU", 1.0)
    monkeypatch.setattr(checks, "LEAST_JUMPS", 1.0)
    assert "label" not in check_mr(labels).remedy
    assert check_mr(angles).verdict == "use"
