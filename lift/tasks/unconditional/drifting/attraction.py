"""Sources of attraction for generated features.

All sources answer the same two questions: V+ at given points (`field`), and the net force on a
generated batch (`net`), attraction minus repulsion. Sources made of statistics put the
generated batch through the same estimator, to the same integers: where both sets are equal the
net force is exactly 0.

Points are standardised features, clipped to the projection's radius by the caller
(`lift.tasks.unconditional.drifting.loss` does); forces have no gradient.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from torch import Tensor

from lift.errors import ConfigError, DataError
from lift.tasks.unconditional.drifting.field import (
    TEMPERATURES,
    drift_field,
    mean_shift,
    normalised_sum,
)
from lift.tasks.unconditional.drifting.statistics import Sums, check_digests, group_units, parts
from lift.triplanar.projection import Kind, Projection

WIDTHS: Final = (0.35, 0.5, 1.0)
"""Gaussian widths of the drift on anchors and moments, in mean distances."""
_SMALLEST_KERNEL_MEAN: Final = 0.02


@dataclass(frozen=True)
class Net:
    """The net force on a generated batch.

    Attributes:
        force: (g, n, d), the widths' forces, each of RMS length 1 in its group, added.
        rms: RMS length of each width's force before that, (T, g): falls as the sets meet.
    """

    force: Tensor
    rms: Tensor


class Attraction(Protocol):
    """A source of attraction."""

    @property
    def widths(self) -> tuple[float, ...]:
        """What tells the forces of one point apart in logs: widths, or temperatures."""
        ...

    def field(self, x: Tensor, group: int) -> Tensor:
        """V+ at points (n, d) for each Gaussian width, (T, n, d)."""
        ...

    def net(self, x: Tensor, owner: Tensor, groups: tuple[int, ...]) -> Net:
        """Attraction minus repulsion on a generated batch, some groups at once.

        Args:
            x: (g, n, d), all rows of the groups.
            owner: each row's generated volume, the same in all groups, (n,), from 0 and
                without gaps.
            groups: indices of the groups, (g,).
        """
        ...


class SampleQueue:
    """The latest feature vectors of this site's own volumes: never sent, lost at the end.

    The net force is the official rule on all vectors in the queue (method 2.1).

    Args:
        n_groups: number of groups.
        capacity: vectors kept for each group; the oldest go first.
        temperatures: of the official rule.
        mask_self: the official rule's mask. Points that move freely, not through a generator,
            spread to several times the real distances under it; without it they do not, but
            need higher temperatures (0.1, 0.2, 0.5), or they shrink to a point.
        field_widths: Gaussian widths of `field`, which is the exact V+ of the queue's vectors.
    """

    def __init__(
        self,
        n_groups: int,
        *,
        capacity: int = 128,
        temperatures: tuple[float, ...] = TEMPERATURES,
        mask_self: bool = True,
        field_widths: tuple[float, ...] = WIDTHS,
    ) -> None:
        self.widths = temperatures
        self._capacity = capacity
        self._mask_self = mask_self
        self._field_widths = field_widths
        self._vectors: list[Tensor | None] = [None] * n_groups

    def push(self, vectors: Tensor, group: int) -> None:
        """Add standardised, clipped features (n, d) of real volumes.

        Raises:
            DataError: a vector is not finite; the queue stays as it was.
        """
        if not bool(torch.isfinite(vectors).all()):
            raise DataError(
                "cannot use a volume's features",
                seen="they hold NaN or infinity",
                remedy="Check the volume, or leave the patient out.",
            )
        held = self._vectors[group]
        new = vectors.detach()
        together = new if held is None else torch.cat([held, new])
        self._vectors[group] = together[-self._capacity :].clone()

    def stored(self, group: int) -> Tensor:
        """The group's vectors, oldest first, (m, d).

        Raises:
            DataError: the queue of the group is empty.
        """
        held = self._vectors[group]
        if held is None or len(held) == 0:
            raise DataError(
                "cannot compute the drifting loss",
                seen=f"the queue of group {group} holds no real feature vector",
                remedy="Fill the queue with the site's own volumes first.",
            )
        return held

    def field(self, x: Tensor, group: int) -> Tensor:
        """See :class:`Attraction`."""
        points = self.stored(group).to(x)
        weights = points.new_ones(len(points))
        return mean_shift(x, points, weights, self._field_widths)

    def net(self, x: Tensor, owner: Tensor, groups: tuple[int, ...]) -> Net:
        """See :class:`Attraction`. Every row has the same weight."""
        drifts = [
            drift_field(
                rows,
                self.stored(group).to(x),
                temperatures=self.widths,
                mask_self=self._mask_self,
            )
            for rows, group in zip(x, groups, strict=True)
        ]
        return Net(
            torch.stack([drift.force for drift in drifts]),
            torch.stack([drift.rms for drift in drifts], dim=1),
        )


class StatisticsAttraction(ABC):
    """What sources made of statistics share.

    Args:
        projection: public.
        sums: over all sites.
        widths: of the Gaussian kernels.

    Raises:
        ConfigError: the sums were made with another encoder or projection, or lack this kind.
        DataError: the sums hold no patient.
    """

    kind: Kind

    def __init__(
        self, projection: Projection, sums: Sums, *, widths: tuple[float, ...] = WIDTHS
    ) -> None:
        check_digests(sums, projection.encoder_digest, projection.digest)
        if self.kind not in projection.kinds:
            raise ConfigError(
                f"cannot draw generated volumes by '{self.kind}'",
                seen=f"the projection holds {', '.join(projection.kinds)}",
                remedy="Use a projection with this kind of statistics, or another attraction.",
            )
        self.widths = widths
        self.projection = projection
        self._real = {name: sums.mean(projection, name) for name in sums.units}

    def field(self, x: Tensor, group: int) -> Tensor:
        """See :class:`Attraction`."""
        return self._field(x.detach()[None], self._real_of((group,)), (group,))[:, 0]

    def repulsion(self, x: Tensor, owner: Tensor, group: int) -> Tensor:
        """V- at a generated batch's own points, from its own statistics, (T, n, d)."""
        x = x.detach()[None]
        return self._field(x, self._averages(x, owner, (group,)), (group,))[:, 0]

    def net(self, x: Tensor, owner: Tensor, groups: tuple[int, ...]) -> Net:
        """See :class:`Attraction`."""
        x = x.detach()
        attraction = self._field(x, self._real_of(groups), groups)
        repulsion = self._field(x, self._averages(x, owner, groups), groups)
        return Net(*normalised_sum(attraction - repulsion))

    def _real_of(self, groups: tuple[int, ...]) -> dict[str, Tensor]:
        return {name: values[list(groups)] for name, values in self._real.items()}

    def _averages(self, x: Tensor, owner: Tensor, groups: tuple[int, ...]) -> dict[str, Tensor]:
        """The generated batch's statistics, averaged over its volumes, (g, ...), float64."""
        owners = int(owner.max()) + 1
        units = group_units(self.projection, groups, x, owner, owners, (self.kind,))
        form = parts(self.projection)
        return {name: u.double() / (form[name].scale * owners) for name, u in units.items()}

    @abstractmethod
    def _field(self, x: Tensor, averages: Mapping[str, Tensor], groups: tuple[int, ...]) -> Tensor:
        """Mean shift of x (g, n, d) towards the populations behind the averages, (T, g, n, d)."""


