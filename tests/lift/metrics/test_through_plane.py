"""Eight manipulations of a volume, and what each figure must say of them; laws; guards."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from lift.metrics.synthrad import Floats, Mask
from lift.metrics.through_plane import (
    band_figures,
    dz_corr,
    dz_mae,
    hf_coherence,
    hf_error,
    hf_ratio,
    slice_gain,
    tpr,
)

Metric = Callable[[Floats, Floats, Mask], float | None]

METRICS: dict[str, Metric] = {
    "dz_mae": dz_mae,
    "dz_corr": dz_corr,
    "hf_ratio": hf_ratio,
    "hf_error": hf_error,
    "hf_coherence": hf_coherence,
    "slice_gain": slice_gain,
    "tpr": tpr,
}
IDEAL = {
    "dz_mae": 0.0,
    "dz_corr": 1.0,
    "hf_ratio": 1.0,
    "hf_error": 0.0,
    "hf_coherence": 1.0,
    "slice_gain": 1.0,
    "tpr": 1.0,
}
DEPTH = 32


def _head() -> tuple[Floats, Mask]:
    """An ellipsoid with coarse and fine tissue, 0 outside; the mask ends before the volume."""
    z, y, x = np.meshgrid(*(np.linspace(-1.1, 1.1, n) for n in (DEPTH, 40, 36)), indexing="ij")
    mask = z**2 + y**2 + x**2 < 1
    random = np.random.default_rng(0)
    coarse, fine = (
        gaussian_filter(random.standard_normal(mask.shape), width) for width in (2.5, 0.6)
    )
    tissue = 0.5 + 0.12 * coarse / coarse.std() + 0.08 * fine / fine.std()
    return np.where(mask, np.clip(tissue, 0.05, 1.0), 0.0), mask


TARGET, MASK = _head()


def _manipulated() -> dict[str, Floats]:
    random = np.random.default_rng(1)
    per_slice = random.standard_normal((2, DEPTH, 1, 1))
    shifts = random.integers(-1, 2, (DEPTH, 2))
    return {
        "perfect": TARGET,
        "gain jitter": TARGET * (1 + 0.05 * per_slice[0]),
        "offset jitter": TARGET + MASK * 0.03 * per_slice[1],
        "shift jitter": np.stack(
            [np.roll(s, (int(a), int(b)), (0, 1)) for s, (a, b) in zip(TARGET, shifts, strict=True)]
        ),
        "white noise": TARGET + MASK * 0.03 * random.standard_normal(TARGET.shape),
        "global gain": TARGET * 1.05,
        "z blur": gaussian_filter1d(TARGET, 1.0, axis=0),
        "swapped": TARGET[np.arange(DEPTH) ^ 1],
    }


CASES = _manipulated()


def figures(prediction: Floats, target: Floats = TARGET, mask: Mask = MASK) -> dict[str, float]:
    """Every metric, all of which must exist."""
    found = {name: metric(prediction, target, mask) for name, metric in METRICS.items()}
    return {name: figure for name, figure in found.items() if figure is not None}


@pytest.fixture(scope="module")
def table() -> dict[str, dict[str, float]]:
    found = {case: figures(volume) for case, volume in CASES.items()}
    assert all(set(row) == set(METRICS) for row in found.values())
    return found


def test_a_perfect_volume_has_the_ideal_figures(table: dict[str, dict[str, float]]) -> None:
    assert table["perfect"] == pytest.approx(IDEAL, abs=1e-9)


def test_flicker_raises_slice_gain_most(table: dict[str, dict[str, float]]) -> None:
    for case in ("gain jitter", "offset jitter"):
        assert table[case]["slice_gain"] > 4
        assert table[case]["hf_ratio"] > 1.02
        assert table[case]["tpr"] > 1.0
    for case in ("white noise", "global gain"):
        assert 0.8 < table[case]["slice_gain"] < 1.25


def test_z_blur_empties_the_band_and_does_not_raise_coherence(
    table: dict[str, dict[str, float]],
) -> None:
    blurred = table["z blur"]
    assert blurred["hf_ratio"] < 0.1
    assert 0.5 < blurred["hf_error"] < 1.0
    assert blurred["hf_coherence"] < table["perfect"]["hf_coherence"]
    assert blurred["tpr"] < 0.9
    assert blurred["slice_gain"] < 1.0


@pytest.mark.parametrize("case", ["gain jitter", "white noise", "shift jitter"])
def test_smoothing_a_flawed_volume_away_is_no_gain_in_coherence(case: str) -> None:
    before = figures(CASES[case])
    after = figures(gaussian_filter1d(CASES[case], 1.0, axis=0))
    assert after["hf_ratio"] < 0.1 < before["hf_ratio"]
    assert after["hf_coherence"] < before["hf_coherence"] + 0.02


def test_misplaced_slices_lose_the_correlation_of_differences(
    table: dict[str, dict[str, float]],
) -> None:
    swapped, shifted = table["swapped"], table["shift jitter"]
    assert swapped["dz_corr"] < 0.0
    assert shifted["dz_corr"] < 0.8
    assert swapped["dz_mae"] == max(row["dz_mae"] for row in table.values())
    assert swapped["hf_error"] > 2
    assert swapped["hf_coherence"] < 0.3
    assert min(swapped["tpr"], shifted["tpr"], swapped["hf_ratio"], shifted["hf_ratio"]) > 1.1


def test_a_global_gain_acts_as_its_square_or_not_at_all(table: dict[str, dict[str, float]]) -> None:
    row = table["global gain"]
    assert row["hf_ratio"] == pytest.approx(1.05**2)
    assert row["slice_gain"] == pytest.approx(1.05**2)
    assert row["hf_error"] == pytest.approx(0.05**2)
    assert [row[name] for name in ("dz_corr", "hf_coherence", "tpr")] == pytest.approx([1, 1, 1])


def test_swapping_alternating_slices_turns_the_correlation_around() -> None:
    target = np.ones((10, 5, 5)) * (-1.0) ** np.arange(10)[:, None, None]
    mask = np.ones(target.shape, dtype=np.bool_)
    assert dz_corr(target[np.arange(10) ^ 1], target, mask) == pytest.approx(-1.0)
    assert dz_mae(target[np.arange(10) ^ 1], target, mask) == pytest.approx(4.0)
    assert dz_mae(target * 0, target, mask) == pytest.approx(2.0)


def test_the_correlation_is_pearsons() -> None:
    random = np.random.default_rng(8)
    drift = 0.3 * np.arange(9)[:, None, None]
    prediction, target = (drift + random.random((9, 6, 5)) for _ in range(2))
    mask = random.random(target.shape) < 0.8
    pairs = mask[1:] & mask[:-1]
    expected = np.corrcoef(
        (prediction[1:] - prediction[:-1])[pairs], (target[1:] - target[:-1])[pairs]
    )[0, 1]
    assert dz_corr(prediction, target, mask) == pytest.approx(expected, abs=1e-12)


def test_only_frequencies_above_a_quarter_cycle_per_slice_count() -> None:
    z = np.arange(64)[:, None, None]
    mask = np.ones((64, 4, 4), dtype=np.bool_)
    column_phase = np.random.default_rng(0).uniform(0, 2 * np.pi, (1, 4, 4))

    def tone(frequency: float, amplitude: float, lead: float = 0.0) -> Floats:
        return amplitude * np.cos(2 * np.pi * frequency * z + column_phase + lead)

    target = tone(0.4, 1.0)
    coarse = band_figures(target + tone(0.15, 5.0), target, mask)
    assert coarse.error is not None
    assert coarse.error < 1e-3
    halved = band_figures(tone(0.4, 0.5), target, mask)
    assert (halved.ratio, halved.error, halved.coherence) == pytest.approx((0.25, 0.25, 1.0))
    late = band_figures(tone(0.4, 1.0, np.pi), target, mask)
    assert (late.ratio, late.error, late.coherence) == pytest.approx((1.0, 4.0, 1.0), rel=1e-3)
    scrambled = tone(0.4, 1.0, 0.0) * np.where(np.arange(16).reshape(1, 4, 4) % 2, 1, -1)
    unrelated = band_figures(scrambled, target, mask)
    assert (unrelated.ratio, unrelated.error) == pytest.approx((1.0, 2.0), rel=1e-3)
    assert unrelated.coherence == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("depth", [17, 20])  # 20 has a bin at exactly .25 cycles/slice
def test_band_figures_equal_a_transform_written_out_by_column(depth: int) -> None:
    random = np.random.default_rng(4)
    target = random.random((depth, 3, 3))
    prediction = target + random.normal(0, 0.2, target.shape)
    mask = np.ones(target.shape, dtype=np.bool_)
    mask[5:, 0, 0] = False  # a run of 5: too short
    mask[[0, 4], 0, 1] = False  # two runs: the longer counts
    mask[12:, 1, 1] = False  # a run of 12
    mask[9:, 2, 2] = False  # a run of 9: below 60%
    runs = {(y, x): (0, depth) for y in range(3) for x in range(3)}
    del runs[0, 0], runs[2, 2]
    runs[0, 1], runs[1, 1] = (5, depth), (0, 12)

    sums = {"pp": 0.0, "tt": 0.0, "dd": 0.0}
    cross = 0j
    for (y, x), (start, stop) in runs.items():
        n = stop - start
        hann = [math.sin(math.pi * (k + 1) / (n + 1)) ** 2 for k in range(n)]
        for bin_index in range(depth // 2 + 1):
            if bin_index / depth <= 0.25:
                continue
            spectrum = {}
            for key, volume in (("p", prediction), ("t", target)):
                run = volume[start:stop, y, x]
                spectrum[key] = sum(
                    (run[k] - run.mean())
                    * hann[k]
                    * np.exp(-2j * math.pi * bin_index * (start + k) / depth)
                    for k in range(n)
                )
            sums["pp"] += abs(spectrum["p"]) ** 2
            sums["tt"] += abs(spectrum["t"]) ** 2
            sums["dd"] += abs(spectrum["p"] - spectrum["t"]) ** 2
            cross += spectrum["p"] * np.conj(spectrum["t"])
    found = band_figures(prediction, target, mask)
    assert found.ratio == pytest.approx(sums["pp"] / sums["tt"])
    assert found.error == pytest.approx(sums["dd"] / sums["tt"])
    assert found.coherence == pytest.approx(abs(cross) ** 2 / sums["pp"] / sums["tt"])


@given(st.integers(0, 10_000), st.floats(0.01, 100), st.floats(-50, 50))
def test_band_figures_obey_their_bounds_and_ignore_offsets(
    seed: int, gain: float, offset: float
) -> None:
    random = np.random.default_rng(seed)
    target = random.random((12, 5, 6))
    prediction = gain * (target + random.normal(0, random.random(), target.shape))
    mask = np.ones(target.shape, dtype=np.bool_)
    found = band_figures(prediction, target, mask)
    assert found.ratio is not None
    assert found.error is not None
    assert found.coherence is not None
    root = math.sqrt(found.ratio)
    assert (root - 1) ** 2 - 1e-9 <= found.error <= (root + 1) ** 2 + 1e-9
    assert 0 <= found.coherence <= 1
    moved = band_figures(prediction + offset, target - offset, mask)
    assert moved.ratio == pytest.approx(found.ratio, rel=1e-6)
    assert moved.error == pytest.approx(found.error, rel=1e-6, abs=1e-9)
    assert moved.coherence == pytest.approx(found.coherence, rel=1e-6, abs=1e-9)


def test_coherence_does_not_depend_on_gain_while_ratio_and_error_do() -> None:
    jittered = CASES["gain jitter"]
    once, thrice = figures(jittered), figures(3 * jittered)
    assert thrice["hf_coherence"] == pytest.approx(once["hf_coherence"])
    assert thrice["hf_ratio"] == pytest.approx(9 * once["hf_ratio"])
    assert thrice["hf_error"] > 2


@settings(max_examples=10)
@given(st.integers(0, 10_000), st.integers(0, 3), st.integers(0, 3))
def test_only_mask_voxels_are_read(seed: int, above: int, below: int) -> None:
    random = np.random.default_rng(seed)
    before = figures(CASES["white noise"])
    padding = ((above, below), (1, 2), (0, 3))
    mask = np.pad(MASK, padding)
    padded = [
        np.where(mask, np.pad(volume, padding), random.normal(0, 9, mask.shape))
        for volume in (CASES["white noise"], TARGET)
    ]
    assert figures(padded[0], padded[1], mask) == pytest.approx(before, rel=1e-12)


def test_slice_gain_by_hand() -> None:
    target = np.zeros((5, 5, 5)) + np.array([0.0, 1.0, 0.0, 1.0, 0.0])[:, None, None]
    prediction = np.zeros((5, 5, 5)) + np.array([0.0, 3.0, 0.0, 0.0, 0.0])[:, None, None]
    mask = np.ones(target.shape, dtype=np.bool_)
    # second differences: 2, 2, 2 of the target; 6, 3, 0 of the prediction (signs apart)
    assert slice_gain(prediction, target, mask) == pytest.approx((36 + 9 + 0) / 12)
    mask[4, :1] = False  # 20 voxels left: counts still
    assert slice_gain(prediction, target, mask) == pytest.approx(45 / 12)
    mask[4, 1, 0] = False  # 19: the last slice has no mean
    assert slice_gain(prediction, target, mask) == pytest.approx((36 + 9) / 8)


def test_tpr_by_hand() -> None:
    z, y = np.arange(6.0)[:, None, None], np.arange(5.0)[:, None]
    mask = np.ones((6, 5, 4), dtype=np.bool_)
    target = np.broadcast_to(2 * z + 4 * y, mask.shape)
    prediction = np.broadcast_to(3 * z - 2 * y, mask.shape)
    assert tpr(prediction, target, mask) == pytest.approx((3 / 2) / (2 / 4))


def test_a_constant_volume_has_no_correlation_coherence_or_tpr() -> None:
    for constant in (0.0, 0.1, 1 / 3, -1024.0):
        flat = np.full(TARGET.shape, constant)
        found = figures(flat)
        assert set(found) == {"dz_mae", "hf_ratio", "hf_error", "slice_gain"}
        assert found["hf_ratio"] == found["slice_gain"] == 0.0
        assert found["hf_error"] == pytest.approx(1.0)
        assert set(figures(TARGET, flat)) == {"dz_mae"}


def test_a_ramp_along_depth_has_no_correlation_and_no_roughness() -> None:
    ramp = np.broadcast_to(0.1 * np.arange(DEPTH)[:, None, None], TARGET.shape)
    found = figures(ramp)
    assert "dz_corr" not in found  # its differences vary by rounding only
    assert found["slice_gain"] == 0.0
    assert "slice_gain" not in figures(TARGET, ramp)


def test_the_band_needs_columns_of_8_slices() -> None:
    random = np.random.default_rng(5)
    for depth, exists in ((7, False), (8, True)):
        volume = random.random((depth, 6, 6))
        found = band_figures(volume, volume, np.ones(volume.shape, dtype=np.bool_))
        assert (found.ratio is not None) is exists
        assert (found.error is not None) is exists
        assert (found.coherence is not None) is exists


def test_one_slice_has_no_through_plane_figure() -> None:
    volume = np.random.default_rng(6).random((5, 6, 6))
    mask = np.zeros(volume.shape, dtype=np.bool_)
    mask[2] = True
    assert figures(volume, volume, mask) == {}


@given(
    st.integers(0, 10_000),
    st.tuples(st.integers(1, 10), st.integers(1, 6), st.integers(1, 6)),
    st.sampled_from(["random", "flat", "ramp", "one voxel"]),
    st.floats(0.05, 1.0),
)
def test_no_volume_gives_nan_or_a_warning(
    seed: int, shape: tuple[int, int, int], kind: str, filled: float
) -> None:
    random = np.random.default_rng(seed)
    volumes = {
        "random": random.random(shape),
        "flat": np.full(shape, random.normal()),
        "ramp": np.broadcast_to(np.arange(shape[0])[:, None, None] * 0.1, shape),
        "one voxel": np.zeros(shape),
    }
    mask = random.random(shape) < filled
    mask[0, 0, 0] = True
    for prediction, target in (
        (volumes[kind], volumes["random"]),
        (volumes["random"], volumes[kind]),
        (volumes[kind], volumes[kind]),
    ):
        assert all(math.isfinite(f) for f in figures(prediction, target, mask).values())
