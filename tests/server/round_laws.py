"""The laws of rounds: what a run's folder may hold, given what truly happened.

Everything is computed anew from the files with numpy; nothing of the round loop is asked.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from safetensors.numpy import load_file

from lift.config.plan import AggregationPlan, Plan
from lift.mixer.z_filter import SCALE
from lift.protocol.messages import Failure, FailureKind, Kind, Parcel
from lift_server.rounds.finished import FinishedRun
from tests.server.round_world import Exchange, ScriptedGrid
from tests.server.scripted_sites import (
    ABSENT,
    PATIENTS,
    REASONS,
    START,
    VALID,
    site_sums,
    site_update,
)

# the longest time from a site's coming back to the next look at who is connected
_NOTICED_S: Final = 1.1
Record = dict[str, Any]


class RunFolder:
    """One run's folder, and what it held before.

    Args:
        path: the folder.
        plan: the run's plan.
    """

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path = path
        self.plan = plan
        self._history: list[bytes] = []

    def cards(self) -> list[Record]:
        paths = sorted((self.path / "checkpoints").glob("round-*.json"))
        return [json.loads(path.read_text(encoding="utf-8")) for path in paths]

    def _state(self, round_index: int) -> dict[str, np.ndarray]:
        path = self.path / "checkpoints" / f"round-{round_index:04d}.safetensors"
        return dict(load_file(path))

    def mixer(self, round_index: int) -> dict[str, np.ndarray]:
        state = self._state(round_index)
        return {k.removeprefix("mixer/"): v for k, v in state.items() if k.startswith("mixer/")}

    def check_request(self, exchange: Exchange) -> None:
        """Before anything leaves: the round before is on disk, and its mixer is what leaves."""
        records = [card["record"] for card in self.cards()]
        rounds = self.path / "rounds.jsonl"
        assert exchange.round == len(records), "a round begins before the last one is on disk"
        assert (_lines(rounds) if rounds.exists() else []) == records
        assert exchange.fresh_roster or exchange.round > self.plan.federation.rounds
        assert set(exchange.requests) <= set(exchange.roster)
        if exchange.kind is Kind.TRAIN:
            mixer = self.mixer(exchange.round - 1)
            for request in exchange.requests.values():
                assert_equal(request.tensors, mixer)

    def check_exchange(self, exchange: Exchange, grid: ScriptedGrid) -> None:
        """The law of one exchange: first answers, deadline, requests."""
        connections = Counter(exchange.pushed.values())
        lost = Counter(exchange.pushed[identity] for identity in exchange.lost)
        for (site, since), times in connections.items():
            again = lost[site, since]
            assert times <= 1 + again, f"{site} got {times} requests over {since}"
        if exchange.ended is None:
            return
        lasted = exchange.ended - exchange.began
        missing = set(exchange.requests) - set(exchange.first)
        grace_s = 0.0 if exchange.grace is None else exchange.grace.seconds
        assert lasted <= exchange.deadline_s + grace_s + exchange.longest_look_s + 1e-6
        if missing and lasted < exchange.deadline_s - 1e-6:
            assert exchange.was_enough, "closed early"
            assert min(exchange.away.get(site, 0.0) for site in missing) >= grace_s - 1e-6
        if missing and lasted < exchange.deadline_s + grace_s - 1e-6:
            assert missing <= set(exchange.away), "closed on a site that is there"
        assert set(exchange.answers) == set(exchange.requests)
        sent = Counter(site for site, _ in exchange.pushed.values())
        for site, answer in exchange.answers.items():
            deed = exchange.first.get(site)
            assert answer.sent == sent[site]
            if deed is None:
                assert answer.content == Failure(FailureKind.NO_ANSWER)
                _check_was_asked(exchange, site, grid)
            elif deed in REASONS:
                assert answer.content == Failure(FailureKind(REASONS[deed]))
            else:
                assert isinstance(answer.content, Parcel)
                assert answer.content.kind is exchange.kind

    def check_folder(self, ending: str) -> None:
        """Rounds 0, 1, 2 ... once each and whole; what was written before has not changed."""
        folder = self.path / "checkpoints"
        cards = self.cards()
        assert [card["round"] for card in cards] == list(range(len(cards)))
        assert [card["record"]["round"] for card in cards] == list(range(len(cards)))
        contents = []
        for index, card in enumerate(cards):
            content = (folder / f"round-{index:04d}.safetensors").read_bytes()
            assert hashlib.sha256(content).hexdigest() == card["sha256"]
            contents.append(content + (folder / f"round-{index:04d}.json").read_bytes())
        assert contents[: len(self._history)] == self._history, "history was rewritten"
        self._history = contents
        path = self.path / "rounds.jsonl"
        lines = _lines(path) if path.exists() else []
        records = [card["record"] for card in cards]
        # a death between the checkpoint and its line is mended by the next start
        assert lines == records or (ending == "died" and lines == records[:-1])

    def check_rounds(
        self,
        before: Sequence[Record],
        known: dict[str, int],
        exchanges: Sequence[Exchange],
        ending: str,
    ) -> None:
        """Each round of this life: who was asked, who counted, and what became of the mixer."""
        cards = self.cards()
        for index in range(len(before), len(cards) + (ending == "quorum")):
            mine = [e for e in exchanges if e.round == index]
            joined = {
                site: PATIENTS[site]
                for e in mine
                if e.kind is Kind.STATISTICS
                for site in e.valid
                if site not in known
            }
            known |= joined
            last = mine[-1]
            met = self._quorum_is_met(index, last, known)
            if index == len(cards):
                assert not met, "a round was given up that had its quorum"
                return
            assert met, "a round below its quorum was aggregated"
            record = cards[index]["record"]
            _check_names(record)
            _check_record(record, last)
            if index == 0:
                assert record["counted"] == joined
                self._check_statistics(record)
            else:
                assert last.kind is Kind.TRAIN
                asked = [s for s in last.roster if known.get(s, 0) > 0]
                assert record["asked"] == asked
                assert record["joined"] == joined
                self._check_mixer(index, record, known)

    def _quorum_is_met(self, index: int, exchange: Exchange, known: Mapping[str, int]) -> bool:
        federation = self.plan.federation
        trainers = [s for s in exchange.roster if known.get(s, 0) > 0]
        everybody = exchange.roster if index == 0 else trainers
        patients = sum(known[site] for site in exchange.valid)
        return (
            len(exchange.valid) >= (federation.quorum_sites or len(everybody))
            and patients > 0
            and patients
            >= federation.quorum_patients * sum(known[site] for site in trainers) - 1e-6
        )

    def _check_statistics(self, record: Record) -> None:
        sums = [site_sums(site) for site in sorted(record["counted"])]
        a, b = (sum(part[name] for part in sums) / SCALE for name in sorted(sums[0]))
        ridge = self.plan.mixer.ridge * np.trace(a) / 6
        taps = np.linalg.solve(a + ridge * np.eye(6), b)
        np.testing.assert_allclose(self._state(0)["z_filter/taps"], taps, rtol=1e-9)
        assert_equal(self.mixer(0), START)

    def _check_mixer(self, index: int, record: Record, known: Mapping[str, int]) -> None:
        """Before + weighted mean of exactly the counted updates, each once, to the bit."""
        counted: Mapping[str, float] = record["counted"]
        patients = {site: known[site] for site in counted}
        expected = _weights(patients, self.plan.aggregation)
        assert list(counted) == sorted(counted)
        np.testing.assert_allclose(list(counted.values()), expected, rtol=1e-9)
        dtype = self.plan.federation.update_dtype
        old = self.mixer(index - 1)
        mean = {name: np.zeros(value.shape) for name, value in old.items()}
        updates = {site: site_update(site, index, old, dtype) for site in counted}
        factors = _factors(updates, self.plan.aggregation.largest_norm_ratio)
        assert record["clipped"] == pytest.approx(factors, rel=1e-9)
        for site in sorted(counted):
            for name, part in updates[site].items():
                # the record's own factor: to the bit
                clipped = part.astype(np.float64) * record["clipped"].get(site, 1.0)
                mean[name] = mean[name] + clipped * counted[site]
        new = {name: (old[name] + mean[name]).astype(np.float32) for name in old}
        assert_equal(self.mixer(index), new)

    def check_finished(self, finished: FinishedRun, guard: Exchange) -> None:
        rounds = self.plan.federation.rounds
        assert [line.line() for line in finished.records] == [
            card["record"] for card in self.cards()
        ]
        assert len(finished.records) == rounds + 1
        mixer = {name: tensor.numpy() for name, tensor in finished.mixer.items()}
        assert_equal(mixer, self.mixer(rounds))
        assert guard.kind in {Kind.GUARD, None}
        assert sorted(finished.guard) == guard.valid


def known_patients(records: Iterable[Record]) -> dict[str, int]:
    """Training patients that the folder knows of: round 0's sites and the late joiners."""
    known: dict[str, int] = {}
    for record in records:
        found = record["counted"] if record["round"] == 0 else record["joined"]
        known |= {site: int(patients) for site, patients in found.items()}
    return known


