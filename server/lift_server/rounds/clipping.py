"""Updates are clipped to a multiple of the round's median norm: one site moves the mixer little.

The median is the lower one, over updates that are not zero. So with two sites the smaller norm is
the reference, and one site alone is never clipped. An update within the bound keeps its bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median_low

import torch

from lift.mixer.update import Values, norm


@dataclass(frozen=True)
class Clipped:
    """The updates of one round after the clip.

    Attributes:
        updates: by site; float64 where the clip bit, else as they came.
        norm_ratios: site -> norm before the clip, as a multiple of its reference; empty where no
            update had a norm.
        factors: site -> factor below 1, of those that were clipped.
        distances: site -> distance of its clipped update to the mean of the others', as a multiple
            of the median norm; empty below three sites, where nobody can be told apart.
    """

    updates: Mapping[str, Values]
    norm_ratios: dict[str, float] = field(default_factory=dict)
    factors: dict[str, float] = field(default_factory=dict)
    distances: dict[str, float] = field(default_factory=dict)


def clip_to_median(
    updates: Mapping[str, Values],
    largest_ratio: float | None,
    patients: Mapping[str, int] | None = None,
) -> Clipped:
    """Scale down each update whose norm is above `largest_ratio` times its reference.

    Args:
        updates: by site, of one form, finite.
        largest_ratio: at least 1; None: nothing is clipped, and the ratios are told all the same.
        patients: public numbers, of updates that hold the sites' own noise. The norm of noise falls
            as the number rises, so a site with few may have as much more than the median.

    Guarantee: a clipped update has `largest_ratio` times its reference as its norm (within 1e-12),
    whatever a site sends. The result does not depend on the order of sites.
    """
    norms = {site: norm(updates[site]) for site in sorted(updates)}
    if not any(norms.values()):
        return Clipped(updates)
    median = median_low([n for n in norms.values() if n > 0])
    references = dict.fromkeys(norms, median)
    if patients is not None:
        noise = median_low([n * patients[site] for site, n in norms.items() if n > 0])
        references = {site: max(median, noise / patients[site]) for site in norms}
    ratios = {site: norms[site] / references[site] for site in norms}
    factors = {
        site: largest_ratio / ratio
        for site, ratio in ratios.items()
        if largest_ratio is not None and ratio > largest_ratio
    }
    clipped = {
        site: {name: tensor.double() * factors[site] for name, tensor in update.items()}
        if site in factors
        else update
        for site, update in updates.items()
    }
    return Clipped(clipped, ratios, factors, _distances(clipped, median))


def _distances(updates: Mapping[str, Values], unit: float) -> dict[str, float]:
    if len(updates) < 3:
        return {}
    sites = sorted(updates)
    total = {
        name: torch.stack([updates[site][name].double() for site in sites]).sum(0)
        for name in sorted(updates[sites[0]])
    }
    others = len(sites) - 1
    return {
        site: norm(
            {
                name: tensor.double() - (total[name] - tensor.double()) / others
                for name, tensor in updates[site].items()
            }
        )
        / unit
        for site in sites
    }
