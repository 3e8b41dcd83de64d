"""A site's side of the federation: requests in, counts, sums and updates out.

The session keeps nothing between rounds that a result depends on: killed and started again
it computes the same answers. A failure leaves as its class alone; the text, with its paths
and names, stays in the site's log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import numpy as np
import torch
from torch import Tensor

from lift.assembly import plan_mixer
from lift.config.plan import Plan
from lift.config.site import SiteSettings
from lift.device import fix_threads, resolve_device
from lift.errors import (
    ConfigError,
    DataError,
    GeneratorError,
    LiftError,
    NonFiniteUpdateError,
    PolicyError,
    PrivacyError,
    ProtocolError,
    VersionMismatchError,
)
from lift.evaluation import filtered, mixed, patient_equations, patient_psnr_db
from lift.files import write_atomically
from lift.generator.networks import FrozenGenerator
from lift.guard import hf_share
from lift.metrics.intervals import bootstrap_mean
from lift.metrics.table import guard_verdict
from lift.mixer.base import Mixer
from lift.mixer.z_filter import NormalEquations
from lift.protocol.messages import (
    DifferenceDb,
    Failure,
    FailureKind,
    GuardReply,
    GuardRequest,
    Kind,
    Parcel,
    StatisticsReply,
    StatisticsRequest,
    TrainReply,
    TrainRequest,
)
from lift.randomness import derive_seed
from lift.training import draw_batches, train_round
from lift.update import difference, is_finite
from lift_client.cohort import SiteCohort, open_cohort

logger = logging.getLogger(__name__)
_FEWEST_CURVE_PATIENTS = 2
_CURVE_WINDOWS = 8
_DRY_STEPS = 2
_LONGEST_ROUND_S = 86_400.0
_FAILURES: tuple[tuple[type[LiftError], FailureKind], ...] = (
    (GeneratorError, FailureKind.POLICY),
    (DataError, FailureKind.DATA),
    (ConfigError, FailureKind.CONFIG),
    (PolicyError, FailureKind.POLICY),
    (NonFiniteUpdateError, FailureKind.NOT_FINITE),
    (PrivacyError, FailureKind.PRIVACY),
    (VersionMismatchError, FailureKind.VERSION),
    (ProtocolError, FailureKind.PROTOCOL),
)
StepReport = Callable[[str, int, int], None]


@dataclass(frozen=True)
class _Opened:
    plan: Plan
    cohort: SiteCohort
    mixer: Mixer
    z_filter_sums: NormalEquations


class SiteSession:
    """Answers the server's requests for one site.

    Args:
        settings: the site's settings.
        generator: the frozen generator that this site has approved.
        work: the site's folder for plan, split, log and cache.
        report: called with what is being done, the steps done and their number.
    """

    def __init__(
        self,
        settings: SiteSettings,
        generator: FrozenGenerator,
        work: Path,
        *,
        report: StepReport | None = None,
    ) -> None:
        self.settings = settings
        self._generator = generator
        self._work = work
        self._report = report
        self._device = resolve_device(settings.device)
        self._opened: dict[str, _Opened] = {}

    def handle(self, request: Parcel) -> Parcel | Failure:
        """The answer to one request; it never raises."""
        began = monotonic()
        outcome = self._answer(request)
        logger.info(
            "event=answered site=%s kind=%s outcome=%s seconds=%.3f",
            self.settings.name,
            request.kind.value,
            "failure" if isinstance(outcome, Failure) else "reply",
            monotonic() - began,
        )
        return outcome

    def _answer(self, request: Parcel) -> Parcel | Failure:
        try:
            body = request.body
            if isinstance(body, StatisticsRequest):
                return self._statistics(body.plan)
            if isinstance(body, TrainRequest):
                return self._train(body, request.tensors)
            if isinstance(body, GuardRequest):
                return self._guard(body, request.tensors)
        except LiftError as error:
            # no traceback: the message is the operator's, and names what to do
            logger.error(  # noqa: TRY400
                "event=request_refused site=%s %s", self.settings.name, error
            )
            return Failure(failure_kind(error))
        except Exception:
            logger.exception("event=request_failed site=%s", self.settings.name)
            return Failure(FailureKind.INTERNAL)
        return Failure(FailureKind.PROTOCOL)

    def cohort(self, plan: Plan) -> SiteCohort:
        """The site's cohort under a plan (for the site's own reports and the simulation)."""
        return self._open(plan).cohort

    def z_filter_sums(self, plan: Plan) -> NormalEquations:
        """The z-filter's normal equations over the site's training patients."""
        return self._open(plan).z_filter_sums

    def _open(self, plan: Plan) -> _Opened:
        digest = plan.digest()
        if digest not in self._opened:
            if plan.generator_fingerprint != self._generator.fingerprint:
                raise GeneratorError(
                    "the plan names another generator than this site has",
                    where="generator_fingerprint",
                    seen=f"plan {str(plan.generator_fingerprint)[:12]}..., "
                    f"here {self._generator.fingerprint[:12]}...",
                    remedy="Nothing was computed. Install the bundle that belongs to this plan.",
                )
            fix_threads(plan.threads)
            mixer = plan_mixer(plan, self._generator)
            cohort = open_cohort(
                self.settings,
                plan,
                self._generator,
                mixer,
                work=self._work,
                device=self._device,
                report=self._step("features"),
            )
            sums = NormalEquations.zero()
            for features in cohort.part("train"):
                sums = sums + patient_equations(features)
            write_atomically(self._work / "plan.json", plan.canonical_json().encode())
            self._opened[digest] = _Opened(plan, cohort, mixer, sums)
        return self._opened[digest]

    def _find(self, plan_digest: str) -> _Opened:
        if plan_digest not in self._opened:
            stored = self._work / "plan.json"
            if stored.is_file():
                plan = Plan.model_validate_json(stored.read_bytes())
                if plan.digest() == plan_digest:
                    return self._open(plan)
            raise ProtocolError(
                "a request belongs to a plan that this site has not seen",
                seen=f"plan {plan_digest[:12]}...",
                remedy="The server sends the plan with round 0; run the federation again.",
            )
        return self._opened[plan_digest]

    def _statistics(self, plan: Plan) -> Parcel:
        opened = self._open(plan)
        cohort, spacings = opened.cohort, opened.cohort.slice_spacings_mm
        a, b = opened.z_filter_sums.to_fixed_point()
        step = plan.federation.patient_count_step

        def rounded(patients: int) -> int:
            return -(-patients // step) * step

        reply = StatisticsReply(
            plan_digest=plan.digest(),
            train_patients=rounded(len(cohort.split.train)),
            validation_patients=rounded(len(cohort.split.validation)),
            test_patients=rounded(len(cohort.split.test)),
            refused_volumes=rounded(len(cohort.refusals)),
            lowest_slice_spacing_mm=round(min(spacings), 2),
            highest_slice_spacing_mm=round(max(spacings), 2),
            round_estimate_s=self._round_estimate_s(opened),
        )
        return Parcel(Kind.STATISTICS, reply, {"z_filter_a": a.numpy(), "z_filter_b": b.numpy()})

    def _round_estimate_s(self, opened: _Opened) -> float:
        """Seconds of a round here, from a few steps on throw-away numbers; 0 if nobody asks."""
        plan = opened.plan
        if plan.federation.deadline_s is not None or not opened.cohort.split.train:
            return 0.0
        short = plan.model_copy(
            update={"training": plan.training.model_copy(update={"steps": _DRY_STEPS})}
        )
        began = monotonic()
        train_round(
            opened.mixer,
            plan_mixer(plan, self._generator).values(),
            opened.cohort.part("train"),
            short,
            round_index=1,
            site=self.settings.name,
            device=self._device,
        )
        estimate = (monotonic() - began) / _DRY_STEPS * plan.training.steps
        return round(min(estimate, _LONGEST_ROUND_S), 1)

    def _train(self, body: TrainRequest, tensors: Mapping[str, np.ndarray]) -> Parcel:
        opened = self._find(body.plan_digest)
        plan = opened.plan
        fix_threads(plan.threads)
        start = _received(tensors, opened.mixer)
        validation = self._validation_psnr_db(opened, start)
        steps = plan.training.steps
        report = self._step(f"round {body.round}")
        trained = train_round(
            opened.mixer,
            start,
            opened.cohort.part("train"),
            plan,
            round_index=body.round,
            site=self.settings.name,
            device=self._device,
            report=None if report is None else lambda step, _: report(step, steps),
        )
        update = difference(trained.values, start)
        half = plan.federation.update_dtype == "float16"
        sent = {name: t.half() if half else t for name, t in update.items()}
        if not is_finite(sent):
            raise NonFiniteUpdateError(
                "the update does not fit half precision",
                seen="a number is larger than 65504",
                remedy="Nothing was sent. Use federation.update_dtype: float32.",
            )
        reply = TrainReply(
            plan_digest=body.plan_digest,
            round=body.round,
            loss=trained.loss,
            validation_psnr_db=validation,
        )
        return Parcel(Kind.TRAIN, reply, {name: t.numpy() for name, t in sent.items()})

    def _validation_psnr_db(self, opened: _Opened, values: dict[str, Tensor]) -> float | None:
        """Of the received mixer, over the same windows of the validation patients each round.

        For the curve alone. It leaves the site, so one patient's figure is never given: None
        below two validation patients.
        """
        patients = opened.cohort.part("validation")
        if len(patients) < _FEWEST_CURVE_PATIENTS:
            return None
        opened.mixer.load_values(values)
        plan = opened.plan
        count = max(_CURVE_WINDOWS, len(patients))
        settings = plan.training.model_copy(update={"patients_per_step": count})
        seed = (plan.seed, 0, f"{self.settings.name}/validation", 0)
        squares = voxels = 0.0
        with torch.no_grad():
            for batch in draw_batches(opened.mixer, patients, settings, seed, self._device):
                error = (opened.mixer(batch.inputs) - batch.target) * batch.inputs.mask
                squares += float(error.double().square().sum())
                voxels += float(batch.inputs.mask.sum())
        return float(-10 * np.log10(max(squares / voxels, 1e-14))) if voxels else None

    def _guard(self, body: GuardRequest, tensors: Mapping[str, np.ndarray]) -> Parcel:
        opened = self._find(body.plan_digest)
        fix_threads(opened.plan.threads)
        values = {
            name.removeprefix("mixer/"): array
            for name, array in tensors.items()
            if name.startswith("mixer/")
        }
        taps = tensors.get("z_filter/taps")
        if taps is None or taps.shape != (6,):
            raise ProtocolError(
                "cannot read a message",
                seen="the z-filter's six taps are missing",
                remedy="Check that both sides run the same version.",
            )
        opened.mixer.load_values(_received(values, opened.mixer))
        filter_taps = torch.from_numpy(np.array(taps, dtype=np.float64))
        gains, over_filter, shares = [], [], []
        for features in opened.cohort.part("validation"):
            with_mixer = patient_psnr_db(features, mixed(opened.mixer, features, self._device))
            gains.append(with_mixer - patient_psnr_db(features, features.pred))
            over_filter.append(
                with_mixer - patient_psnr_db(features, filtered(features, filter_taps))
            )
            share = hf_share(features.source, features.mask)
            if share is not None:
                shares.append(share)
        seed = derive_seed(opened.plan.seed, "guard")
        reply = GuardReply(
            plan_digest=body.plan_digest,
            verdict=guard_verdict(gains, seed=seed),
            against_no_mixer=_difference(gains, seed),
            against_z_filter=_difference(over_filter, seed),
            lowest_hf_share=round(min(shares), 4) if shares else None,
            highest_hf_share=round(max(shares), 4) if shares else None,
        )
        return Parcel(Kind.GUARD, reply)

    def _step(self, what: str) -> Callable[[int, int], None] | None:
        report = self._report
        if report is None:
            return None
        return lambda done, total: report(f"{self.settings.name}: {what}", done, total)


def _difference(values: list[float], seed: int) -> DifferenceDb | None:
    if not values:
        return None
    found = bootstrap_mean(values, seed=seed)
    return DifferenceDb(value=found.value, low=found.low, high=found.high, n=found.n)


def _received(tensors: Mapping[str, np.ndarray], mixer: Mixer) -> dict[str, Tensor]:
    """The mixer that came with a request, checked against this site's own form of it."""
    values = {name: torch.from_numpy(np.array(array)) for name, array in tensors.items()}
    try:
        mixer.load_values(values)
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


def failure_kind(error: LiftError) -> FailureKind:
    """The class of an error: all that the server may know of it."""
    for kind, failure in _FAILURES:
        if isinstance(error, kind):
            return failure
    return FailureKind.INTERNAL
