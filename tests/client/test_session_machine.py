"""Whatever a server asks and whatever breaks at a site, its patients never pay more than the cap.

The whole session answers, with its ledger and stored answers; only the work on volumes is a
stand-in that says when it touches data. All releases are plain Gaussian, so the true epsilon of
what left has a closed form that owes nothing to the accounting under test.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from lift.config.cohort import BratsData
from lift.config.plan import Plan
from lift.config.privacy import PatientGradients
from lift.config.site import BudgetSettings, SiteSettings
from lift.errors import DataError
from lift.privacy.book import Book
from lift.protocol.heads import head_after
from lift.protocol.messages import (
    Failure,
    FailureKind,
    GuardRequest,
    Kind,
    Parcel,
    StatisticsReply,
    StatisticsRequest,
    TrainReply,
    TrainRequest,
)
from lift.tasks.paired.building import plan_mixer
from lift.tasks.steps import TrainedRound
from lift_client import session as module
from lift_client.gate.budget import Budget
from lift_client.gate.cohort_ledger import begin, cohort_of
from lift_client.gate.ledger import LEDGER_FILE, Ledger, verify
from lift_client.session import SiteSession
from tests.client.test_ledger_machine import true_epsilon
from tests.lift.small_world import small_generator, small_plan

GENERATOR = small_generator()
Arrays = dict[str, np.ndarray]
Compute = Callable[[], Arrays]
DELTA, CAP, STEPS = 1e-4, 1.5, 2
NOISES = (6.0, 9.0, 9.0)
PLANS, ROUNDS, MIXERS = st.integers(0, 2), st.integers(1, 3), st.integers(0, 1)
SMALL = settings(max_examples=25, stateful_step_count=20, deadline=None, derandomize=True)


def make_plan(index: int) -> Plan:
    privacy = PatientGradients(
        mode="patient-local",
        delta=DELTA,
        public_patients=10,
        clip_norm=1.0,
        noise_multiplier=NOISES[index],
        sampling_rate=1.0,
    )
    plan = small_plan("zdiff", generator=GENERATOR, rounds=3, training={"steps": STEPS})
    return plan.model_copy(update={"seed": index, "privacy": privacy})


class Work:
    """What touches the patients' volumes."""

    touched = 0
    fault: Exception | None = None
    made = 0

    def __init__(self, settings: SiteSettings, plan: Plan, *_: object, **__: object) -> None:
        del settings
        Work.touched += 1
        self._plan = plan
        self.part = plan_mixer(plan, GENERATOR)

    def train(self, start: dict[str, torch.Tensor], *_: object, **__: object) -> TrainedRound:
        Work.touched += 1
        if Work.fault is not None:
            raise Work.fault
        # no two results are the same: noise is fresh
        Work.made += 1
        moved = {name: tensor + float(Work.made) for name, tensor in start.items()}
        return TrainedRound(moved, None)


