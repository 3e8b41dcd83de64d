"""A plan is data: checked against schema, policy and what the site has, before any work."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict

from lift.config.kit import TaskRule
from lift.config.plan import FederationPlan, TaskPlan, TrainingPlan
from lift.errors import DiskError
from lift.protocol.codec import (
    Encoded,
    encode,
)
from lift.protocol.flower.records import pack
from lift.protocol.messages import (
    PROTOCOL_VERSION,
    Kind,
    Parcel,
    StatisticsRequest,
)
from lift_client.gate.journal import Journal
from tests.federation.desk import POLICY, Desk, Real, asking, training
from tests.federation.parcels import F32, a_plan, make_plan, statistics_of

pytestmark = [
    pytest.mark.timeout(300),
    # Flower's way of building an app
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),
]


def test_a_plan_within_the_policy_is_worked_on(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    assert desk.refusal(asking(a_plan())) == "data"
    assert len(desk.computed) == 1


@pytest.mark.parametrize(
    ("plan", "policy"),
    [
        ({"task": TaskPlan(source=("t2w",), target="t2f")}, {}),
        ({"task": TaskPlan(source=("t1n",), target="t1c")}, {}),
        ({"task": TaskPlan(source=("t1n", "t2w"), target="t2f")}, {}),
        ({}, {"tasks": (TaskRule(source=("mr",), target="ct"),)}),
        ({"generator_fingerprint": "b" * 64}, {}),
        ({"generator_fingerprint": None}, {}),
        ({}, {"generators": ("b" * 64,)}),
        ({"federation": FederationPlan(rounds=3)}, {}),
        ({"federation": FederationPlan(rounds=10**6)}, {}),
        ({"training": TrainingPlan(steps=41)}, {}),
        ({}, {"privacy_modes": ()}),
    ],
)
def test_a_plan_outside_the_policy_is_refused_and_nothing_is_computed(
    tmp_path: Path, plan: dict[str, Any], policy: dict[str, Any]
) -> None:
    desk = Desk(tmp_path, POLICY.model_copy(update=policy))
    assert desk.refusal(asking(a_plan(**plan))) == "policy"
    assert not desk.computed
    assert desk.journal() == ["failure"]


def edited(change: Callable[[dict[str, Any]], object]) -> RecordDict:
    """A request whose JSON was changed by hand."""
    encoded = encode(Parcel(Kind.STATISTICS, StatisticsRequest(plan=a_plan())))
    envelope = json.loads(encoded.text)
    change(envelope)
    return pack(Encoded(json.dumps(envelope), encoded.block))


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "unknown key": lambda e: e["body"]["plan"].update(code="import os"),
    "unknown nested key": lambda e: e["body"]["plan"]["training"].update(script="x"),
    "unknown key of the body": lambda e: e["body"].update(path="/etc"),
    "unknown key of the envelope": lambda e: e.update(path="/etc"),
    "unknown privacy mode": lambda e: e["body"]["plan"]["privacy"].update(mode="dp"),
    "no privacy": lambda e: e["body"]["plan"].pop("privacy"),
    "privacy of null": lambda e: e["body"]["plan"].update(privacy=None),
    "a path for a channel": lambda e: e["body"]["plan"]["task"].update(target="../t2f"),
    "rounds as text": lambda e: e["body"]["plan"]["federation"].update(rounds="2"),
    "rounds as a float": lambda e: e["body"]["plan"]["federation"].update(rounds=2.5),
    "negative steps": lambda e: e["body"]["plan"]["training"].update(steps=-1),
    "unknown mixer": lambda e: e["body"]["plan"]["mixer"].update(kind="os.system"),
    "short fingerprint": lambda e: e["body"]["plan"].update(generator_fingerprint="aa"),
    "a reply": lambda e: e.update(body=statistics_of(make_plan(), 3).body.model_dump(mode="json")),
    "unknown kind": lambda e: e.update(kind="shell"),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_request_that_does_not_fit_its_schema_is_refused(tmp_path: Path, name: str) -> None:
    desk = Desk(tmp_path)
    assert desk.refusal(edited(EDITS[name])) == "protocol"
    assert not desk.computed


def test_another_protocol_version_is_refused_as_such(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    assert desk.refusal(edited(lambda e: e.update(version=PROTOCOL_VERSION + 1))) == "version"
    assert not desk.computed


@pytest.mark.parametrize("name", ["unknown key", "unknown kind"])
def test_the_refusal_of_an_unreadable_request_stands_in_the_journal(
    tmp_path: Path, name: str
) -> None:
    desk = Desk(tmp_path)
    desk.refusal(edited(EDITS[name]))
    assert desk.journal() == ["failure"]


def test_a_generator_that_is_not_installed_here_is_refused_even_if_the_policy_allows_it(
    real: Real,
) -> None:
    desk = real.desk(POLICY.model_copy(update={"generators": ("b" * 64,)}))
    other = real.plan.model_copy(update={"generator_fingerprint": "b" * 64})
    assert desk.refusal(asking(other)) == "policy"
    assert not (real.folder / "plan.json").exists()
    assert desk.journal() == ["failure"]


def test_a_plan_whose_updates_are_larger_than_the_policy_allows_is_refused(real: Real) -> None:
    desk = real.desk(POLICY.model_copy(update={"largest_update_bytes": 400}))
    assert desk.refusal(asking(real.plan)) == "policy"
    assert not desk.computed
    assert desk.journal() == ["failure"]


def test_a_tensor_that_no_answer_has_stays_here(real: Real) -> None:
    desk = real.desk(POLICY, planting=True)
    assert set(desk.say(asking(real.plan))) == {"lift.parcel"}
    assert desk.refusal(training(real.plan, 1, real.mixer()), "train") == "policy"
    assert desk.journal() == ["statistics", "failure"]
    # and without it the same answer leaves
    honest = real.desk(POLICY)
    assert set(honest.say(asking(real.plan))) == {"lift.parcel"}
    assert set(honest.say(training(real.plan, 1, real.mixer()), "train")) == {"lift.parcel"}


def test_statistics_that_are_larger_than_the_policy_allows_stay_here(real: Real) -> None:
    desk = real.desk(POLICY.model_copy(update={"largest_statistics_bytes": 100}))
    assert desk.refusal(asking(real.plan)) == "policy"


def test_a_mixer_that_does_not_fit_or_is_not_finite_is_refused(real: Real) -> None:
    desk = real.desk(POLICY)
    desk.say(asking(real.plan))
    mixer = real.mixer()
    name = sorted(mixer)[0]
    for hostile in (
        {"w": np.zeros(3, F32)},
        mixer | {"x": np.zeros(1, F32)},
        {key: value for key, value in mixer.items() if key != name},
        mixer | {name: np.full_like(mixer[name], np.nan)},
        mixer | {name: np.zeros((*mixer[name].shape, 2), F32)},
    ):
        assert desk.refusal(training(real.plan, 1, hostile), "train") == "protocol"
    assert set(desk.journal()) == {"statistics", "failure"}


def test_a_plan_that_the_site_never_saw_is_refused(real: Real) -> None:
    desk = real.desk(POLICY)
    unseen = real.plan.model_copy(update={"seed": 99})
    assert desk.refusal(training(unseen, 1, real.mixer()), "train") == "protocol"
    assert desk.journal() == ["failure"]


def test_no_more_rounds_are_worked_on_than_the_plan_has(real: Real) -> None:
    desk = real.desk(POLICY)
    desk.say(asking(real.plan))
    assert desk.refusal(training(real.plan, 3, real.mixer()), "train") == "policy"


def test_a_round_that_starts_from_huge_numbers_is_not_worked_on(real: Real) -> None:
    desk = real.desk(POLICY)
    desk.say(asking(real.plan))
    computed = len(desk.computed)
    huge = {name: array + F32(2e3) for name, array in real.mixer().items()}
    assert desk.refusal(training(real.plan, 1, huge), "train") == "policy"
    assert len(desk.computed) == computed


def test_a_policy_that_was_tightened_holds_after_a_restart(real: Real) -> None:
    desk = real.desk(POLICY)
    desk.say(asking(real.plan))
    again = real.desk(POLICY.model_copy(update={"most_rounds": 1}))
    assert again.refusal(training(real.plan, 1, real.mixer()), "train") == "policy"


def test_a_journal_without_room_ends_the_client_and_nothing_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    desk = Desk(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    monkeypatch.setattr(Journal, "append", full)
    with pytest.raises(DiskError, match="the journal cannot take a line"):
        desk.say(asking(a_plan()))
    # an operator reads one line, not our stack
    assert [record for record in caplog.records if record.exc_info] == []
