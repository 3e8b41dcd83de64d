"""The review of a site's drifting statistics: sums that no cohort can have are refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lift.tasks.unconditional.drifting.release import FEWEST_PATIENTS, from_arrays, rejected
from lift.tasks.unconditional.drifting.statistics import LARGEST_COHORT, Sums, parts
from lift.triplanar.projection import Projection


def review(
    arrays: Mapping[str, NDArray[Any]],
    projection: Projection,
    *,
    fewest: int = FEWEST_PATIENTS,
    data_version: int | None = None,
) -> Sums:
    """The sums of one site, fit to be added.

    Args:
        arrays: from :func:`lift.tasks.unconditional.drifting.release.to_arrays`.
        projection: of the run.
        fewest: patients that every cell needs, or it must be empty.
        data_version: the one that the site announced; None accepts any.

    Raises:
        UpdateRejectedError: another form (see `from_arrays`), another data version, too few or
            too many patients, negative counts, counts that are not the patients', a cell of too
            few patients, or sums longer than the patients can make them.
        ConfigError: made with another encoder or projection.
    """
    received = from_arrays(arrays, projection)
    sums = received.sums
    if data_version is not None and received.data_version != data_version:
        raise rejected(
            f"they are of data version {received.data_version}; the site's data has version "
            f"{data_version}"
        )
    if not fewest <= sums.patients <= LARGEST_COHORT:
        raise rejected(
            f"they hold {sums.patients} patients; {fewest} to {LARGEST_COHORT} are accepted"
        )
    if "anchors" in projection.kinds:
        _review_anchors(sums, projection, fewest)
    if "random_features" in projection.kinds:
        _review_random_features(sums, projection)
    if "moments" in projection.kinds:
        _review_moments(sums, projection)
    return sums


def _review_anchors(sums: Sums, projection: Projection, fewest: int) -> None:
    form = parts(projection)
    scale = form["anchor_counts"].scale
    counts, offsets = sums.units["anchor_counts"], sums.units["anchor_sums"]
    if bool((counts < 0).any()):
        raise rejected("a cell's count is negative")
    # one look at the largest first: the sum of hostile numbers could wrap around
    if int(counts.max()) > sums.patients * scale or not bool(
        (counts.sum(1) == sums.patients * scale).all()
    ):
        raise rejected("the counts of a group's cells do not sum to its patients")
    if bool(((counts > 0) & (counts < fewest * scale)).any()):
        raise rejected(f"a cell holds fewer than {fewest} patients")
    unit = 1 / form["anchor_sums"].scale
    rounding = sums.patients * (
        math.sqrt(projection.dimension) * unit
        + projection.n_anchors * projection.cell_radius / scale
    )
    most = projection.cell_radius * counts.double() / scale
    most = torch.where(counts > 0, most + rounding, 0)
    if bool((offsets.double().norm(dim=2) * unit > most).any()):
        raise rejected("a cell's sum is longer than its patients can make it")


def _review_random_features(sums: Sums, projection: Projection) -> None:
    form = parts(projection)["feature_sums"]
    length = sums.units["feature_sums"].double().norm(dim=2) / form.scale
    rounding = sums.patients * math.sqrt(projection.n_features) / form.scale
    if bool((length > sums.patients + rounding).any()):
        raise rejected("a sum of random features is longer than its patients can make it")


def _review_moments(sums: Sums, projection: Projection) -> None:
    form = parts(projection)
    d, most = projection.dimension, projection.radius
    first = sums.units["first_moments"].double() / form["first_moments"].scale
    upper = sums.units["second_moments"].double() / form["second_moments"].scale
    row, column = torch.triu_indices(d, d)
    second = torch.zeros(projection.n_groups, d, d, dtype=torch.float64)
    second[:, row, column] = upper
    second[:, column, row] = upper
    mean, square = first / sums.patients, second / sums.patients
    rounding = d / form["second_moments"].scale
    if bool((mean.norm(dim=1) > most + rounding).any()) or bool(
        (square.diagonal(dim1=1, dim2=2).sum(1) > most**2 + rounding).any()
    ):
        raise rejected("a group's moments are longer than its patients can make them")
    covariance = (square - mean[:, :, None] * mean[:, None, :]).numpy()
    # `mean` is rounded too: an error of half a unit in it moves the product by its length
    if float(np.linalg.eigvalsh(covariance).min()) < -(1 + 2 * most) * rounding:
        raise rejected("a group's second moments are not those of any set of patients")
