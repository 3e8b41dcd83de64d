"""The server's side of a task: what it makes of the sites' sums, and where training starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

import numpy as np
import torch
from torch import Tensor

from lift.assembly import start_values
from lift.config.plan import Plan
from lift.drifting.release import FEWEST_PATIENTS, to_arrays
from lift.drifting.review import review
from lift.drifting.statistics import Sums
from lift.errors import ConfigError, DataError, UpdateRejectedError
from lift.mixer.z_filter import NormalEquations, fit
from lift.protocol.messages import SHARED, Parcel, StatisticsReply
from lift.unconditional.bundle import AnyGenerator
from lift.unconditional.decoder import FrozenDecoder
from lift.unconditional.learning import plan_mapper, settings_of
from lift_server.review import rejected, review_statistics

TAPS: Final = "z_filter/taps"
_DRIFTING: Final = "drifting/"
Contribution = NormalEquations | Sums | None


class RunTask(Protocol):
    """One kind of task, as the round loop sees it."""

    has_guard: bool
    """Whether sites judge the finished mixer."""

    def review(self, parcel: Parcel, plan_digest: str) -> tuple[StatisticsReply, Contribution]:
        """One site's answer to round 0, or UpdateRejectedError."""
        ...

    def combine(self, contributions: Sequence[Contribution]) -> dict[str, Tensor]:
        """What all sites together know, in the checkpoint's form; independent of their order."""
        ...

    def start(self, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The numbers that training starts from."""
        ...

    def sent(self, shared: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """What of it goes to the sites beside the mixer in every round."""
        ...


class PairedTask:
    """Z-filter sums in, the fitted filter out: where the mixer starts.

    Args:
        plan: the run's plan.
        start: z-filter taps (6,) -> the mixer's numbers at the start.
    """

    has_guard = True

    def __init__(self, plan: Plan, start: Callable[[Tensor], dict[str, Tensor]]) -> None:
        self._ridge = plan.mixer.ridge
        self._start = start

    def review(self, parcel: Parcel, plan_digest: str) -> tuple[StatisticsReply, Contribution]:
        """See `RunTask`."""
        return review_statistics(parcel, plan_digest)

    def combine(self, contributions: Sequence[Contribution]) -> dict[str, Tensor]:
        """See `RunTask`."""
        total = NormalEquations.zero()
        for sums in contributions:
            if isinstance(sums, NormalEquations):
                total = total + sums
        return {TAPS: fit(total, self._ridge)}

    def start(self, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `RunTask`."""
        return self._start(shared[TAPS])

    def sent(self, shared: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Nothing: the mixer holds the filter already."""
        del shared
        return {}


class UnconditionalTask:
    """Drifting statistics in, their total out: what every site's volumes are drawn to."""

    has_guard = False

    def __init__(self, plan: Plan, decoder: FrozenDecoder) -> None:
        self._plan = plan
        self._decoder = decoder
        self._samples = settings_of(plan).attraction == "samples"

    def review(self, parcel: Parcel, plan_digest: str) -> tuple[StatisticsReply, Contribution]:
        """See `RunTask`."""
        body = parcel.body
        if not isinstance(body, StatisticsReply) or body.plan_digest != plan_digest:
            raise rejected("it answers another plan")
        if self._samples or (body.train_patients < 2 * FEWEST_PATIENTS and not parcel.tensors):
            # the attraction `samples` sends none; nor does a site of fewer than five patients,
            # whose number of patients may have been rounded up
            if parcel.tensors:
                raise rejected("it holds statistics that nobody asked for")
            return body, None
        try:
            sums = review(
                parcel.tensors, self._decoder.public.projection, data_version=body.data_version
            )
        except ConfigError as error:
            # another encoder or projection: one site's mistake must not end the run for all
            raise UpdateRejectedError(
                "drifting statistics were refused",
                seen=error.seen,
                remedy="The round goes on without them; the site needs the plan's bundle.",
            ) from None
        if sums.patients > body.train_patients:
            raise rejected("its statistics hold more patients than it trains on")
        return body, sums

    def combine(self, contributions: Sequence[Contribution]) -> dict[str, Tensor]:
        """See `RunTask`."""
        if self._samples:
            return {}
        total = Sums.zero(self._decoder.public.projection)
        for sums in contributions:
            if isinstance(sums, Sums):
                total = total + sums
        if total.patients == 0:
            raise DataError(
                "there is nothing to draw new volumes to",
                where="round 0",
                seen=f"no site has {FEWEST_PATIENTS} training patients, so none sent statistics",
                remedy="Nothing was trained. Admit sites with more patients.",
            )
        arrays = to_arrays(total, data_version=0, compact=False)
        return {_DRIFTING + name: torch.from_numpy(array) for name, array in arrays.items()}

    def start(self, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `RunTask`."""
        del shared
        return plan_mapper(self._plan, self._decoder).values()

    def sent(self, shared: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """See `RunTask`."""
        return {
            SHARED + name.removeprefix(_DRIFTING): tensor.numpy() for name, tensor in shared.items()
        }


def run_task(plan: Plan, generator: AnyGenerator) -> RunTask:
    """The task of a plan around its frozen generator."""
    if isinstance(generator, FrozenDecoder):
        return UnconditionalTask(plan, generator)
    return PairedTask(plan, lambda taps: start_values(plan, generator, taps))
