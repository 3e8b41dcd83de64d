"""How near a set of generated volumes is to a set of real ones: distances between distributions.

Volumes are compared by the tri-planar features of an encoder that training never saw. Frechet
distances and MMD in this space are comparable with each other, for sets of about one size, never
with published ones: both are biased upwards by few volumes, so that real volumes against real
ones belong beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lift.drifting.encoder import RandomPyramid
from lift.drifting.features import raw_features
from lift.drifting.groups import GroupLayout
from lift.drifting.standardise import Standardisation, fit_standardisation
from lift.unconditional.grid import BodyVolume

EVALUATION_SEED: Final = 9001
"""Of the evaluation's encoder; a decoder bundle with this seed is refused."""
PLANES: Final = ("axial", "coronal", "sagittal")
MMD_WIDTHS: Final = (0.25, 0.5, 1.0)
"""Gaussian widths of the MMD, in mean distances of real features."""
_SMALL: Final = 16
_RESAMPLES: Final = 200


@dataclass(frozen=True)
class SetFeatures:
    """One set of volumes, as it is compared.

    Attributes:
        groups: standardised features by group, (volumes * windows, d).
        windows: rows of one volume in each group.
        small: volumes on one small grid, (volumes, 4096): for distances between them.
        steps: mean absolute difference along depth and along height, a mm, (volumes, 2).
        flat: volumes that are empty or constant.
    """

    groups: tuple[Tensor, ...]
    windows: int
    small: Tensor
    steps: Tensor
    flat: int

    def __len__(self) -> int:
        return len(self.small)

    def take(self, index: Tensor) -> SetFeatures:
        """Some of the volumes, in this order."""
        rows = (index[:, None] * self.windows + torch.arange(self.windows)).flatten()
        groups = tuple(group[rows] for group in self.groups)
        return SetFeatures(groups, self.windows, self.small[index], self.steps[index], 0)


class Comparison:
    """The space in which sets are compared, fitted on real volumes.

    Args:
        real: volumes that are not the reference: the training volumes of all sites.
        layout: groups and windows.
        dimension: principal axes of a group.

    Raises:
        DataError: too few volumes for the dimension.
    """

    def __init__(
        self, real: Sequence[BodyVolume], layout: GroupLayout, *, dimension: int = 24
    ) -> None:
        self.layout = layout
        self._encoder = RandomPyramid(EVALUATION_SEED)
        self._standardisation: Standardisation | None = None
        by_volume = [self._raw(volume) for volume in real]
        raw = [torch.cat(rows) for rows in zip(*by_volume, strict=True)]
        fitted = fit_standardisation(raw, layout, self._encoder.digest, dimension=dimension)
        self._standardisation = fitted

    def features(self, volumes: Sequence[BodyVolume]) -> SetFeatures:
        """One set of volumes in this space."""
        assert self._standardisation is not None  # noqa: S101  # fitted above
        rows: list[list[Tensor]] = [[] for _ in self.layout.groups]
        small, steps, flat = [], [], 0
        for volume in volumes:
            for group, raw in enumerate(self._raw(volume)):
                rows[group].append(self._standardisation.transform(raw, group))
            v = volume.voxels
            small.append(F.adaptive_avg_pool3d(v, _SMALL).flatten())
            dz, dy, _ = volume.spacing_mm
            steps.append(
                torch.stack([v.diff(dim=2).abs().mean() / dz, v.diff(dim=3).abs().mean() / dy])
            )
            flat += float(v.std()) < _FLAT
        return SetFeatures(
            tuple(torch.cat(group).double() for group in rows),
            self.layout.windows,
            torch.stack(small).double(),
            torch.stack(steps).double(),
            flat,
        )

    def figures(
        self,
        generated: SetFeatures,
        real: SetFeatures,
        training: SetFeatures | None = None,
        *,
        seed: int,
    ) -> dict[str, dict[str, float | int | str | None]]:
        """METRIC -> value, n and 95% interval over the generated volumes.

        The interval resamples generated volumes with replacement; copies of a volume add to a
        Frechet distance, so the interval is moved to lie around the value itself (the basic
        bootstrap's spread, not its place).

        Args:
            generated: the set in question.
            real: held-out volumes.
            training: real volumes that training saw, for `nearest_ratio`.
            seed: of resampling.
        """
        values = self._values(generated, real, training)
        rng = np.random.default_rng(seed)
        draws = []
        for _ in range(_RESAMPLES if len(generated) > 1 else 0):
            index = torch.from_numpy(rng.integers(len(generated), size=len(generated)))
            draws.append(self._values(generated.take(index), real, training))
        found: dict[str, dict[str, float | int | str | None]] = {}
        for name, value in values.items():
            low = high = None
            if draws:
                spread = np.array([draw[name] for draw in draws])
                spread = spread - spread.mean() + value
                low, high = (float(q) for q in np.quantile(spread, (0.025, 0.975)))
            found[name] = {
                "value": value,
                "n": len(generated),
                "low": low,
                "high": high,
                "unit": "",
            }
        return found

    def _values(
        self, generated: SetFeatures, real: SetFeatures, training: SetFeatures | None
    ) -> dict[str, float]:
        found: dict[str, float] = {}
        for plane in PLANES:
            indices = [i for i, g in enumerate(self.layout.groups) if g.plane == plane]
            pairs = [(generated.groups[i], real.groups[i]) for i in indices]
            if pairs:
                found[f"frechet_{plane}"] = float(np.mean([frechet(a, b) for a, b in pairs]))
                found[f"mmd_{plane}"] = float(np.mean([mmd(a, b) for a, b in pairs]))
        found["tpr"] = through_plane_ratio(generated) / through_plane_ratio(real)
        found["diversity"] = _mean_distance(generated.small) / _mean_distance(real.small)
        if training is not None:
            found["nearest_ratio"] = nearest_ratio(generated, training, real)
        return found

    def _raw(self, volume: BodyVolume) -> list[Tensor]:
        return raw_features(
            volume.voxels, volume.spacing_mm, volume.extent, self.layout, self._encoder
        )


