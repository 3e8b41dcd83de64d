"""A site's work on a paired task: sums of z-filter and curves, mixer rounds, the guard."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import torch
from torch import Tensor

from lift.cohort.patients import Patient
from lift.cohort.split import FEWEST_VALIDATION, Part, Split, parts_of
from lift.config.plan import Plan
from lift.config.privacy import PatientGradients
from lift.config.site import SiteSettings
from lift.device import AtOnce
from lift.errors import ConfigError, LiftError, ProtocolError
from lift.generator.features import Features
from lift.generator.networks import FrozenGenerator
from lift.guard import OPTIMISM_DB, JudgedOn
from lift.metrics.hf_share import hf_share
from lift.metrics.intervals import bootstrap_mean
from lift.metrics.table import guard_verdict
from lift.mixer.base import Mixer
from lift.mixer.curves import ChosenCurves, CurveEquations
from lift.mixer.finished import FINAL_MIXER_FILE, FinishedMixer, write_mixer
from lift.mixer.z_filter import NormalEquations
from lift.one_patient import of_one_patient
from lift.privacy.gain import release_gain
from lift.privacy.noise import SecureStream
from lift.protocol.messages import DifferenceDb, GuardReply, GuardRequest
from lift.randomness import derive_seed
from lift.tasks.paired.building import plan_mixer
from lift.tasks.paired.choice import USES, Choice, choose
from lift.tasks.paired.contrast import (
    CURVES_FILE,
    SiteContrast,
    others_of,
    own_curves_view,
    to_arrays,
    write_site_curves,
)
from lift.tasks.paired.predictions import (
    mixed,
    patient_equations,
    patient_psnr_db,
    site_contrast,
    sum_of_equations,
    volumes_of_uses,
)
from lift.tasks.paired.private.start import patient_equations_of, release_equations
from lift.tasks.paired.private.training import clipped_sum, train_round_privately
from lift.tasks.paired.site_cohort import open_cohort
from lift.tasks.paired.training import draw_batches, train_round
from lift.tasks.steps import TrainedRound
from lift.wire.names import GAIN_SUMS, MIXER, TAPS, Z_FILTER_SUMS, group
from lift_client.gate.check_received import received_values
from lift_client.tasks.work import Counts, SiteWork, StepReport

logger = logging.getLogger(__name__)
_FEWEST_CURVE_PATIENTS: Final = 2
_CURVE_WINDOWS: Final = 8


class GivesWork(Protocol):
    """Provides the site's work under a plan: a session."""

    def work(self, plan: Plan) -> SiteWork:
        """The site's side of the plan's task."""
        ...


