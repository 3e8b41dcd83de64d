"""The server's checks of a site's moments of trajectories."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from lift.tasks.unconditional.drifting.release import rejected
from lift.tasks.unconditional.drifting.statistics import LARGEST_COHORT
from lift.tasks.unconditional.moments import (
    LARGEST,
    LARGEST_UNITS,
    PATIENTS,
    SCALE,
    TrajectoryForm,
    TrajectorySums,
    covariances,
    sent_shapes,
)
from lift.tasks.unconditional.sketch import core
from lift.wire.names import TRAJECTORY, group

_TOLERANCE: Final = 1e-6


def moments_from_arrays(
    arrays: Mapping[str, NDArray[Any]], form: TrajectoryForm, *, noisy: bool = False
) -> TrajectorySums:
    """The sums behind :func:`moments_to_arrays`, fit to be added; other names are left alone.

    Noise makes sums that no cohort can have: of noisy ones only the form is looked at.

    Raises:
        UpdateRejectedError: a name is missing or extra, an array has another type or shape, there
            are too few or too many patients, or no cohort can have these moments.
    """
    given, shapes = group(arrays, TRAJECTORY), group(sent_shapes(form), TRAJECTORY)
    if set(given) != set(shapes):
        raise rejected("its arrays are not exactly the moments of trajectories")
    for name, shape in shapes.items():
        if given[name].dtype != np.int64 or given[name].shape != shape:
            raise rejected(
                f"'{name}' is {given[name].dtype.name} of shape {given[name].shape}; int64 of "
                f"shape {shape} is needed"
            )
    patients = int(given.pop(PATIENTS)[0])
    fewest = 1 if noisy else form.fewest
    if not fewest <= patients <= LARGEST_COHORT:
        raise rejected(f"they hold {patients} patients; {fewest} to {LARGEST_COHORT} are accepted")
    sums = TrajectorySums(form, patients, {n: torch.from_numpy(a) for n, a in given.items()})
    if noisy:
        for name, units in sums.units.items():
            if bool(((units > LARGEST_UNITS) | (units < -LARGEST_UNITS)).any()):
                raise rejected(f"'{name}' is larger than any site sends")
    else:
        _check_possible(sums)
    return sums


def _check_possible(sums: TrajectorySums) -> None:
    """Refuse moments that no patients within `LARGEST` have (UpdateRejectedError)."""
    most = sums.patients * SCALE
    for name, units in sums.units.items():
        bound = int(most * (LARGEST if name == "mean" else LARGEST**2)) + sums.patients
        # an empty tail has no extremes
        if units.numel() and (int(units.max()) > bound or int(units.min()) < -bound):
            raise rejected(f"'{name}' is larger than its patients can make it")
    if sums.form.columns:
        _, inner = core(sums.mean("mean").flatten(), sums.mean("sketch"))
        levels = torch.linalg.eigvalsh(inner)
        if float(levels[0]) < -_TOLERANCE * max(float(levels[-1]), _TOLERANCE):
            raise rejected("the moments are not those of any set of patients")
        return
    within = sums.mean("within")
    if not torch.equal(within, within.mT):
        raise rejected("the products within a position are not symmetric")
    first, following, tail = covariances(sums)
    before, after = (first, first) if sums.form.tied else (first[:-1], first[1:])
    if sums.form.tied:
        # the sum over K positions is at least that over any K - 1 of them
        following = following * ((sums.form.positions - 1) / sums.form.positions)
    pairs = torch.cat(
        [
            torch.cat([before, following.mT], dim=-1),
            torch.cat([following, after], dim=-1),
        ],
        dim=-2,
    )
    least = float(torch.linalg.eigvalsh(pairs).min())
    if least < -_TOLERANCE or bool((tail[0] < -_TOLERANCE).any()):
        raise rejected("the moments are not those of any set of patients")
