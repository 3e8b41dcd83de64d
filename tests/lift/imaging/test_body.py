"""The body of a channel nobody has looked at: lost slices, fine grids, the axis of the slices."""

from __future__ import annotations

import numpy as np
import pytest

from lift.inspection import body
from lift.inspection.body import depth_axis, find_body, kept_signal
from tests.lift.imaging.made import phantom


@pytest.mark.parametrize(
    ("spacing_mm", "axis"),
    [((1, 1, 1), 2), ((1, 1, 3), 2), ((5, 1, 1), 0), ((1, 1.05, 1), 2), ((0.9, 4, 1), 1)],
)
def test_the_slices_lie_across_the_coarsest_axis_or_z(
    spacing_mm: tuple[float, float, float], axis: int
) -> None:
    assert depth_axis(spacing_mm) == axis


def test_only_a_slice_between_brighter_ones_lost_signal() -> None:
    # 0.2 is between brighter ones; the fall at either end is where the body ends
    kept = kept_signal(np.array([0.02, 0.1, 1.0, 1.0, 0.2, 0.9, 1.0, 0.8, 0.05, 0.02]))
    assert np.flatnonzero(kept < body.LEAST_KEPT).tolist() == [4]
    assert kept[4] == pytest.approx(0.2 / 0.9, abs=0.03)
    assert (kept_signal(np.ones(3)) == 1).all()


def test_lost_slices_stay_part_of_the_body(monkeypatch: pytest.MonkeyPatch) -> None:
    scan = phantom(61, whole_head=False)
    voxels = scan.t1.copy()
    middle = voxels.shape[2] // 2
    voxels[:, :, middle : middle + 2] *= 0.12
    whole = find_body(scan.t1, scan.spacing_mm)
    found = find_body(voxels, scan.spacing_mm)

    def overlap(one: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> float:
        return 2 * float((one & whole).sum()) / float(one.sum() + whole.sum())

    assert overlap(found) > 0.98
    monkeypatch.setattr(body, "LEAST_KEPT", 0.0)
    assert overlap(find_body(voxels, scan.spacing_mm)) < 0.8


def test_a_fine_grid_looked_at_two_by_two_gives_the_same_body(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scan = phantom(61, whole_head=True)
    fine = np.repeat(np.repeat(scan.t1, 2, axis=0), 2, axis=1)[:-1]
    x, y, z = scan.spacing_mm
    spacing = (x / 2, y / 2, z)
    quick = find_body(fine, spacing)
    monkeypatch.setattr(body, "FINE_MM", 0.0)
    slow = find_body(fine, spacing)
    assert quick.shape == fine.shape
    assert 2 * (quick & slow).sum() / (quick.sum() + slow.sum()) > 0.98


def test_a_body_is_of_a_volume() -> None:
    with pytest.raises(ValueError, match="3D"):
        find_body(np.zeros((4, 4)), (1.0, 1.0, 1.0))