class Anchors(StatisticsAttraction):
    """V+(x) = sum_j n_j k(x, m_j) (m_j - x) / sum_j n_j k(x, m_j), m_j the cells' means.

    Source: method 5.4 (anchor cells).
    """

    kind: Kind = "anchors"

    def _field(self, x: Tensor, averages: Mapping[str, Tensor], groups: tuple[int, ...]) -> Tensor:
        weights = averages["anchor_counts"].to(x.device)
        # an empty cell has no mean, and no say: its weight stays 0
        offsets = averages["anchor_sums"].to(x.device) / weights.clamp_min(1e-12)[..., None]
        means = self.projection.anchors[list(groups)].to(x.device) + offsets
        return mean_shift(x, means.to(x), weights.to(x), self.widths)


class RandomFeatures(StatisticsAttraction):
    """V+(x) = s^2 grad log(phi(x) . mu), and the gradient of the MMD; widths are the projection's.

    Source: method 5.4 (random features); Rahimi and Recht 2007.
    """

    kind: Kind = "random_features"

    def __init__(self, projection: Projection, sums: Sums) -> None:
        super().__init__(projection, sums, widths=projection.widths)

    def mmd_force(self, x: Tensor, owner: Tensor, groups: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """The force that descends the squared MMD between generated and real features.

        Returns:
            -d MMD^2 / d x_i over the row's weight in the generated mean, summed over widths,
            (g, n, d); and the MMD^2 of each width, (T, g).
        """
        x = x.detach()
        difference = self._real_of(groups)["feature_sums"].to(x.device)
        difference = difference - self._averages(x, owner, groups)["feature_sums"]
        _, gradient = self._kernel_mean(x, difference.to(x))
        return 2 * gradient.sum(0), difference.square().sum(2).T.float()

    def _field(self, x: Tensor, averages: Mapping[str, Tensor], groups: tuple[int, ...]) -> Tensor:
        kernel_mean, gradient = self._kernel_mean(x, averages["feature_sums"].to(x))
        squares = torch.tensor(self.widths, device=x.device, dtype=x.dtype).square()
        # the kernel mean is only known up to 1 / sqrt(D): a smaller one may even be negative
        floored = kernel_mean.clamp_min(_SMALLEST_KERNEL_MEAN)
        return squares[:, None, None, None] * gradient / floored[..., None]

    def _kernel_mean(self, x: Tensor, mu: Tensor) -> tuple[Tensor, Tensor]:
        """phi(x) . mu, (T, g, n), and its gradient by x, (T, g, n, d); mu is (g, T, D)."""
        phases = self.projection.phases(x.flatten(0, 1)).view(len(mu[0]), *x.shape[:2], -1)
        cosine, sine = phases.cos(), phases.sin()
        size = math.sqrt(2 / self.projection.n_features)
        c, s = (half[:, :, None] for half in mu.transpose(0, 1).chunk(2, dim=2))
        turned = self.projection.frequencies.to(x).transpose(1, 2)[:, None]
        return size * (cosine * c + sine * s).sum(3), size * ((cosine * s - sine * c) @ turned)


class Moments(StatisticsAttraction):
    """V+(x) = -s^2 (covariance + s^2 I)^-1 (x - mean): one Gaussian, smoothed.

    Source: method 5.4 (moments).
    """

    kind: Kind = "moments"

    def _field(self, x: Tensor, averages: Mapping[str, Tensor], groups: tuple[int, ...]) -> Tensor:
        d = self.projection.dimension
        mean = averages["first_moments"].to(x.device)
        row, column = torch.triu_indices(d, d, device=x.device)
        second = mean.new_zeros(len(groups), d, d)
        second[:, row, column] = averages["second_moments"].to(x.device)
        second[:, column, row] = second[:, row, column]
        covariance = second - mean[:, :, None] * mean[:, None]
        eye = torch.eye(d, dtype=mean.dtype, device=x.device)
        centred = (x.double() - mean[:, None]).transpose(1, 2)
        shifts = [
            -(s**2) * torch.linalg.solve(covariance + s**2 * eye, centred) for s in self.widths
        ]
        return torch.stack(shifts).transpose(2, 3).to(x)
