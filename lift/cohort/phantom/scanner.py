"""One phantom head through one phantom scanner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lift.cohort.phantom.anatomy import Grid, Head, smooth_polynomial
from lift.cohort.phantom.physics import TISSUES, signal
from lift.config.phantom import SCANNERS, ScannerConfig, SequenceConfig

Floats = NDArray[np.float32]
FINE_MM: Final = 1.0
"""Through-plane sampling of the anatomy under a slice profile."""
_LOST_KEEPS: Final = (0.1, 0.3)
_TEXTURE: Final = 0.03
# share of the intensity field that is a sequence's own (transmission); the coil's is common
_OWN_FIELD: Final = np.float32(0.2)
_CT_NOISE_HU: Final = 8.0
_AIR_HU: Final = -1000.0


@dataclass(frozen=True)
class Acquired:
    """One channel on the delivered grid: (x, y, slice), signal or HU."""

    voxels: Floats
    is_ct: bool


def draw_public_scanner(rng: np.random.Generator) -> ScannerConfig:
    """A scanner whose numbers lie between (and a little beyond) those of `SCANNERS`."""
    known = list(SCANNERS.values())

    def between(values: list[float], margin: float = 0.1) -> float:
        low, high = min(values), max(values)
        return float(rng.uniform(low * (1 - margin), high * (1 + margin)))

    def timing(name: str) -> SequenceConfig:
        chosen: list[SequenceConfig] = [getattr(scanner, name) for scanner in known]
        tr = between([s.tr_ms for s in chosen])
        inversions = [s.ti_ms / s.tr_ms for s in chosen if s.ti_ms is not None]
        ti = tr * between(inversions, 0.02) if inversions else None
        return SequenceConfig(tr_ms=tr, te_ms=between([s.te_ms for s in chosen]), ti_ms=ti)

    spacing = float(rng.uniform(2.5, 5.5))
    return ScannerConfig(
        field_t=1.5 if rng.random() < 0.4 else 3.0,
        t1=timing("t1"),
        t2=timing("t2"),
        flair=timing("flair"),
        slice_spacing_mm=round(spacing, 1),
        flair_thickness_mm=round(spacing * float(rng.choice([1.0, 1.0, 1.25])), 1),
        bias=between([s.bias for s in known]),
        snr=between([s.snr for s in known]),
        slice_gain_sd=between([s.slice_gain_sd for s in known]),
        lost_slice_rate=between([s.lost_slice_rate for s in known]),
        slice_noise=between([s.slice_noise for s in known]),
    )


def without_corruption(scanner: ScannerConfig) -> ScannerConfig:
    """The same scanner with perfect slices."""
    return scanner.model_copy(
        update={
            "slice_gain_sd": 0.0,
            "lost_slice_rate": 0.0,
            "slice_noise": 0.0,
            "target_slice_gain_sd": 0.0,
        }
    )


def acquire(
    head: Head,
    grid: Grid,
    channel: str,
    scanner: ScannerConfig,
    rng: np.random.Generator,
    *,
    is_target: bool,
) -> Acquired:
    """One channel of one head.

    Signal equation by tissue, coil field, slice profile (a box of the acquired thickness), slice
    gain, lost slices, complex Gaussian noise of which the magnitude is kept (Gudbjartsson & Patz
    1995), and interpolation along depth where the acquired slices are not the grid's.

    Args:
        head: maps on the fine grid (`FINE_MM` along z).
        grid: the fine grid.
        channel: t1n, t1c, t2w, t2f, mr (a T1) or ct.
        scanner: timing and imperfections.
        rng: for this channel alone.
        is_target: the series passed quality control: small slice gain, no lost slices.
    """
    if channel == "ct":
        return Acquired(_ct(head, scanner, rng), is_ct=True)
    sequence = _jittered(_sequence(scanner, channel), scanner.timing_jitter, rng)
    contrast = channel == "t1c"
    levels = {
        name: signal(tissue, sequence, scanner.field_t, contrast=contrast)
        for name, tissue in TISSUES.items()
    }
    fine = np.zeros(grid.shape, dtype=np.float32)
    for name, share in head.maps.items():
        fine += share * np.float32(levels[name])
    fine *= 1 + np.float32(_TEXTURE) * head.texture
    own = smooth_polynomial(grid, rng)
    fine *= 1 + np.float32(scanner.bias) * ((1 - _OWN_FIELD) * head.coil + _OWN_FIELD * own)
    spacing = scanner.slice_spacing_mm
    thickness = scanner.flair_thickness_mm if channel == "t2f" else spacing
    count = round(grid.shape[2] * FINE_MM / spacing)
    slices = _slice_profile(fine, thickness)
    slices = _corrupted(slices, levels["wm"], scanner, rng, is_target=is_target)
    return Acquired(_on_grid(slices, thickness, spacing, count), is_ct=False)


def brain_share(head: Head, scanner: ScannerConfig, grid: Grid) -> Floats:
    """The brain's share of each delivered voxel."""
    return delivered_share(head.brain, scanner, grid)


