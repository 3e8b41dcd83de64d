"""Drifting statistics under patient-level privacy: noise once, and post-processing for ever.

A patient's statistics have a known length by construction (averages of clipped features), so
nothing needs to be clipped again: the sum over patients gets Gaussian noise in units of that
length, all groups and kinds together as one vector. The drifting loss itself is not a sum over
patients and cannot be trained on with noisy gradients; against noisy sums it is post-processing.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from lift.config.privacy import StatisticsOnce
from lift.privacy.noise import SecureStream, add_noise
from lift.tasks.unconditional.drifting.statistics import Sums, parts
from lift.triplanar.projection import Projection

_FLOOR: Final = 2.0
"""Cells lighter than so many standard deviations of the noise are taken for empty."""
_LARGEST: Final = 2**31 - 1


def bounds(projection: Projection) -> dict[str, float]:
    """The largest length of one patient's part in one group (and one width), by name.

    Counts of cells: shares that sum to 1. Sums of cells: averages of offsets clipped to the cell's
    radius. Random features: averages of vectors of length 1. Moments: averages of features clipped
    to the radius, and of their products.
    """
    found = {
        "anchor_counts": 1.0,
        "anchor_sums": projection.cell_radius,
        "feature_sums": 1.0,
        "first_moments": projection.radius,
        "second_moments": projection.radius**2,
    }
    return {name: found[name] for name in parts(projection)}


def sensitivity(projection: Projection) -> float:
    """Joint L2 length of one patient's statistics, each part in units of its bound.

    Over all groups, kinds and widths, with what rounding to whole units can add.

    Source: privacy section 4.
    """
    total = 0.0
    for name, part in parts(projection).items():
        # random features have a vector of length 1 for each width
        vectors = part.shape[0] if name == "feature_sums" else 1
        rounding = 0.5 * math.sqrt(math.prod(part.shape)) / part.scale / bounds(projection)[name]
        total += (math.sqrt(vectors) + rounding) ** 2
    return math.sqrt(projection.n_groups * total)


def release_sums(
    sums: Sums,
    projection: Projection,
    privacy: StatisticsOnce,
    public_patients: int,
    stream: SecureStream,
) -> Sums:
    """The sums with noise on every number, and the public number of patients in place of the true.

    One Gaussian mechanism with `privacy.noise_multiplier`, add or remove one patient.

    Args:
        sums: of the site's patients, cells not merged: merging small ones would be a release.
        projection: public.
        privacy: the plan's section.
        public_patients: of the site.
        stream: source of the noise.
    """
    form, length = parts(projection), bounds(projection)
    exact = {name: sums.units[name].double() / form[name].scale / length[name] for name in form}
    noisy = add_noise(exact, privacy.noise_multiplier * sensitivity(projection), stream)
    units = {
        name: (noisy[name].double() * length[name] * form[name].scale)
        .round()
        .clamp(-_LARGEST, _LARGEST)
        .to(torch.int64)
        for name in form
    }
    return Sums(sums.encoder_digest, sums.projection_digest, public_patients, units)


def denoised(total: Sums, projection: Projection, privacy: StatisticsOnce, sites: int) -> Sums:
    """The total over sites, fit to draw to: post-processing.

    Cells whose weight does not stand out from the noise are emptied, the others share the weight
    of all patients, and a cell's mean stays inside its radius. Random features and moments are
    linear in the force and stay as they are.

    Args:
        total: of `sites` releases.
        projection: public.
        privacy: the plan's section.
        sites: number of releases in the total.
    """
    if "anchor_counts" not in total.units:
        return total
    form = parts(projection)
    noise_std = privacy.noise_multiplier * sensitivity(projection) * math.sqrt(max(sites, 1))
    counts = total.units["anchor_counts"].double() / form["anchor_counts"].scale
    offsets = total.units["anchor_sums"].double() / form["anchor_sums"].scale
    kept = counts >= _FLOOR * noise_std
    # the heaviest cell stays, however light: a group without any would be drawn nowhere
    kept.scatter_(1, counts.argmax(1, keepdim=True), value=True)
    counts = torch.where(kept, counts.clamp_min(1e-9), 0)
    means = offsets / counts.clamp_min(1e-9)[..., None]
    too_long = means.norm(dim=2, keepdim=True).clamp_min(projection.cell_radius)
    means = means * (projection.cell_radius / too_long)
    counts = counts * (total.patients / counts.sum(1, keepdim=True))
    units = dict(total.units)
    units["anchor_counts"] = _whole(counts * form["anchor_counts"].scale)
    units["anchor_sums"] = _whole(means * counts[..., None] * form["anchor_sums"].scale)
    return Sums(total.encoder_digest, total.projection_digest, total.patients, units)


def _whole(values: Tensor) -> Tensor:
    return values.round().to(torch.int64)
