"""Whatever happens to processes and files, what left never costs more than the cap.

The model knows nothing of the ledger's accounting: all releases are plain Gaussian, so the true
epsilon of what left has a closed form. The ledger composes the same releases by PLD and RDP.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
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
from scipy.optimize import brentq
from scipy.stats import norm

from lift.errors import BudgetSpentError, ConfigError, PrivacyError, RecordError
from lift.privacy.book import START, Book, PlannedRun, Release
from lift_client.gate import ledger as module
from lift_client.gate.ledger import Ledger, create_ledger
from lift_client.gate.ledger_file import LedgerFile

DELTA, CAP = 1e-4, 1.5
NOISES = (8.0, 12.0, 8.0)
RUNS, ROUNDS, STEPS = st.integers(0, 2), st.integers(1, 3), st.sampled_from([2, 4, 6])
SMALL = settings(max_examples=25, stateful_step_count=25, deadline=None, derandomize=True)


def true_epsilon(mu_squared: float) -> float:
    """Closed form for plain Gaussian releases, mu^2 = sum of 1/noise^2 (arXiv:1805.06530)."""
    mu = math.sqrt(mu_squared)

    def excess(eps: float) -> float:
        return float(
            norm.cdf(mu / 2 - eps / mu) - math.exp(eps) * norm.cdf(-mu / 2 - eps / mu) - DELTA
        )

    return float(brentq(excess, 0, 40)) if mu and excess(0) > 0 else 0.0


def make_run(index: int, noise: float | None = None) -> PlannedRun:
    multiplier = NOISES[index] if noise is None else noise
    release = Release(purpose="train", noise_multiplier=multiplier, q=1.0, clip_norm=1.0, steps=6)
    return PlannedRun(run=f"{index:02x}" * 32, releases=(release,))


@dataclass(frozen=True)
class Block:
    """A reservation whose block was computed; its content tells it from all others."""

    seq: int
    run: int
    round: int
    steps: int
    content: str

    @property
    def mu_squared(self) -> float:
        return self.steps / NOISES[self.run] ** 2


class Hospital(RuleBasedStateMachine):
    """A site, its ledger, the server's memory of its head, and accidents."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="lift-ledger-"))
        self.path = self.folder / "now" / "ledger.jsonl"
        create_ledger(self.path, cohort="brain", delta=DELTA, cap=CAP)
        self.server_head = START
        self.ledger = self.opened()
        self.copies: list[tuple[Path, str]] = []
        self.computed: list[Block] = []
        self.left: dict[str, Block] = {}
        self.data_read = 0
        self.back_up()

    def teardown(self) -> None:
        self.ledger.close()
        shutil.rmtree(self.folder)

    def opened(self) -> Ledger:
        return Ledger(self.path, cohort="brain", expected_head=self.server_head)

    def compute(self, run: int, round_: int, steps: int) -> Block | None:
        """One block: begin or go on, reserve, and only then read the data."""
        planned = make_run(run)
        before, spent = self.path.read_bytes(), self.ledger.epsilon
        try:
            self.ledger.begin(planned)
            before = self.path.read_bytes()
            seq = self.ledger.reserve(planned.run, round_, "train", steps)
        except BudgetSpentError:
            assert self.path.read_bytes() == before
            return None
        assert self.ledger.epsilon > spent
        self.data_read += 1
        content = hashlib.sha256(str(self.data_read).encode()).hexdigest()
        return Block(seq, run, round_, steps, content)

    def send(self, block: Block) -> None:
        self.ledger.sent(block.seq, block.content)
        self.server_head = self.ledger.head
        self.left[block.content] = block

    @rule(run=RUNS, round_=ROUNDS, steps=STEPS)
    def whole_round(self, run: int, round_: int, steps: int) -> None:
        """A block is computed, and its result leaves with the ledger's head."""
        if (block := self.compute(run, round_, steps)) is not None:
            self.send(block)

    @rule(run=RUNS, round_=ROUNDS, steps=STEPS)
    def block_alone(self, run: int, round_: int, steps: int) -> None:
        """A block is computed; its result waits."""
        if (block := self.compute(run, round_, steps)) is not None:
            self.computed.append(block)

    @precondition(lambda self: self.computed)
    @rule()
    def send_all(self) -> None:
        """Everything that waits leaves."""
        while self.computed:
            self.send(self.computed.pop(0))

    @precondition(lambda self: self.computed)
    @rule()
    def call_off(self) -> None:
        """Nothing left, in the same process: the cost comes back, once."""
        block, before = self.computed.pop(), self.ledger.epsilon
        self.ledger.released_nothing(block.seq, "the round was called off")
        assert self.ledger.epsilon < before
        with pytest.raises(PrivacyError):
            self.ledger.sent(block.seq, block.content)

    @precondition(lambda self: self.left)
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        """The same bytes again are free; other bytes for the same reservation are refused."""
        block = data.draw(st.sampled_from(list(self.left.values())))
        before = self.path.read_bytes()
        self.ledger.sent(block.seq, block.content)
        assert self.ledger.may_resend(make_run(block.run).run, block.round, block.content)
        other = hashlib.sha256(block.content.encode()).hexdigest()
        with pytest.raises(PrivacyError):
            self.ledger.sent(block.seq, other)
        assert self.path.read_bytes() == before

    @rule(accident=st.sampled_from(["none", "torn line", "cut end"]), data=st.data())
    def crash(self, accident: str, data: st.DataObject) -> None:
        """A new process finds the whole cost, and takes back nothing of the old one's."""
        before = self.ledger.epsilon
        self.ledger.close()
        whole = self.path.read_bytes()
        if accident == "torn line":
            # what an append that never returned may have written
            self.path.write_bytes(whole + whole[: data.draw(st.integers(1, 60))])
        elif accident == "cut end":
            self.path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
            with pytest.raises(RecordError):
                self.opened()
            self.path.write_bytes(whole)
        self.ledger = self.opened()
        assert self.ledger.epsilon == before
        for block in self.computed:
            with pytest.raises(PrivacyError):
                self.ledger.released_nothing(block.seq, "surely nothing left")
        self.computed = []

    @rule(run=RUNS)
    def change_plan(self, run: int) -> None:
        """A run that began keeps its noise."""
        planned = make_run(run)
        if any(row.run == planned.run for row in self.ledger.rows()):
            with pytest.raises(PrivacyError):
                self.ledger.begin(make_run(run, noise=99.0))

    @rule()
    def second_process(self) -> None:
        """Another trainer is refused while this one runs."""
        with pytest.raises(ConfigError):
            self.opened()

    @rule()
    def back_up(self) -> None:
        """A copy of both files."""
        place = self.folder / f"copy-{len(self.copies)}"
        shutil.copytree(self.path.parent, place)
        self.copies.append((place, self.server_head))

    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        """A crash, and a copy is put back: refused if anything that left is missing from it."""
        place, known = data.draw(st.sampled_from(self.copies))
        self.ledger.close()
        self.computed = []
        present = self.folder / "present"
        self.path.parent.rename(present)
        shutil.copytree(place, self.path.parent)
        if known != self.server_head:
            with pytest.raises(RecordError):
                self.opened()
            shutil.rmtree(self.path.parent)
            shutil.copytree(present, self.path.parent)
        shutil.rmtree(present)
        self.ledger = self.opened()

    @invariant()
    def what_left_costs_no_more_than_the_cap(self) -> None:
        truth = true_epsilon(math.fsum(block.mu_squared for block in self.left.values()))
        assert truth <= CAP
        assert truth <= self.ledger.epsilon + 1e-6


def test_what_left_never_costs_more_than_the_cap() -> None:
    run_state_machine_as_test(Hospital, settings=SMALL)


def unsent_is_free(self: Book) -> Counter[tuple[str, str]]:
    rows = [row for seq, row in self.reservations.items() if seq in self.sent]
    return Counter({(row.run, row.purpose): row.count for row in rows})


@pytest.mark.parametrize(
    ("owner", "name", "fault"),
    [
        (Book, "steps", unsent_is_free),
        (Ledger, "_check_cap", lambda *_: None),
        (Ledger, "_check_open", lambda *_: None),
        (Ledger, "_same_settings", lambda *_: None),
        (module, "LedgerFile", lambda path, _, *more: LedgerFile(path, {START}, *more)),
        (fcntl, "flock", lambda *_: None),
    ],
    ids=["unsent is free", "no cap", "taken back twice", "other settings", "no server", "no lock"],
)
def test_the_machine_finds_a_ledger_that_breaks_a_rule(
    owner: object, name: str, fault: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, fault)
    quick = settings(SMALL, phases=[Phase.generate], report_multiple_bugs=False)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        run_state_machine_as_test(Hospital, settings=quick)
