"""The server's side of a task: what it makes of the sites' sums, and where training starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

import numpy as np
import torch
from torch import Tensor

from lift.assembly import start_values
from lift.config.plan import Plan
from lift.config.privacy import PatientGradients
from lift.contrast import SUMS as CURVE_SUMS
from lift.contrast import pooled_arrays
from lift.curves import CurveEquations
from lift.drifting.release import FEWEST_PATIENTS, from_arrays, to_arrays
from lift.drifting.review import review
from lift.drifting.statistics import Sums
from lift.errors import ConfigError, DataError, UpdateRejectedError
from lift.mixer.z_filter import NormalEquations, fit
from lift.privacy.noisy_deviations import fit_noisy_deviations
from lift.privacy.noisy_gaussian import fit_noisy_gaussian
from lift.privacy.start import fit_released
from lift.privacy.statistics import denoised
from lift.protocol.messages import SHARED, Parcel, StatisticsReply
from lift.unconditional.bundle import AnyGenerator
from lift.unconditional.decoder import FrozenDecoder
from lift.unconditional.learning import (
    noise_of,
    plan_mapper,
    sends_drifting,
    sends_moments,
    settings_of,
)
from lift.unconditional.moments import (
    PREFIX,
    TrajectorySums,
    fit_gaussian,
    form_of,
)
from lift.unconditional.public_gaussian import fallback_of
from lift.unconditional.review import moments_from_arrays
from lift_server.review import (
    rejected,
    review_curves,
    review_private_statistics,
    review_statistics,
)

TAPS: Final = "z_filter/taps"
_DRIFTING: Final = "drifting/"
_CURVES: Final = "curves/"


@dataclass(frozen=True)
class PairedSums:
    """What a site of a paired task shares in round 0.

    Attributes:
        z_filter: sums over its training patients; None where the plan asks for none.
        curves: likewise; None too where there are few.
    """

    z_filter: NormalEquations | None
    curves: CurveEquations | None = None


@dataclass(frozen=True)
class UnconditionalSums:
    """What a site of an unconditional task shares in round 0.

    Attributes:
        drifting: statistics of its training patients; None where it sent none.
        trajectories: moments of their latents along the body; likewise.
    """

    drifting: Sums | None
    trajectories: TrajectorySums | None


Contribution = PairedSums | UnconditionalSums


class RunTask(Protocol):
    """One kind of task, as the round loop sees it."""

    @property
    def has_guard(self) -> bool:
        """Whether sites judge the finished mixer."""
        ...

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
    """Z-filter sums in, the fitted filter out: where the mixer starts. Curve sums in, their total
    out: what a site's curves are shrunk toward.

    Args:
        plan: the run's plan.
        start: z-filter taps (6,) -> the mixer's numbers at the start.
    """

    def __init__(self, plan: Plan, start: Callable[[Tensor], dict[str, Tensor]]) -> None:
        self._ridge = plan.mixer.ridge
        self._privacy = plan.privacy if isinstance(plan.privacy, PatientGradients) else None
        self._sources = len(plan.task.source)
        # under patient-level privacy each site has its own patients alone
        self._has_curves = plan.mixer.contrast != "none" and self._privacy is None
        self._start = start

    @property
    def has_guard(self) -> bool:
        """Not under differential privacy: a verdict is a release of the patients it is based on."""
        return self._privacy is None

    def review(self, parcel: Parcel, plan_digest: str) -> tuple[StatisticsReply, Contribution]:
        """See `RunTask`."""
        if self._privacy is not None:
            body, noisy = review_private_statistics(parcel, plan_digest, self._privacy)
            return body, PairedSums(noisy)
        curves: dict[str, np.ndarray] = {}
        if self._has_curves:
            curves = {n: t for n, t in parcel.tensors.items() if n in CURVE_SUMS}
        rest = {n: t for n, t in parcel.tensors.items() if n not in curves}
        body, sums = review_statistics(replace(parcel, tensors=rest), plan_digest)
        return body, PairedSums(sums, review_curves(curves, body.train_patients, self._sources))

    def combine(self, contributions: Sequence[Contribution]) -> dict[str, Tensor]:
        """See `RunTask`."""
        paired = [sums for sums in contributions if isinstance(sums, PairedSums)]
        filters = [sums.z_filter for sums in paired if sums.z_filter is not None]
        total = sum(filters, start=NormalEquations.zero())
        if self._privacy is not None:
            if self._privacy.start is None:
                return {TAPS: torch.zeros_like(total.b)}
            return {TAPS: fit_released(total, self._privacy.start, len(filters), self._ridge)}
        curves = [sums.curves for sums in paired if sums.curves is not None]
        return {TAPS: fit(total, self._ridge), **pooled_arrays(curves)}

    def start(self, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `RunTask`."""
        return self._start(shared[TAPS])

    def sent(self, shared: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """The curves' sums, where there are any; the mixer holds the filter already."""
        return {
            SHARED + name: tensor.numpy()
            for name, tensor in shared.items()
            if name.startswith(_CURVES)
        }


class UnconditionalTask:
    """Moments of trajectories in, their Gaussian out: where new volumes come from. Drifting
    statistics in, their total out: what every site's volumes are drawn to, where there are rounds.
    """

    def __init__(self, plan: Plan, decoder: FrozenDecoder) -> None:
        self._plan = plan
        self._decoder = decoder
        self._has_drifting = sends_drifting(plan)
        gaussian = settings_of(plan).gaussian
        self._form = form_of(gaussian, decoder) if sends_moments(plan) else None
        self._noise = noise_of(plan)
        self._public = None if self._form is None else fallback_of(plan, decoder, self._form)
        if self._public is not None:
            self._form = self._public.sent

    @property
    def has_guard(self) -> bool:
        """A new volume is nobody's: nobody can be asked whether it helped."""
        return False

    def review(self, parcel: Parcel, plan_digest: str) -> tuple[StatisticsReply, Contribution]:
        """See `RunTask`."""
        body = parcel.body
        if not isinstance(body, StatisticsReply) or body.plan_digest != plan_digest:
            raise rejected("it answers another plan")
        moments = {n: t for n, t in parcel.tensors.items() if n.startswith(PREFIX)}
        rest = {n: t for n, t in parcel.tensors.items() if n not in moments}
        if (moments and self._form is None) or (rest and not self._has_drifting):
            raise rejected("it holds statistics that nobody asked for")
        trajectories = drifting = None
        if self._form is not None and not self._lacks(moments, self._form.fewest, body):
            noisy = self._noise is not None
            trajectories = moments_from_arrays(moments, self._form, noisy=noisy)
        if self._has_drifting and not self._lacks(rest, FEWEST_PATIENTS, body):
            drifting = self._drifting(rest, body.data_version)
        for sums in (trajectories, drifting):
            if sums is not None and sums.patients > body.train_patients:
                raise rejected("its statistics hold more patients than it trains on")
        return body, UnconditionalSums(drifting, trajectories)

    def combine(self, contributions: Sequence[Contribution]) -> dict[str, Tensor]:
        """See `RunTask`."""
        sums = [one for one in contributions if isinstance(one, UnconditionalSums)]
        found: dict[str, Tensor] = {}
        if self._form is not None:
            sent = [one.trajectories for one in sums if one.trajectories is not None]
            moments = sum(sent, start=TrajectorySums.zero(self._form))
            _check_any(moments.patients, self._form.fewest)
            if self._noise is None:
                found |= fit_gaussian(moments)
            elif self._public is not None:
                found |= fit_noisy_deviations(moments, self._noise, len(sent), self._public)
            else:
                found |= fit_noisy_gaussian(moments, self._noise, len(sent))
        if self._has_drifting:
            found |= self._combined_drifting([s.drifting for s in sums if s.drifting is not None])
        return found

    def start(self, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `RunTask`."""
        del shared
        return plan_mapper(self._plan, self._decoder).values()

    def sent(self, shared: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """See `RunTask`."""
        return {
            SHARED + name.removeprefix(_DRIFTING): tensor.numpy() for name, tensor in shared.items()
        }

    def _lacks(self, arrays: Mapping[str, np.ndarray], fewest: int, body: StatisticsReply) -> bool:
        """Whether a site sent none of these, as it may: for few patients, without noise.

        Its number of patients may have been rounded up.
        """
        return not arrays and self._noise is None and body.train_patients < 2 * fewest

    def _drifting(self, arrays: Mapping[str, np.ndarray], data_version: int) -> Sums:
        projection = self._decoder.public.projection
        try:
            if self._noise is None:
                return review(arrays, projection, data_version=data_version)
            # noise makes sums that no cohort can have: only their form is looked at
            return from_arrays(arrays, projection).sums
        except ConfigError as error:
            # another encoder or projection: one site's mistake must not end the run for all
            raise UpdateRejectedError(
                "drifting statistics were refused",
                seen=error.seen,
                remedy="The round goes on without them; the site needs the plan's bundle.",
            ) from None

    def _combined_drifting(self, contributions: Sequence[Sums]) -> dict[str, Tensor]:
        projection = self._decoder.public.projection
        total = Sums.zero(projection)
        for sums in contributions:
            total = total + sums
        if self._noise is not None:
            total = denoised(total, projection, self._noise, len(contributions))
        _check_any(total.patients, FEWEST_PATIENTS)
        arrays = to_arrays(total, data_version=0, compact=False)
        return {_DRIFTING + name: torch.from_numpy(array) for name, array in arrays.items()}


def _check_any(patients: int, fewest: int) -> None:
    if patients == 0:
        raise DataError(
            "there is nothing to draw new volumes to",
            where="round 0",
            seen=f"no site has {fewest} training patients, so none sent statistics",
            remedy="Nothing was trained. Admit sites with more patients.",
        )


def run_task(plan: Plan, generator: AnyGenerator) -> RunTask:
    """The task of a plan around its frozen generator."""
    if isinstance(generator, FrozenDecoder):
        return UnconditionalTask(plan, generator)
    return PairedTask(plan, lambda taps: start_values(plan, generator, taps))
