"""Pairs of phantom channels: true, moved, turned, mirrored, and of two patients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from lift.inspection import pairing as module
from lift.inspection.pairing import Pairing, pairing
from tests.lift.imaging.made import Scan, phantom


def moved(voxels: NDArray[Any], scan: Scan, shift_mm: tuple[float, float, float]) -> NDArray[Any]:
    steps = [mm / size for mm, size in zip(shift_mm, scan.spacing_mm, strict=True)]
    found = ndimage.shift(voxels.astype(np.float32), steps, order=1, cval=float(voxels.min()))
    return np.asarray(found)


def turned(voxels: NDArray[Any], degrees: float, axes: tuple[int, int]) -> NDArray[Any]:
    found = ndimage.rotate(
        voxels.astype(np.float32), degrees, axes, reshape=False, order=1, cval=float(voxels.min())
    )
    return np.asarray(found)


def against(scan: Scan, other: NDArray[Any], mask: NDArray[Any]) -> Pairing:
    return pairing(scan.t1, other, scan.mask, mask, scan.spacing_mm)


@pytest.mark.parametrize("seed", [61, 62])
def test_channels_of_one_examination_fit(seed: int) -> None:
    scan = phantom(seed, whole_head=False)
    for other in (scan.t2, scan.flair):
        found = against(scan, other, scan.mask)
        assert found.finding.verdict == "use"
        assert found.overlap == 1.0
        assert found.gain > module.GAIN_WARNING
        assert not found.finding.remedy


def test_a_head_fits_its_ct() -> None:
    scan = phantom(61, whole_head=True)
    assert against(scan, scan.ct, scan.mask).finding.verdict == "use"
    swapped = against(scan, scan.ct[::-1], scan.mask[::-1])
    assert swapped.finding.verdict == "veto"


@pytest.mark.parametrize(
    "shift_mm", [(3.0, 0.0, 0.0), (0.0, -5.0, 0.0), (0.0, 0.0, 6.0), (4.0, 4.0, 0.0), (15.0, 0, 0)]
)
def test_a_moved_channel_is_refused(shift_mm: tuple[float, float, float]) -> None:
    scan = phantom(61, whole_head=False)
    mask = moved(scan.mask, scan, shift_mm) > 0.5
    found = against(scan, moved(scan.flair, scan, shift_mm), mask)
    assert found.finding.verdict == "veto"
    assert found.shift_gain > module.SHIFT_VETO
    assert "mm it fits" in found.finding.seen
    assert "Register" in found.finding.remedy
    # a whole number of voxels along one axis is told exactly
    if shift_mm == (3.0, 0.0, 0.0):
        assert found.best_shift_mm == shift_mm


def test_the_masks_alone_would_not_show_a_moved_channel() -> None:
    scan = phantom(61, whole_head=False)
    found = against(scan, moved(scan.flair, scan, (0.0, 6.0, 0.0)), scan.mask)
    assert found.overlap == 1.0
    assert found.finding.verdict == "veto"


@pytest.mark.parametrize("axes", [(0, 1), (1, 2)])
def test_a_turned_channel_is_doubted(axes: tuple[int, int]) -> None:
    scan = phantom(62, whole_head=False)
    true = against(scan, scan.flair, scan.mask)
    for degrees, most in ((5.0, 0.5), (10.0, 0.25)):
        mask = turned(scan.mask, degrees, axes) > 0.5
        found = against(scan, turned(scan.flair, degrees, axes), mask)
        assert found.gain < most * true.gain
    assert found.finding.verdict == "veto"


@pytest.mark.parametrize("seed", [61, 62])
def test_a_mirrored_channel_is_named(seed: int) -> None:
    scan = phantom(seed, whole_head=False)
    found = against(scan, scan.flair[::-1], scan.mask[::-1])
    assert found.finding.verdict == "veto"
    assert "mirrored" in found.finding.seen
    assert "Left and right" in found.finding.remedy


def test_another_patient_is_refused() -> None:
    one, other = phantom(61, whole_head=False), phantom(62, whole_head=False)
    found = against(one, other.flair, other.mask)
    assert found.finding.verdict == "veto"
    assert found.gain < module.LEAST_GAIN


def test_lost_slices_are_no_landmarks() -> None:
    scan = phantom(61, whole_head=False)
    # slice 20 lost its signal in one channel, slice 21 in the other: laid upon each other they
    # would agree
    first, second = scan.t1.copy(), scan.t2.copy()
    for place in (12, 20, 28, 36):
        first[:, :, place] *= 0.15
        second[:, :, place + 1] *= 0.15
    found = pairing(first, second, scan.mask, scan.mask, scan.spacing_mm)
    assert found.finding.verdict == "use"
    one, other, mask = (np.moveaxis(volume, 2, 1) for volume in (first, second, scan.mask))
    found = pairing(one, other, mask, mask, scan.spacing_mm, axis=1)
    assert found.finding.verdict == "use"
    assert pairing(one, other, mask, mask, scan.spacing_mm, axis=2).gain < found.gain


def test_a_far_fit_of_another_patient_is_not_called_mirrored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scan = phantom(61, whole_head=False)
    # symmetric contents, 15 mm off: both the moved and the mirrored copy fit better
    even = (scan.flair + scan.flair[::-1]) / 2
    off = moved(even, scan, (15.0, 0.0, 0.0))
    mask = moved(scan.mask | scan.mask[::-1], scan, (15.0, 0.0, 0.0)) > 0.5
    found = pairing(even, off, scan.mask | scan.mask[::-1], mask, scan.spacing_mm)
    assert found.mirror_gain > module.MIRROR_VETO
    assert "mirrored copy" not in found.finding.seen
    monkeypatch.setattr(module, "MIRROR_LEAD", 0.0)
    again = pairing(even, off, scan.mask | scan.mask[::-1], mask, scan.spacing_mm)
    assert "mirrored copy" in again.finding.seen


def test_bodies_that_hardly_overlap_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    scan = phantom(61, whole_head=False)
    half = scan.mask.copy()
    half[:, :, : half.shape[2] * 2 // 3] = False
    found = against(scan, np.where(half, scan.flair, 0), half)
    assert found.finding.verdict == "veto"
    assert "overlap by" in found.finding.seen
    monkeypatch.setattr(module, "LEAST_OVERLAP", 0.0)
    assert "overlap by" not in against(scan, scan.flair, half).finding.seen


@pytest.mark.parametrize(
    ("limit", "disabled", "case"),
    [
        ("SHIFT_VETO", 99.0, "moved"),
        ("MIRROR_VETO", 99.0, "mirrored"),
        ("LEAST_GAIN", -99.0, "other"),
    ],
)
def test_each_limit_is_what_refuses(
    monkeypatch: pytest.MonkeyPatch, limit: str, disabled: float, case: str
) -> None:
    scan, other = phantom(61, whole_head=False), phantom(62, whole_head=False)
    cases = {
        "moved": (moved(scan.flair, scan, (3.0, 0.0, 0.0)), scan.mask),
        "mirrored": (scan.flair[::-1], scan.mask[::-1]),
        "other": (other.flair, other.mask),
    }
    before = against(scan, *cases[case])
    # alone: the other limits may refuse the same pair for another reason
    for name, off in (("SHIFT_VETO", 99.0), ("MIRROR_VETO", 99.0), ("LEAST_GAIN", -99.0)):
        if name != limit:
            monkeypatch.setattr(module, name, off)
    assert before.finding.verdict == "veto"
    assert against(scan, *cases[case]).finding.verdict == "veto"
    monkeypatch.setattr(module, limit, disabled)
    assert against(scan, *cases[case]).finding.verdict != "veto"


def test_a_pair_without_contents_is_left_to_a_person() -> None:
    empty = np.zeros((30, 30, 30))
    found = pairing(empty, empty, empty, empty, (1.0, 1.0, 1.0))
    assert found.finding.verdict == "warn"
    flat = pairing(np.ones((30, 30, 30)), empty, empty + 1, empty + 1, (1.0, 1.0, 1.0))
    assert flat.finding.verdict == "warn"


def test_two_grids_are_refused() -> None:
    one, other = np.zeros((5, 5, 5)), np.zeros((5, 5, 6))
    with pytest.raises(ValueError, match="one shape"):
        pairing(one, other, one, other, (1.0, 1.0, 1.0))