_FLAT: Final = 1e-3


def frechet(a: Tensor, b: Tensor) -> float:
    """Squared Frechet distance of two Gaussians fitted to the rows of a and b, float64.

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2) (Heusel et al. 2017,
    arXiv:1706.08500).
    """
    mean = (a.mean(0) - b.mean(0)).square().sum()
    first, second = torch.cov(a.T), torch.cov(b.T)
    values, axes = torch.linalg.eigh(first)
    root = (axes * values.clamp_min(0).sqrt()) @ axes.T
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp_min(0).sqrt().sum()
    return float(mean + first.trace() + second.trace() - 2 * cross)


def mmd(a: Tensor, b: Tensor) -> float:
    """Maximum mean discrepancy, unbiased in its square, whose sign it keeps (Gretton 2012).

    The kernel is the mean of Gaussians of `MMD_WIDTHS`. Rows of one volume count as different.
    """
    n, m = len(a), len(b)
    within_a = (_kernel(a, a).sum() - n) / (n * (n - 1))
    within_b = (_kernel(b, b).sum() - m) / (m * (m - 1))
    square = float(within_a + within_b - 2 * _kernel(a, b).mean())
    return float(np.sign(square) * np.sqrt(abs(square)))


def through_plane_ratio(volumes: SetFeatures) -> float:
    """Mean absolute difference along depth over that along height, each a mm (method 4.3)."""
    depth, height = volumes.steps.mean(0)
    return float(depth / height.clamp_min(1e-9))


def nearest_ratio(generated: SetFeatures, training: SetFeatures, held_out: SetFeatures) -> float:
    """Median of: distance to the nearest training volume over that to the nearest held-out one.

    As many candidates of either kind, the first ones, since one of more is nearer by chance.
    Well below 1, volumes are copies of training volumes.
    """
    count = min(len(training), len(held_out))
    near, far = (
        torch.cdist(generated.small, other.small[:count]).min(1).values
        for other in (training, held_out)
    )
    return float((near / far.clamp_min(1e-12)).median())


def order_correlation(volume: Tensor, mean_slices: Tensor) -> float:
    """Correlation of slices' order with the order of the real mean slices they resemble most.

    Near 1 when slices go from the body's first to its last, negative when they are reversed.

    Args:
        volume: (d, h, w).
        mean_slices: real mean slices at k equal places along the body, (k, h, w).
    """
    slices = volume.flatten(1) - volume.flatten(1).mean(1, keepdim=True)
    means = mean_slices.flatten(1) - mean_slices.flatten(1).mean(1, keepdim=True)
    alike = F.normalize(slices, dim=1) @ F.normalize(means, dim=1).T
    best = alike.argmax(1).double()
    order = torch.arange(len(best), dtype=torch.float64)
    if float(best.std()) == 0:
        return 0.0
    return float(torch.corrcoef(torch.stack([order, best]))[0, 1])


def methods_table(
    comparison: Comparison,
    methods: Mapping[str, SetFeatures],
    real: SetFeatures,
    training: SetFeatures | None,
    *,
    seed: int,
) -> dict[str, dict[str, dict[str, float | int | str | None]]]:
    """METHOD -> figures of each set against one set of real volumes."""
    return {
        name: comparison.figures(found, real, training, seed=seed)
        for name, found in methods.items()
    }


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    square = torch.cdist(a, b).square()
    return torch.stack([torch.exp(-square / (2 * s * s)) for s in MMD_WIDTHS]).mean(0)


def _mean_distance(points: Tensor) -> float:
    return float(F.pdist(points).mean()) if len(points) > 1 else float("nan")
