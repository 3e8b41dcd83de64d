"""The acquired spacing of made volumes; the seeds here are not those the limits were set on."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from lift.inspection import slice_profile
from lift.inspection.slice_profile import (
    SliceProfile,
    check_profile,
    estimate_profile,
    estimate_profiles,
    through_plane_axis,
)
from tests.lift.imaging.made import Floats, Method, body, phantom, resampled, thick_slices

METHODS: tuple[Method, ...] = get_args(Method)


def along_z(stack: Floats, spacing_mm: float) -> SliceProfile:
    return estimate_profile(stack.transpose(2, 1, 0), None, (2.0, 2.0, spacing_mm))


def is_right(profile: SliceProfile, spacing_mm: float) -> bool:
    found = profile.acquired_spacing_mm
    return found is not None and abs(found / spacing_mm - 1) < 0.1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("acquired_mm", "stored_mm", "noise"), [(5.0, 1.0, 0.05), (3.0, 2.0, 0.0), (4.4, 1.25, 0.02)]
)
def test_an_interpolated_series_tells_its_acquired_spacing(
    method: Method, acquired_mm: float, stored_mm: float, noise: float
) -> None:
    rng = np.random.default_rng([901, METHODS.index(method), int(acquired_mm)])
    slices = thick_slices(body(rng, depth_mm=120), acquired_mm)
    slices += noise * rng.standard_normal(slices.shape)
    stack = resampled(slices, acquired_mm / stored_mm, method, rng.uniform())
    # stored as whole numbers, as most files are
    profile = along_z(np.rint(1000 * stack), stored_mm)
    assert is_right(profile, acquired_mm), profile
    assert profile.is_resampled
    assert profile.basis == "interpolation"
    assert profile.confidence == "high"
    found = check_profile(profile)
    assert found.verdict == "warn"
    assert f"stored every {stored_mm:.2g} mm, acquired every" in found.seen


def test_doubled_slices_midway_leave_no_period_but_are_found() -> None:
    rng = np.random.default_rng(902)
    slices = thick_slices(body(rng, depth_mm=130), 2.0)
    # every new slice at a quarter: the second difference has the same strength everywhere
    stack = resampled(slices, 2.0, "linear", 0.25)
    bends = np.square(np.diff(stack, 2, axis=0)).mean((1, 2))
    assert bends[1::2].mean() / bends[::2].mean() == pytest.approx(1, abs=0.1)
    assert is_right(along_z(stack, 1.0), 2.0)


@pytest.mark.parametrize("ratio", [1.3, 2.18, 2.27, 3.79, 5.95])
def test_repeated_slices_in_runs_of_two_lengths_are_counted(ratio: float) -> None:
    rng = np.random.default_rng(910)
    slices = thick_slices(body(rng, depth_mm=150), 4.0)
    profile = along_z(resampled(slices, ratio, "nearest", rng.uniform()), 4.0 / ratio)
    assert is_right(profile, 4.0), profile
    assert profile.kernel == "nearest"


def test_one_repeated_slice_is_no_resampling() -> None:
    stack = thick_slices(body(np.random.default_rng(911), depth_mm=150), 3.0)
    stack[20] = stack[19]
    assert not along_z(stack, 3.0).is_resampled


@pytest.mark.parametrize("spacing_mm", [1.0, 2.0, 3.5, 6.0])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_a_series_that_was_never_resampled_is_as_stored(spacing_mm: float, noise: float) -> None:
    rng = np.random.default_rng([903, int(10 * spacing_mm)])
    detail_mm = rng.uniform(2, 8)
    slices = thick_slices(body(rng, depth_mm=150, detail_mm=detail_mm), spacing_mm)
    profile = along_z(slices + noise * rng.standard_normal(slices.shape), spacing_mm)
    assert profile.acquired_spacing_mm == spacing_mm
    assert profile.basis == "as stored"
    assert not profile.is_resampled
    assert profile.periodicity < 2
    assert check_profile(profile).verdict == "use"


@pytest.mark.parametrize("trap", ["noise", "smooth", "parity", "lost slices", "flat edges"])
def test_no_period_is_invented(trap: str) -> None:
    rng = np.random.default_rng(904)
    stack = body(rng, depth_mm=40)
    if trap == "noise":
        stack = rng.standard_normal((60, 36, 36))
    elif trap == "smooth":
        stack = body(rng, depth_mm=40, detail_mm=12.0)
    elif trap == "parity":
        # interleaved acquisition: every second slice is brighter
        stack = stack[::2] * (1 + 0.1 * (np.arange(40) % 2))[:, None, None]
    elif trap == "lost slices":
        stack = stack[::2] * np.where(rng.random(40) < 0.15, 0.2, 1.0)[:, None, None]
    else:
        stack = stack + 2.0 * (np.arange(80) > 33)[:, None, None] + rng.normal(0, 0.02, stack.shape)
    profile = along_z(stack, 1.0)
    assert profile.acquired_spacing_mm == 1.0, profile


def test_noise_does_not_pass_only_because_of_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = np.random.default_rng(905).standard_normal((60, 36, 36))
    assert not along_z(stack, 1.0).is_resampled
    monkeypatch.setattr(slice_profile, "LEAST_CONTRAST", 1.0)
    assert along_z(stack, 1.0).is_resampled


def test_few_slices_need_a_clearer_period(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(912)
    whole = thick_slices(body(rng, depth_mm=150), 5.0)[:24]
    taken_for_more = 0
    for _ in range(20):
        stack = whole * np.where(rng.random(24) < 0.15, 0.2, 1.0)[:, None, None]
        stack *= (1 + 0.1 * rng.standard_normal(24))[:, None, None]
        assert not along_z(stack, 5.0).is_resampled
        with monkeypatch.context() as patch:
            patch.setattr(slice_profile, "LEAST_CONTRAST_SHORT", 2.0)
            taken_for_more += along_z(stack, 5.0).is_resampled
    assert taken_for_more


def test_a_phantom_flair_of_thick_slices_is_told_on_every_axis() -> None:
    scan = phantom(61, whole_head=False)
    flair = scan.flair.astype(float)
    as_stored = estimate_profiles(flair, scan.mask, scan.spacing_mm)
    assert not any(profile.is_resampled for profile in as_stored)
    stack = resampled(flair.transpose(2, 1, 0), 3.0, "linear", 1 / 3)
    inside = resampled(scan.mask.astype(float).transpose(2, 1, 0), 3.0, "nearest", 1 / 3) > 0
    for axis in range(3):
        voxels, mask = np.moveaxis(stack, 0, axis), np.moveaxis(inside, 0, axis)
        spacing_mm = [3.0, 3.0, 3.0]
        spacing_mm[axis] = 1.0
        x, y, z = spacing_mm
        profile = estimate_profile(voxels, mask, (x, y, z), axis=axis)
        assert is_right(profile, 3.0), profile
        assert profile.kernel == "linear"


def test_a_background_cut_out_afterwards_does_not_disturb() -> None:
    rng = np.random.default_rng(906)
    stack = resampled(thick_slices(body(rng, depth_mm=120), 4.0), 4.0, "linear", 0.3)
    z, y, x = np.indices(stack.shape)
    radii = ((z - 55) / 50) ** 2 + ((y - 18) / 17) ** 2 + ((x - 18) / 17) ** 2
    ball = np.asarray(radii < 1)
    cut = np.where(ball, stack, 0)
    profile = estimate_profile(cut.transpose(2, 1, 0), ball.transpose(2, 1, 0), (2.0, 2.0, 1.0))
    assert is_right(profile, 4.0)


def isotropic_and_thick(thickness_mm: float) -> tuple[Floats, tuple[SliceProfile, ...]]:
    """A 1 mm isotropic body, blurred along z as slices and a Fourier resampling would."""
    rng = np.random.default_rng(907)
    shape = (72, 72, 72)
    spectrum = np.fft.fftn(rng.standard_normal(shape))
    f = np.fft.fftfreq(72)
    radius = np.sqrt(f[:, None, None] ** 2 + f[None, :, None] ** 2 + f[None, None, :] ** 2)
    spectrum *= 1 / (0.02 + radius) ** 2 * np.sinc(thickness_mm * f)[None, None, :]
    voxels = np.fft.ifftn(spectrum).real
    voxels += 0.002 * voxels.std() * rng.standard_normal(shape)
    return voxels, estimate_profiles(voxels, None, (1.0, 1.0, 1.0))


def test_detail_that_ends_early_gives_a_rough_spacing() -> None:
    _, profiles = isotropic_and_thick(3.0)
    found = profiles[2].acquired_spacing_mm
    assert profiles[2].basis == "spectrum"
    assert profiles[2].confidence == "low"
    assert found == pytest.approx(3.0, rel=1 / 3)
    assert through_plane_axis(profiles) == 2
    assert "roughly" in profiles[2].sentence()


def test_an_isotropic_volume_has_no_through_plane_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    _, profiles = isotropic_and_thick(1.0)
    assert [profile.basis for profile in profiles] == ["as stored"] * 3
    assert through_plane_axis(profiles) is None
    monkeypatch.setattr(slice_profile, "LOST_AT_END", 1e-9)
    assert isotropic_and_thick(3.0)[1][2].basis == "as stored"


def test_the_coarsest_stored_axis_is_the_through_plane_one() -> None:
    rng = np.random.default_rng(908)
    stack = thick_slices(body(rng, depth_mm=150), 5.0)
    assert through_plane_axis(estimate_profiles(stack, None, (5.0, 2.0, 2.0))) == 0


@pytest.mark.parametrize("voxels", [np.zeros((40, 40, 40)), np.eye(8)[:, :, None] * np.ones(8)])
def test_a_volume_that_cannot_be_judged_says_so(voxels: Floats) -> None:
    profile = estimate_profile(voxels, None, (1.0, 1.0, 1.0))
    assert profile.acquired_spacing_mm is None
    assert profile.confidence == "none"
    assert not profile.is_resampled
    assert "too few voxels" in profile.sentence()


def test_the_neighbour_correlation_tells_noise_from_interpolation() -> None:
    rng = np.random.default_rng(909)
    noise = rng.standard_normal((60, 36, 36))
    assert along_z(noise, 1.0).neighbour_dz_corr == pytest.approx(-0.5, abs=0.02)
    fine = along_z(resampled(noise[:20], 6.0, "linear", 0.1), 1.0)
    assert fine.neighbour_dz_corr == pytest.approx(0.75, abs=0.1)


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 0.0), (1.0, float("nan"), 1.0)])
def test_a_spacing_that_is_none_is_refused(spacing_mm: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="positive"):
        estimate_profile(np.zeros((20, 20, 20)), None, spacing_mm)
