"""A paired task at the server: sums of z-filter and curves, and where the mixer starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lift.config.plan import Plan
from lift.config.privacy import GainRelease, PatientGradients
from lift.mixer.curves import CurveEquations
from lift.mixer.z_filter import NormalEquations, fit
from lift.protocol.messages import GuardReply, Parcel, StatisticsReply
from lift.records.shipped import Shipped
from lift.tasks.paired.contrast import pooled_arrays
from lift.tasks.paired.private.start import fit_released
from lift.tasks.paired.wire import paired_statistics_form
from lift.wire.names import CURVES, SHARED, TAPS, grouped, only
from lift_server.rounds.review import (
    review_curves,
    review_noisy_z_filter,
    review_statistics,
    review_z_filter,
)
from lift_server.rounds.task import Contribution


@dataclass(frozen=True)
class PairedSums(Contribution):
    """What a site of a paired task shares in round 0.

    Attributes:
        z_filter: sums over its training patients; None where the plan asks for none.
        curves: likewise; None too where there are few.
    """

    z_filter: NormalEquations | None
    curves: CurveEquations | None = None


class PairedRun:
    """Z-filter sums in, the fitted filter out: where the mixer starts. Curve sums in, their total
    out: what a site's curves are shrunk toward.

    Args:
        plan: the run's plan.
        start: z-filter taps (6,) -> the mixer's parameters at the start.
    """

    def __init__(self, plan: Plan, start: Callable[[Tensor], dict[str, Tensor]]) -> None:
        self._ridge = plan.mixer.ridge
        self._privacy = plan.privacy if isinstance(plan.privacy, PatientGradients) else None
        self._sources = len(plan.task.source)
        self._answer = paired_statistics_form(plan)
        self._start = start

    @property
    def gain(self) -> GainRelease | None:
        """What the plan pays for beside training: a noisy gain of the finished mixer."""
        return None if self._privacy is None else self._privacy.gain

    @property
    def has_guard(self) -> bool:
        """False under differential privacy: a verdict would be a release about its patients."""
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
        """None: each hospital chooses its own model."""
        del guard, asked
        return None
