"""Figures of a set of generated volumes against a set of real ones; no volume has a partner.

Volumes are compared by the tri-planar features of an encoder that training never saw. These
numbers are comparable with each other, for one real set and sets of one size, never with
published ones: put :func:`real_split_figures` beside them.

- `frechet_*`, `mmd_*`, a plane each: the mean over the plane's groups of the squared Frechet
  distance and of the unbiased squared MMD; ideal 0. Both see content; coronal and sagittal ones
  see how slices fit together as well.
- `precision`, `recall`: share of generated volumes that lie among the real ones by those features,
  and of real ones that lie among the generated ones (`lift.metrics.neighbours.precision_recall`).
- `spectrum_z`: how far the sets' mean power spectra along depth lie apart: root mean square over
  12 bands, in dB, each volume at one gain. Only where all volumes have one spacing.
- `tpr`: through-plane over in-plane roughness. A volume's own is mean |Dz| over mean |Dy| inside
  the body's box, each a mm; then the mean over the generated volumes over that of the real ones.
  Above 1 jumpy, below 1 over-smoothed. Spacings should be alike: roughness a mm falls with them.
- `diversity`: mean distance between two generated volumes over that between two real ones, in
  voxels, on a common grid of 16^3; 1 as varied as real, 0 copies of one volume.
- `ms_ssim`: mean MS-SSIM of pairs of generated volumes, on three central slices of the body's
  box at 64 x 64; the higher than real's, the less varied.
- `nearest_ratio`: median over generated volumes of the distance to the nearest training volume
  over that to the nearest held-out one (`lift.metrics.point_sets.nearest_ratios`); well below 1
  hints at copying.
- `nearest_distance`, `near_copies`: mean distance to the nearest training volume by thumbnails,
  and share of near copies (`lift.metrics.neighbours.nearest_figures`); to be put beside the
  held-out volumes' own.
- `order_correlation`: mean Spearman correlation of slices' order with the order of the real mean
  slices they resemble; near the real one's, 0 shuffled, negative reversed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from lift.metrics.neighbours import nearest_figures
from lift.metrics.point_sets import order_correlations
from lift.metrics.reference import Reference, too_few
from lift.metrics.set_pairs import FEWEST_GENERATED, Pairing, stacks
from lift.metrics.synthrad import Floats
from lift.metrics.table import MetricValue
from lift.metrics.volume_sets import Index, MeasuredSet
from lift.randomness import derive_seed
from lift.triplanar.encoder import RandomPyramid
from lift.triplanar.groups import GroupLayout

EVALUATION_SEED: Final = 9001
"""Of the evaluation's encoder; no training encoder may have it."""

LAYOUT: Final = GroupLayout(
    axial=5, coronal=4, sagittal=4, windows=2, margin=0.1, step_mm=2.0, pixel_mm=1.0
)
"""The evaluation's own groups: fixed, so that figures of different models can be compared."""

_HALVES: Final = 200
_SPLITS: Final = 100
_FEWEST_FOR_INTERVAL: Final = 4
_BOUNDS: Final[Mapping[str, tuple[float, float]]] = {
    "mmd_axial": (-math.inf, math.inf),
    "mmd_coronal": (-math.inf, math.inf),
    "mmd_sagittal": (-math.inf, math.inf),
    "ms_ssim": (0.0, 1.0),
    "order_correlation": (-1.0, 1.0),
    "precision": (0.0, 1.0),
    "recall": (0.0, 1.0),
}
"""Values a figure can have, where they are not those from 0 upwards."""


@dataclass(frozen=True)
class Quality:
    """Volumes of a set that are no volumes of a body: counts, of `volumes`.

    Attributes:
        volumes: how many there are.
        flat: empty or constant.
        reversed: slices that go from the body's last to its first: order correlation below 0.
    """

    volumes: int
    flat: int
    reversed: int


def evaluation_encoder() -> RandomPyramid:
    """The default encoder of evaluations: no training may use it."""
    return RandomPyramid(EVALUATION_SEED)


