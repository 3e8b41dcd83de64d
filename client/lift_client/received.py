"""Numbers that came with a request, checked against this site's own form of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from lift.errors import ProtocolError
from lift.mixer.trained import TrainedPart
from lift.update import is_finite


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
