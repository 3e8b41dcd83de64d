"""The privacy ledger: each rule, and what is refused before any data are touched."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lift.errors import BudgetSpentError, ConfigError, LiftError, PrivacyError, RecordError
from lift.privacy.accounting import Mechanism, epsilon
from lift.privacy.book import PlannedRun, Release
from lift_client.gate.ledger import Ledger, create_ledger, verify
from tests import wording

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
DELTA = 1e-4
CAP = 2.0
RUN, OTHER = "ab" * 32, "cd" * 32
CONTENT, CHANGED = "11" * 32, "22" * 32


def make_run(run: str = RUN, *, noise: float = 6.0, steps: int = 40) -> PlannedRun:
    train = Release(purpose="train", noise_multiplier=noise, q=0.1, clip_norm=0.5, steps=steps)
    start = Release(purpose="statistics", noise_multiplier=12.0, q=1.0, clip_norm=1.0, steps=1)
    return PlannedRun(run=run, releases=(start, train))


def open_ledger(path: Path, expected_head: str = "0" * 64) -> Ledger:
    return Ledger(path, cohort="brain", expected_head=expected_head, clock=lambda: NOON)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    where = tmp_path / "deep" / "ledger.jsonl"
    create_ledger(where, cohort="brain", delta=DELTA, cap=CAP, clock=lambda: NOON)
    return where


def used(path: Path) -> str:
    """A ledger with a begun run, one reservation sent and one taken back; returns its head."""
    with open_ledger(path) as ledger:
        ledger.begin(make_run())
        ledger.sent(ledger.reserve(RUN, 1, "train", 10), CONTENT)
        ledger.released_nothing(ledger.reserve(RUN, 2, "train", 10), "the round was called off")
        return ledger.head


def refused(path: Path, error: type[LiftError], expected_head: str = "0" * 64) -> LiftError:
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    with pytest.raises(error) as caught:
        open_ledger(path, expected_head)
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before
    assert caught.value.seen
    assert caught.value.remedy
    return caught.value


def rechain(path: Path, lines: list[bytes]) -> None:
    """Write the lines with hashes, numbers and a head that fit: what a determined hand would do."""
    previous, texts = "0" * 64, []
    for seq, text in enumerate(lines, start=1):
        record = json.loads(text)
        del record["hash"]
        record |= {"seq": seq, "previous": previous}
        body = json.dumps(record, separators=(",", ":")).encode()
        previous = hashlib.sha256(body).hexdigest()
        texts.append(body[:-1] + f',"hash":"{previous}"}}'.encode())
    path.write_bytes(b"\n".join(texts) + b"\n")
    head = {"count": len(lines), "last_hash": previous}
    path.with_name("ledger.head").write_text(json.dumps(head))


# --- beginning


def test_a_new_ledger_is_private_and_says_what_it_promises(path: Path) -> None:
    for file in (path, path.with_name("ledger.head")):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert sorted(file.name for file in path.parent.iterdir()) == ["ledger.head", "ledger.jsonl"]
    entry = json.loads(path.read_bytes())["entry"]
    assert entry == {
        "state": "opened",
        "cohort": "brain",
        "unit": "patient",
        "relation": "add or remove one",
        "delta": DELTA,
        "cap": CAP,
    }


def test_opening_takes_back_rights_that_others_were_given(path: Path) -> None:
    path.chmod(0o666)
    open_ledger(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("lost", [None, "ledger.jsonl", "ledger.head"])
def test_a_second_ledger_is_refused_when_any_part_of_one_is_there(
    path: Path, lost: str | None
) -> None:
    if lost is not None:
        path.with_name(lost).unlink()
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    with pytest.raises(RecordError, match="already"):
        create_ledger(path, cohort="brain", delta=DELTA, cap=99.0)
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before


@pytest.mark.parametrize(("delta", "cap"), [(0.0, 1.0), (1.0, 1.0), (1e-5, 0.0), (1e-5, -1.0)])
def test_impossible_promises_are_refused(tmp_path: Path, delta: float, cap: float) -> None:
    with pytest.raises(ConfigError):
        create_ledger(tmp_path / "ledger.jsonl", cohort="brain", delta=delta, cap=cap)
    assert not list(tmp_path.iterdir())


def test_a_ledger_serves_its_own_cohort_only(path: Path) -> None:
    with pytest.raises(ConfigError, match="another cohort"):
        Ledger(path, cohort="liver")
    open_ledger(path).close()


# --- what is counted


def test_a_reservation_says_everything_that_its_cost_depends_on(path: Path) -> None:
    used(path)
    entries = [json.loads(text)["entry"] for text in path.read_bytes().splitlines()]
    assert [entry["state"] for entry in entries] == [
        "opened",
        "planned",
        "reserved",
        "sent",
        "reserved",
        "released-nothing",
    ]
    assert entries[2] == {
        "state": "reserved",
        "run": RUN,
        "round": 1,
        "purpose": "train",
        "mechanism": "poisson-subsampled gaussian",
        "noise_multiplier": 6.0,
        "q": 0.1,
        "count": 10,
        "clip_norm": 0.5,
        "unit": "patient",
        "relation": "add or remove one",
    }
    with open_ledger(path) as ledger:
        rows = [(row.line, row.round, row.steps, row.state) for row in ledger.rows()]
    assert rows == [(3, 1, 10, "sent"), (5, 2, 10, "released-nothing")]


def test_one_run_within_its_plan_is_composed_by_pld(path: Path) -> None:
    with open_ledger(path) as ledger:
        assert ledger.epsilon == 0
        ledger.begin(make_run())
        assert ledger.epsilon == 0
        ledger.reserve(RUN, 0, "statistics", 1)
        ledger.reserve(RUN, 1, "train", 15)
        ledger.reserve(RUN, 2, "train", 15)
        spent = [Mechanism(12.0), Mechanism(6.0, 0.1, 30)]
        assert ledger.epsilon == epsilon(spent, DELTA)
        assert ledger.epsilon < epsilon(spent, DELTA, "rdp")


def test_a_second_run_is_composed_with_the_first_by_the_larger_of_rdp_and_pld(path: Path) -> None:
    with open_ledger(path) as ledger:
        ledger.begin(make_run())
        ledger.reserve(RUN, 1, "train", 20)
        ledger.begin(make_run(OTHER, noise=9.0))
        assert ledger.epsilon == epsilon([Mechanism(6.0, 0.1, 20)], DELTA)
        ledger.reserve(OTHER, 1, "train", 20)
        spent = [Mechanism(6.0, 0.1, 20), Mechanism(9.0, 0.1, 20)]
        assert ledger.epsilon == epsilon(spent, DELTA, "rdp") > epsilon(spent, DELTA)
    with open_ledger(path) as ledger:
        assert ledger.epsilon == epsilon(spent, DELTA, "rdp")


def test_more_steps_than_planned_are_composed_by_the_larger_too(path: Path) -> None:
    with open_ledger(path) as ledger:
        ledger.begin(make_run(steps=20))
        ledger.reserve(RUN, 1, "train", 20)
        ledger.reserve(RUN, 1, "train", 1)
        assert ledger.epsilon == epsilon([Mechanism(6.0, 0.1, 21)], DELTA, "rdp")


def test_planned_cost_counts_what_is_not_reserved_yet_and_writes_nothing(path: Path) -> None:
    whole = epsilon([Mechanism(12.0), Mechanism(6.0, 0.1, 40)], DELTA)
    before = path.read_bytes()
    with open_ledger(path) as ledger:
        cost = ledger.planned_cost(make_run())
        assert (cost.before, cost.after, cost.cap) == (0, whole, CAP)
        assert path.read_bytes() == before
        ledger.begin(make_run())
        ledger.reserve(RUN, 1, "train", 10)
        cost = ledger.planned_cost(make_run())
        assert cost.before == epsilon([Mechanism(6.0, 0.1, 10)], DELTA)
        assert cost.after == whole
        # a block that is repeated costs again
        ledger.reserve(RUN, 1, "train", 10)
        ledger.reserve(RUN, 2, "train", 30)
        assert ledger.planned_cost(make_run()).after > whole


# --- the cap


def test_a_run_that_would_pass_the_cap_is_refused_whole(path: Path) -> None:
    before = path.read_bytes()
    with open_ledger(path) as ledger:
        with pytest.raises(BudgetSpentError, match="the whole run") as caught:
            ledger.begin(make_run(noise=1.0))
        assert caught.value.exit_code == 5
        assert "the cap is 2.0" in caught.value.seen
        with pytest.raises(PrivacyError):
            ledger.reserve(RUN, 1, "train", 1)
        with pytest.raises(BudgetSpentError):
            ledger.begin(make_run(noise=0.0))
    assert path.read_bytes() == before


def test_a_run_with_the_noise_found_for_the_cap_runs_to_its_end(path: Path) -> None:
    # noise_multiplier_for(CAP, DELTA, q=0.1, steps=40, already=[Mechanism(12.0)])
    with open_ledger(path) as ledger:
        ledger.begin(make_run(noise=1.45259))
        ledger.reserve(RUN, 0, "statistics", 1)
        for round_ in range(1, 5):
            ledger.reserve(RUN, round_, "train", 10)
        assert 0.98 * CAP < ledger.epsilon <= CAP
        with pytest.raises(BudgetSpentError):
            ledger.reserve(RUN, 5, "train", 10)


def test_an_earlier_run_leaves_less_for_the_next(path: Path) -> None:
    half = make_run(noise=1.7)
    with open_ledger(path) as ledger:
        ledger.begin(half)
        ledger.reserve(RUN, 1, "train", 40)
    with open_ledger(path) as ledger:
        with pytest.raises(BudgetSpentError):
            ledger.begin(half.model_copy(update={"run": OTHER}))
        ledger.begin(make_run(OTHER, noise=20.0))


def test_each_block_is_checked_again(path: Path) -> None:
    with open_ledger(path) as ledger:
        ledger.begin(make_run(noise=2.0))
    for _ in range(3):
        # three crashes, each after the round was reserved
        with open_ledger(path) as ledger:
            ledger.begin(make_run(noise=2.0))
            ledger.reserve(RUN, 1, "train", 10)
    with open_ledger(path) as ledger:
        before = path.read_bytes()
        assert ledger.epsilon < CAP
        with pytest.raises(BudgetSpentError, match="round 2"):
            ledger.reserve(RUN, 2, "train", 60)
        assert path.read_bytes() == before


def test_the_cap_is_lowered_freely_and_raised_on_record_only(path: Path) -> None:
    with open_ledger(path) as ledger:
        with pytest.raises(PrivacyError, match="above the present cap"):
            ledger.lower_cap(3.0, "a slip of the finger")
        ledger.lower_cap(0.2, "the ethics board wants less")
        with pytest.raises(BudgetSpentError):
            ledger.begin(make_run())
        with pytest.raises(PrivacyError, match="not above"):
            ledger.raise_cap(0.1, "a slip of the finger")
        with pytest.raises(ConfigError):
            ledger.raise_cap(4.0, "")
    with open_ledger(path) as ledger:
        assert ledger.cap == 0.2
        ledger.raise_cap(4.0, "decision 17 of the hospital's board")
        ledger.begin(make_run())
    assert verify(path).cap == 4.0
    assert b'"reason":"decision 17 of the hospital\'s board"' in path.read_bytes()


# --- a run's settings


@pytest.mark.parametrize(
    "change",
    [{"noise_multiplier": 6.5}, {"q": 0.05}, {"clip_norm": 0.6}, {"steps": 39}, {"purpose": "x"}],
)
def test_a_begun_run_keeps_its_settings(path: Path, change: dict[str, object]) -> None:
    begun = make_run()
    changed = begun.releases[1].model_copy(update=change)
    other = begun.model_copy(update={"releases": (begun.releases[0], changed)})
    with open_ledger(path) as ledger:
        ledger.begin(begun)
        before = path.read_bytes()
        ledger.begin(begun)
        for ask in (ledger.begin, ledger.planned_cost):
            with pytest.raises(PrivacyError, match="other privacy settings"):
                ask(other)
        assert path.read_bytes() == before


def test_only_planned_runs_and_purposes_are_reserved(path: Path) -> None:
    with open_ledger(path) as ledger:
        ledger.begin(make_run())
        before = path.read_bytes()
        for run, purpose in ((OTHER, "train"), (RUN, "metrics")):
            with pytest.raises(PrivacyError, match="may not release"):
                ledger.reserve(run, 1, purpose, 1)
        for steps in (0, -5):
            with pytest.raises(ValueError, match="at least one step"):
                ledger.reserve(RUN, 1, "train", steps)
        assert path.read_bytes() == before


# --- reserved, sent, released-nothing


def test_a_reservation_is_on_the_disk_before_the_block_begins(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[bool, bytes]] = []
    real = os.fsync

    def spy(descriptor: int) -> None:
        real(descriptor)
        synced.append((os.path.samestat(os.fstat(descriptor), path.stat()), path.read_bytes()))

    with open_ledger(path) as ledger:
        ledger.begin(make_run())
        monkeypatch.setattr(os, "fsync", spy)
        ledger.reserve(RUN, 1, "train", 10)
        ours, content = synced[0]
        assert ours
        assert content == path.read_bytes()
        assert b'"state":"reserved"' in content


def test_only_the_reserving_process_takes_a_reservation_back_and_only_once(path: Path) -> None:
    with open_ledger(path) as ledger:
        ledger.begin(make_run())
        first = ledger.reserve(RUN, 1, "train", 10)
        one = ledger.epsilon
        second = ledger.reserve(RUN, 1, "train", 10)
        assert ledger.epsilon > one
        ledger.released_nothing(second, "the server called the round off")
        assert ledger.epsilon == one
    with open_ledger(path) as ledger:
        assert ledger.epsilon == one
        with pytest.raises(PrivacyError, match="another process made it"):
            ledger.released_nothing(first, "surely nothing left")
        with pytest.raises(PrivacyError, match="another process made it"):
            ledger.sent(first, CONTENT)
        with pytest.raises(PrivacyError, match="no such reservation"):
            ledger.released_nothing(99, "what was this")
        assert ledger.epsilon == one


def test_what_was_sent_or_taken_back_is_closed(path: Path) -> None:
    with open_ledger(path) as ledger:
        ledger.begin(make_run())
        sent, back = ledger.reserve(RUN, 1, "train", 10), ledger.reserve(RUN, 2, "train", 10)
        ledger.sent(sent, CONTENT)
        ledger.released_nothing(back, "called off")
        cost = ledger.epsilon
        with pytest.raises(PrivacyError, match="closed: sent"):
            ledger.released_nothing(sent, "the server dropped it")
        with pytest.raises(PrivacyError, match="closed: released-nothing"):
            ledger.released_nothing(back, "twice")
        with pytest.raises(PrivacyError, match="closed: released-nothing"):
            ledger.sent(back, CONTENT)
        assert ledger.epsilon == cost == epsilon([Mechanism(6.0, 0.1, 10)], DELTA)


def test_the_same_bytes_again_are_free_and_others_cost(path: Path) -> None:
    head = used(path)
    before = path.read_bytes()
    with open_ledger(path, head) as ledger:
        assert ledger.may_resend(RUN, 1, CONTENT)
        ledger.sent(3, CONTENT)
        assert path.read_bytes() == before
        assert not ledger.may_resend(RUN, 1, CHANGED)
        assert not ledger.may_resend(RUN, 2, CONTENT)
        assert not ledger.may_resend(OTHER, 1, CONTENT)
        with pytest.raises(PrivacyError, match="closed: sent"):
            ledger.sent(3, CHANGED)
        cost = ledger.epsilon
        ledger.sent(ledger.reserve(RUN, 1, "train", 10), CHANGED)
        assert ledger.epsilon > cost


# --- one trainer


def test_one_trainer_at_a_time(path: Path) -> None:
    with open_ledger(path):
        with pytest.raises(ConfigError, match="another process") as caught:
            open_ledger(path)
        assert caught.value.remedy
        assert verify(path).cap == CAP
    open_ledger(path).close()


def test_a_forked_process_may_not_write(path: Path) -> None:
    with open_ledger(path) as ledger:
        ledger.begin(make_run())
        seq = ledger.reserve(RUN, 1, "train", 10)
        before = path.read_bytes()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                ledger.released_nothing(seq, "not mine")
            except PrivacyError:
                code = 0
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert path.read_bytes() == before


def test_a_closed_ledger_takes_nothing(path: Path) -> None:
    ledger = open_ledger(path)
    ledger.begin(make_run())
    ledger.close()
    with pytest.raises(PrivacyError, match="closed"):
        ledger.reserve(RUN, 1, "train", 1)


# --- damage


def test_a_missing_ledger_is_refused(path: Path) -> None:
    used(path)
    path.unlink()
    assert refused(path, RecordError).exit_code == 9
    with pytest.raises(RecordError, match="missing"):
        verify(path)


@pytest.mark.parametrize("line", range(6))
def test_a_deleted_doubled_or_edited_line_is_named(path: Path, line: int) -> None:
    used(path)
    texts = path.read_bytes().splitlines(keepends=True)
    wrong = [
        [*texts[:line], *texts[line + 1 :]],
        [*texts[: line + 1], *texts[line:]],
        [*texts[:line], texts[line].replace(b"2026", b"2025"), *texts[line + 1 :]],
        [*texts[:line], b"{}\n", *texts[line + 1 :]],
    ]
    for lines in wrong:
        path.write_bytes(b"".join(lines))
        error = refused(path, RecordError)
        assert isinstance(error, RecordError)
        assert error.line in {line + 1, line + 2}
        with pytest.raises(RecordError):
            verify(path)


def test_reordered_lines_are_refused(path: Path) -> None:
    used(path)
    texts = path.read_bytes().splitlines(keepends=True)
    for first in range(5):
        swapped = texts.copy()
        swapped[first], swapped[first + 1] = swapped[first + 1], swapped[first]
        path.write_bytes(b"".join(swapped))
        refused(path, RecordError)


def test_every_cut_is_refused(path: Path) -> None:
    used(path)
    whole = path.read_bytes()
    for length in [*range(0, len(whole) - 400, 97), *range(len(whole) - 400, len(whole))]:
        path.write_bytes(whole[:length])
        refused(path, RecordError)


@pytest.mark.parametrize("head", [None, b"", b'{"count":6}', b'{"count":1,"last_hash":"00"}'])
def test_a_lost_or_edited_head_is_refused(path: Path, head: bytes | None) -> None:
    used(path)
    file = path.with_name("ledger.head")
    if head is None:
        file.unlink()
    else:
        file.write_bytes(head)
    refused(path, RecordError)


def test_a_head_of_another_moment_or_chain_is_refused(path: Path) -> None:
    file = path.with_name("ledger.head")
    with open_ledger(path) as ledger:
        ledger.begin(make_run())
        first = file.read_bytes()
        ledger.reserve(RUN, 1, "train", 10)
        ledger.reserve(RUN, 2, "train", 10)
    right = file.read_bytes()
    last = json.loads(right)["last_hash"]
    for wrong in (first, right.replace(last.encode(), b"0" * 64)):
        file.write_bytes(wrong)
        refused(path, RecordError)
    file.write_bytes(right)
    open_ledger(path).close()


def test_a_line_with_a_hash_of_its_own_must_fit_its_place(path: Path) -> None:
    used(path)
    texts = path.read_bytes().splitlines()

    def forged(text: bytes, **changes: object) -> bytes:
        record = {**json.loads(text), **changes}
        del record["hash"]
        body = json.dumps(record, separators=(",", ":")).encode()
        return body[:-1] + f',"hash":"{hashlib.sha256(body).hexdigest()}"}}'.encode()

    path.write_bytes(b"\n".join([*texts[:3], forged(texts[3], time="later"), *texts[4:]]) + b"\n")
    error = refused(path, RecordError)
    assert isinstance(error, RecordError)
    assert error.line == 5
    path.write_bytes(b"\n".join([*texts[:5], forged(texts[5], seq=7)]) + b"\n")
    assert "calls itself line 7" in refused(path, RecordError).seen


def test_an_older_copy_of_both_files_is_refused_by_the_hash_that_the_server_knows(
    path: Path, tmp_path: Path
) -> None:
    shutil.copytree(path.parent, tmp_path / "old")
    head = used(path)
    shutil.rmtree(path.parent)
    shutil.copytree(tmp_path / "old", path.parent)
    # nothing but the server's memory tells: this is what it is for
    open_ledger(path).close()
    assert "rolled back" in refused(path, RecordError, head).seen
    with open_ledger(path) as ledger:
        ledger.begin(make_run())
    # a ledger that grew another way is no better
    refused(path, RecordError, head)
    with pytest.raises(RecordError, match="rolled back"):
        verify(path, expected_head=head)


def test_a_new_ledger_in_place_of_a_lost_one_is_refused(path: Path) -> None:
    head = used(path)
    shutil.rmtree(path.parent)
    create_ledger(path, cohort="brain", delta=DELTA, cap=CAP)
    refused(path, RecordError, head)


def test_a_ledger_may_be_ahead_of_the_server(path: Path) -> None:
    head = used(path)
    with open_ledger(path, head) as ledger:
        ledger.reserve(RUN, 3, "train", 1)
    open_ledger(path, head).close()
    assert verify(path, expected_head=head).state(7) == "reserved"


def test_a_chain_made_anew_must_still_follow_the_rules(path: Path) -> None:
    used(path)
    texts = path.read_bytes().splitlines()
    rechain(path, texts)
    open_ledger(path).close()
    wrong = [
        [
            texts[0],
            texts[1],
            texts[2].replace(b'"noise_multiplier":6.0', b'"noise_multiplier":60.0'),
        ],
        [texts[0], texts[1], texts[2].replace(b'"q":0.1', b'"q":0.01')],
        [texts[0], texts[2]],
        [texts[0], texts[1], texts[1]],
        [texts[0], texts[0]],
        [*texts[:4], texts[3]],
        [*texts[:4], texts[5].replace(b'"reservation":5', b'"reservation":3')],
        [*texts[:2], texts[3]],
        texts[1:],
    ]
    for lines in wrong:
        rechain(path, lines)
        refused(path, RecordError)


def test_a_file_that_changes_while_in_use_is_noticed_before_the_next_block(path: Path) -> None:
    old = path.read_bytes()

    def replace_by_a_copy() -> None:
        copy = path.with_name("copy")
        copy.write_bytes(path.read_bytes())
        copy.replace(path)

    for tamper in (
        replace_by_a_copy,
        lambda: path.write_bytes(path.read_bytes().replace(b"6.0", b"9.0")),
        lambda: path.write_bytes(old),
        path.unlink,
    ):
        with open_ledger(path) as ledger:
            ledger.begin(make_run())
            whole, head = path.read_bytes(), path.with_name("ledger.head").read_bytes()
            tamper()
            with pytest.raises(RecordError, match="changed while it was in use"):
                ledger.reserve(RUN, 1, "train", 1)
            with pytest.raises(PrivacyError, match="closed"):
                ledger.reserve(RUN, 1, "train", 1)
        path.write_bytes(whole)
        path.with_name("ledger.head").write_bytes(head)


# --- crashes while writing


def test_a_line_that_was_being_written_is_set_aside(path: Path) -> None:
    with open_ledger(path) as ledger:
        ledger.begin(make_run())
        ledger.reserve(RUN, 1, "train", 10)
        cost = ledger.epsilon
        before = path.read_bytes(), path.with_name("ledger.head").read_bytes()
        ledger.reserve(RUN, 2, "train", 10)
        line = path.read_bytes()[len(before[0]) :]
    for length in (1, len(line) // 2, len(line) - 1):
        path.write_bytes(before[0] + line[:length])
        path.with_name("ledger.head").write_bytes(before[1])
        assert verify(path).epsilon() == cost
        with open_ledger(path) as ledger:
            assert ledger.epsilon == cost
            ledger.reserve(RUN, 2, "train", 10)
        assert path.read_bytes().startswith(before[0])
        torn = sorted(path.parent.glob("ledger.torn-*"))[-1]
        assert torn.read_bytes() == line[:length]
        assert hashlib.sha256(line[:length]).hexdigest() in verify(path).lines[3].model_dump_json()
    assert len(list(path.parent.glob("ledger.torn-*"))) == 3
    # a whole line ahead of the head counts: a crash between the two writes
    path.write_bytes(before[0] + line)
    path.with_name("ledger.head").write_bytes(before[1])
    with open_ledger(path) as ledger:
        assert ledger.epsilon > cost


def test_a_full_disk_stops_the_block_and_leaves_a_ledger_that_opens(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    with open_ledger(path) as ledger:
        ledger.begin(make_run())
        before = path.read_bytes()

        def full(descriptor: int, data: bytes) -> int:
            real(descriptor, data[:50])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(RecordError, match=wording.NO_SPACE) as caught:
                ledger.reserve(RUN, 1, "train", 10)
        assert caught.value.exit_code == 9
        # the same process may not go on as if nothing had happened
        with pytest.raises(PrivacyError, match="closed"):
            ledger.reserve(RUN, 1, "train", 10)
    assert path.read_bytes()[: len(before)] == before
    assert len(path.read_bytes()) == len(before) + 50
    with open_ledger(path) as ledger:
        assert ledger.epsilon == 0


def test_a_line_whose_sync_failed_counts_from_then_on(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with open_ledger(path) as ledger:
        ledger.begin(make_run())
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", broken)
            with pytest.raises(RecordError):
                ledger.reserve(RUN, 1, "train", 10)
        with pytest.raises(PrivacyError, match="closed"):
            ledger.sent(3, CONTENT)
    with open_ledger(path) as ledger:
        assert ledger.epsilon == epsilon([Mechanism(6.0, 0.1, 10)], DELTA)
        with pytest.raises(PrivacyError, match="another process made it"):
            ledger.released_nothing(3, "the disk failed")


def test_a_clock_that_jumps_changes_neither_cost_nor_order(path: Path) -> None:
    steady = path.with_name("steady")
    steady.mkdir()
    other = steady / path.name
    create_ledger(other, cohort="brain", delta=DELTA, cap=CAP, clock=lambda: NOON)
    jumps = iter([NOON, *(NOON + timedelta(days=days) for days in (9000, -4000, 0, -4000, 12000))])
    jumping = Ledger(path, cohort="brain", clock=lambda: next(jumps))
    with jumping, Ledger(other, cohort="brain", clock=lambda: NOON) as plain:
        for ledger in (jumping, plain):
            ledger.begin(make_run())
            for round_ in (1, 2):
                seq = ledger.reserve(RUN, round_, "train", 10)
                ledger.sent(seq, hashlib.sha256(bytes([round_])).hexdigest())
        assert jumping.epsilon == plain.epsilon
        assert [row.round for row in jumping.rows()] == [1, 2]
    times = [line.time for line in verify(path).lines]
    assert times != sorted(times), "the test's clock did not jump"
    with open_ledger(path) as ledger:
        assert ledger.epsilon == verify(other).epsilon()
        ledger.reserve(RUN, 3, "train", 10)