def assert_equal(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    assert sorted(first) == sorted(second)
    for name in first:
        np.testing.assert_array_equal(np.asarray(first[name]), np.asarray(second[name]))


def _check_was_asked(exchange: Exchange, site: str, grid: ScriptedGrid) -> None:
    """Nobody who was there long enough is counted out without having been asked."""
    hospital = grid.sites[site]
    quiet = exchange.longest_look_s == 0 and not exchange.push_failed
    assert exchange.ended is not None
    if quiet and hospital.here and hospital.connected_at < exchange.ended - _NOTICED_S:
        assert (site, str(hospital.connection)) in exchange.pushed.values()


def _lines(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _check_names(record: Record) -> None:
    """What can be said of a record without knowing what happened."""
    asked, answered = set(record["asked"]), set(record["answered"])
    counted, refused = set(record["counted"]), set(record["refused"])
    assert counted <= answered <= asked
    assert counted | refused == asked
    assert not counted & refused
    assert len(record["asked"]) == len(asked)
    assert len(record["answered"]) == len(answered)


def _check_record(record: Record, exchange: Exchange) -> None:
    """Each name stands where the site's first answer puts it."""
    assert record["asked"] == sorted(exchange.requests)
    assert sorted(record["counted"]) == exchange.valid
    for site, reason in record["refused"].items():
        deed = exchange.first.get(site)
        assert deed not in VALID
        expected = ABSENT if deed is None else REASONS.get(deed)
        assert reason == expected if expected else reason not in set(FailureKind)
    absent = {s for s, reason in record["refused"].items() if reason == ABSENT}
    assert set(record["answered"]) == set(exchange.requests) - absent
    sent = Counter(site for site, _ in exchange.pushed.values())
    assert record["sent_again"] == {site: n - 1 for site, n in sorted(sent.items()) if n > 1}


def _factors(
    updates: Mapping[str, Mapping[str, np.ndarray]], largest_ratio: float | None
) -> dict[str, float]:
    """By which the updates beyond a multiple of the lower median norm are scaled down."""
    if largest_ratio is None:
        return {}
    norms = {
        site: float(np.linalg.norm(np.concatenate([np.ravel(t).astype(float) for t in u.values()])))
        for site, u in updates.items()
    }
    known = sorted(n for n in norms.values() if n > 0)
    if not known:
        return {}
    most = largest_ratio * known[(len(known) - 1) // 2]
    return {site: most / n for site, n in norms.items() if n > most * (1 + 1e-12)}


def _weights(patients: Mapping[str, int], plan: AggregationPlan) -> list[float]:
    """The capped shares, by bisection on the scale: sum of min(share, scale * n) is 1."""
    n = np.array([patients[site] for site in sorted(patients)], np.float64)
    if plan.weights == "uniform" or len(n) * plan.largest_share <= 1:
        return [1 / len(n)] * len(n)
    low, high = 0.0, 1.0
    for _ in range(200):
        middle = (low + high) / 2
        if np.minimum(plan.largest_share, middle * n).sum() < 1:
            low = middle
        else:
            high = middle
    return list(np.minimum(plan.largest_share, high * n))
