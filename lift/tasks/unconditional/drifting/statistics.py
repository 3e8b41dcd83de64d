"""Additive statistics of a cohort: what a site's volumes look like, as sums over patients.

A patient counts once: the windows of a group are averaged first, so neither the number of
slices nor of volumes weighs. By kind, for a patient's windows y in one group:

- anchors: share of windows in each cell, and the sum of clip(y - anchor) of each cell, over the
  number of windows;
- random features: mean of phi(y), for each width;
- moments: mean of y, and of y y^T (upper triangle).

Sums are exact. Every patient's numbers are rounded to whole units once and are integers from
then on: no order, grouping or splitting of a cohort changes a bit. A unit is the finest power
of two with which the sums of `LARGEST_COHORT` patients fit in int32, which is how they travel
(`lift.tasks.unconditional.drifting.release`); in memory they are int64, and an overflow is refused.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor

from lift.errors import ConfigError, DataError
from lift.triplanar.projection import Kind, Projection
from lift.triplanar.standardise import clip_length

LARGEST_COHORT: Final = 8192
"""Patients whose sums a site may send at once."""
_SUM_BITS: Final = 30


@dataclass(frozen=True)
class Part:
    """One tensor of the sums: shape of a group's part, and units per 1 (a power of two)."""

    shape: tuple[int, ...]
    scale: int