class Site(RuleBasedStateMachine):
    """A server that asks what it likes, and a site where anything may break."""

    @initialize()
    def begin(self) -> None:
        self.place = Path(tempfile.mkdtemp(prefix="lift-session-"))
        self.folder, self.copies_in = self.place / "work", self.place / "copies"
        self.folder.mkdir()
        self.settings = SiteSettings(
            name="north",
            data=BratsData(root=self.folder),
            budget=BudgetSettings(epsilon=CAP, delta=DELTA),
        )
        begin(self.settings, self.folder)
        self.cap = CAP
        self.left: dict[bytes, float] = {}
        self.answers: dict[tuple[int, int, int], bytes] = {}
        self.head: str | None = None
        self.copies: list[tuple[Path, int]] = []
        self.plan: int | None = None
        Work.touched, Work.fault, Work.made = 0, None, 0
        self.patch = mock.patch.object(module, "open_work", Work)
        self.patch.start()
        self.open()

    def open(self) -> None:
        self.session = SiteSession(self.settings, GENERATOR, self.folder)

    def teardown(self) -> None:
        self.session.close()
        self.patch.stop()
        shutil.rmtree(self.place)

    def ask(self, request: Parcel) -> Parcel | Failure:
        """One request; a refusal for the budget has touched nothing and told one word."""
        before = Work.touched
        answer = self.session.handle(request)
        if isinstance(answer, Failure):
            if answer.kind in {FailureKind.BUDGET, FailureKind.POLICY}:
                assert Work.touched == before
            return answer
        reply = answer.body
        assert isinstance(reply, StatisticsReply | TrainReply)
        assert reply.ledger_head is not None
        if self.head is not None:
            assert head_after(self.head, reply.ledger_proof) == reply.ledger_head
        self.head = reply.ledger_head
        return answer

    @rule(plan=PLANS)
    def statistics(self, plan: int) -> None:
        """The plan is sent, the first time or again."""
        body = StatisticsRequest(plan=make_plan(plan), known_head=self.head)
        answer = self.ask(Parcel(Kind.STATISTICS, body))
        if isinstance(answer, Parcel):
            assert not answer.tensors
            self.plan = plan

    @rule(plan=PLANS, mixer=MIXERS)
    def whole_run(self, plan: int, mixer: int) -> None:
        """The plan and all of its rounds, as a server asks that never stops."""
        self.statistics(plan)
        for round_ in (1, 2, 3):
            self.train(plan, round_, mixer)

    @rule(plan=PLANS, round_=ROUNDS, mixer=MIXERS)
    def train(self, plan: int, round_: int, mixer: int) -> None:
        """A round is asked for; the same request again gets the same bytes."""
        answer = self.ask(self.train_request(plan, round_, mixer))
        if isinstance(answer, Failure):
            return
        content = b"".join(array.tobytes() for _, array in sorted(answer.tensors.items()))
        if content not in self.left:
            self.left[content] = STEPS / NOISES[plan] ** 2
        asked = (plan, round_, mixer)
        again = self.ask(self.train_request(*asked))
        assert isinstance(again, Parcel)
        repeated = b"".join(array.tobytes() for _, array in sorted(again.tensors.items()))
        assert repeated == content

    def train_request(self, plan: int, round_: int, mixer: int) -> Parcel:
        chosen = make_plan(plan)
        values = plan_mixer(chosen, GENERATOR).values()
        tensors = {n: t.numpy() + np.float32(mixer) for n, t in values.items()}
        body = TrainRequest(plan_digest=chosen.digest(), round=round_, known_head=self.head)
        return Parcel(Kind.TRAIN, body, tensors)

    @rule(plan=PLANS, round_=ROUNDS, mixer=MIXERS, ours=st.booleans())
    def train_breaks(self, plan: int, round_: int, mixer: int, ours: bool) -> None:
        """The computation fails on the way: by bad data, or by a fault of ours."""
        refusal = DataError("gone", where="there", seen="nothing", remedy="look")
        Work.fault = refusal if ours else RuntimeError("broken")
        try:
            answer = self.ask(self.train_request(plan, round_, mixer))
        finally:
            Work.fault = None
        # what was answered before is there without computing
        if isinstance(answer, Parcel):
            content = b"".join(array.tobytes() for _, array in sorted(answer.tensors.items()))
            assert content in self.left

    @rule(plan=PLANS, round_=ROUNDS, mixer=MIXERS)
    def killed(self, plan: int, round_: int, mixer: int) -> None:
        """The process ends while it computes."""
        with mock.patch.object(Work, "train", side_effect=KeyboardInterrupt):
            try:
                self.session.handle(self.train_request(plan, round_, mixer))
            except KeyboardInterrupt:
                self.session.close()
                self.open()

    @rule()
    def restart(self) -> None:
        """A new process on the same folder."""
        self.session.close()
        self.open()

    @precondition(lambda self: self.plan is not None)
    @rule()
    def back_up(self) -> None:
        """Somebody copies the site's folder."""
        place = self.copies_in / str(len(self.copies))
        shutil.copytree(self.folder, place)
        assert self.plan is not None
        self.copies.append((place, self.plan))

    @precondition(lambda self: self.copies)
    @rule(data=st.data(), round_=ROUNDS, mixer=MIXERS)
    def roll_back(self, data: st.DataObject, round_: int, mixer: int) -> None:
        """A copy is put back while the server asks on."""
        self.put_back(*data.draw(st.sampled_from(self.copies)), round_, mixer)

    @rule(plan=PLANS, mixer=MIXERS)
    def last_nights_copy(self, plan: int, mixer: int) -> None:
        """A copy is made, a round goes on, and the copy is put back."""
        self.statistics(plan)
        if self.plan is None:
            return
        self.back_up()
        self.train(self.plan, 1, mixer)
        self.put_back(*self.copies[-1], 1, mixer)

    def put_back(self, place: Path, plan: int, round_: int, mixer: int) -> None:
        """If the server knows of more than the copy, nothing is computed and nothing leaves."""
        if self.head in verify(place / LEDGER_FILE).heads:
            return
        self.session.close()
        present = self.place / "present"
        self.folder.rename(present)
        shutil.copytree(place, self.folder)
        self.open()
        before = Work.touched
        assert isinstance(self.session.handle(self.train_request(plan, round_, mixer)), Failure)
        assert Work.touched == before
        self.session.close()
        shutil.rmtree(self.folder)
        present.rename(self.folder)
        self.open()

    @rule(plan=PLANS)
    def verdict(self, plan: int) -> None:
        """A verdict would be a release that nobody counts."""
        answer = self.ask(Parcel(Kind.GUARD, GuardRequest(plan_digest=make_plan(plan).digest())))
        assert isinstance(answer, Failure)

    @rule(cap=st.sampled_from([1.4, 1.2, 0.9]))
    def lower(self, cap: float) -> None:
        """The hospital lowers its cap; what was promised before stays spent."""
        self.session.close()
        with Ledger(self.folder / LEDGER_FILE, cohort=cohort_of(self.settings)) as ledger:
            if ledger.epsilon <= cap < ledger.cap:
                ledger.lower_cap(cap, "the board")
                self.cap = cap
        self.open()

    @invariant()
    def what_left_costs_no_more_than_the_cap(self) -> None:
        assert true_epsilon(math.fsum(self.left.values())) <= self.cap


def test_no_sequence_of_requests_and_accidents_passes_the_cap() -> None:
    run_state_machine_as_test(Site, settings=SMALL)


@pytest.mark.parametrize("fault", ["nothing counted", "data first", "unpaid", "no memory"])
def test_the_machine_finds_a_session_that_breaks_a_rule(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    admit = Budget.admit

    def late(self: Budget, plan: Plan, *, known_head: str | None = None) -> object:
        Work.touched += 1
        return admit(self, plan, known_head=known_head)

    def unpaid(self: Budget, *_: object, compute: Compute, **__: object) -> Arrays:
        del self
        return compute()

    def forgetful(self: Budget, plan: Plan, *, known_head: str | None = None) -> object:
        del known_head
        return admit(self, plan)

    if fault == "no memory":
        monkeypatch.setattr(Budget, "admit", forgetful)
    elif fault == "nothing counted":
        monkeypatch.setattr(Book, "epsilon", lambda *_: 0.0)
    elif fault == "data first":
        monkeypatch.setattr(Budget, "admit", late)
    else:
        monkeypatch.setattr(Budget, "release", unpaid)
    quick = settings(SMALL, phases=[Phase.generate], report_multiple_bugs=False)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        run_state_machine_as_test(Site, settings=quick)
