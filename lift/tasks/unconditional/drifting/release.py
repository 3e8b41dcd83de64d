"""The drifting statistics that a site sends, once per data version, and their format.

Before anything leaves, small cells are merged: without noise, a cell's mean over fewer than
five patients would come close to showing one of them. A cell's weight is the number of its
patients, each counted with the share of their windows that lie in it; a weight of five
therefore means at least five patients, and the receiver can check it.

On the wire a site's numbers are pairs of int32 in one int64, little-endian: 4 bytes each. Totals
over sites travel as plain int64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lift.errors import DataError, UpdateRejectedError
from lift.tasks.unconditional.drifting.statistics import (
    LARGEST_COHORT,
    Part,
    Sums,
    check_digests,
    parts,
)
from lift.triplanar.projection import Projection
from lift.wire.names import DRIFTING, group, grouped

FEWEST_PATIENTS: Final = 5
"""Patients behind every number that a site sends without noise."""
_HEAD: Final = {"encoder": 4, "projection": 4, "patients": 1, "data_version": 1}
_INT32: Final = 2**31


@dataclass(frozen=True)
class Received:
    """Sums as they came: their form and digests checked, nothing else."""

    sums: Sums
    data_version: int


def merge_small_cells(sums: Sums, projection: Projection, *, fewest: int = FEWEST_PATIENTS) -> Sums:
    """The sums that may leave: every cell empty or of weight `fewest` at least.

    The lightest cell goes to the neighbour whose mean is nearest, again and again. Its features
    keep their place, up to the clip of their mean offset from the new anchor. Counts
    are kept exactly; merging is a function of the integers alone.

    Raises:
        DataError: fewer than `fewest` patients in all.
    """
    if sums.patients < fewest:
        raise DataError(
            "cannot send drifting statistics",
            seen=f"{sums.patients} patients; at least {fewest} are needed, so that no number "
            "shows a single patient",
            remedy="Nothing was sent. The site can still train against the other sites' sums.",
        )
    if "anchor_counts" not in sums.units:
        return sums
    form = parts(projection)
    units = dict(sums.units)
    counts, offsets = units["anchor_counts"].clone(), units["anchor_sums"].clone()
    anchors = projection.anchors.double()
    for row in range(projection.n_groups):
        _merge(counts[row], offsets[row], anchors[row], form, fewest, projection.cell_radius)
    units["anchor_counts"], units["anchor_sums"] = counts, offsets
    return Sums(sums.encoder_digest, sums.projection_digest, sums.patients, units)


def to_arrays(sums: Sums, *, data_version: int, compact: bool = True) -> dict[str, NDArray[Any]]:
    """The sums as named int64 arrays, digests included.

    Args:
        sums: a site's, after :func:`merge_small_cells`; or a total over sites.
        data_version: counts the changes of the site's data, from 0.
        compact: two numbers in an int64, for a site's own sums; totals need False.

    Raises:
        DataError: compact sums of more than `LARGEST_COHORT` patients, or that do not fit.
    """
    arrays: dict[str, NDArray[Any]] = {
        "encoder": _from_hex(sums.encoder_digest),
        "projection": _from_hex(sums.projection_digest),
        "patients": np.array([sums.patients], dtype=np.int64),
        "data_version": np.array([data_version], dtype=np.int64),
    }
    for name, units in sums.units.items():
        flat = units.flatten().numpy()
        arrays[name] = _packed(flat, sums.patients) if compact else flat.copy()
    return grouped(arrays, DRIFTING)


def compact_shapes(projection: Projection) -> dict[str, tuple[int, ...]]:
    """Name -> shape of what :func:`to_arrays` makes of one site's sums, all int64."""
    shapes = {name: (length,) for name, length in _HEAD.items()}
    for name, part in parts(projection).items():
        shapes[name] = (math.ceil(projection.n_groups * math.prod(part.shape) / 2),)
    return grouped(shapes, DRIFTING)


