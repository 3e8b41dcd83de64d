"""LiFT's own round loop: statistics, training rounds, the guard.

Nothing is silent: no round counts fewer sites, or a smaller share of the patients, than the
quorum; who was asked, who answered, who counted with which weight and who was refused why
is in the record of every round.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Final, TypeVar

import numpy as np
from torch import Tensor

from lift.config.plan import Plan, derived_deadline_s
from lift.config.privacy import StatisticsOnce
from lift.errors import QuorumError, UpdateRejectedError
from lift.privacy.costs import epsilon_after
from lift.privacy.gain import PooledGain, pooled_gain
from lift.privacy.noise import SecureStream
from lift.protocol.messages import (
    Answer,
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
from lift.protocol.transport import Grace, Transport
from lift.records.rounds import RoundRecord
from lift.records.shipped import Shipped
from lift.wire.names import MIXER, grouped
from lift_server.rounds.aggregation import ServerState, next_state
from lift_server.rounds.counts import check_claim, quorum_counts
from lift_server.rounds.exchange import Tally, patients_of, slowest_round_s
from lift_server.rounds.falling import fall_of, left_out, stop_after
from lift_server.rounds.finished import FinishedRun
from lift_server.rounds.ledger_heads import HEADS_FILE, LedgerHeads
from lift_server.rounds.noised import NOISED_FOLDER, NoisedRound, NoisedRounds
from lift_server.rounds.quorum import check_quorum, quorum_is_met
from lift_server.rounds.store import RunStore
from lift_server.rounds.task import Contribution, RunTask
from lift_server.rounds.updates import Contents, round_aggregation
from lift_server.rounds.verdicts import recorded, reviewed, reviewed_gains

logger = logging.getLogger(__name__)
_STATISTICS_DEADLINE_S = 86_400.0
_REMINDER_S = 60.0
Outcome = TypeVar("Outcome")
SITE_LOGS: Final = "log.txt in each of these sites' own work folder"
"""Where the sites of a real federation keep the text of their refusals."""


def run_rounds(
    plan: Plan,
    transport: Transport,
    store: RunStore,
    task: RunTask,
    *,
    roster: Callable[[], Sequence[str]],
    on_round: Callable[[RoundRecord], None] | None = None,
    on_ask: Callable[[int, Kind, Sequence[str], float], None] | None = None,
    declared: Callable[[], Mapping[str, int]] = dict,
    on_missed: Callable[[QuorumError], None] | None = None,
    with_guard: bool = True,
    heads_file: Path | None = None,
    noised_folder: Path | None = None,
    site_logs: str = SITE_LOGS,
) -> FinishedRun:
    """Run the federation to its end, or from its last checkpoint to its end.

    Args:
        plan: the run's plan.
        transport: the way to the sites.
        store: the run's folder.
        task: what the sums of round 0 become, and where training starts.
        roster: gives the names of all admitted sites, what a quorum is counted against; asked
            anew before each round, so that a removed site is out from the next one on.
        on_round: called with each round's record, after its checkpoint is on disk.
        on_ask: called before each exchange with the round, its kind, the sites and the deadline in
            s.
        declared: gives the patients of each site that declared them: its claim may not pass them,
            and a quorum counts them. Asked anew with each use.
        on_missed: called when a quorum was missed; the round is tried again when it returns, with
            the roster of then. None, or whatever it raises, ends the run.
        with_guard: ask the sites for their verdict at the end. Without it what was trained is
            released as it is: for a comparison.
        heads_file: where the last heads of the sites' privacy ledgers are kept, across runs; in
            the run's folder by default.
        noised_folder: where rounds are kept that the server added noise to, across runs; in the
            run's folder by default.
        site_logs: where a reader finds what a site does not tell: the text of its refusals.

    Raises:
        QuorumError: too few sites answered in a round; nothing of it was aggregated, and the
            same command resumes from the round before.
        FallError: the sites' validation fell, and the plan wants a decision; the same command goes
            on from the best mixer.
        RecordError: a round that noise was added to cannot be read again.
    """
    heads = LedgerHeads(heads_file or store.folder / HEADS_FILE)
    noised = NoisedRounds(noised_folder or store.folder / NOISED_FOLDER, plan.digest())
    loop = _Rounds(
        plan,
        transport,
        store,
        task,
        roster,
        on_round,
        on_ask,
        declared,
        on_missed,
        heads,
        noised,
        site_logs,
    )
    return loop.run(with_guard=with_guard)


class _Rounds:
    def __init__(
        self,
        plan: Plan,
        transport: Transport,
        store: RunStore,
        task: RunTask,
        roster: Callable[[], Sequence[str]],
        on_round: Callable[[RoundRecord], None] | None,
        on_ask: Callable[[int, Kind, Sequence[str], float], None] | None,
        declared: Callable[[], Mapping[str, int]],
        on_missed: Callable[[QuorumError], None] | None,
        heads: LedgerHeads,
        noised: NoisedRounds,
        site_logs: str,
    ) -> None:
        self._plan = plan
        self._digest = plan.digest()
        self._transport = transport
        self._store = store
        self._task = task
        self._read_roster = roster
        self._roster = sorted(roster())
        self._declared = declared
        self._on_missed = on_missed
        self._heads = heads
        self._noised = noised
        self._site_logs = site_logs
        # sites that said that their privacy budget is spent; asked again after a restart
        self._spent: set[str] = set()
        self._aggregation = round_aggregation(plan, len(self._roster), SecureStream())
        self._on_round = on_round
        self._on_ask = on_ask
        self._patients: dict[str, int] = {}
        self._slowest_round_s = 0.0
        self._resumed_at: int | None = None

    def run(self, *, with_guard: bool) -> FinishedRun:
        resumed = self._store.resume()
        if resumed is None:
            state, shared = self._until_quorum(self._statistics)
            done = 0
        else:
            done, state, shared = resumed
            self._patients = patients_of(self._store.records)
            self._slowest_round_s = slowest_round_s(self._store.records)
            logger.info("event=resumed round=%d", done)
            self._resumed_at = done + 1
            self._take_roster(self._roster)
            if recorded(self._store.records, self._digest) is None:
                self._inform(done + 1)
        for round_index in range(done + 1, self._plan.federation.rounds + 1):
            self._take_roster(self._read_roster())
            joined = self._let_in(round_index)
            # one identity for all tries of a round: no noise was drawn on what was sent before
            exchange = self._new_exchange()
            train = partial(self._train, round_index, state, shared, joined, exchange)
            state = self._until_quorum(train)
        trained = mixer = state.released
        guard, shipped = self._verdicts(state, shared) if with_guard else ({}, None)
        gain = self._gain(state, shared) if with_guard else None
        if shipped is not None and shipped.source == "gaussian":
            mixer = self._task.start(shared)
        return FinishedRun(mixer, shared, guard, self._store.records, trained, shipped, gain)

    def _until_quorum(self, work: Callable[[], Outcome]) -> Outcome:
        """Do it until its quorum is met, as long as the coordinator waits."""
        while True:
            try:
                return work()
            except QuorumError as error:
                if self._on_missed is None:
                    raise
                self._on_missed(error)
                self._take_roster(self._read_roster())

    def _new_exchange(self) -> str | None:
        return secrets.token_hex(32) if self._plan.privacy.mode == "patient-central" else None

    def _take_roster(self, admitted: Sequence[str]) -> None:
        """The admitted sites, without those that a fall left out."""
        self._roster = sorted(set(admitted) - set(left_out(self._store.records)))

    def _statistics(self) -> tuple[ServerState, dict[str, Tensor]]:
        answers, tally = self._ask(0, self._statistics_request())
        contributions: dict[str, Contribution] = {}
        replies: dict[str, StatisticsReply] = {}
        for site, parcel in answers.items():
            try:
                reply, sums = self._task.review(parcel, self._digest)
                check_claim(site, reply, self._plan, self._declared())
            except UpdateRejectedError as error:
                logger.warning("event=statistics_refused site=%s reason=%s", site, error.seen)
                tally.refused[site] = error.seen
                continue
            replies[site] = reply
            contributions[site] = sums
        # a site without training patients still takes part in the guard
        self._patients = {site: reply.train_patients for site, reply in replies.items()}
        self._note_estimates(replies)
        self._check_quorum(0, list(replies), tally)
        tally.counted = {site: float(n) for site, n in self._patients.items()}
        shared = self._task.combine(list(contributions.values()))
        shared |= self._task.by_site(contributions)
        state = ServerState(self._task.start(shared))
        self._finish(
            0,
            state,
            shared,
            tally.record(
                0,
                Kind.STATISTICS,
                epsilon=epsilon_after(self._plan, 0),
                statistics={
                    site: reply.model_dump(mode="json", exclude={"ledger_proof"})
                    for site, reply in replies.items()
                },
            ),
        )
        return state, shared

    def _statistics_request(self) -> Parcel:
        return Parcel(Kind.STATISTICS, StatisticsRequest(plan=self._plan))

    def _inform(self, round_index: int) -> None:
        """After a resume the sites get the plan again: they may have lost it meanwhile.

        Nobody waits long for the answers, which are known already.
        """
        request = self._statistics_request()
        self._ask(
            round_index,
            request,
            sorted(set(self._roster) & set(self._patients)),
            deadline_s=min(_REMINDER_S, self._deadline_s(Kind.TRAIN)),
            with_quorum=False,
        )

    def _let_in(self, round_index: int) -> dict[str, int]:
        """Training patients of sites that are connected for the first time since round 0.

        They take part from this round on. The sums stay those of round 0: they are where the
        mixer started, or what it is drawn to. Who needs longer than a round for its statistics
        is asked again before the next one: it has gone on with them.
        """
        connected = set(self._transport.sites())
        late = [
            site
            for site in self._roster
            if site not in self._patients and site in connected and site not in self._spent
        ]
        if not late:
            return {}
        request = self._statistics_request()
        deadline_s = self._deadline_s(Kind.TRAIN)
        answers, _ = self._ask(round_index, request, late, deadline_s=deadline_s, with_quorum=False)
        replies = self._reviewed(answers)
        self._note_estimates(replies)
        joined = {site: reply.train_patients for site, reply in replies.items()}
        self._patients |= joined
        logger.info("event=late_joiners round=%d sites=%s", round_index, ",".join(joined) or "none")
        return joined

    def _reviewed(self, answers: Mapping[str, Parcel]) -> dict[str, StatisticsReply]:
        replies = {}
        for site, parcel in answers.items():
            try:
                reply, _ = self._task.review(parcel, self._digest)
                check_claim(site, reply, self._plan, self._declared())
                replies[site] = reply
            except UpdateRejectedError as error:
                logger.warning("event=statistics_refused site=%s reason=%s", site, error.seen)
        return replies

    def _note_estimates(self, replies: Mapping[str, StatisticsReply]) -> None:
        estimates = [reply.round_estimate_s for reply in replies.values()]
        self._slowest_round_s = max([self._slowest_round_s, *estimates])

    def _deadline_s(self, kind: Kind) -> float:
        fixed = self._plan.federation.deadline_s
        if fixed is not None:
            return fixed
        if kind is Kind.STATISTICS:
            return _STATISTICS_DEADLINE_S
        return derived_deadline_s(self._slowest_round_s)

    def _train(
        self,
        round_index: int,
        state: ServerState,
        shared: dict[str, Tensor],
        joined: Mapping[str, int],
        exchange: str | None,
    ) -> ServerState:
        tensors: dict[str, np.ndarray] = {
            name: tensor.numpy() for name, tensor in state.mixer.items()
        } | self._task.sent(shared)
        draws_noise = self._aggregation.draws_noise
        # its answers have their noise already, and no other one may be added to them
        done = self._noised.find(round_index, tensors) if draws_noise else None
        if done is None:
            done = self._updated(round_index, tensors, state, joined, exchange)
            if draws_noise:
                self._noised.keep(done, tensors)
        else:
            logger.info("event=noised_before round=%d", round_index)
            self._patients |= done.record.joined
        resumed = round_index == self._resumed_at
        record = done.record.model_copy(update={"resumed": resumed})
        fall = record.fall
        if fall is not None and fall.went_back:
            after = self._store.state_before(fall.best_round)
        else:
            after = next_state(state, done.update, self._plan.aggregation)
        self._finish(round_index, after, shared, record)
        if fall is not None:
            logger.warning("event=validation_fell round=%d %s", round_index, fall.sentence)
            if fall.action == "stop":
                raise stop_after(fall, round_index)
        return after

    def _updated(
        self,
        round_index: int,
        tensors: Mapping[str, np.ndarray],
        state: ServerState,
        joined: Mapping[str, int],
        exchange: str | None,
    ) -> NoisedRound:
        """What the sites' answers make of the mixer."""
        body = TrainRequest(plan_digest=self._digest, round=round_index, exchange=exchange)
        trainers = [
            site
            for site in self._roster
            if self._patients.get(site, 0) > 0 and site not in self._spent
        ]
        answers, tally = self._ask(round_index, Parcel(Kind.TRAIN, body, tensors), trainers)
        replies: dict[str, TrainReply] = {}
        sent: dict[str, Contents] = {}
        for site, parcel in answers.items():
            try:
                replies[site], sent[site] = self._aggregation.review(
                    site, parcel, state.mixer, round_index
                )
            except UpdateRejectedError as error:
                tally.refused[site] = error.seen
        self._check_quorum(round_index, list(sent), tally)
        psnr_db = {site: reply.validation_psnr_db for site, reply in replies.items()}
        fall = fall_of(self._store.records, psnr_db, self._plan)
        update: dict[str, Tensor] = {}
        told: dict[str, dict[str, float]] = {}
        if fall is None or not fall.went_back:
            made = self._aggregation.combine(sent, self._patients)
            update, tally.counted, told = made.update, made.weights, made.told
        record = tally.record(
            round_index,
            Kind.TRAIN,
            epsilon=epsilon_after(self._plan, round_index),
            loss={site: reply.loss for site, reply in replies.items()},
            validation_psnr_db=psnr_db,
            joined=dict(joined),
            resumed=False,
            **told,
            **({} if fall is None else {"fall": fall}),
        )
        return NoisedRound(update, record)

    def _verdicts(
        self, state: ServerState, shared: dict[str, Tensor]
    ) -> tuple[dict[str, GuardReply], Shipped | None]:
        """What the sites say of what was trained, and what therefore ships.

        Where something hangs on it, it is on record like a round: whoever resumes asks nobody
        again. No site can stop the run here: one without a readable answer has said nothing.
        """
        before = recorded(self._store.records, self._digest)
        if before is not None:
            guard, asked = before
            return guard, self._task.shipped(guard, asked=asked)
        if not self._task.has_guard:
            return {}, self._task.shipped({}, asked=0)
        round_index = self._plan.federation.rounds + 1
        answers, tally = self._ask(round_index, self._guard_request(state, shared))
        guard = reviewed(answers, self._digest)
        shipped = self._task.shipped(guard, asked=len(tally.asked))
        if shipped is None:
            return guard, None
        tally.counted = dict.fromkeys(guard, 1.0)
        said = {site: reply.verdict for site, reply in guard.items()}
        self._finish(
            round_index,
            state,
            shared,
            tally.record(
                round_index,
                Kind.GUARD,
                epsilon=epsilon_after(self._plan, round_index),
                joined={},
                resumed=round_index == self._resumed_at,
                verdicts=said,
                shipped=shipped.source,
            ),
        )
        # from the record, so that a resumed run has the same
        kept = recorded(self._store.records, self._digest)
        return (guard if kept is None else kept[0]), shipped

    def _guard_request(self, state: ServerState, shared: Mapping[str, Tensor]) -> Parcel:
        tensors = grouped({n: t.numpy() for n, t in state.released.items()}, MIXER)
        return Parcel(
            Kind.GUARD,
            GuardRequest(plan_digest=self._digest),
            tensors | self._task.judged_with(shared),
        )

    def _gain(self, state: ServerState, shared: Mapping[str, Tensor]) -> PooledGain | None:
        """The gain of the mixer, from the noisy sums of the answering sites. None: not in the plan.

        Whoever resumes asks again: a site gives the same bytes to the same request, for nothing.
        """
        release = self._task.gain
        if release is None:
            return None
        trainers = [site for site in self._roster if site not in self._spent]
        answers, _ = self._ask(
            self._plan.federation.rounds + 1, self._guard_request(state, shared), trainers
        )
        return pooled_gain(reviewed_gains(answers, self._plan), release)

    def _ask(
        self,
        round_index: int,
        request: Parcel,
        sites: Sequence[str] | None = None,
        *,
        deadline_s: float | None = None,
        with_quorum: bool = True,
    ) -> tuple[dict[str, Parcel], Tally]:
        asked = sorted(self._roster if sites is None else sites)
        if deadline_s is None:
            deadline_s = self._deadline_s(request.kind)
        if self._on_ask is not None:
            self._on_ask(round_index, request.kind, asked, deadline_s)
        began = monotonic()
        known = self._heads.known(asked)
        answers: dict[str, Answer] = self._transport.exchange(
            {site: _with_head(request, known.get(site)) for site in asked},
            deadline_s=deadline_s,
            grace=self._grace(round_index, with_quorum=with_quorum),
        )
        # how long a round takes depends on who was drawn: under noise it is not on record, nor
        # are sizes, though they have nothing to tell
        measured = not self._plan.protects_patients
        tally = Tally(asked, seconds=monotonic() - began if measured else None)
        parcels: dict[str, Parcel] = {}
        for site in sorted(answers):
            answer = answers[site]
            if measured:
                tally.size_bytes[site] = answer.size_bytes
            if answer.sent > 1:
                tally.sent_again[site] = answer.sent - 1
            if isinstance(answer.content, Failure):
                tally.refused[site] = answer.content.kind.value
                if answer.content.kind is FailureKind.BUDGET:
                    # it stops: whoever asked it again would wait for the deadline
                    self._spent.add(site)
                if answer.content.kind is not FailureKind.NO_ANSWER:
                    tally.answered.append(site)
                continue
            tally.answered.append(site)
            try:
                body = answer.content.body
                self._heads.note(site, body, required=_is_paid(self._plan, request.kind))
            except UpdateRejectedError as error:
                logger.warning("event=ledger_refused site=%s reason=%s", site, error.seen)
                tally.refused[site] = error.seen
                continue
            parcels[site] = answer.content
        return parcels, tally

    def _grace(self, round_index: int, *, with_quorum: bool) -> Grace | None:
        """Whom the server stops waiting for. Sites may take their time to come to round 0."""
        if round_index == 0:
            return None

        def enough(present: Collection[str]) -> bool:
            return not with_quorum or quorum_is_met(
                self._plan.federation,
                round_index,
                present,
                roster=self._roster,
                patients=quorum_counts(self._patients, self._declared()),
            )

        return Grace(self._plan.federation.grace_s, enough)

    def _check_quorum(self, round_index: int, present: Sequence[str], tally: Tally) -> None:
        check_quorum(
            self._plan.federation,
            round_index,
            present,
            tally,
            roster=self._roster,
            patients=quorum_counts(self._patients, self._declared()),
            gone=left_out(self._store.records),
            site_logs=self._site_logs,
        )

    def _finish(
        self,
        round_index: int,
        state: ServerState,
        shared: dict[str, Tensor],
        record: RoundRecord,
    ) -> None:
        self._store.save(round_index, state, shared, record)
        logger.info("event=round_done round=%d", round_index)
        if self._on_round is not None:
            self._on_round(self._store.records[-1])


def _is_paid(plan: Plan, kind: Kind) -> bool:
    """Whether a site's privacy ledger pays for an answer, so that the answer names its head."""
    once = isinstance(plan.privacy, StatisticsOnce)
    return plan.protects_patients and (kind is Kind.STATISTICS or not once)


def _with_head(request: Parcel, known_head: str | None) -> Parcel:
    """The request for one site, with the head of only its own ledger."""
    if known_head is None:
        return request
    return replace(request, body=request.body.model_copy(update={"known_head": known_head}))
