"""Two sets side by side: the figures of any of their subsets from matrices computed once."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from scipy.spatial.distance import cdist

from lift.metrics.judge import same_spacing
from lift.metrics.ms_ssim import ms_ssim
from lift.metrics.neighbours import precision_recall
from lift.metrics.point_sets import (
    descriptors,
    frechet_distance,
    kernel_matrix,
    mean_off_diagonal,
    mmd_squared,
    nearest_ratios,
    order_correlations,
)
from lift.metrics.reference import Reference, fitted_on, standardised_in
from lift.metrics.synthrad import Floats
from lift.metrics.volume_sets import GRID, Index, MeasuredSet
from lift.randomness import derive_seed
from lift.triplanar.groups import Plane

_PLANES: Final[tuple[Plane, ...]] = ("axial", "coronal", "sagittal")
FEWEST_GENERATED: Final = 2
"""Volumes that a set needs to have a spread."""

_DRAWS: Final = 20
_PAIRS: Final = 300


class Pairing:
    """Two sets, and all that the figures of any of their subsets need, computed once."""

    def __init__(
        self,
        generated: MeasuredSet,
        reference: Reference,
        training: MeasuredSet | None,
        seed: int,
    ) -> None:
        self.generated, self._real = generated, reference.real
        self.size = len(generated)
        self._same = generated is reference.real
        self._points, self._real_points = reference.points_of(generated), reference.points
        planes = [group.plane for group in generated.layout.groups]
        self._groups = {
            plane: [i for i, own in enumerate(planes) if own == plane]
            for plane in _PLANES
            if plane in planes
        }
        self._kernels = {plane: self._kernels_of(groups) for plane, groups in self._groups.items()}
        self._distances = _grid_distances(generated)
        self._real_distances = self._distances if self._same else _grid_distances(self._real)
        self._alike = _similarities(generated, derive_seed(seed, "pairs"))
        self._stacks, self._real_stacks = stacks(generated), stacks(self._real)
        self._orders = order_correlations(self._stacks, self._real_stacks.mean(axis=0))
        self._between = self._descriptor_distances()
        self._spectra = (generated.spectra_db, self._real.spectra_db)
        self._one_spacing = same_spacing(generated, self._real)
        self._nearest = None if training is None else self._nearest_of(training)

    def figures(self, some: Index, others: Index) -> dict[str, float]:
        """All figures of some generated volumes against some real ones; NaN: there is none."""
        found = self.sized(some, others)
        within, between = np.ix_(some, some), np.ix_(some, others)
        beyond = np.ix_(others, others)
        for plane, (own, real, both) in self._kernels.items():
            found[f"mmd_{plane}"] = mmd_squared(own[within], real[beyond], both[between])
        found["tpr"] = _quotient(
            _mean(self.generated.anisotropy[some]), _mean(self._real.anisotropy[others])
        )
        found["diversity"] = _quotient(
            mean_off_diagonal(self._distances[within]),
            mean_off_diagonal(self._real_distances[beyond]),
        )
        if self._one_spacing:
            found["spectrum_z"] = _spectral_distance(
                self._spectra[0][some], self._spectra[1][others]
            )
        found["ms_ssim"] = mean_off_diagonal(self._alike[within])
        if self._nearest is not None:
            to_training, to_held_out, held_out = self._nearest
            ratios = nearest_ratios(to_training[some], to_held_out[between], held_out[others])
            found["nearest_ratio"] = float(np.median(ratios))
        if len(others) == len(self._real):
            orders = self._orders[some]
        else:
            orders = order_correlations(self._stacks[some], self._real_stacks[others].mean(axis=0))
        found["order_correlation"] = float(orders.mean())
        return found

    def sized(self, some: Index, others: Index) -> dict[str, float]:
        """Frechet distances, precision and recall alone: those that depend on the sets' sizes."""
        distances = frechet_distance(
            _rows(self._points[:, some]), _rows(self._real_points[:, others])
        )
        found = {
            f"frechet_{plane}": float(distances[groups].mean())
            for plane, groups in self._groups.items()
        }
        between, own, real = self._between
        found["precision"], found["recall"] = precision_recall(
            between[np.ix_(some, others)], own[np.ix_(some, some)], real[np.ix_(others, others)]
        )
        return found

    def of_size(self, some: Index, others: Index, size: int, seed: int) -> dict[str, float]:
        """Means of the same over random subsets of one size on either side."""
        if not FEWEST_GENERATED <= size <= min(len(some), len(others)):
            raise ValueError(f"{size} volumes of {len(some)} and of {len(others)}")
        rng = np.random.default_rng(seed)
        draws = [
            self.sized(
                rng.choice(some, size, replace=False), rng.choice(others, size, replace=False)
            )
            for _ in range(_DRAWS)
        ]
        return {name: float(np.mean([draw[name] for draw in draws])) for name in draws[0]}

    def _kernels_of(self, groups: list[int]) -> tuple[Floats, Floats, Floats]:
        points, real = self._points[groups], self._real_points[groups]
        own = kernel_matrix(points, points)
        if self._same:
            return own, own, own
        return own, kernel_matrix(real, real), kernel_matrix(points, real)

    def _descriptor_distances(self) -> tuple[Floats, Floats, Floats]:
        """Distances of all features, as in `precision_recall`."""
        own, real = descriptors(self._points), descriptors(self._real_points)
        return cdist(own, real), cdist(own, own), cdist(real, real)

    def _nearest_of(self, training: MeasuredSet) -> tuple[Floats, Floats, Floats]:
        """Distances generated-training, generated-real and real-training.

        In a space fitted on both, whatever the reference's is: one fitted on either alone would
        spread its volumes more than the other's, and the nearest would be the other's.
        """
        space = fitted_on(self._real, training.sorted())
        sets = (self.generated, self._real, training)
        own, real, seen = (descriptors(standardised_in(one, space)) for one in sets)
        return cdist(own, seen), cdist(own, real), cdist(real, seen)


def stacks(measured: MeasuredSet) -> Floats:
    """Slices at 16 equal steps along each body, (volumes, 16, pixels)."""
    return np.asarray(measured.grid.reshape(len(measured), GRID, -1).double().numpy())


def _similarities(measured: MeasuredSet, seed: int) -> Floats:
    """MS-SSIM of all pairs, or of 300 random ones; NaN elsewhere."""
    count = len(measured)
    first, second = np.triu_indices(count, 1)
    if len(first) > _PAIRS:
        chosen = np.random.default_rng(seed).choice(len(first), _PAIRS, replace=False)
        first, second = first[chosen], second[chosen]
    found = np.full((count, count), np.nan)
    planes = measured.planes
    found[first, second] = ms_ssim(planes[first], planes[second]).numpy()
    return found


def _grid_distances(measured: MeasuredSet) -> Floats:
    flat = measured.grid.flatten(1).double().numpy()
    distances: Floats = cdist(flat, flat)
    return distances


def _spectral_distance(one: Floats, other: Floats) -> float:
    """Root mean squared difference, over bands, of two sets' mean spectra in dB."""
    return float(np.sqrt(np.square(one.mean(axis=0) - other.mean(axis=0)).mean()))


def _rows(points: Floats) -> Floats:
    return points.reshape(len(points), -1, points.shape[-1])


def _mean(values: Floats) -> float:
    held = values[np.isfinite(values)]
    return float(held.mean()) if len(held) else math.nan


def _quotient(value: float, reference: float) -> float:
    return value / reference if reference else math.nan