def from_arrays(arrays: Mapping[str, NDArray[Any]], projection: Projection) -> Received:
    """The sums behind :func:`to_arrays`, compact or not; other names are left alone.

    Raises:
        UpdateRejectedError: a name is missing or extra, an array is not int64 (NaN can only come
            so) or of another size (another number of groups).
        ConfigError: made with another encoder or projection.
    """
    form = parts(projection)
    given = group(arrays, DRIFTING)
    if set(given) != {*_HEAD, *form}:
        missing, extra = {*_HEAD, *form} - set(given), set(given) - {*_HEAD, *form}
        raise rejected(
            f"the arrays are not exactly those of {', '.join(projection.kinds)}: "
            f"{len(missing)} missing, {len(extra)} extra"
        )
    for name, array in given.items():
        if array.dtype != np.int64 or array.ndim != 1:
            finite = array.dtype.kind != "f" or bool(np.isfinite(array).all())
            detail = "" if finite else ", with NaN or infinity"
            raise rejected(f"'{name}' is {array.dtype.name}{detail}; a row of int64 is needed")
    for name, length in _HEAD.items():
        if len(given[name]) != length:
            raise rejected(f"'{name}' has {len(given[name])} numbers; {length} are needed")
    patients, version = int(given["patients"][0]), int(given["data_version"][0])
    if patients < 0 or version < 0:
        raise rejected("a negative number of patients, or a negative data version")
    head = Sums(_to_hex(given["encoder"]), _to_hex(given["projection"]), patients, {})
    check_digests(head, projection.encoder_digest, projection.digest)
    units = {name: _unpacked(name, given[name], part, projection) for name, part in form.items()}
    return Received(Sums(head.encoder_digest, head.projection_digest, patients, units), version)


def rejected(reason: str) -> UpdateRejectedError:
    """The refusal of a site's statistics."""
    return UpdateRejectedError(
        "drifting statistics were refused",
        seen=reason,
        remedy="The round goes on without them; the site's log tells more.",
    )


def _merge(
    counts: Tensor,
    offsets: Tensor,
    anchors: Tensor,
    form: Mapping[str, Part],
    fewest: int,
    radius: float,
) -> None:
    """Merge one group's cells in place: counts (K,), offsets (K, d)."""
    count_scale, scale = form["anchor_counts"].scale, form["anchor_sums"].scale
    while True:
        small = (counts > 0) & (counts < fewest * count_scale)
        if not bool(small.any()):
            return
        cell = int(torch.where(small, counts, torch.iinfo(torch.int64).max).argmin())
        weights = counts.double() / count_scale
        # where the features are, not the anchors: on real features that keeps the field better
        means = anchors + offsets.double() / scale / weights.clamp_min(1e-12)[:, None]
        distance = (means - means[cell]).square().sum(1)
        distance[counts <= 0] = torch.inf
        distance[cell] = torch.inf
        other = int(distance.argmin())
        weight = float(weights[cell])
        moved = offsets[cell].double() / scale + weight * (anchors[cell] - anchors[other])
        moved *= min(1.0, radius * weight / max(float(moved.norm()), 1e-30))
        offsets[other] += (moved * scale).round().to(torch.int64)
        counts[other] += counts[cell].clone()
        counts[cell] = 0
        offsets[cell] = 0


def _packed(flat: NDArray[Any], patients: int) -> NDArray[Any]:
    if patients > LARGEST_COHORT or flat.min() < -_INT32 or flat.max() >= _INT32:
        raise DataError(
            "cannot send drifting statistics",
            seen=f"{patients} patients in one sum; at most {LARGEST_COHORT} fit exactly",
            remedy="Nothing was sent. Let the site take part with fewer patients.",
        )
    padded = np.zeros(len(flat) + len(flat) % 2, dtype="<i4")
    padded[: len(flat)] = flat
    return padded.view("<i8").astype(np.int64)


def _unpacked(name: str, array: NDArray[Any], part: Part, projection: Projection) -> Tensor:
    one = math.prod(part.shape)
    size = projection.n_groups * one
    if len(array) == math.ceil(size / 2) and size > 1:
        flat = array.astype("<i8").view("<i4")[:size].astype(np.int64)
    elif len(array) == size:
        flat = array.copy()
    else:
        groups = 2 * len(array) / one
        raise rejected(
            f"'{name}' has {len(array)} numbers, those of {groups:.4g} groups; the projection has "
            f"{projection.n_groups} groups"
        )
    return torch.from_numpy(flat).reshape(projection.n_groups, *part.shape)


def _from_hex(digest: str) -> NDArray[Any]:
    return np.frombuffer(bytes.fromhex(digest), dtype="<i8").astype(np.int64)


def _to_hex(words: NDArray[Any]) -> str:
    return words.astype("<i8").tobytes().hex()
