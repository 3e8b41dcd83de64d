"""The running client: child process, policy, work and journal, until it is stopped."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Final

from lift.config.kit import CA_FILE, Kit
from lift.config.plan import Plan
from lift.config.site import SiteConfig
from lift.device import resolve_device
from lift.errors import (
    BudgetSpentError,
    ConfigError,
    DiskError,
    LiftError,
    PolicyError,
    RecordError,
)
from lift.files import close_folder, held_alone
from lift.generator.card import bundle_folder
from lift.logs import TELL_EVERY_S, LogFormat, log_to_file, log_to_terminal
from lift.protocol.codec import encode
from lift.protocol.flower.admission import admission_problem
from lift.protocol.flower.children import keep_loopback_direct
from lift.protocol.flower.executor import SuperNode, answer_requests
from lift.protocol.flower.supernode import SuperNodeSettings
from lift.protocol.messages import (
    Failure,
    FailureKind,
    Kind,
    Parcel,
    StatisticsReply,
    StatisticsRequest,
    TrainRequest,
)
from lift.protocol.transport import SiteHandler
from lift.tasks.answers import Forms, answer_forms
from lift.tasks.registry import load_generator
from lift.wire.form import AnswerForm
from lift_client.check.preflight import check_connection
from lift_client.check.verdict import Verdict
from lift_client.connection_log import connection_logged
from lift_client.enrolment import check_key, read_kit
from lift_client.gate.image_notes import note_overrides
from lift_client.gate.journal import JOURNAL_FILE, Entry, Journal, describe_tensors
from lift_client.gate.policy import check_outgoing, check_plan, check_start
from lift_client.gate.stored_plan import stored_plan
from lift_client.gate.withdrawal_notes import check_noted
from lift_client.session import SiteSession, failure_kind

logger = logging.getLogger(__name__)
_FAREWELL_S: Final = 5.0
_PATIENCE_S: Final = 3.0
"""After a signal: how long a request that is being worked on may still take."""
_GOODBYE_S: Final = 1.0
_UNREADABLE_FIX: Final = {
    FailureKind.VERSION: "The server is of another release. Ask the coordinator which one the "
    "federation uses, and install it.",
    FailureKind.PROTOCOL: "The request is damaged or foreign. Nothing was computed. Tell the "
    "coordinator.",
    FailureKind.POLICY: "The server asks this site to run a program. Nothing was run. Tell the "
    "coordinator.",
}


def serve(config: SiteConfig, log_format: LogFormat = "text") -> None:
    """Join the federation and answer its requests until SIGTERM or Ctrl-C.

    The server need not be there yet, and may go and come back: the connection is made again
    for ever, with growing pauses.

    Args:
        config: the site's settings.
        log_format: of the log's lines. In JSON the caller writes them to the terminal.

    Raises:
        BudgetSpentError: the site's privacy budget does not cover the run. The server is informed
            that, and nothing else.
        LiftError: settings, kit, key, generator or journal cannot be used, or the list of withdrawn
            patients is not the newest; nothing was sent.
    """
    stop = threading.Event()
    stopping = _Stopping(stop)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stopping.begin)
    keep_loopback_direct()
    kit = read_kit(config.kit, site=config.name)
    check_key(config.key)
    work = config.folder
    close_folder(work)
    with (
        held_alone(work / "lock", _already_running(work)),
        log_to_file(work / "log.txt", log_format),
        log_to_terminal() if log_format == "text" else nullcontext(),
    ):
        journal = Journal(work / JOURNAL_FILE)
        check_noted(work)
        note_overrides(journal, config)
        generator = load_generator(
            bundle_folder(config.generator),
            expected_fingerprint=kit.generator_fingerprint,
            device=resolve_device(config.device),
        )
        session = SiteSession(config, generator, work, report=_steps_logged(), watches_data=True)
        settings = SuperNodeSettings(
            address=kit.address,
            ca=str(config.kit / CA_FILE),
            key=str(config.key),
            local_port=config.local_port,
            secret=str(work / "executor.secret"),
            local_certificate=str(work / "local.pem"),
            local_key=str(work / "local.key"),
            node_file=str(work / "node"),
            connection_file=str(work / "connection.json"),
        )
        logger.info("event=started site=%s server=%s", config.name, kit.address)
        handler = Release(session.handle, config, kit, journal, answer_forms(generator))
        handler.on_budget_spent = lambda: _stop_soon(stop)
        explain = partial(_explain, config, kit)
        supernode = SuperNode(settings, work / "connection.log")
        stopping.supernode = supernode
        try:
            with connection_logged(Path(settings.connection_file), explain):
                answer_requests(supernode, handler, stop)
        finally:
            session.close()
            stopping.done()
        logger.info("event=stopped site=%s", config.name)
        if handler.budget_spent:
            raise BudgetSpentError(
                "the privacy budget does not cover what the server asks for",
                where=str(work / "log.txt"),
                seen="the log has the figures: event=request_refused",
                remedy="Nothing was computed, and the server was not told the figures. See "
                "`lift-client ledger`; only the hospital can raise the cap.",
            )


class _Stopping:
    """Ends the client within seconds of a signal, whatever it is doing.

    Work that is under way is given up like that of a killed client: what it would have answered is
    asked for again, and every file is replaced at once or not at all.

    Args:
        stop: ends the client between two requests.
    """

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._timer: threading.Timer | None = None
        self.supernode: SuperNode | None = None

    def begin(self, number: int, frame: FrameType | None) -> None:
        """The signal's handler."""
        del number, frame
        self._stop.set()
        if self._timer is None:
            self._timer = threading.Timer(_PATIENCE_S, self._leave)
            self._timer.daemon = True
            self._timer.start()

    def done(self) -> None:
        """The client ended by itself."""
        if self._timer is not None:
            self._timer.cancel()

    def _leave(self) -> None:
        logger.warning(
            'event=stopped seen="while it worked on a request" fix="Nothing is lost: start the '
            'client again, and the server asks again."'
        )
        if self.supernode is not None:
            # the server sees that the site leaves
            self.supernode.stop(within_s=_GOODBYE_S)
        logging.shutdown()
        os._exit(0)


