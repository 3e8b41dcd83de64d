"""The guard: what it is worried about, and what its measure of a slice profile sees."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lift.guard import SiteProfile, Verdict, concerns
from lift.metrics.hf_share import hf_share

Floats = NDArray[np.float32]


def site(
    verdict: Verdict = "helped",
    spacing: tuple[float, float] = (2.0, 4.0),
    share: tuple[float, float] | None = (0.1, 0.2),
) -> SiteProfile:
    low, high = (None, None) if share is None else share
    return SiteProfile(verdict, *spacing, low, high)


def textured(depth: int = 32, channels: int = 1, seed: int = 0) -> Floats:
    rng = np.random.default_rng(seed)
    return rng.random((depth, channels, 8, 9), dtype=np.float32)


def whole(depth: int = 32) -> Floats:
    return np.ones((depth, 1, 8, 9), dtype=np.float32)


def wave(cycles_per_slice: float, depth: int = 64) -> Floats:
    phase = 2 * np.pi * cycles_per_slice * np.arange(depth)
    values: Floats = np.broadcast_to(np.cos(phase)[:, None, None, None], (depth, 1, 8, 9)).astype(
        np.float32
    )
    return values


@pytest.mark.parametrize("sites", [[], [site("undecided")], [site("harmed"), site("undecided")]])
def test_a_mixer_that_helped_nowhere_is_a_concern(sites: list[SiteProfile]) -> None:
    reason = concerns(sites, 3.0, 0.15)
    assert reason is not None
    assert "any site" in reason


@pytest.mark.parametrize(
    ("spacing", "is_fine"), [(1.5, True), (1.49, False), (3.0, True), (5.0, True), (5.01, False)]
)
def test_spacing_may_leave_the_sites_range_by_a_quarter(spacing: float, is_fine: bool) -> None:
    reason = concerns([site()], spacing, 0.15)
    assert (reason is None) == is_fine
    if reason is not None:
        assert "2 to 4 mm" in reason


@pytest.mark.parametrize(
    ("share", "is_fine"), [(0.067, True), (0.066, False), (0.3, True), (0.31, False), (None, True)]
)
def test_the_profile_may_leave_the_sites_range_by_half(share: float | None, is_fine: bool) -> None:
    reason = concerns([site()], 3.0, share)
    assert (reason is None) == is_fine
    if reason is not None:
        assert "slice profile" in reason


def test_spacing_and_profile_must_fit_one_and_the_same_site() -> None:
    thin = site(spacing=(1.0, 1.0), share=(0.4, 0.4))
    thick = site(spacing=(5.0, 5.0), share=(0.05, 0.05))
    assert concerns([thin, thick], 1.0, 0.4) is None
    assert concerns([thin, thick], 5.0, 0.05) is None
    assert concerns([thin, thick], 1.0, 0.05) is not None


def test_a_site_where_it_harmed_does_not_vouch_for_a_volume() -> None:
    harmed = site("harmed", spacing=(6.0, 6.0))
    assert concerns([site(), harmed], 6.0, 0.15) is not None


def test_a_site_without_a_measured_profile_is_judged_by_spacing() -> None:
    assert concerns([site(share=None)], 3.0, 0.9) is None


def test_a_site_without_a_profile_does_not_vouch_where_others_have_one() -> None:
    measured, unmeasured = site(share=(0.1, 0.2)), site(share=None)
    assert concerns([measured, unmeasured], 3.0, 0.9) is not None
    assert concerns([measured, unmeasured], 3.0, 0.15) is None
    assert concerns([unmeasured], 3.0, 0.9) is None


@given(st.integers(0, 50), st.floats(-3, 3), st.floats(0.1, 50))
def test_the_share_is_a_share_and_ignores_offset_and_scale(
    seed: int, offset: float, scale: float
) -> None:
    volume = textured(seed=seed)
    share = hf_share(volume, whole())
    assert share is not None
    assert 0 <= share <= 1
    moved = hf_share((offset + scale * volume.astype(np.float64)).astype(np.float32), whole())
    assert moved == pytest.approx(share, rel=1e-3)


def test_waves_on_either_side_of_a_quarter_cycle_have_all_or_nothing() -> None:
    slow, fast = hf_share(wave(0.125), whole(64)), hf_share(wave(0.40625), whole(64))
    assert slow is not None
    assert fast is not None
    assert slow < 1e-6
    assert fast > 1 - 1e-6


def test_blurring_along_depth_takes_the_share_away() -> None:
    volume = textured(40)
    blurred = np.mean([np.roll(volume, shift, axis=0) for shift in range(-2, 3)], axis=0)
    before, after = hf_share(volume, whole(40)), hf_share(blurred.astype(np.float32), whole(40))
    assert before is not None
    assert after is not None
    # white noise: about half of the band; a box of five leaves less than a fifth of that
    assert before == pytest.approx(0.5, abs=0.06)
    assert after < before / 4


def test_jumping_slice_gains_raise_the_share() -> None:
    smooth = wave(0.05) + 2.0
    gains = np.where(np.arange(64) % 2 == 0, 1.0, 1.1).astype(np.float32)[:, None, None, None]
    quiet, jumping = hf_share(smooth, whole(64)), hf_share(smooth * gains, whole(64))
    assert quiet is not None
    assert jumping is not None
    assert jumping > quiet + 0.01


def test_channels_count_equally_and_columns_outside_the_mask_do_not() -> None:
    two = np.concatenate([wave(0.125), wave(0.40625)], axis=1)
    share = hf_share(two, whole(64))
    assert share == pytest.approx(0.5, abs=1e-5)
    mask = whole(64)
    mask[:, :, :4] = 0.0
    disturbed = wave(0.125)
    disturbed[:, :, :4] = textured(64)[:, :, :4]
    assert hf_share(disturbed, mask) == hf_share(wave(0.125), mask)


def test_what_cannot_be_measured_is_none() -> None:
    assert hf_share(textured(7), whole(7)) is None
    assert hf_share(textured(8), whole(8)) is not None
    assert hf_share(textured(), np.zeros_like(whole())) is None
    assert hf_share(np.ones_like(textured()), whole()) is None
