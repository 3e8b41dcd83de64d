"""An unconditional task at the server: moments, drifting statistics, and what ships."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lift.config.plan import Plan
from lift.config.privacy import GainRelease
from lift.errors import ConfigError, DataError, UpdateRejectedError
from lift.protocol.messages import GuardReply, Parcel, StatisticsReply
from lift.records.shipped import Shipped, count
from lift.tasks.unconditional.decoder import FrozenDecoder
from lift.tasks.unconditional.drifting.release import FEWEST_PATIENTS, from_arrays, to_arrays
from lift.tasks.unconditional.drifting.review import review
from lift.tasks.unconditional.drifting.statistics import Sums
from lift.tasks.unconditional.learning import (
    asks_verdict,
    noise_of,
    plan_mapper,
    sends_drifting,
    sends_moments,
    settings_of,
    trains_residual,
)
from lift.tasks.unconditional.moments import TrajectorySums, fit_gaussian, form_of
from lift.tasks.unconditional.private.deviations import fit_noisy_deviations
from lift.tasks.unconditional.private.gaussian import fit_noisy_gaussian
from lift.tasks.unconditional.private.statistics import denoised
from lift.tasks.unconditional.public_gaussian import fallback_of
from lift.tasks.unconditional.review import moments_from_arrays
from lift.tasks.unconditional.style import named_styles
from lift.tasks.unconditional.wire import unconditional_statistics_form
from lift.wire.names import (
    DRIFTING,
    DRIFTING_TOTAL,
    GAUSSIAN,
    SHARED,
    STYLE,
    TRAJECTORY,
    grouped,
    only,
    without,
)
from lift_server.rounds.review import rejected, review_statistics
from lift_server.rounds.task import Contribution


@dataclass(frozen=True)
class UnconditionalSums(Contribution):
    """What a site of an unconditional task shares in round 0.

    Attributes:
        drifting: statistics of its training patients; None where it sent none.
        trajectories: moments of their latents along the body; likewise.
    """

    drifting: Sums | None
    trajectories: TrajectorySums | None


class UnconditionalRun:
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
    def gain(self) -> GainRelease | None:
        """None: new volumes have no target that they could be nearer to."""
        return None

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
        """See `RunTask`. Training does not need the styles of sites."""
        return {
            SHARED + name.removeprefix(DRIFTING_TOTAL): tensor.numpy()
            for name, tensor in without(shared, STYLE).items()
        }

    def judged_with(self, shared: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """The Gaussian that the mapper is on top of."""
        return {name: tensor.numpy() for name, tensor in only(shared, GAUSSIAN).items()}

    def shipped(self, guard: Mapping[str, GuardReply], *, asked: int) -> Shipped | None:
        """The mapper, if some site found it better than the Gaussian and none found it worse.

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
