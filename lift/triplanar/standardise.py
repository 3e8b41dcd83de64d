"""Public standardisation: from a group's raw features to d coordinates of mean distance 1.

Fitted on public or generated volumes only, and shipped beside the generator: a mean or an axis
fitted on private volumes would leave with it. Every site uses the same one, so that a kernel's
width means the same everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self, cast

import torch
from torch import Tensor

from lift.errors import DataError
from lift.triplanar.groups import GroupLayout
from lift.triplanar.public_files import PublicTensors, damaged, read_public

RADIUS: Final = 2.0
"""Standardised features are clipped to this length before any statistic or kernel sees them."""
_KIND: Final = "standardisation"
_FLAT: Final = 1e-6
_MOST_STEPS: Final = 127


@dataclass(frozen=True)
class Standardisation(PublicTensors):
    """y = (features - mean) @ axes, one mean and one matrix a group.

    Attributes:
        layout: the groups it was fitted for.
        encoder_digest: of the encoder whose features it takes.
        means: (f,) by group, float16; f may differ between groups.
        axes: (f, d) by group, int8: principal axes over the mean pairwise distance, in steps.
        steps: (d,) by group, float32: what one step of each axis is. 8 bits keep the file small;
            the rounded axes are the axes.
    """

    layout: GroupLayout
    encoder_digest: str
    means: tuple[Tensor, ...]
    axes: tuple[Tensor, ...]
    steps: tuple[Tensor, ...]

    @property
    def dimension(self) -> int:
        """d, the same for all groups."""
        return int(self.axes[0].shape[1])

    def transform(self, features: Tensor, group: int) -> Tensor:
        """Standardised features (n, d) of raw ones (n, f); differentiable, not clipped."""
        mean, axes, steps = self.means[group], self.axes[group], self.steps[group]
        return (features - mean.to(features)) @ axes.to(features) * steps.to(features)

    @classmethod
    def load(cls, path: Path, *, expected_digest: str | None) -> Self:
        """The standardisation of a file; None accepts the digest that the file states.

        Raises:
            DataError: missing, damaged, or not a standardisation.
            ConfigError: another digest than the expected one.
        """
        header, tensors = read_public(path, _KIND, expected_digest)
        try:
            layout = GroupLayout(**cast("dict[str, int]", header["layout"]))
            indices = range(len(layout.groups))
            means = tuple(tensors[f"mean{group}"] for group in indices)
            axes = tuple(tensors[f"axes{group}"] for group in indices)
            steps = tuple(tensors[f"steps{group}"] for group in indices)
        except (KeyError, TypeError, ValueError):
            raise damaged(path, _KIND, "its groups are not those of its layout") from None
        fits = all(
            m.dim() == 1
            and a.dim() == 2
            and a.dtype == torch.int8
            and len(m) == len(a)
            and a.shape[1] == axes[0].shape[1]
            and s.shape == a.shape[1:]
            for m, a, s in zip(means, axes, steps, strict=True)
        )
        if not fits or len(tensors) != 3 * len(means):
            raise damaged(path, _KIND, "its tensors do not fit each other")
        return cls(layout, str(header["encoder"]), means, axes, steps)

    def _header(self) -> dict[str, object]:
        return {
            "kind": _KIND,
            "version": 1,
            "encoder": self.encoder_digest,
            "layout": self.layout.description(),
        }

    def _tensors(self) -> dict[str, Tensor]:
        named = {f"mean{group}": mean for group, mean in enumerate(self.means)}
        named |= {f"axes{group}": axes for group, axes in enumerate(self.axes)}
        return named | {f"steps{group}": steps for group, steps in enumerate(self.steps)}


def fit_standardisation(
    features: Sequence[Tensor], layout: GroupLayout, encoder_digest: str, *, dimension: int = 24
) -> Standardisation:
    """Mean, principal axes and mean pairwise distance of each group, float64 inside.

    A group whose vectors hold several encoded images (axial pairs) has its blocks brought to
    one variance first: the small difference between slices would else vanish among the axes.

    Args:
        features: raw features of public or generated volumes, (rows, f) by group.
        layout: the groups.
        encoder_digest: of the encoder that made them.
        dimension: d, 24 to 64.

    Raises:
        DataError: fewer than 2 d rows in a group, values that are not finite, or features that
            do not vary in d directions (copies of few volumes).
    """
    if len(features) != len(layout.groups):
        raise ValueError(f"{len(features)} groups of features; {len(layout.groups)} are needed")
    fitted = [
        _fit_group(rows.detach().cpu().double(), group.blocks, group.name, dimension)
        for rows, group in zip(features, layout.groups, strict=True)
    ]
    means, axes, steps = zip(*fitted, strict=True)
    return Standardisation(layout, encoder_digest, means, axes, steps)


def clip_length(y: Tensor, radius: float) -> Tensor:
    """Vectors along the last axis that are longer than `radius` shortened to it, others as is."""
    # a hair inside: the bound must survive the rounding
    return torch.renorm(y.reshape(-1, y.shape[-1]), 2, 0, radius * (1 - 1e-6)).view(y.shape)


def mean_distance(y: Tensor) -> Tensor:
    """Mean distance between different rows."""
    return torch.nn.functional.pdist(y).mean()


def _fit_group(x: Tensor, blocks: int, name: str, dimension: int) -> tuple[Tensor, Tensor, Tensor]:
    if len(x) < 2 * dimension:
        raise _refused(name, f"{len(x)} feature vectors; at least {2 * dimension} are needed")
    if not bool(torch.isfinite(x).all()):
        raise _refused(name, "features hold NaN or infinity")
    # the rounded mean is the mean, as with the axes
    mean = x.mean(0).half().double()
    parts = (x - mean).reshape(len(x), blocks, -1)
    spread = parts.square().mean((0, 2), keepdim=True).sqrt()
    scale = (1 / spread.clamp_min(_FLAT * float(spread.max().clamp_min(1e-30)))).expand_as(
        parts[:1]
    )
    centred = (parts * scale).flatten(1)
    _, singular, rotation = torch.linalg.svd(centred, full_matrices=False)
    if not float(singular[dimension - 1]) > _FLAT * float(singular[0]):
        raise _refused(name, f"features do not vary in {dimension} directions")
    axes = rotation[:dimension].T
    # one sign for an axis, whatever the library's choice
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    axes = scale.flatten()[:, None] * axes
    steps = axes.abs().amax(0) / _MOST_STEPS
    rounded = (axes / steps).round().to(torch.int8)
    steps = steps / mean_distance((x - mean) @ rounded.double() * steps)
    return mean.half(), rounded, steps.float()


def _refused(name: str, seen: str) -> DataError:
    return DataError(
        "cannot fit the public standardisation",
        where=f"group {name}",
        seen=seen,
        remedy="Give more, and different, public or generated volumes, or fewer dimensions.",
    )
