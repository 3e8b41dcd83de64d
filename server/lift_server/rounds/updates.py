"""The server's aggregation of a round, by privacy mode.

=================  ==============================  ==============================================
mode               a site sends                    the server
=================  ==============================  ==============================================
none               its update                      clips to the median, takes the weighted mean
patient-local      its update, noisy already       the same, by public numbers
stats-once         its update, of noisy sums       the same, by public numbers
patient-central    its sum of clipped gradients    adds them, adds noise once, divides
site               its update                      clips each, takes the mean, adds noise once
=================  ==============================  ==============================================

The clip to the median (`clipping`) depends on all updates. After noise of the sites it is
post-processing, and costs no epsilon. Where the server adds the noise it would let one patient or
site move the scale of all others, which that noise does not cover: there the bound is fixed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import torch
from torch import Tensor

from lift.config.plan import Plan
from lift.config.privacy import FEWEST_SITES, PatientGradients, SiteLevel
from lift.errors import PrivacyError
from lift.mixer.update import Values, norm
from lift.privacy.clipping import clip_gradient
from lift.privacy.noise import SecureStream, add_noise
from lift.protocol.messages import Parcel, TrainReply
from lift.tasks.paired.private.training import UNITS, noisy_update
from lift.wire.update import update_form
from lift_server.rounds.aggregation import combined
from lift_server.rounds.clipping import Clipped, clip_to_median
from lift_server.rounds.review import check_form, rejected, review_update

Contents = Mapping[str, np.ndarray]
_MOST_CLIPS: Final = 100.0


@dataclass(frozen=True)
class Combined:
    """What the answers of one round make.

    Attributes:
        update: of the mixer, float64 (float32 after noise).
        weights: of each site in it.
        clipped: how each update lay beside the others; None where nothing of them may be told.
    """

    update: dict[str, Tensor]
    weights: dict[str, float]
    clipped: Clipped | None = None

    @property
    def told(self) -> dict[str, dict[str, float]]:
        """What the record of the round holds of it."""
        if self.clipped is None:
            return {}
        return {
            "norm_ratios": self.clipped.norm_ratios,
            "clipped": self.clipped.factors,
            "distances": self.clipped.distances,
        }


class RoundAggregation(Protocol):
    """From answers to an update of the mixer.

    Attributes:
        draws_noise: whether the server adds noise: its result is a release, and is kept.
    """

    @property
    def draws_noise(self) -> bool:
        """See the class."""
        ...

    def review(
        self, site: str, parcel: Parcel, mixer: Values, round_index: int
    ) -> tuple[TrainReply, Contents]:
        """One site's reply and what it sent, or UpdateRejectedError."""
        ...

    def combine(self, sent: Mapping[str, Contents], patients: Mapping[str, int]) -> Combined:
        """The update of the mixer that the answers make."""
        ...


class MeanOfUpdates:
    """FedAvg, for plans without noise or with noise added at the sites."""

    draws_noise: Final = False

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._digest = plan.digest()

    def review(
        self, site: str, parcel: Parcel, mixer: Values, round_index: int
    ) -> tuple[TrainReply, Contents]:
        """See `RoundAggregation`."""
        del site
        federation = self._plan.federation
        reply, update = review_update(
            parcel,
            update_form(mixer, self._plan),
            plan_digest=self._digest,
            round_index=round_index,
            largest_norm=federation.largest_update_norm,
        )
        return reply, {name: tensor.numpy() for name, tensor in update.items()}

    def combine(self, sent: Mapping[str, Contents], patients: Mapping[str, int]) -> Combined:
        """See `RoundAggregation`."""
        plan, privacy = self._plan.aggregation, self._plan.privacy
        public = None
        if isinstance(privacy, PatientGradients):
            public = {site: privacy.patients_of(site) for site in sent}
        clipped = clip_to_median(_tensors(sent), plan.largest_norm_ratio, public)
        return Combined(*combined(clipped.updates, patients, plan), clipped)


