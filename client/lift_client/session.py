"""A site's side of the federation: requests in, counts, sums and updates out.

The session keeps nothing between rounds that a result depends on: killed and started again
it computes the same answers. A failure leaves as its class alone; the text, with its paths
and names, stays in the site's log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

import numpy as np
import torch
from torch import Tensor

from lift.cohort.split import SPLIT_FILE, Split, read_split
from lift.config.plan import Plan
from lift.config.privacy import PatientGradients, StatisticsOnce
from lift.config.site import SiteSettings
from lift.device import busy_notice, fix_threads, memory_error
from lift.errors import (
    BudgetSpentError,
    ConfigError,
    DataError,
    DiskError,
    GeneratorError,
    LiftError,
    NonFiniteUpdateError,
    PolicyError,
    PrivacyError,
    ProtocolError,
    RecordError,
    VersionMismatchError,
)
from lift.files import NO_ROOM
from lift.generator.base import Generator
from lift.mixer.update import difference, is_finite
from lift.privacy.costs import GAIN, START, STATISTICS, STEPS, planned_releases
from lift.protocol.messages import (
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
from lift.tasks.answers import answer_forms
from lift.tasks.registry import task_of
from lift.tasks.steps import TrainedRound
from lift.wire.gain import asks_gain
from lift.wire.names import MIXER, SHARED, group, without
from lift_client.check.data_card import shared_card
from lift_client.check.data_watch import DataWatch
from lift_client.gate.budget import Budget, described
from lift_client.gate.check_received import received_values
from lift_client.gate.patients_used import note_used
from lift_client.gate.stored_plan import store_plan, stored_plan
from lift_client.tasks.paired import rounded_up
from lift_client.tasks.registry import open_work
from lift_client.tasks.work import SiteWork

logger = logging.getLogger(__name__)
_DRY_STEPS = 2
_LONGEST_ROUND_S = 86_400.0
_FAILURES: tuple[tuple[type[LiftError], FailureKind], ...] = (
    (GeneratorError, FailureKind.POLICY),
    (DiskError, FailureKind.DISK),
    (DataError, FailureKind.DATA),
    (ConfigError, FailureKind.CONFIG),
    (PolicyError, FailureKind.POLICY),
    (NonFiniteUpdateError, FailureKind.NOT_FINITE),
    (BudgetSpentError, FailureKind.BUDGET),
    (PrivacyError, FailureKind.PRIVACY),
    # of the privacy ledger: what was spent is not known
    (RecordError, FailureKind.PRIVACY),
    (VersionMismatchError, FailureKind.VERSION),
    (ProtocolError, FailureKind.PROTOCOL),
)
StepReport = Callable[[str, int, int], None]


@dataclass(frozen=True)
class _Opened:
    plan: Plan
    work: SiteWork


class SiteSession:
    """Answers the server's requests for one site.

    Args:
        settings: the site's settings.
        generator: the frozen generator that this site has approved.
        work: the site's folder for plan, split, log and cache.
        report: called with what is being done, the steps done and their number.
        watches_data: whether the log says what changes in the data folder meanwhile.
    """

    def __init__(
        self,
        settings: SiteSettings,
        generator: Generator,
        work: Path,
        *,
        report: StepReport | None = None,
        watches_data: bool = False,
    ) -> None:
        self.settings = settings
        self._generator = generator
        self._work = work
        self._report = report
        self._watches_data = watches_data
        self._watch: DataWatch | None = None
        self._opened: dict[str, _Opened] = {}
        self._budget = Budget(settings, work)
        self._forms = answer_forms(generator)

    def handle(self, request: Parcel) -> Parcel | Failure:
        """Return the answer to one request. Never raises."""
        began = monotonic()
        what = f"kind={request.kind.value}"
        if isinstance(request.body, TrainRequest):
            what += f" round={request.body.round}"
        logger.info("event=asked site=%s %s", self.settings.name, what)
        outcome = self._answer(request)
        logger.info(
            "event=answered site=%s %s outcome=%s seconds=%.3f",
            self.settings.name,
            what,
            "failure" if isinstance(outcome, Failure) else "reply",
            monotonic() - began,
        )
        if isinstance(outcome, Parcel) and isinstance(outcome.body, GuardReply):
            logger.info(
                "event=run_over site=%s verdict=%s next=lift-client_report",
                self.settings.name,
                outcome.body.verdict,
            )
        return outcome

    def _answer(self, request: Parcel) -> Parcel | Failure:
        try:
            body = request.body
            if isinstance(body, StatisticsRequest):
                return self._of_one_size(self._statistics(body), body.plan)
            if isinstance(body, TrainRequest):
                answer = self._train(body, request.tensors)
                return self._of_one_size(answer, self._known_plan(body.plan_digest))
            if isinstance(body, GuardRequest):
                answer = self._guard(body, request.tensors)
                return self._of_one_size(answer, self._known_plan(body.plan_digest))
        except _HiddenError as error:
            logger.error(  # noqa: TRY400
                "event=request_failed site=%s reason=%s",
                self.settings.name,
                error.__cause__,
                exc_info=None if isinstance(error.__cause__, LiftError) else error.__cause__,
            )
            return Failure(FailureKind.INTERNAL)
        except (LiftError, torch.OutOfMemoryError) as error:
            told = error if isinstance(error, LiftError) else memory_error(self._generator.device)
            # no traceback: the message is the operator's, and names what to do
            logger.error(  # noqa: TRY400
                "event=request_refused site=%s %s", self.settings.name, told
            )
            return Failure(failure_kind(told))
        except OSError as error:
            if error.errno not in NO_ROOM:
                logger.exception("event=request_failed site=%s", self.settings.name)
                return Failure(FailureKind.INTERNAL)
            logger.error(  # noqa: TRY400  # the operator's: not a fault of this software
                'event=request_refused site=%s cause=disk seen="%s: %s" fix="Free space there; '
                'the server asks again with the next round."',
                self.settings.name,
                error.filename or self._work,
                error.strerror,
            )
            return Failure(FailureKind.DISK)
        except Exception:
            logger.exception("event=request_failed site=%s", self.settings.name)
            return Failure(FailureKind.INTERNAL)
        return Failure(FailureKind.PROTOCOL)

    def _of_one_size(self, answer: Parcel, plan: Plan) -> Parcel:
        """The answer with room for all that such an answer may hold."""
        form = self._forms(answer.kind, plan)
        return answer if form is None else replace(answer, room_bytes=form.room_bytes)

    def admit(self, plan: Plan) -> None:
        """Refuse a run that the site's privacy budget does not cover. Reserves nothing.

        Raises:
            BudgetSpentError: it does not; no data was read.
            ConfigError: the site has no budget, or no ledger.
        """
        self._budget.admit(plan)

    def close(self) -> None:
        """Close the site's privacy ledger, and watch the data no more."""
        if self._watch is not None:
            self._watch.stop()
        self._budget.close()

    def work(self, plan: Plan) -> SiteWork:
        """The site's work under a plan (for the site's own reports and the simulation)."""
        return self._open(plan).work

    def _open(self, plan: Plan, *, begins: bool = True) -> _Opened:
        """The site's work, with its patients read.

        Args:
            plan: of the run.
            begins: whether the run begins here now; else its patients are those of its beginning.
        """
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
            task_of(plan).check(plan, self._generator)
            fix_threads(plan.threads)
            if busy := busy_notice(plan.threads):
                logger.warning("event=machine_busy %s", busy)
            with _one_class(plan):
                watch = DataWatch(self.settings, plan) if self._watches_data else None
                begun = None if begins else self._begun(plan)
                work = open_work(
                    self.settings, plan, self._generator, self._work, self._told, begun
                )
                if self.settings.patient_records is not None:
                    now = datetime.now(UTC)
                    note_used(self.settings.patient_records, plan, work.parts, now)
            store_plan(self._work, plan)
            self._opened[digest] = _Opened(plan, work)
            if self._watch is not None:
                self._watch.stop()
            self._watch = watch
            if watch is not None:
                watch.start()
        return self._opened[digest]

    def _begun(self, plan: Plan) -> Split | None:
        """The split with which an earlier process of this site began the run; None: not known."""
        known = stored_plan(self._work)
        if known is None or known.digest() != plan.digest():
            return None
        try:
            return read_split(self._work / SPLIT_FILE)
        except DataError:
            return None

    def _known_plan(self, plan_digest: str) -> Plan:
        """The plan that the server sent before, maybe to an earlier process; reads no volume."""
        if plan_digest in self._opened:
            return self._opened[plan_digest].plan
        plan = stored_plan(self._work)
        if plan is not None and plan.digest() == plan_digest:
            return plan
        raise ProtocolError(
            "a request belongs to a plan that this site has not seen",
            seen=f"plan {plan_digest[:12]}...",
            remedy="The server sends the plan with round 0; run the federation again.",
        )

    def _statistics(self, body: StatisticsRequest) -> Parcel:
        plan = body.plan
        # before the first of the patients' data is read
        self._budget.admit(plan, known_head=body.known_head)
        purpose = _first_release(plan)
        if purpose is not None:
            self._budget.check(plan, round_index=0, purpose=purpose, steps=1, request=b"")
        opened = self._open(plan)
        if isinstance(plan.privacy, PatientGradients | StatisticsOnce):
            return self._private_statistics(opened, plan.privacy, body.known_head)
        counts = opened.work.counts

        def rounded(patients: int) -> int:
            return rounded_up(patients, plan)

        tensors = opened.work.statistics()
        reply = StatisticsReply(
            plan_digest=plan.digest(),
            train_patients=rounded(counts.train),
            validation_patients=rounded(counts.validation),
            test_patients=rounded(counts.test),
            refused_volumes=rounded(counts.refused),
            lowest_slice_spacing_mm=round(min(counts.slice_spacings_mm), 2),
            highest_slice_spacing_mm=round(max(counts.slice_spacings_mm), 2),
            round_estimate_s=self._round_estimate_s(opened),
            data_version=counts.data_version,
            data_card=shared_card(self._work),
        )
        return Parcel(Kind.STATISTICS, reply, tensors)

    def _private_statistics(
        self,
        opened: _Opened,
        privacy: PatientGradients | StatisticsOnce,
        known_head: str | None,
    ) -> Parcel:
        """Noisy sums beside public numbers: nothing of it is the cohort's own."""
        plan = opened.plan
        tensors: dict[str, np.ndarray] = {}
        purpose = _first_release(plan)
        if purpose is not None:
            tensors = self._budget.release(
                plan,
                round_index=0,
                purpose=purpose,
                steps=1,
                request=b"",
                compute=_one_class(plan)(opened.work.statistics),
            )
        reply = StatisticsReply(
            plan_digest=plan.digest(),
            train_patients=privacy.patients_of(self.settings.name),
            validation_patients=0,
            test_patients=0,
            refused_volumes=0,
            lowest_slice_spacing_mm=None,
            highest_slice_spacing_mm=None,
            ledger_head=self._budget.head,
            ledger_proof=self._budget.proof(known_head),
        )
        return Parcel(Kind.STATISTICS, reply, tensors)

    def _round_estimate_s(self, opened: _Opened) -> float:
        """Seconds of a round here, from a few steps on placeholder data; 0 if not requested."""
        plan = opened.plan
        if plan.federation.deadline_s is not None or not opened.work.counts.train:
            return 0.0
        began = monotonic()
        opened.work.train(opened.work.start(), {}, round_index=1, steps=_DRY_STEPS)
        estimate = (monotonic() - began) / _DRY_STEPS * plan.training.steps
        return round(min(estimate, _LONGEST_ROUND_S), 1)

    def _train(self, body: TrainRequest, tensors: Mapping[str, np.ndarray]) -> Parcel:
        plan = self._known_plan(body.plan_digest)
        # at every request: the ledger may have been put back meanwhile, and what the budget covers
        # may have changed; no volume was read yet
        self._budget.admit(plan, known_head=body.known_head)
        asked = b""
        if isinstance(plan.privacy, PatientGradients):
            asked = described(tensors) + _exchange(plan, body)
            self._budget.check(
                plan,
                round_index=body.round,
                purpose=STEPS,
                steps=plan.training.steps,
                request=asked,
            )
        opened = self._open(plan, begins=False)
        fix_threads(plan.threads)
        start = received_values(without(tensors, SHARED), opened.work.part)
        shared = group(tensors, SHARED)
        if isinstance(plan.privacy, PatientGradients):
            return self._train_privately(opened, body, start, asked)
        validation = opened.work.validation_psnr_db(start, shared)
        steps = plan.training.steps
        report = self._step(f"round {body.round}")
        trained = opened.work.train(
            start,
            shared,
            round_index=body.round,
            report=None if report is None else lambda step: report(step, steps),
        )
        reply = TrainReply(
            plan_digest=body.plan_digest,
            round=body.round,
            loss=trained.loss,
            validation_psnr_db=validation,
        )
        return Parcel(Kind.TRAIN, reply, _update(trained, start, plan))

    def _train_privately(
        self,
        opened: _Opened,
        body: TrainRequest,
        start: dict[str, Tensor],
        asked: bytes,
    ) -> Parcel:
        """One round paid from the budget: no loss, no validation figure, and no sum but a noisy one
        or, for a server that adds the noise, a clipped one. It is stored under `asked`.
        """
        plan = opened.plan
        steps = plan.training.steps
        report = self._step(f"round {body.round}")

        def compute() -> dict[str, np.ndarray]:
            trained = opened.work.train(
                start,
                {},
                round_index=body.round,
                report=None if report is None else lambda step: report(step, steps),
            )
            return _update(trained, start, plan)

        sent = self._budget.release(
            plan,
            round_index=body.round,
            purpose=STEPS,
            steps=steps,
            request=asked,
            compute=_one_class(plan)(compute),
        )
        reply = TrainReply(
            plan_digest=body.plan_digest,
            round=body.round,
            loss=None,
            validation_psnr_db=None,
            ledger_head=self._budget.head,
            ledger_proof=self._budget.proof(body.known_head),
        )
        return Parcel(Kind.TRAIN, reply, sent)

    def _guard(self, body: GuardRequest, tensors: Mapping[str, np.ndarray]) -> Parcel:
        plan = self._known_plan(body.plan_digest)
        if asks_gain(plan):
            return self._noisy_gain(body, tensors)
        if plan.protects_patients:
            raise PolicyError(
                "the server asks for a verdict, which no noise protects",
                where="privacy.mode",
                seen=f"the plan's mode is {plan.privacy.mode}",
                remedy="Nothing was computed or sent. Tell the coordinator.",
            )
        opened = self._open(plan, begins=False)
        fix_threads(plan.threads)
        reply = opened.work.guard(body, tensors)
        opened.work.keep_final(tensors)
        return Parcel(Kind.GUARD, reply)

    def _noisy_gain(self, body: GuardRequest, tensors: Mapping[str, np.ndarray]) -> Parcel:
        """What the mixer gains here, noisy and paid for; no verdict, which is the exact one's."""
        plan = self._known_plan(body.plan_digest)
        round_index = plan.federation.rounds + 1
        request = described(tensors)
        self._budget.admit(plan, known_head=body.known_head)
        # before the first of the patients' data is read
        self._budget.check(plan, round_index=round_index, purpose=GAIN, steps=1, request=request)
        opened = self._open(plan, begins=False)
        fix_threads(plan.threads)
        values = received_values(group(tensors, MIXER), opened.work.part)

        def compute() -> dict[str, np.ndarray]:
            return opened.work.gain(values)

        sums = self._budget.release(
            plan,
            round_index=round_index,
            purpose=GAIN,
            steps=1,
            request=request,
            compute=_one_class(plan)(compute),
        )
        opened.work.keep_final(tensors)
        reply = GuardReply(
            plan_digest=body.plan_digest,
            verdict="undecided",
            ledger_head=self._budget.head,
            ledger_proof=self._budget.proof(body.known_head),
        )
        return Parcel(Kind.GUARD, reply, sums)

    def _step(self, what: str) -> Callable[[int, int], None] | None:
        report = self._report
        if report is None:
            return None
        return lambda done, total: report(f"{self.settings.name}: {what}", done, total)

    def _told(self, what: str, done: int, total: int) -> None:
        if self._report is not None:
            self._report(f"{self.settings.name}: {what}", done, total)


