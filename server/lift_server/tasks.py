"""The server's side of a task: what it makes of the sites' sums, and where training starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lift.assembly import start_values
from lift.config.plan import Plan
from lift.config.privacy import PatientGradients
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
from lift.protocol.messages import GuardReply, Parcel, StatisticsReply
from lift.shipped import Shipped, count
from lift.unconditional.bundle import AnyGenerator
from lift.unconditional.decoder import FrozenDecoder
from lift.unconditional.learning import (
    asks_verdict,
    noise_of,
    plan_mapper,
    sends_drifting,
    sends_moments,
    settings_of,
    trains_residual,
)
from lift.unconditional.moments import (
    TrajectorySums,
    fit_gaussian,
    form_of,
)
from lift.unconditional.public_gaussian import fallback_of
from lift.unconditional.review import moments_from_arrays
from lift.unconditional.style import named_styles
from lift.wire.answers import paired_statistics_form, unconditional_statistics_form
from lift.wire.names import (
    CURVES,
    DRIFTING,
    DRIFTING_TOTAL,
    GAUSSIAN,
    SHARED,
    STYLE,
    TAPS,
    TRAJECTORY,
    grouped,
    only,
    without,
)
from lift_server.review import (
    rejected,
    review_curves,
    review_noisy_z_filter,
    review_statistics,
    review_z_filter,
)


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

    def by_site(self, contributions: Mapping[str, Contribution]) -> dict[str, Tensor]:
        """What all may know of single sites, in the checkpoint's form; nothing, unless asked.

        Args:
            contributions: those that were combined, by site.
        """
        ...

    def start(self, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The numbers that training starts from."""
        ...

    def sent(self, shared: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """What of it goes to the sites beside the mixer in every round."""
        ...

    def judged_with(self, shared: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """What of it goes to the sites beside the finished mixer, to judge it."""
        ...

    def shipped(self, guard: Mapping[str, GuardReply], *, asked: int) -> Shipped | None:
        """What ships after these verdicts, of so many sites; None: what was trained, in any case.

        Where it is the Gaussian, :meth:`start` gives the numbers that leave it as it is.
        """
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
        self._answer = paired_statistics_form(plan)
        self._start = start

    @property
    def has_guard(self) -> bool:
        """Not under differential privacy: a verdict is a release of the patients it is based on."""
        return self._privacy is None

    def review(self, parcel: Parcel, plan_digest: str) -> tuple[StatisticsReply, Contribution]:
        """See `RunTask`."""
        body = review_statistics(parcel, plan_digest, self._answer)
        tensors, patients = parcel.tensors, body.train_patients
        if self._privacy is None:
            curves = review_curves(tensors, patients, self._sources)
            return body, PairedSums(review_z_filter(tensors, patients), curves)
        if self._privacy.start is None:
            return body, PairedSums(None)
        return body, PairedSums(review_noisy_z_filter(tensors, patients))

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

    def by_site(self, contributions: Mapping[str, Contribution]) -> dict[str, Tensor]:
        """Nothing."""
        del contributions
        return {}

    def start(self, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `RunTask`."""
        return self._start(shared[TAPS])

    def sent(self, shared: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """The curves' sums, where there are any; the mixer holds the filter already."""
        return grouped({n: t.numpy() for n, t in only(shared, CURVES).items()}, SHARED)

    def judged_with(self, shared: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """See `RunTask`."""
        return {name: tensor.numpy() for name, tensor in shared.items()}

    def shipped(self, guard: Mapping[str, GuardReply], *, asked: int) -> Shipped | None:
        """None: each hospital decides what it translates with."""
        del guard, asked
        return None


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
        self._answer = unconditional_statistics_form(plan, decoder)

    @property
    def has_guard(self) -> bool:
        """Of a mapper on top of a Gaussian, unless noise protects patients."""
        return asks_verdict(self._plan)

    def review(self, parcel: Parcel, plan_digest: str) -> tuple[StatisticsReply, Contribution]:
        """See `RunTask`."""
        body = review_statistics(parcel, plan_digest, self._answer)
        moments, rest = only(parcel.tensors, TRAJECTORY), only(parcel.tensors, DRIFTING)
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

    def by_site(self, contributions: Mapping[str, Contribution]) -> dict[str, Tensor]:
        """The mean styles of the sites that sent moments, where the plan asks for them."""
        if not settings_of(self._plan).site_styles:
            return {}
        sums = {
            site: one.trajectories
            for site, one in contributions.items()
            if isinstance(one, UnconditionalSums) and one.trajectories is not None
        }
        return named_styles(sums, self._decoder)

    def start(self, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `RunTask`."""
        del shared
        return plan_mapper(self._plan, self._decoder).values()

    def sent(self, shared: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """See `RunTask`; training needs nobody's style."""
        return {
            SHARED + name.removeprefix(DRIFTING_TOTAL): tensor.numpy()
            for name, tensor in without(shared, STYLE).items()
        }

    def judged_with(self, shared: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """The Gaussian that the mapper is on top of."""
        return {name: tensor.numpy() for name, tensor in only(shared, GAUSSIAN).items()}

    def shipped(self, guard: Mapping[str, GuardReply], *, asked: int) -> Shipped | None:
        """The mapper only where sites found it better than the Gaussian, and none found it worse.

        None without a mapper on top of a Gaussian.
        """
        if not trains_residual(self._plan):
            return None
        if not self.has_guard:
            return Shipped("gaussian", None)
        said = count([reply.verdict for reply in guard.values()], asked=asked)
        return Shipped(said.source, said)

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
        return grouped({n: torch.from_numpy(a) for n, a in arrays.items()}, DRIFTING_TOTAL)


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