def body_share(head: Head, scanner: ScannerConfig, grid: Grid) -> Floats:
    """The share of anything but air of each delivered voxel."""
    whole = np.clip(sum(head.maps.values()), 0, 1).astype(np.float32)
    return delivered_share(whole, scanner, grid)


def delivered_share(share: Floats, scanner: ScannerConfig, grid: Grid) -> Floats:
    """A map of the fine grid as a share of each delivered voxel."""
    count = round(grid.shape[2] * FINE_MM / scanner.slice_spacing_mm)
    spacing = scanner.slice_spacing_mm
    return _on_grid(_slice_profile(share, spacing), spacing, spacing, count)


def _sequence(scanner: ScannerConfig, channel: str) -> SequenceConfig:
    return {"t2w": scanner.t2, "t2f": scanner.flair}.get(channel, scanner.t1)


def _jittered(sequence: SequenceConfig, share: float, rng: np.random.Generator) -> SequenceConfig:
    tr, te = (1 + share * rng.uniform(-1, 1, 2)).tolist()
    # the inversion time follows TR: the operator keeps fluid dark
    ti = None if sequence.ti_ms is None else sequence.ti_ms * (1 + 0.7 * (tr - 1))
    return SequenceConfig(tr_ms=sequence.tr_ms * tr, te_ms=sequence.te_ms * te, ti_ms=ti)


def _slice_profile(fine: Floats, thickness_mm: float) -> Floats:
    """Means over contiguous boxes of `thickness_mm` along z, by exact integration."""
    steps = thickness_mm / FINE_MM
    count = int(fine.shape[2] / steps + 1e-6)
    total = np.concatenate(
        [np.zeros((*fine.shape[:2], 1), np.float32), np.cumsum(fine, axis=2, dtype=np.float64)],
        axis=2,
    )
    edges = steps * np.arange(count + 1)
    low = np.minimum(edges.astype(int), fine.shape[2] - 1)
    part = (edges - low).astype(np.float64)
    at_edges = total[:, :, low] * (1 - part) + total[:, :, low + 1] * part
    return np.asarray(np.diff(at_edges, axis=2) / steps, dtype=np.float32)


def _corrupted(
    slices: Floats,
    white_matter: float,
    scanner: ScannerConfig,
    rng: np.random.Generator,
    *,
    is_target: bool,
) -> Floats:
    count = slices.shape[2]
    sd = scanner.target_slice_gain_sd if is_target else scanner.slice_gain_sd
    # interleaved acquisition: odd and even slices differ as a group, and each by itself
    parity = np.where(np.arange(count) % 2 == 0, 1.0, -1.0) * rng.standard_normal()
    gain = 1 + sd * (0.5 * parity + 0.866 * rng.standard_normal(count))
    keeps = rng.uniform(*_LOST_KEEPS, count)
    is_lost = np.asarray(rng.random(count) < scanner.lost_slice_rate)
    noisy = np.abs(rng.standard_normal(count)) * scanner.slice_noise
    if is_target:
        is_lost, noisy = np.zeros(count, dtype=bool), np.zeros(count)
    factor = np.clip(gain, 0.3, None) * np.where(is_lost, keeps, 1.0)
    sigma = white_matter * np.sqrt((1.0 / scanner.snr) ** 2 + noisy**2).astype(np.float32)
    real, imaginary = rng.standard_normal((2, *slices.shape), dtype=np.float32) * sigma
    real += slices * factor.astype(np.float32)
    return np.asarray(np.hypot(real, imaginary), dtype=np.float32)


def _on_grid(slices: Floats, thickness_mm: float, spacing_mm: float, count: int) -> Floats:
    """Acquired slices at the centres of the delivered ones; linear in between."""
    if abs(thickness_mm - spacing_mm) < 1e-6 and slices.shape[2] == count:
        return slices
    centres = ((np.arange(count) + 0.5) * spacing_mm) / thickness_mm - 0.5
    where = np.clip(centres, 0, slices.shape[2] - 1)
    low = np.minimum(where.astype(int), slices.shape[2] - 2)
    part = (where - low).astype(np.float32)
    between = slices[:, :, low] * (1 - part) + slices[:, :, low + 1] * part
    return np.asarray(between, dtype=np.float32)


def _ct(head: Head, scanner: ScannerConfig, rng: np.random.Generator) -> Floats:
    """Hounsfield units: linear in the tissues' shares, air in between, Gaussian noise."""
    values = np.zeros_like(head.brain)
    filled = np.zeros_like(head.brain)
    for name, share in head.maps.items():
        values += share * np.float32(TISSUES[name].hu)
        filled += share
    values += (1 - np.clip(filled, 0, 1)) * np.float32(_AIR_HU)
    spacing = scanner.slice_spacing_mm
    count = round(values.shape[2] * FINE_MM / spacing)
    slices = _on_grid(_slice_profile(values, spacing), spacing, spacing, count)
    noise = ndimage.gaussian_filter(rng.standard_normal(slices.shape), (0.7, 0.7, 0))
    return np.asarray(slices + _CT_NOISE_HU * noise / noise.std(), dtype=np.float32)
