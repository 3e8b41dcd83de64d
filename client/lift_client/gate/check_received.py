"""Checks of the parameters in a request against the form that this site expects."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from lift.errors import ProtocolError, UpdateRejectedError
from lift.mixer.gaussian import GaussianTrajectory
from lift.mixer.trained import TrainedPart
from lift.mixer.update import is_finite
from lift.tasks.unconditional.decoder import PublicFeatures
from lift.tasks.unconditional.drifting.release import from_arrays
from lift.tasks.unconditional.drifting.statistics import Sums
from lift.wire.names import GAUSSIAN


def received_values(tensors: Mapping[str, np.ndarray], part: TrainedPart) -> dict[str, Tensor]:
    """The received mixer, loaded into `part` to see that it fits.

    Raises:
        ProtocolError: names or shapes differ, or a number is not finite.
    """
    values = {name: torch.from_numpy(np.array(array)) for name, array in tensors.items()}
    try:
        part.load_values(values)
    except ValueError as error:
        raise ProtocolError(
            "the received mixer does not fit the plan",
            seen=str(error),
            remedy="Nothing was computed. Check that both sides run the same version.",
        ) from None
    if not is_finite(values):
        raise ProtocolError(
            "the received mixer is not finite",
            seen="it holds NaN or infinity",
            remedy="Nothing was computed. Ask the coordinator.",
        )
    return values


def received_gaussian(
    tensors: Mapping[str, np.ndarray], mapper: GaussianTrajectory
) -> dict[str, Tensor]:
    """The received Gaussian, loaded into `mapper` to see that it fits.

    Raises:
        ProtocolError: names or shapes differ, or a number is not finite.
    """
    values = {name: torch.from_numpy(np.array(array)) for name, array in tensors.items()}
    try:
        mapper.load_gaussian({n.removeprefix(GAUSSIAN): t for n, t in values.items()})
        if not is_finite(values):
            raise ValueError("the Gaussian holds NaN or infinity")
    except ValueError as error:
        raise ProtocolError(
            "the received Gaussian does not fit the plan",
            seen=str(error),
            remedy="Nothing was computed. Check that both sides run the same version.",
        ) from None
    return values


def received_sums(shared: Mapping[str, np.ndarray], public: PublicFeatures) -> Sums:
    """The total over all sites, as the server sent it.

    Raises:
        ProtocolError: it is missing or of another form.
        ConfigError: it was made with other public files.
    """
    try:
        return from_arrays(shared, public.projection).sums
    except UpdateRejectedError as error:
        raise ProtocolError(
            "the received drifting statistics cannot be used",
            seen=error.seen,
            remedy="Nothing was computed. Check that both sides run the same version.",
        ) from None