@functools.lru_cache(maxsize=16)
def parts(projection: Projection) -> Mapping[str, Part]:
    """Name -> form of everything that the projection's kinds of statistics hold, in order."""
    d, r = projection.dimension, projection.radius
    found: dict[str, Part] = {}
    if "anchors" in projection.kinds:
        found["anchor_counts"] = Part((projection.n_anchors,), _scale(1.0))
        found["anchor_sums"] = Part((projection.n_anchors, d), _scale(projection.cell_radius))
    if "random_features" in projection.kinds:
        shape = (len(projection.widths), projection.n_features)
        found["feature_sums"] = Part(shape, _scale(math.sqrt(2 / projection.n_features)))
    if "moments" in projection.kinds:
        found["first_moments"] = Part((d,), _scale(r))
        found["second_moments"] = Part((d * (d + 1) // 2,), _scale(r**2))
    return MappingProxyType(found)


@dataclass(frozen=True)
class Sums:
    """Statistics summed over patients.

    Attributes:
        encoder_digest: of the encoder behind the features.
        projection_digest: of the projection; only equal ones are added.
        patients: patients summed; each is in every group.
        units: name -> (groups, ...), int64, in units of `parts(projection)[name].scale`.
    """

    encoder_digest: str
    projection_digest: str
    patients: int
    units: Mapping[str, Tensor]

    @classmethod
    def zero(cls, projection: Projection) -> Sums:
        """The sums of no patient: adding them changes nothing."""
        units = {
            name: torch.zeros((projection.n_groups, *part.shape), dtype=torch.int64)
            for name, part in parts(projection).items()
        }
        return cls(projection.encoder_digest, projection.digest, 0, units)

    def __add__(self, other: Sums) -> Sums:
        """Raises ConfigError for another encoder or projection, DataError on overflow."""
        check_digests(other, self.encoder_digest, self.projection_digest)
        units = {name: _added(units, other.units[name]) for name, units in self.units.items()}
        return Sums(
            self.encoder_digest, self.projection_digest, self.patients + other.patients, units
        )

    def mean(self, projection: Projection, name: str) -> Tensor:
        """Average over the patients of one part, (groups, ...), float64.

        Raises:
            DataError: the sums hold no patient.
        """
        if self.patients < 1:
            raise DataError(
                "cannot use the drifting statistics",
                seen="they hold no patient",
                remedy="Collect statistics from at least one site with enough patients.",
            )
        return self.units[name].double() / (parts(projection)[name].scale * self.patients)


def patient_sums(projection: Projection, features: Sequence[Tensor]) -> Sums:
    """The statistics of one patient, whatever the number of volumes or windows.

    Args:
        projection: public.
        features: standardised features of all the patient's windows, (windows, d) by group.

    Raises:
        DataError: a group without a window, or a feature that is not finite.
    """
    if len(features) != projection.n_groups:
        raise ValueError(f"{len(features)} groups of features; {projection.n_groups} are needed")
    by_group = []
    for group, y in enumerate(features):
        if len(y) == 0 or not bool(torch.isfinite(y).all()):
            raise DataError(
                "cannot compute a patient's drifting statistics",
                where=f"group {projection.layout.groups[group].name}",
                seen="no window, or features that hold NaN or infinity",
                remedy="Nothing was sent. Check the patient's volumes, or leave the patient out.",
            )
        owner = torch.zeros(len(y), dtype=torch.int64, device=y.device)
        by_group.append(group_units(projection, (group,), y[None], owner, 1))
    units = {name: torch.cat([g[name] for g in by_group]).cpu() for name in by_group[0]}
    return Sums(projection.encoder_digest, projection.digest, 1, units)


@torch.no_grad()
def group_units(
    projection: Projection,
    groups: tuple[int, ...],
    y: Tensor,
    owner: Tensor,
    owners: int,
    kinds: tuple[Kind, ...] | None = None,
) -> dict[str, Tensor]:
    """Sums over `owners` patients of some groups' parts, int64: the one definition of them.

    Generated volumes go through it too (each a patient), so that equal sets give equal
    integers, and a field of exactly 0.

    Args:
        projection: public.
        groups: indices of the groups, (g,).
        y: standardised features, (g, n, d); clipped here.
        owner: each row's patient, the same in all groups, (n,), every patient at least once.
        owners: number of patients.
        kinds: statistics to compute; the projection's by default.

    Returns:
        Name -> (g, ...).
    """
    # float64 throughout: what one rounding to units meets must not hang on the batch's size
    y = clip_length(y.double(), projection.radius)
    share = (1 / torch.bincount(owner, minlength=owners).double())[owner]
    found: dict[str, Tensor] = {}
    form = parts(projection)

    def add(name: str, rows: Tensor) -> None:
        """Average each patient's rows (g, n, size), round, sum over patients."""
        averages = rows.new_zeros((len(groups), owners, rows.shape[2]))
        averages.index_add_(1, owner, rows * share[:, None])
        found[name] = _rounded(averages, form[name].scale).sum(1).view(-1, *form[name].shape)

    for kind in projection.kinds if kinds is None else kinds:
        if kind == "anchors":
            found |= _cell_units(projection, groups, y, owner, share, form)
        elif kind == "random_features":
            phi = projection.random_features(y.flatten(0, 1))
            add("feature_sums", phi.transpose(0, 1).reshape(*y.shape[:2], -1))
        else:
            row, column = torch.triu_indices(y.shape[2], y.shape[2], device=y.device)
            add("first_moments", y)
            add("second_moments", y[:, :, row] * y[:, :, column])
    return found


def check_digests(sums: Sums, encoder_digest: str, projection_digest: str) -> None:
    """Refuse statistics that live in another space (ConfigError)."""
    for what, seen, needed in (
        ("feature encoder", sums.encoder_digest, encoder_digest),
        ("projection", sums.projection_digest, projection_digest),
    ):
        if seen != needed:
            raise ConfigError(
                f"cannot combine drifting statistics made with another {what}",
                seen=f"digest {seen[:16]}...; needed {needed[:16]}...",
                remedy="Nothing was added. Compute the statistics again with the files that "
                "the plan names.",
            )


def _cell_units(
    projection: Projection,
    groups: tuple[int, ...],
    y: Tensor,
    owner: Tensor,
    share: Tensor,
    form: Mapping[str, Part],
) -> dict[str, Tensor]:
    """Counts and sums of the cells of the nearest anchors."""
    counts, sums = form["anchor_counts"], form["anchor_sums"]
    g, k, d = len(groups), projection.n_anchors, projection.dimension
    anchors = projection.anchors[list(groups)].to(y)
    distance = torch.cdist(y, anchors, compute_mode="donot_use_mm_for_euclid_dist")
    cell = distance.argmin(2) + k * torch.arange(g, device=y.device)[:, None]
    offset = clip_length(y - anchors.flatten(0, 1)[cell], projection.cell_radius)
    # a patient's windows meet in the same cell before anything is rounded
    pair, where = torch.unique(owner * (g * k) + cell, return_inverse=True)
    place = pair % (g * k)
    weight = share.new_zeros(len(pair)).index_add_(0, where.flatten(), share.repeat(g))
    moved = y.new_zeros(len(pair), d)
    moved.index_add_(0, where.flatten(), (offset * share[:, None]).flatten(0, 1))
    units = _rounded(weight, counts.scale)
    # a patient's shares sum to exactly 1: what rounding left over goes to its first cell
    patient = pair // k
    _, which = torch.unique_consecutive(patient, return_inverse=True)
    begins = torch.ones_like(patient, dtype=torch.bool)
    begins[1:] = patient[1:] != patient[:-1]
    rest = units.new_full((len(pair),), counts.scale).index_add_(0, which, -units)
    units = units + torch.where(begins, rest[which], 0)
    total_counts = units.new_zeros(g * k).index_add_(0, place, units)
    total_sums = units.new_zeros(g * k, d).index_add_(0, place, _rounded(moved, sums.scale))
    return {"anchor_counts": total_counts.view(g, k), "anchor_sums": total_sums.view(g, k, d)}


def _rounded(values: Tensor, scale: int) -> Tensor:
    return (values * scale).round().to(torch.int64)


def _added(a: Tensor, b: Tensor) -> Tensor:
    total = a + b
    # int64 wraps around in silence: then the sum's sign differs from that of both terms
    if bool((((a ^ total) & (b ^ total)) < 0).any()):
        raise DataError(
            "the drifting statistics cannot be added",
            seen="a sum does not fit in 64 bits",
            remedy="Nothing was added. Look for the site whose sums are too large.",
        )
    return total


def _scale(bound: float) -> int:
    """Units per 1 for numbers of at most `bound` a patient."""
    return int(2 ** math.floor(_SUM_BITS - math.log2(LARGEST_COHORT * bound)))
