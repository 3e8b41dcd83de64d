"""A site's work on an unconditional task: drifting statistics, and rounds against their sum."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lift.cohort.patients import Patient, subjects_of
from lift.cohort.preprocessing import Prepared, prepare
from lift.cohort.reading import file_digests, read_patients
from lift.cohort.split import SPLIT_FILE, Part, Split, parts_of, write_split
from lift.config.plan import Plan
from lift.config.site import SiteSettings
from lift.errors import ProtocolError, VolumeError
from lift.metrics.synthrad import Floats
from lift.mixer.gaussian import GaussianTrajectory
from lift.privacy.noise import SecureStream
from lift.protocol.messages import GuardReply, GuardRequest
from lift.tasks.steps import TrainedRound
from lift.tasks.unconditional.decoder import FrozenDecoder
from lift.tasks.unconditional.drifting.loss import DriftingLoss
from lift.tasks.unconditional.drifting.release import FEWEST_PATIENTS, merge_small_cells, to_arrays
from lift.tasks.unconditional.drifting.statistics import Sums
from lift.tasks.unconditional.grid import BodyVolume, body_volume
from lift.tasks.unconditional.learning import (
    PatientFeatures,
    Trajectory,
    asks_verdict,
    features_of,
    noise_of,
    plan_mapper,
    samples_loss,
    sends_drifting,
    sends_moments,
    settings_of,
    split_gaussian,
    statistics_loss,
    sums_of,
    train_mapper_round,
)
from lift.tasks.unconditional.moments import (
    TrajectorySums,
    form_of,
    moments_to_arrays,
    patient_moments,
    trajectory,
)
from lift.tasks.unconditional.private.moments import release_moments
from lift.tasks.unconditional.private.statistics import release_sums
from lift.tasks.unconditional.public_gaussian import fallback_of
from lift.tasks.unconditional.verdict import content_of, verdict_on_mapper
from lift.wire.names import GAUSSIAN, MIXER, group, only
from lift_client.gate.check_received import received_gaussian, received_sums, received_values
from lift_client.tasks.data_version import data_version
from lift_client.tasks.paired import with_steps
from lift_client.tasks.work import Counts, StepReport

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Read:
    features: PatientFeatures
    trajectory: Tensor | None
    content: Floats | None
    slice_spacing_mm: float
    digests: tuple[str, ...]


class UnconditionalWork:
    """See :class:`lift_client.tasks.work.SiteWork`.

    Volumes are read, turned into features, and forgotten: what stays in memory is a few
    thousand numbers a patient.
    """

    def __init__(
        self,
        settings: SiteSettings,
        plan: Plan,
        decoder: FrozenDecoder,
        *,
        work: Path,
        report: Callable[[int, int], None] | None,
        begun: Split | None = None,
    ) -> None:
        self._plan = plan
        self._noise = noise_of(plan)
        gaussian = settings_of(plan).gaussian
        self._form = form_of(gaussian, decoder) if sends_moments(plan) else None
        self._public = None if self._form is None else fallback_of(plan, decoder, self._form)
        self._settings = settings
        self._decoder = decoder
        self._mapper = plan_mapper(plan, decoder)
        self._losses: dict[str, DriftingLoss] = {}
        usable = read_patients(settings, plan, self._read, report, begun=begun)
        self.split = usable.split(plan, settings.name, begun)
        if begun is None:
            # whoever is missing now may be back at the next start
            write_split(work / SPLIT_FILE, self.split)
        self.patients = usable.patients
        self.refusals = tuple(usable.refusals)
        self._content = usable.content
        digests = sorted(d for p in self.split.train for d in usable.content[p].digests)
        self._version = data_version(work, digests)

    @property
    def part(self) -> Trajectory:
        """See `SiteWork`."""
        return self._mapper

    @property
    def parts(self) -> dict[Part, list[Patient]]:
        """See `SiteWork`."""
        return parts_of(self.split, self.patients)

    @property
    def counts(self) -> Counts:
        """See `SiteWork`."""
        return Counts(
            len(subjects_of(self.split.train, self.patients)),
            len(subjects_of(self.split.validation, self.patients)),
            len(subjects_of(self.split.test, self.patients)),
            len(self.refusals),
            tuple(self._content[p].slice_spacing_mm for p in sorted(self._content)),
            self._version,
        )

    @property
    def train_features(self) -> list[PatientFeatures]:
        """Of each training patient, several volumes of one subject together."""
        return [
            PatientFeatures(
                tuple(
                    torch.cat(rows)
                    for rows in zip(*(one.features.groups for one in found), strict=True)
                )
            )
            for found in self._by_subject()
        ]

    def moments(self) -> TrajectorySums | None:
        """Moments of the training patients' trajectories; None where the plan has no Gaussian."""
        if self._form is None:
            return None
        total = TrajectorySums.zero(self._form)
        for volumes in self._trajectories():
            total = total + patient_moments(volumes, self._form)
        return total

    def _trajectories(self) -> list[list[Tensor]]:
        """Of the volumes of each training patient."""
        return [
            [one.trajectory for one in found if one.trajectory is not None]
            for found in self._by_subject()
        ]

    def _by_subject(self) -> list[list[_Read]]:
        """The volumes of each training patient."""
        found: dict[str, list[_Read]] = {}
        for patient in self.split.train:
            found.setdefault(self.patients[patient].subject, []).append(self._content[patient])
        return [volumes for _, volumes in sorted(found.items())]

    def sums(self) -> Sums:
        """The statistics of the training patients, nothing merged: they stay here."""
        private = self._noise is not None
        return sums_of(self.train_features, self._decoder.public, one_by_one=private)

    def statistics(self) -> dict[str, np.ndarray]:
        """The statistics that may leave: moments of trajectories, and what the drifting loss takes
        where there are rounds. None from fewer than five patients, unless noise protects them.
        """
        return self._moment_arrays() | self._drifting_arrays()

    def _moment_arrays(self) -> dict[str, np.ndarray]:
        if self._form is None:
            return {}
        if self._noise is not None:
            public = self._noise.patients_of(self._settings.name)
            noisy = release_moments(
                self._trajectories(), self._form, self._noise, public, SecureStream(), self._public
            )
            return dict(moments_to_arrays(noisy, noisy=True))
        moments = self.moments()
        if moments is None:
            return {}
        if moments.patients < self._form.fewest:
            self._warn_of_few(self._form.fewest)
            return {}
        return dict(moments_to_arrays(moments))

    def _warn_of_few(self, fewest: int) -> None:
        logger.warning(
            "event=statistics_not_sent site=%s reason=fewer_than_%d_training_patients",
            self._settings.name,
            fewest,
        )

    def _drifting_arrays(self) -> dict[str, np.ndarray]:
        if not sends_drifting(self._plan):
            return {}
        sums = self.sums()
        projection = self._decoder.public.projection
        if self._noise is not None:
            # also from no patient at all: whether a site sends must tell nothing
            public = self._noise.patients_of(self._settings.name)
            noisy = release_sums(sums, projection, self._noise, public, SecureStream())
            return to_arrays(noisy, data_version=0)
        if sums.patients < FEWEST_PATIENTS:
            self._warn_of_few(FEWEST_PATIENTS)
            return {}
        merged = merge_small_cells(sums, projection)
        return to_arrays(merged, data_version=self._version)

    def start(self) -> dict[str, Tensor]:
        """See `SiteWork`."""
        return plan_mapper(self._plan, self._decoder).values()

    def train(
        self,
        start: dict[str, Tensor],
        shared: Mapping[str, np.ndarray],
        *,
        round_index: int,
        steps: int | None = None,
        report: StepReport | None = None,
    ) -> TrainedRound:
        """See `SiteWork`."""
        arrays = {name: torch.from_numpy(array) for name, array in shared.items()}
        gaussian, _ = split_gaussian(arrays)
        if isinstance(self._mapper, GaussianTrajectory):
            self._mapper.load_gaussian(gaussian)
        return train_mapper_round(
            self._mapper,
            start,
            self._decoder,
            self._loss(shared, alone=steps is not None),
            with_steps(self._plan, steps),
            round_index=round_index,
            site=self._settings.name,
            report=report,
        )

    def validation_psnr_db(
        self, values: dict[str, Tensor], shared: Mapping[str, np.ndarray]
    ) -> float | None:
        """None: a new volume has no target."""
        del values, shared
        return None

    def guard(self, body: GuardRequest, tensors: Mapping[str, np.ndarray]) -> GuardReply:
        """Whether the mapper's new volumes are harder to tell from this site's own than those of
        the Gaussian below it: one volume of each training and validation patient is looked at.

        The verdict alone leaves: no AUC, and no number of patients.
        """
        if not asks_verdict(self._plan) or not isinstance(self._mapper, GaussianTrajectory):
            raise ProtocolError(
                "the server asks for a verdict that this plan does not have",
                seen=f"guard, {len(tensors)} tensors, plan {body.plan_digest[:12]}...",
                remedy="Nothing was computed. Check that both sides run the same version.",
            )
        verdict = verdict_on_mapper(
            self._plan,
            self._decoder,
            received_gaussian(only(tensors, GAUSSIAN), self._mapper),
            received_values(group(tensors, MIXER), self._mapper),
            self.judged(),
            site=self._settings.name,
        )
        return GuardReply(
            plan_digest=body.plan_digest, verdict=verdict, judged_on="validation_and_training"
        )

    def gain(self, values: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """ValueError: new volumes have no target that they could be nearer to."""
        del values
        raise ValueError("the plan does not pay for a gain")

    def keep_final(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Nothing: the site's own commands are those of a paired task."""
        del tensors

    def judged(self) -> list[Floats]:
        """The content of one volume of each training and validation patient, in their order."""
        found: dict[str, Floats] = {}
        for patient in sorted((*self.split.train, *self.split.validation)):
            content = self._content[patient].content
            if content is not None:
                found.setdefault(self.patients[patient].subject, content)
        return [content for _, content in sorted(found.items())]

    def body(self, patient: str) -> BodyVolume:
        """One patient's volume, read again from its files."""
        return self._body(self.patients[patient])

    def prepared(self, patient: str) -> Prepared:
        """One patient prepared again from its files."""
        files = self.patients[patient]
        return prepare(files, self._plan, root=self._settings.data.root, with_target=False)

    def _read(self, patient: Patient) -> _Read:
        digests = file_digests(patient, self._plan, self._settings.data.root)
        body = self._body(patient)
        features = features_of([body], self._decoder.public)
        own = None if self._form is None else trajectory(body, self._decoder, self._form)
        _check_finite([*features.groups, *([] if own is None else [own])])
        content = content_of(body, self._plan) if asks_verdict(self._plan) else None
        return _Read(features, own, content, body.spacing_mm[0], digests)

    def _body(self, patient: Patient) -> BodyVolume:
        prepared = prepare(patient, self._plan, root=self._settings.data.root, with_target=False)
        layout = self._decoder.public.projection.layout
        return body_volume(prepared, self._decoder.card.network, layout, patient.id)

    def _loss(self, shared: Mapping[str, np.ndarray], *, alone: bool) -> DriftingLoss:
        """Against the sums that came, or the site's own samples; made once.

        Args:
            shared: the total over all sites.
            alone: for a dry run, before there is a total: the site's own sums.
        """
        key = hashlib.sha256()
        for name in sorted(shared):
            key.update(name.encode() + shared[name].tobytes())
        digest = key.hexdigest()
        if digest not in self._losses:
            public = self._decoder.public
            if settings_of(self._plan).attraction == "samples":
                loss = samples_loss(self._plan, public, self.train_features)
            else:
                total = self.sums() if alone and not shared else received_sums(shared, public)
                loss = statistics_loss(self._plan, public, total)
            self._losses = {digest: loss}
        return self._losses[digest]


def _check_finite(numbers: Sequence[Tensor]) -> None:
    # of this patient alone: were it found in the sums, the whole site would refuse, and tell so
    if not all(bool(one.isfinite().all()) for one in numbers):
        raise VolumeError(
            "cannot use a volume",
            seen="features or latents that hold NaN or infinity",
            remedy="Nothing was sent of it. Check the patient's volume, or leave it out.",
        )
