"""The review: checks of an answer before the server uses it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from lift.errors import UpdateRejectedError
from lift.mixer.curves import KNOTS, CurveEquations
from lift.mixer.update import is_finite, norm
from lift.mixer.z_filter import SCALE, NormalEquations
from lift.protocol.messages import Parcel, StatisticsReply, TrainReply
from lift.tasks.paired.contrast import FEWEST_PATIENTS
from lift.wire.form import AnswerForm
from lift.wire.names import CURVE_SUMS, Z_FILTER_SUMS

Tensors = Mapping[str, np.ndarray]
_MOST_UNITS = 2**53
_COUNT_TOLERANCE = 1e-6


def check_form(parcel: Parcel, form: AnswerForm) -> None:
    """Refuse an answer with a tensor missing, extra, or of another number format or shape.

    Raises:
        UpdateRejectedError: names the first tensor that differs.
    """
    offence = form.offence(parcel.tensors)
    if offence is not None:
        raise rejected(f"tensor {offence.tensor}: {offence.seen}")


def review_statistics(parcel: Parcel, plan_digest: str, form: AnswerForm) -> StatisticsReply:
    """The counts of one site's round 0, whose tensors have the right form.

    Raises:
        UpdateRejectedError: another plan, or tensors of another form.
    """
    body = parcel.body
    if not isinstance(body, StatisticsReply) or body.plan_digest != plan_digest:
        raise rejected("it answers another plan")
    check_form(parcel, form)
    return body


def review_z_filter(tensors: Tensors, patients: int) -> NormalEquations:
    """The z-filter's sums of one site's round 0.

    Args:
        tensors: of the answer, in the right form.
        patients: training patients that the answer tells.

    Raises:
        UpdateRejectedError: sums that no cohort can have.
    """
    a, b = (np.asarray(tensors[name]) for name in Z_FILTER_SUMS)
    if not np.array_equal(a, a.T) or (np.diag(a) < 0).any():
        raise rejected("the z-filter's matrix is not a sum of squares")
    # normalised volumes: a patient's mean product of two differences is at most 1
    most = patients * SCALE
    if any(int(np.max(part)) > most or int(np.min(part)) < -most for part in (a, b)):
        raise rejected("the z-filter's sums are larger than its patients can have")
    _check_squares(a, "z-filter's")
    return _equations(a, b, patients)


def review_noisy_z_filter(tensors: Tensors, patients: int) -> NormalEquations:
    """The same under patient-level privacy.

    Noise may make a matrix with negative eigenvalues, and sums of any size.

    Raises:
        UpdateRejectedError: sums that noise cannot make.
    """
    a, b = (np.asarray(tensors[name]) for name in Z_FILTER_SUMS)
    if not np.array_equal(a, a.T):
        raise rejected("the z-filter's matrix is not symmetric")
    if any(int(np.max(np.abs(part.astype(np.float64)))) > _MOST_UNITS for part in (a, b)):
        raise rejected("the z-filter's sums are larger than their noise can make them")
    return _equations(a, b, patients)


def review_curves(tensors: Tensors, patients: int, sources: int) -> CurveEquations | None:
    """The curve sums of one site's round 0; None where it shares none.

    Args:
        tensors: of the answer, in the right form.
        patients: training patients that the answer tells.
        sources: source channels of the plan.

    Raises:
        UpdateRejectedError: sums that those patients cannot have.
    """
    if any(name not in tensors for name in CURVE_SUMS):
        return None
    a, b = (np.asarray(tensors[name]) for name in CURVE_SUMS)
    if patients < FEWEST_PATIENTS:
        raise rejected(f"curves' sums of fewer than {FEWEST_PATIENTS} patients must stay at a site")
    # hat functions are >= 0 and add up to 1; |target - prediction| is at most 1
    if not np.array_equal(a, a.T) or (a < 0).any():
        raise rejected("the curves' matrix is not a sum of products of hat functions")
    products = a.reshape(1 + sources, KNOTS, 1 + sources, KNOTS)
    blocks = products.astype(np.float64).sum((1, 3))
    if np.abs(blocks / SCALE - patients).max() > _COUNT_TOLERANCE * patients:
        raise rejected("the curves' sums are not of as many patients as the answer tells")
    reach = products.sum((2, 3)).reshape(len(b))
    if (np.abs(b.astype(np.float64)) > reach / (1 + sources) * (1 + _COUNT_TOLERANCE) + 1).any():
        raise rejected("the curves' sums are larger than its patients can have")
    _check_squares(a, "curves'")
    return CurveEquations(
        torch.from_numpy(a).double() / SCALE, torch.from_numpy(b).double() / SCALE, patients
    )


def _check_squares(a: np.ndarray, whose: str) -> None:
    eigenvalues = np.linalg.eigvalsh(a.astype(np.float64))
    if eigenvalues[0] < -1e-6 * max(float(eigenvalues[-1]), 1.0):
        raise rejected(f"the {whose} matrix is not a sum of squares")


def _equations(a: np.ndarray, b: np.ndarray, patients: int) -> NormalEquations:
    return NormalEquations.from_fixed_point(
        torch.from_numpy(a), torch.from_numpy(b), voxels=0, patients=patients
    )


def review_update(
    parcel: Parcel,
    form: AnswerForm,
    *,
    plan_digest: str,
    round_index: int,
    largest_norm: float,
) -> tuple[TrainReply, dict[str, Tensor]]:
    """One site's reply and its update in float32.

    Raises:
        UpdateRejectedError: another plan or round (a replay), tensors of another form, NaN or
            infinity, or a norm above the plan's bound.
    """
    body = parcel.body
    if not isinstance(body, TrainReply) or body.plan_digest != plan_digest:
        raise rejected("it answers another plan")
    if body.round != round_index:
        raise rejected(f"it answers round {body.round}; this is round {round_index}")
    check_form(parcel, form)
    update = {
        name: torch.from_numpy(parcel.tensors[name].astype(np.float32))
        for name in sorted(parcel.tensors)
    }
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
