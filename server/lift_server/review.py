"""The review: what an answer must be before the server uses a number of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from lift.config.privacy import PatientGradients
from lift.contrast import FEWEST_PATIENTS
from lift.contrast import SUMS as CURVE_SUMS
from lift.curves import KNOTS, CurveEquations
from lift.errors import UpdateRejectedError
from lift.mixer.z_filter import SCALE, NormalEquations
from lift.protocol.messages import Parcel, StatisticsReply, TrainReply
from lift.update import Values, is_finite, norm

SUMS = ("z_filter_a", "z_filter_b")
_MOST_UNITS = 2**53
_COUNT_TOLERANCE = 1e-6


def review_statistics(parcel: Parcel, plan_digest: str) -> tuple[StatisticsReply, NormalEquations]:
    """The counts and z-filter sums of one site's round 0.

    Raises:
        UpdateRejectedError: another plan, a tensor missing, extra or of another form, or sums
            that no cohort can have.
    """
    body = parcel.body
    if not isinstance(body, StatisticsReply) or body.plan_digest != plan_digest:
        raise rejected("it answers another plan")
    if set(parcel.tensors) != set(SUMS):
        raise rejected("its tensors are not exactly the z-filter's sums")
    a, b = (np.asarray(parcel.tensors[name]) for name in SUMS)
    if a.dtype != np.int64 or b.dtype != np.int64 or a.shape != (6, 6) or b.shape != (6,):
        raise rejected("the z-filter's sums are not 6 x 6 and 6 fixed-point numbers")
    if not np.array_equal(a, a.T) or (np.diag(a) < 0).any():
        raise rejected("the z-filter's matrix is not a sum of squares")
    # normalised volumes: a patient's mean product of two differences is at most 1
    most = body.train_patients * SCALE
    if any(int(np.max(part)) > most or int(np.min(part)) < -most for part in (a, b)):
        raise rejected("the z-filter's sums are larger than its patients can have")
    eigenvalues = np.linalg.eigvalsh(a.astype(np.float64))
    if eigenvalues[0] < -1e-6 * max(float(eigenvalues[-1]), 1.0):
        raise rejected("the z-filter's matrix is not a sum of squares")
    sums = NormalEquations.from_fixed_point(
        torch.from_numpy(a), torch.from_numpy(b), voxels=0, patients=body.train_patients
    )
    return body, sums


def review_curves(
    tensors: Mapping[str, np.ndarray], patients: int, sources: int
) -> CurveEquations | None:
    """The curve sums of one site's round 0; None where it shares none.

    Args:
        tensors: of the answer, those of :data:`lift.contrast.SUMS` alone.
        patients: training patients that the answer tells.
        sources: source channels of the plan.

    Raises:
        UpdateRejectedError: a tensor missing, extra or of another form, or sums that those
            patients cannot have.
    """
    if not tensors:
        return None
    if set(tensors) != set(CURVE_SUMS):
        raise rejected("its tensors are not exactly the curves' sums")
    a, b = (np.asarray(tensors[name]) for name in CURVE_SUMS)
    size = KNOTS * (1 + sources)
    if a.dtype != np.int64 or b.dtype != np.int64 or a.shape != (size, size) or b.shape != (size,):
        raise rejected(f"the curves' sums are not {size} x {size} and {size} fixed-point numbers")
    if patients < FEWEST_PATIENTS:
        raise rejected(f"curves' sums of fewer than {FEWEST_PATIENTS} patients must stay at a site")
    # hat functions are >= 0 and add up to 1; |target - prediction| is at most 1
    if not np.array_equal(a, a.T) or (a < 0).any():
        raise rejected("the curves' matrix is not a sum of products of hat functions")
    blocks = a.reshape(1 + sources, KNOTS, 1 + sources, KNOTS).astype(np.float64).sum((1, 3))
    if np.abs(blocks / SCALE - patients).max() > _COUNT_TOLERANCE * patients:
        raise rejected("the curves' sums are not of as many patients as the answer tells")
    reach = a.reshape(1 + sources, KNOTS, 1 + sources, KNOTS).sum((2, 3)).reshape(size)
    if (np.abs(b.astype(np.float64)) > reach / (1 + sources) * (1 + _COUNT_TOLERANCE) + 1).any():
        raise rejected("the curves' sums are larger than its patients can have")
    eigenvalues = np.linalg.eigvalsh(a.astype(np.float64))
    if eigenvalues[0] < -1e-6 * max(float(eigenvalues[-1]), 1.0):
        raise rejected("the curves' matrix is not a sum of squares")
    return CurveEquations(
        torch.from_numpy(a).double() / SCALE, torch.from_numpy(b).double() / SCALE, patients
    )


def review_private_statistics(
    parcel: Parcel, plan_digest: str, privacy: PatientGradients
) -> tuple[StatisticsReply, NormalEquations | None]:
    """One site's round 0 under patient-level privacy: noisy z-filter sums, or none.

    Noise may make a matrix with negative eigenvalues, and sums of any size; they are looked at
    for their form alone.

    Raises:
        UpdateRejectedError: another plan, a tensor missing, extra or of another form.
    """
    body = parcel.body
    if not isinstance(body, StatisticsReply) or body.plan_digest != plan_digest:
        raise rejected("it answers another plan")
    if privacy.start is None:
        if parcel.tensors:
            raise rejected("it holds statistics that nobody asked for")
        return body, None
    if set(parcel.tensors) != set(SUMS):
        raise rejected("its tensors are not exactly the z-filter's sums")
    a, b = (np.asarray(parcel.tensors[name]) for name in SUMS)
    if a.dtype != np.int64 or b.dtype != np.int64 or a.shape != (6, 6) or b.shape != (6,):
        raise rejected("the z-filter's sums are not 6 x 6 and 6 fixed-point numbers")
    if not np.array_equal(a, a.T):
        raise rejected("the z-filter's matrix is not symmetric")
    if any(int(np.max(np.abs(part.astype(np.float64)))) > _MOST_UNITS for part in (a, b)):
        raise rejected("the z-filter's sums are larger than their noise can make them")
    sums = NormalEquations.from_fixed_point(
        torch.from_numpy(a), torch.from_numpy(b), voxels=0, patients=body.train_patients
    )
    return body, sums


def review_update(
    parcel: Parcel,
    expected: Values,
    *,
    plan_digest: str,
    round_index: int,
    dtype: str,
    largest_norm: float,
) -> tuple[TrainReply, dict[str, Tensor]]:
    """One site's reply and its update in float32.

    Raises:
        UpdateRejectedError: another plan or round (a replay), a tensor missing or extra, a
            wrong shape or number format, NaN or infinity, or a norm above the plan's bound.
    """
    body = parcel.body
    if not isinstance(body, TrainReply) or body.plan_digest != plan_digest:
        raise rejected("it answers another plan")
    if body.round != round_index:
        raise rejected(f"it answers round {body.round}; this is round {round_index}")
    tensors: Mapping[str, np.ndarray] = parcel.tensors
    if set(tensors) != set(expected):
        raise rejected("tensors are missing or extra")
    update: dict[str, Tensor] = {}
    for name in sorted(expected):
        if tuple(tensors[name].shape) != tuple(expected[name].shape):
            raise rejected(f"tensor '{name}' has another shape than the mixer's")
        if tensors[name].dtype.name != dtype:
            raise rejected(f"tensor '{name}' is not {dtype}")
        update[name] = torch.from_numpy(tensors[name].astype(np.float32))
    if not is_finite(update):
        raise rejected("it holds NaN or infinity")
    if norm(update) > largest_norm:
        raise rejected("its norm is above federation.largest_update_norm")
    return body, update


def rejected(reason: str) -> UpdateRejectedError:
    """The refusal of a site's answer."""
    return UpdateRejectedError(
        "an answer was refused",
        seen=reason,
        remedy="The round goes on without it; the site's log tells more.",
    )
