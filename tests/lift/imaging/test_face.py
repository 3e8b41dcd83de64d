"""A nose on the phantom's head, which has none of its own; without it; and without skull."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from lift.inspection import face
from lift.inspection.face import has_face
from tests.lift.imaging.made import Scan, phantom

Floats = NDArray[np.float32]


def with_nose(scan: Scan, voxels: Floats, tissue: float) -> Floats:
    """Cheeks level with the forehead and a wedge of 28 mm at its base, 18 mm high."""
    size = scan.spacing_mm
    x, y, z = np.meshgrid(
        *(np.arange(n) * s for n, s in zip(voxels.shape, size, strict=True)), indexing="ij"
    )
    places = np.argwhere(scan.mask) * size
    x, y, z = x - np.median(places[:, 0]), y - places[:, 1].max(), z - 50.0
    cheeks = (np.abs(x) < 60) & (y <= -(x**2) / 130) & (y > -60) & (np.abs(z) < 40)
    wedge = np.abs(x) < 14 * (1 - np.clip(y / 30, 0, 1))
    nose = wedge & (y <= 18) & (y > -20) & (np.abs(z) < 22)
    return np.where((cheeks | nose) & ~scan.mask, np.float32(tissue), voxels)


@pytest.mark.parametrize("channel", ["t1", "ct"])
def test_a_nose_is_found_and_its_absence_too(channel: str) -> None:
    scan = phantom(61, whole_head=True)
    voxels = scan.t1 if channel == "t1" else scan.ct
    tissue = float(np.median(voxels[scan.mask])) if channel == "t1" else 40.0
    whole = with_nose(scan, voxels, tissue)
    found = has_face(whole, scan.spacing_mm)
    assert found.is_present
    assert found.protrusion_mm > 11
    assert found.finding.verdict == "warn"
    assert "Deface" in found.finding.remedy
    assert has_face(voxels, scan.spacing_mm).finding.verdict == "use"
    defaced = whole.copy()
    front = np.argwhere(scan.mask)[:, 1].max() - round(30 / scan.spacing_mm[1])
    defaced[:, front:, : round(90 / scan.spacing_mm[2])] = voxels.min()
    assert not has_face(defaced, scan.spacing_mm).is_present


@pytest.mark.parametrize("seed", [61, 62])
def test_a_stripped_brain_has_no_face(seed: int) -> None:
    scan = phantom(seed, whole_head=False)
    assert not has_face(scan.t1, scan.spacing_mm).is_present


def shape(*, radius_mm: float, ridge_mm: float, set_back_mm: float = 0.0) -> Floats:
    """An upright cylinder with a ridge of 15 mm along a part of its lower half, 3 mm voxels."""
    x, y, z = np.meshgrid(*(3.0 * np.arange(n) for n in (70, 80, 56)), indexing="ij")
    x, y = x - 105, y - 105
    lower = z < 70
    upright = np.hypot(x, y + lower * set_back_mm) < radius_mm
    ridge = (np.abs(x) < 9) & (y > 0) & (y + set_back_mm < radius_mm + 15)
    ridge &= (z >= 45) & (z < 45 + ridge_mm)
    rng = np.random.default_rng(73)
    tissue = 100 + rng.normal(0, 3, x.shape)
    return np.where(upright | ridge, tissue, 0).astype(np.float32)


@pytest.mark.parametrize(
    ("limit", "disabled", "radius_mm", "ridge_mm", "set_back_mm"),
    [
        ("MOST_BEHIND_MM", 999.0, 75.0, 24.0, 40.0),  # a neck
        ("LEAST_WIDTH_MM", 0.0, 40.0, 24.0, 0.0),  # a leg
        ("LEAST_HEIGHT_MM", 0.0, 75.0, 3.0, 0.0),  # a marker stuck to the skin
    ],
)
def test_what_is_no_nose_is_left_out_by_one_limit(
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
    disabled: float,
    radius_mm: float,
    ridge_mm: float,
    set_back_mm: float,
) -> None:
    spacing_mm = (3.0, 3.0, 3.0)
    assert has_face(shape(radius_mm=75, ridge_mm=24), spacing_mm).is_present
    voxels = shape(radius_mm=radius_mm, ridge_mm=ridge_mm, set_back_mm=set_back_mm)
    assert not has_face(voxels, spacing_mm).is_present
    monkeypatch.setattr(face, limit, disabled)
    assert has_face(voxels, spacing_mm).is_present


def test_the_height_of_the_ridge_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    scan = phantom(61, whole_head=True)
    assert not has_face(scan.t1, scan.spacing_mm).is_present
    monkeypatch.setattr(face, "LEAST_PROTRUSION_MM", 0.0)
    assert has_face(scan.t1, scan.spacing_mm).is_present


def test_a_volume_without_contents_has_no_face() -> None:
    assert not has_face(np.zeros((20, 20, 20)), (1.0, 1.0, 1.0)).is_present
    with pytest.raises(ValueError, match="3D"):
        has_face(np.zeros((20, 20)), (1.0, 1.0, 1.0))


def test_frontal_lobes_seen_from_below_are_no_nose(monkeypatch: pytest.MonkeyPatch) -> None:
    # a lobe that stands 55 mm over the tips on both sides of it, and its gentle slope above
    x, y, z = np.meshgrid(*(3.0 * np.arange(n) for n in (70, 80, 56)), indexing="ij")
    x, y = x - 105, y - 105
    brain = np.hypot(x, y) < 70
    reach = np.clip(70 - 55 * np.clip((90 - z) / 40, 0, 1), 15, 70)
    temporal = (np.abs(x) > 15) & (y > reach) & (z < 90)
    voxels = np.where(brain & ~temporal, np.float32(1), np.float32(0))
    size = (3.0, 3.0, 3.0)
    assert not has_face(voxels, size).is_present
    monkeypatch.setattr(face, "MOST_RIDGE_MM", np.inf)
    assert has_face(voxels, size).is_present