def _first_release(plan: Plan) -> str | None:
    """What the budget pays for with the statistics of round 0; None where nothing is."""
    purposes = [release.purpose for release in planned_releases(plan)]
    return next((item for item in (START, STATISTICS) if item in purposes), None)


class _HiddenError(Exception):
    """Something failed after a run under noise was admitted; the cause is for the site's log."""


@contextmanager
def _one_class(plan: Plan) -> Iterator[None]:
    """Under noise the server learns of a failure inside the block, and not of which class.

    The class may depend on one patient, and the server chooses much of what decides it.
    """
    try:
        yield
    except Exception as error:
        if plan.protects_patients:
            raise _HiddenError from error
        raise


def _exchange(plan: Plan, body: TrainRequest) -> bytes:
    """What a stored exact sum is bound to, beside its request: one exchange, which has one noise.

    A noisy result of the site's own may be sent as often as it is asked for.

    Raises:
        PrivacyError: the server adds the noise, and does not say in which exchange.
    """
    if plan.privacy.mode != "patient-central":
        return b""
    if body.exchange is None:
        raise PrivacyError(
            "the server asks for a sum without noise, and does not name its exchange",
            where="exchange",
            seen="none; each one may have noise once",
            remedy="Nothing was computed or sent. Tell the coordinator.",
        )
    return bytes.fromhex(body.exchange)


def _update(trained: TrainedRound, start: dict[str, Tensor], plan: Plan) -> dict[str, np.ndarray]:
    """What of a round is sent: the update in the plan's number format, or clipped sums."""
    if trained.sums is not None:
        return trained.sums
    half = plan.federation.update_dtype == "float16"
    update = difference(trained.values, start)
    sent = {name: t.half() if half else t for name, t in update.items()}
    if not is_finite(sent):
        raise NonFiniteUpdateError(
            "the update does not fit half precision",
            seen="a number is larger than 65504",
            remedy="Nothing was sent. Use federation.update_dtype: float32.",
        )
    return {name: t.numpy() for name, t in sent.items()}


def failure_kind(error: LiftError) -> FailureKind:
    """Return the class of an error, the only part that the server may know."""
    for kind, failure in _FAILURES:
        if isinstance(error, kind):
            return failure
    return FailureKind.INTERNAL