class SumOfGradients:
    """`patient-central`: one noisy step of all sites together."""

    draws_noise: Final = True

    def __init__(self, plan: Plan, privacy: PatientGradients, stream: SecureStream) -> None:
        self._plan = plan
        self._privacy = privacy
        self._stream = stream
        self._digest = plan.digest()

    def review(
        self, site: str, parcel: Parcel, mixer: Values, round_index: int
    ) -> tuple[TrainReply, Contents]:
        """See `RoundAggregation`."""
        body = parcel.body
        if not isinstance(body, TrainReply) or body.plan_digest != self._digest:
            raise rejected("it answers another plan")
        if body.round != round_index:
            raise rejected(f"it answers round {body.round}; this is round {round_index}")
        check_form(parcel, update_form(mixer, self._plan))
        expected = self._privacy.sampling_rate * self._privacy.patients_of(site)
        if norm(_values(parcel.tensors)) > _MOST_CLIPS * max(expected, 1.0) * UNITS:
            raise rejected("its sum is larger than its patients can have")
        return body, parcel.tensors

    def combine(self, sent: Mapping[str, Contents], patients: Mapping[str, int]) -> Combined:
        """See `RoundAggregation`."""
        privacy = self._privacy
        total = sum(privacy.patients_of(site) for site in sent)
        update = noisy_update(
            [sent[site] for site in sorted(sent)],
            privacy,
            privacy.sampling_rate * total,
            self._stream,
        )
        weights = {site: privacy.patients_of(site) / total for site in sorted(sent)}
        del patients
        return Combined(update, weights)


class NoisySites:
    """`site`: each site's update is clipped, and the mean gets noise.

    Guarantee: add or remove one site of a roster whose size is public; every site weighs the
    same.
    """

    draws_noise: Final = True

    def __init__(self, plan: Plan, privacy: SiteLevel, sites: int, stream: SecureStream) -> None:
        self._mean = MeanOfUpdates(plan)
        self._plan = plan
        self._privacy = privacy
        self._sites = sites
        self._stream = stream

    def review(
        self, site: str, parcel: Parcel, mixer: Values, round_index: int
    ) -> tuple[TrainReply, Contents]:
        """See `RoundAggregation`."""
        return self._mean.review(site, parcel, mixer, round_index)

    def combine(self, sent: Mapping[str, Contents], patients: Mapping[str, int]) -> Combined:
        """See `RoundAggregation`."""
        del patients
        clip_norm = self._privacy.clip_norm
        total: dict[str, Tensor] = {}
        for site in sorted(sent):
            for name, clipped in clip_gradient(_values(sent[site]), clip_norm).values.items():
                total[name] = total.get(name, torch.zeros_like(clipped).double()) + clipped
        noisy = add_noise(total, self._privacy.noise_multiplier * clip_norm, self._stream)
        mean = {name: tensor / self._sites for name, tensor in noisy.items()}
        weights = dict.fromkeys(sorted(sent), 1 / self._sites)
        return Combined(mean, weights)


def round_aggregation(plan: Plan, sites: int, stream: SecureStream) -> RoundAggregation:
    """Return the aggregation for the plan's privacy mode.

    Args:
        plan: the run's plan.
        sites: of the roster at the start of the run.
        stream: source of the server's noise.

    Raises:
        PrivacyError: mode `site` with too few sites.
    """
    privacy = plan.privacy
    if isinstance(privacy, PatientGradients) and privacy.mode == "patient-central":
        return SumOfGradients(plan, privacy, stream)
    if isinstance(privacy, SiteLevel):
        check_sites(privacy, sites)
        return NoisySites(plan, privacy, sites, stream)
    return MeanOfUpdates(plan)


def check_sites(privacy: SiteLevel, sites: int) -> None:
    """Refuse site-level noise for a handful of sites, unless it is forced.

    Raises:
        PrivacyError: fewer than a hundred.

    Source: privacy section 1: at epsilon 8 and 50,000 numbers, noise over signal is 36 with 3
    sites and 5.4 with 20.
    """
    if sites < FEWEST_SITES and not privacy.forced:
        raise PrivacyError(
            "site-level privacy needs many sites",
            where="privacy.mode",
            seen=f"{sites} sites; at least {FEWEST_SITES} are needed for noise that leaves "
            "anything to learn",
            remedy="Nothing was started. Use `patient-local`, which also protects patients, or "
            "set privacy.forced.",
        )


def _values(contents: Contents) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.asarray(array)) for name, array in contents.items()}


def _tensors(sent: Mapping[str, Contents]) -> dict[str, dict[str, Tensor]]:
    return {site: _values(contents) for site, contents in sent.items()}