def _explain(config: SiteConfig, kit: Kit) -> Iterator[Verdict]:
    """What the preflight says of the connection, the server's admission of the key included."""

    def admitted() -> str | None:
        return admission_problem(kit.address, config.kit / CA_FILE, config.key)

    return check_connection(config, kit, admission_check=admitted)


class Release:
    """Checks each answer against the policy, and writes the journal, before it is sent.

    A request that comes again, because its answer was lost on the way, gets the same bytes
    without being computed again.

    Args:
        handler: the site's work.
        config: the site's settings, with its policy.
        kit: what the site agreed to when it joined.
        journal: gets a line before any byte leaves.
        forms: which tensors an answer may hold under a plan; None for a plan around another
            generator than the site's.
    """

    def __init__(
        self,
        handler: SiteHandler,
        config: SiteConfig,
        kit: Kit,
        journal: Journal,
        forms: Forms,
    ) -> None:
        self._handler = handler
        self._forms = forms
        self._config = config
        self._kit = kit
        self._journal = journal
        self.budget_spent = False
        self.on_budget_spent: Callable[[], None] | None = None
        self._last: tuple[str, Parcel] | None = None
        self._plans: dict[str, Plan] = {}

    def __call__(self, request: Parcel) -> Parcel | Failure:
        """The answer to one request.

        Raises:
            RecordError: the journal is damaged, so nothing may leave.
            DiskError: it cannot take a line, likewise.
        """
        try:
            return self._answer(request)
        except (RecordError, DiskError):
            raise
        except LiftError as error:
            logger.error("event=not_sent site=%s %s", self._config.name, error)  # noqa: TRY400
            return self._failed(request, failure_kind(error))
        except Exception:
            logger.exception("event=not_sent site=%s", self._config.name)
            return self._failed(request, FailureKind.INTERNAL)

    def _answer(self, request: Parcel) -> Parcel | Failure:
        self._allow(request)
        asked = _digest(request)
        answer: Parcel | Failure
        if self._last is not None and self._last[0] == asked:
            answer = self._last[1]
        else:
            answer = self._handler(request)
        if isinstance(answer, Failure):
            self._see(answer)
            return self._failed(request, answer.kind)
        form = self._form(request)
        try:
            check_outgoing(answer.tensors, self._config.policy, form)
        except LiftError as error:
            if not self._plans[_plan_digest(request)].protects_patients:
                raise
            # as in the session: under noise the class of a failure is not the server's to know
            logger.error("event=not_sent site=%s %s", self._config.name, error)  # noqa: TRY400
            return self._failed(request, FailureKind.INTERNAL)
        self._note(request, answer, form)
        self._last = (asked, answer)
        return answer

    def _form(self, request: Parcel) -> AnswerForm:
        plan = self._plans.get(_plan_digest(request))
        form = None if plan is None else self._forms(request.kind, plan)
        if form is None:
            raise PolicyError(
                "the site's policy refuses to send this",
                where="plan",
                seen="the answer belongs to a plan that this site has not accepted",
                remedy="Nothing was sent. The server sends the plan with round 0.",
            )
        return form

    def _check_plan(self, plan: Plan) -> None:
        forms = [self._forms(kind, plan) for kind in Kind]
        known = [form for form in forms if form is not None]
        check_plan(plan, self._config.policy, self._kit, forms=known)

    def _see(self, failure: Failure) -> None:
        if failure.kind is FailureKind.BUDGET:
            self.budget_spent = True
            if self.on_budget_spent is not None:
                self.on_budget_spent()

    def _allow(self, request: Parcel) -> None:
        """The policy, on the plan that the request belongs to and on the round it asks for."""
        body = request.body
        if isinstance(body, StatisticsRequest):
            self._check_plan(body.plan)
            self._plans[body.plan.digest()] = body.plan
            return
        digest = _plan_digest(request)
        if digest not in self._plans:
            # after a restart: the stored plan has to pass the policy of today
            plan = stored_plan(self._config.folder)
            if plan is None or plan.digest() != digest:
                return
            self._check_plan(plan)
            self._plans[digest] = plan
        if isinstance(body, TrainRequest):
            check_start(request.tensors, self._config.policy)
        rounds = self._plans[digest].federation.rounds
        if isinstance(body, TrainRequest) and body.round > rounds:
            raise PolicyError(
                "the server asks for more rounds than the plan has",
                where="federation.rounds",
                seen=f"round {body.round} of {rounds}",
                remedy="Nothing was computed. Tell the coordinator.",
            )

    def unreadable(self, kind: FailureKind) -> None:
        """Note that a request could not be read, before the refusal leaves."""
        logger.error(
            'event=request_unreadable kind=%s fix="%s"', kind.value, _UNREADABLE_FIX.get(kind, "-")
        )
        self._record(self._failure_entry("", 0, kind))

    def _note(self, request: Parcel, answer: Parcel, form: AnswerForm) -> None:
        body = answer.body
        self._record(
            Entry(
                card=body.data_card if isinstance(body, StatisticsReply) else None,
                run=_plan_digest(request),
                round=_round(request),
                kind=answer.kind.value,
                tensors=describe_tensors(answer.tensors),
                bytes=sum(tensor.nbytes for tensor in answer.tensors.values()),
                sha256=_digest(answer),
                receiver=self._kit.address,
                purpose=form.purpose(answer.tensors),
            )
        )

    def _failed(self, request: Parcel, kind: FailureKind) -> Failure:
        """A failure leaves as its class alone, and that, too, stands in the journal."""
        entry = self._failure_entry(_plan_digest(request), _round(request), kind)
        self._record(entry)
        return Failure(kind)

    def _record(self, entry: Entry) -> None:
        try:
            self._journal.append(entry)
        except OSError as error:
            raise DiskError(
                "the journal cannot take a line",
                where=str(self._config.folder / JOURNAL_FILE),
                seen=error.strerror or type(error).__name__,
                remedy="Nothing was sent. Free disk space and start the client again: the server "
                "asks again.",
            ) from None

    def _failure_entry(self, run: str, round_index: int, kind: FailureKind) -> Entry:
        return Entry(
            run=run,
            round=round_index,
            kind="failure",
            tensors=(),
            bytes=0,
            sha256=hashlib.sha256(kind.value.encode()).hexdigest(),
            receiver=self._kit.address,
            purpose=f"Says that the request was not answered, and the class: {kind.value}.",
        )