class PairedWork:
    """See :class:`lift_client.tasks.work.SiteWork`."""

    def __init__(
        self,
        settings: SiteSettings,
        plan: Plan,
        generator: FrozenGenerator,
        *,
        work: Path,
        report: Callable[[int, int], None] | None,
        begun: Split | None = None,
    ) -> None:
        self._plan = plan
        self._privacy = plan.privacy if isinstance(plan.privacy, PatientGradients) else None
        self._stream = SecureStream()
        self._site = settings.name
        self._generator = generator
        self._mixer = plan_mixer(plan, generator)
        self._work = work
        self.cohort = open_cohort(
            settings, plan, generator, self._mixer, work=work, report=report, begun=begun
        )
        self.contrast: SiteContrast | None = None
        if plan.mixer.contrast != "none":
            affine = plan.mixer.contrast == "affine"
            private = plan.protects_patients
            self.contrast = site_contrast(self.cohort, affine=affine, one_by_one=private)
            self.cohort = self.cohort.seen_in_training(self._seen(self.contrast))

    @cached_property
    def z_filter_sums(self) -> NormalEquations:
        """Return the exact z-filter equations of the training patients. Under noise they stay."""
        return sum_of_equations(self.cohort.by_person("train"))

    def _seen(self, contrast: SiteContrast) -> dict[str, list[Features]]:
        """The training patients under their own curves; under noise one whose curves fail as is."""
        persons = self.cohort.persons("train")
        if self._privacy is None:
            return own_curves_view(persons, contrast)
        seen = {}
        for name, volumes in persons.items():
            own = of_one_patient(partial(own_curves_view, {name: volumes}, contrast))
            seen[name] = volumes if own is None else own[name]
        return seen

    @property
    def part(self) -> Mixer:
        """See `SiteWork`."""
        return self._mixer

    @property
    def train_patients(self) -> list[list[Features]]:
        """The training patients, each with all its volumes: the unit of privacy."""
        return list(self.cohort.persons("train").values())

    @property
    def parts(self) -> dict[Part, list[Patient]]:
        """See `SiteWork`."""
        return parts_of(self.cohort.split, self.cohort.patients)

    @property
    def counts(self) -> Counts:
        """See `SiteWork`."""
        return Counts(
            len(self.cohort.subjects("train")),
            len(self.cohort.subjects("validation")),
            len(self.cohort.subjects("test")),
            len(self.cohort.refusals),
            tuple(self.cohort.slice_spacings_mm),
        )

    def curves(
        self, shared: Mapping[str, np.ndarray], *, without: Collection[str] = ()
    ) -> ChosenCurves:
        """This site's curves, shrunk toward the other sites' sums; no curves where none are asked.

        Args:
            shared: what all sites together know, as the server sent it.
            without: patients who are left out.

        Raises:
            ProtocolError: those sums are of another form.
        """
        if self.contrast is None:
            return ChosenCurves(None, None, {})
        try:
            others = others_of(shared, self._shared_curves, len(self._plan.task.source))
        except ValueError as error:
            raise ProtocolError(
                "cannot read a message",
                seen=str(error),
                remedy="Nothing was computed. Check that both sides run the same version.",
            ) from None
        return self.contrast.chosen(others, without=without)

    @property
    def _shared_curves(self) -> CurveEquations | None:
        """What this site has shared: nothing under privacy, or of too few patients."""
        if self.contrast is None or self._privacy is not None:
            return None
        return self.contrast.shared(rounded_up(len(self.cohort.subjects("train")), self._plan))

    def statistics(self) -> dict[str, np.ndarray]:
        """The normal equations of z-filter and curves; under privacy the z-filter's alone,
        clipped and noisy, or none at all.
        """
        if self._privacy is None:
            sums = self.z_filter_sums
        elif self._privacy.start is None:
            return {}
        else:
            by_patient = [
                of_one_patient(partial(_equations_of, volumes)) for volumes in self.train_patients
            ]
            added = [equations for equations in by_patient if equations is not None]
            sums = release_equations(added, self._privacy.start, self._stream)
        own = [part.numpy() for part in sums.to_fixed_point()]
        return dict(zip(Z_FILTER_SUMS, own, strict=True)) | to_arrays(self._shared_curves)

    def start(self) -> dict[str, Tensor]:
        """See `SiteWork`."""
        return plan_mixer(self._plan, self._generator).values()

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
        del shared  # the mixer started from the shared z-filter already
        plan = with_steps(self._plan, steps)
        if self._privacy is None:
            return train_round(
                self._mixer,
                start,
                self.cohort.by_person("train"),
                plan,
                round_index=round_index,
                site=self._site,
                report=report,
            )
        if self._privacy.mode == "patient-central":
            sums = clipped_sum(
                self._mixer,
                start,
                self.train_patients,
                plan,
                self._privacy,
                stream=self._stream,
            )
            return TrainedRound(start, None, sums)
        return train_round_privately(
            self._mixer,
            start,
            self.train_patients,
            plan,
            self._privacy,
            round_index=round_index,
            site=self._site,
            stream=self._stream,
            report=report,
        )

    def validation_psnr_db(
        self, values: dict[str, Tensor], shared: Mapping[str, np.ndarray]
    ) -> float | None:
        """Of the received mixer, over the same windows of the validation patients each round.

        They are seen with the site's curves, to which they belong.

        For the curve alone. It leaves the site, so one patient's figure is never given: None
        below two validation patients, and under differential privacy.
        """
        persons = self.cohort.by_person("validation")
        if self._privacy is not None or len(persons) < _FEWEST_CURVE_PATIENTS:
            return None
        curves = self.curves(shared).curves
        patients = [[features.seen_with(curves) for features in person] for person in persons]
        self._mixer.load_values(values)
        plan = self._plan
        count = max(_CURVE_WINDOWS, len(patients))
        settings = plan.training.model_copy(update={"patients_per_step": count})
        seed = (plan.seed, 0, f"{self._site}/validation", 0)

        @torch.no_grad()
        def sums(at_once: int) -> tuple[float, float]:
            squares = voxels = 0.0
            for batch in draw_batches(self._mixer, patients, settings, seed, at_once=at_once):
                error = (self._mixer(batch.inputs) - batch.target) * batch.inputs.mask
                squares += float(error.double().square().sum())
                voxels += float(batch.inputs.mask.sum())
            return squares, voxels

        squares, voxels = AtOnce(count, self._mixer.device).attempt(sums)
        return float(-10 * np.log10(max(squares / voxels, 1e-14))) if voxels else None

    def guard(self, body: GuardRequest, tensors: Mapping[str, np.ndarray]) -> GuardReply:
        """See `SiteWork`."""
        values = group(tensors, MIXER)
        taps = tensors.get(TAPS)
        if taps is None or taps.shape != (6,):
            raise ProtocolError(
                "cannot read a message",
                seen="the z-filter's six taps are missing",
                remedy="Check that both sides run the same version.",
            )
        self._mixer.load_values(received_values(values, self._mixer))
        filter_taps = torch.from_numpy(np.array(taps, dtype=np.float64))
        by_person: dict[str, list[dict[str, float]]] = {}
        chosen_on: dict[str, list[dict[str, float]]] = {}
        shares = []
        judged_on, judged = self._judged()
        held_out = set(self.cohort.split.validation)
        left_out = {
            subject: self.curves(tensors, without={subject}).curves
            for subject in sorted({self.cohort.patients[patient].subject for patient in judged})
        }
        for patient in judged:
            # curves that this patient had no part in
            person = self.cohort.patients[patient].subject
            curves = left_out[person]
            features = self.cohort.features[patient].seen_with(curves)
            psnr_db = {
                name: patient_psnr_db(features, volume)
                for name, volume in volumes_of_uses(features, self._mixer, filter_taps).items()
            }
            by_person.setdefault(person, []).append(psnr_db)
            if patient not in held_out:
                # a site chooses on patients that no mixer has seen
                continue
            chosen_on.setdefault(person, []).append(psnr_db)
            share = hf_share(features.source, features.mask)
            if share is not None:
                shares.append(share)
        people = [_mean_of(volumes) for volumes in by_person.values()]
        gains = [one["mixer"] - one["no_mixer"] for one in people]
        over_filter = [one["mixer"] - one["z_filter"] for one in people]
        judges = [_mean_of(volumes) for volumes in chosen_on.values()]
        figures = {use.name: [one[use.name] for one in judges] for use in USES}
        self._keep_model(tensors, choose(figures, otherwise="mixer"))
        seed = derive_seed(self._plan.seed, "guard")
        if len(self.cohort.persons("validation")) < FEWEST_VALIDATION:
            shares = []
        if len(left_out) < FEWEST_VALIDATION:
            # one patient's own figure never leaves
            gains, over_filter = [], []
        margin_db = 0.0 if judged_on == "validation" else OPTIMISM_DB
        return GuardReply(
            plan_digest=body.plan_digest,
            verdict=guard_verdict(gains, seed=seed, margin_db=margin_db),
            judged_on=judged_on,
            against_no_mixer=_difference(gains, seed, self._plan),
            against_z_filter=_difference(over_filter, seed, self._plan),
            lowest_hf_share=round(min(shares), 4) if shares else None,
            highest_hf_share=round(max(shares), 4) if shares else None,
        )

    def keep_final(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Store the mixer that was just evaluated, for the site's own report."""
        numbers = {name: torch.from_numpy(np.array(array)) for name, array in tensors.items()}
        taps = numbers[TAPS].double()
        finished = FinishedMixer(group(numbers, MIXER), taps, self._plan, (), phantom=False)
        try:
            write_mixer(self._work / FINAL_MIXER_FILE, finished)
        except OSError as error:
            # the verdict is what the federation waits for
            logger.warning("event=final_mixer_not_kept reason=%s", error.strerror)

    def site_curves(
        self, shared: Mapping[str, Tensor], *, without: Collection[str] = ()
    ) -> Tensor | None:
        """The curves that this site uses with what all sites together know; see :meth:`curves`."""
        arrays = {name: tensor.numpy() for name, tensor in shared.items()}
        return self.curves(arrays, without=without).curves

    def gain(self, values: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Return the noisy sums of a mixer's gain over no mixer, over validation patients.

        Each gain follows from this patient and the mixer alone; a patient whose gain cannot be
        computed adds nothing. The result is always two numbers.

        Args:
            values: the finished mixer.

        Raises:
            ValueError: the plan has no such release.
        """
        if self._privacy is None or self._privacy.gain is None:
            raise ValueError("the plan does not pay for a gain")
        self._mixer.load_values(dict(values))
        gains = [self._gain_of(volumes) for volumes in self.cohort.by_person("validation")]
        return {GAIN_SUMS: release_gain(gains, self._privacy.gain, self._stream)}

    def _gain_of(self, volumes: Sequence[Features]) -> float:
        try:
            differences = [
                patient_psnr_db(volume, mixed(self._mixer, volume))
                - patient_psnr_db(volume, volume.pred)
                for volume in volumes
            ]
        except (LiftError, ValueError) as error:
            # the failure depends on this patient, so nothing outside may show it
            logger.warning("event=gain_left_out site=%s reason=%s", self._site, error)
            return math.nan
        return sum(differences) / len(differences)

    def _judged(self) -> tuple[JudgedOn, tuple[str, ...]]:
        """The patients on which the mixer is judged, training patients too if others are too few.

        Not for patient-level privacy: nothing about a training patient may leave without noise.
        Nor without curves, which are fitted without the judged patient: a mixer that learns the
        contrast too has learned that patient's.
        """
        split = self.cohort.split
        enough = len(self.cohort.persons("validation")) >= FEWEST_VALIDATION
        trusted = self.contrast is not None and not self._plan.protects_patients
        if enough or not trusted or not split.train:
            return "validation", split.validation
        return "validation_and_training", (*split.validation, *split.train)

    def _keep_model(self, shared: Mapping[str, np.ndarray], choice: Choice) -> None:
        """The site's curves and what it uses stay here, for its own translations."""
        logger.info("event=chosen site=%s use=%s", self._site, choice.method.replace(" ", ""))
        if self.contrast is None:
            return
        use = next(use for use in USES if use.name == choice.method)
        path = self._work / CURVES_FILE
        try:
            write_site_curves(path, self.curves(shared), use, shared, self._plan)
        except OSError as error:
            # the verdict is what the federation waits for
            logger.warning("event=curves_not_kept reason=%s", error.strerror)


def paired_work(session: GivesWork, plan: Plan) -> PairedWork:
    """The site's work under a paired plan.

    Raises:
        ConfigError: the plan is that of another task.
    """
    work = session.work(plan)
    if not isinstance(work, PairedWork):
        raise ConfigError(
            "a paired plan is needed",
            where="task.kind",
            seen=plan.task.kind,
            remedy="Nothing was computed. Give the plan of a paired task.",
        )
    return work


def rounded_up(patients: int, plan: Plan) -> int:
    """A number of patients as a site reports it: a multiple of `federation.patient_count_step`."""
    step = plan.federation.patient_count_step
    return -(-patients // step) * step


def with_steps(plan: Plan, steps: int | None) -> Plan:
    """Return the plan with another number of steps per round. None: unchanged."""
    if steps is None:
        return plan
    training = plan.training.model_copy(update={"steps": steps})
    return plan.model_copy(update={"training": training})


def _equations_of(volumes: Sequence[Features]) -> NormalEquations:
    """One patient's equations of the z-filter."""
    return patient_equations_of([patient_equations(volume) for volume in volumes])


def _mean_of(volumes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """A person's figures: the mean over the person's volumes."""
    return {name: sum(one[name] for one in volumes) / len(volumes) for name in volumes[0]}


def _difference(values: list[float], seed: int, plan: Plan) -> DifferenceDb | None:
    if not values:
        return None
    found = bootstrap_mean(values, seed=seed)
    n = rounded_up(found.n, plan)
    return DifferenceDb(value=found.value, low=found.low, high=found.high, n=n)