def distribution_figures(
    generated: MeasuredSet,
    reference: Reference,
    *,
    seed: int,
    training: MeasuredSet | None = None,
    size: int | None = None,
    halves: int = _HALVES,
) -> dict[str, MetricValue]:
    """METRIC -> figure of generated volumes, `n` of them, with its 95% interval.

    The interval tells what another set of as many generated volumes would give; the real ones
    are held fixed. It is from 200 random halves of the generated volumes: the spread of halves
    drawn without replacement is that of the whole set (exactly for a mean), and no volume is
    there twice, as in a bootstrap, where twins draw a Frechet distance and an MMD upwards. It is
    placed around the value by the halves' own mean, since smaller sets have a larger Frechet
    distance; when the sets are alike, it is too wide for MMD rather than too narrow. Without an
    interval below 4 volumes. The order of volumes within the sets does not matter.

    Args:
        generated: measured as the reference was.
        reference: the real volumes.
        seed: of all random choices.
        training: what training saw: adds `nearest_ratio`, `nearest_distance` and `near_copies`.
        size: volumes of either set in a Frechet distance, precision and recall, which are then
            means over 20 random draws: to be put beside others of the same size. None: all.
        halves: random halves behind the intervals; 0 leaves the intervals out.

    Raises:
        DataError: fewer than 2 generated volumes.
        ConfigError: a set was measured with another encoder or layout.
    """
    if len(generated) < FEWEST_GENERATED:
        raise too_few("generated", len(generated), FEWEST_GENERATED)
    pairing = Pairing(generated.sorted(), reference, training, seed)
    everyone, real = np.arange(len(generated)), np.arange(len(reference.real))
    values = pairing.figures(everyone, real)
    whole = dict(values)
    if size is not None:
        values |= pairing.of_size(everyone, real, size, derive_seed(seed, "frechet"))
    spread = _half_sampled(pairing, real, whole, derive_seed(seed, "halves"), halves)
    table = {
        name: MetricValue(value, len(generated), *_interval(name, value, spread), unit=_unit(name))
        for name, value in values.items()
        if math.isfinite(value)
    }
    return table if training is None else table | nearest_figures(pairing.generated, training)


def real_split_figures(
    reference: Reference,
    *,
    seed: int,
    training: MeasuredSet | None = None,
    size: int | None = None,
) -> dict[str, MetricValue]:
    """METRIC -> the same figures of one random half of the real volumes against the other.

    What a perfect generator would get: the mean over 100 random splits, and as interval the
    middle 95% of them. `nearest_distance` and `near_copies` are those of all real volumes.

    Args:
        reference: the real volumes.
        seed: of the splits.
        training: as in :func:`distribution_figures`.
        size: volumes of either half in a Frechet distance, precision and recall; None: all.

    Raises:
        ValueError: `size` is larger than half of the real set.
    """
    pairing = Pairing(reference.real, reference, training, seed)
    count = len(reference.real)
    half = count // 2
    if size is not None and size > half:
        raise ValueError(f"a half has {half} volumes, not {size}")
    rng = np.random.default_rng(derive_seed(seed, "splits"))
    draws = []
    for _ in range(_SPLITS):
        order = rng.permutation(count)
        one, other = np.sort(order[:half]), np.sort(order[half : 2 * half])
        found = pairing.figures(one, other)
        if size is not None and size < half:
            # a random half's first ones are a random draw too, but sorted: shuffle again
            one, other = rng.permutation(one)[:size], rng.permutation(other)[:size]
            found |= pairing.sized(one, other)
        draws.append(found)
    table = {}
    for name in draws[0]:
        values = np.asarray([draw[name] for draw in draws])
        values = values[np.isfinite(values)]
        if len(values):
            low, high = (float(q) for q in np.quantile(values, (0.025, 0.975)))
            table[name] = MetricValue(float(values.mean()), half, low, high, unit=_unit(name))
    return table if training is None else table | nearest_figures(reference.real, training)


def slice_orders(measured: MeasuredSet, reference: Reference) -> Floats:
    """Order correlation of each volume, in the set's own order; see `order_correlation`."""
    return order_correlations(stacks(measured), stacks(reference.real).mean(axis=0))


def slice_order_inversions(measured: MeasuredSet, reference: Reference) -> int:
    """How many volumes have their slices reversed along depth: an order correlation below 0."""
    return int((slice_orders(measured, reference) < 0).sum())


def quality(generated: MeasuredSet, reference: Reference) -> Quality:
    """How many generated volumes are flat or reversed. They count in every figure all the same."""
    return Quality(
        volumes=len(generated),
        flat=int(generated.flat.sum()),
        reversed=slice_order_inversions(generated, reference),
    )


def _half_sampled(
    pairing: Pairing, real: Index, whole: Mapping[str, float], seed: int, halves: int
) -> dict[str, Floats]:
    """METRIC -> deviations of random halves from their mean, scaled to the whole set."""
    count = pairing.size
    if count < _FEWEST_FOR_INTERVAL or halves == 0:
        return {}
    rng = np.random.default_rng(seed)
    half = count // 2
    draws = [
        pairing.figures(np.sort(rng.choice(count, half, replace=False)), real)
        for _ in range(halves)
    ]
    # of a mean: a half's variance about the whole is (n - m) / m times the whole's own
    scale = math.sqrt(half / (count - half))
    spread = {}
    for name in whole:
        values = np.asarray([draw[name] for draw in draws])
        values = values[np.isfinite(values)]
        if len(values):
            spread[name] = (values - values.mean()) * scale
    return spread


def _unit(name: str) -> str:
    return "dB" if name == "spectrum_z" else ""


def _interval(
    name: str, value: float, spread: Mapping[str, Floats]
) -> tuple[float | None, float | None]:
    if name not in spread:
        return None, None
    low, high = (value + float(q) for q in np.quantile(spread[name], (0.025, 0.975)))
    lowest, highest = _BOUNDS.get(name, (0.0, math.inf))
    return max(low, lowest), min(high, highest)
