"""Names of the tensors that travel, are checkpointed, or are kept beside a mixer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeVar

_Tensor = TypeVar("_Tensor")

Z_FILTER_SUMS: Final = ("z_filter_a", "z_filter_b")
"""Of an answer in round 0: the z-filter's normal equations."""
CURVE_SUMS: Final = ("curves_a", "curves_b")
"""Of an answer in round 0: the curves' normal equations."""
TRAJECTORY: Final = "trajectory_"
"""Prefix, in an answer in round 0: moments of latent trajectories."""
DRIFTING: Final = "drifting_"
"""Prefix, in an answer in round 0 and in a request to train: drifting statistics."""
GAIN_SUMS: Final = "gain_sums"
"""Of an answer at the end, under noise: sums of clipped gains and of patients."""

MIXER: Final = "mixer/"
"""Prefix of the mixer's parameters in a request for a verdict, a checkpoint and a mixer file."""
TAPS: Final = "z_filter/taps"
"""The fitted z-filter of all sites, (6,), float64."""
CURVES: Final = "curves/"
"""Prefix of what all sites together know of their curves."""
POOLED_CURVES: Final = ("curves/a", "curves/b", "curves/patients", "curves/parts")
"""The sums of all sites' curves and their patients, float64, and of which answers they are the
sum, int64 (`lift.tasks.paired.contrast.fingerprint`)."""
DRIFTING_TOTAL: Final = "drifting/"
"""Prefix of the drifting statistics of all sites in a checkpoint."""
GAUSSIAN: Final = "gaussian/"
"""Prefix of the Gaussian of trajectories that is fitted to all sites' moments."""
STYLE: Final = "style/"
"""Prefix of the sites' styles, a tensor each, beside the Gaussian's."""
SERVER_STATE: Final = ("mixer", "average", "first_moment", "second_moment")
"""Groups of a checkpoint: what the server carries from round to round."""
SHARED: Final = "shared/"
"""Prefix, in a request to train, of what all sites together know."""


def group(tensors: Mapping[str, _Tensor], prefix: str) -> dict[str, _Tensor]:
    """The tensors of one group, under the rest of their name."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def without(tensors: Mapping[str, _Tensor], prefix: str) -> dict[str, _Tensor]:
    """The tensors of all other groups, under their whole names."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}


def only(tensors: Mapping[str, _Tensor], prefix: str) -> dict[str, _Tensor]:
    """The tensors of one group, under their whole names."""
    return {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def grouped(tensors: Mapping[str, _Tensor], prefix: str) -> dict[str, _Tensor]:
    """The reverse of :func:`group`: every name with the prefix before it."""
    return {prefix + name: tensor for name, tensor in tensors.items()}