def _stop_soon(stop: threading.Event) -> None:
    """Stop when the last answer had time to leave."""
    timer = threading.Timer(_FAREWELL_S, stop.set)
    timer.daemon = True
    timer.start()


def _digest(parcel: Parcel) -> str:
    encoded = encode(parcel)
    digest = hashlib.sha256(encoded.text.encode())
    digest.update(encoded.block)
    return digest.hexdigest()


def _plan_digest(request: Parcel) -> str:
    body = request.body
    if isinstance(body, StatisticsRequest):
        return body.plan.digest()
    return str(getattr(body, "plan_digest", ""))


def _round(request: Parcel) -> int:
    return request.body.round if isinstance(request.body, TrainRequest) else 0


def _steps_logged(
    clock: Callable[[], float] = monotonic,
) -> Callable[[str, int, int], None]:
    """A line when something is done, and now and then while it takes long."""
    current, told = "", 0.0

    def log(what: str, done: int, total: int) -> None:
        nonlocal current, told
        if what != current:
            current, told = what, clock()
        if done < total and clock() - told < TELL_EVERY_S:
            return
        told = clock()
        event = "step_done" if done == total else "step"
        logger.info("event=%s step=%s done=%d of=%d", event, what.replace(" ", "_"), done, total)

    return log


def _already_running(folder: Path) -> ConfigError:
    return ConfigError(
        "a client is already running for this site",
        where=str(folder),
        seen="its lock is held",
        remedy="Stop the other client first, or set another `folder` for this one.",
    )
