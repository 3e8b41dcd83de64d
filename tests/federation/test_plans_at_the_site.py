"""A plan is data: checked against schema, policy and what the site has, before any work."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Metadata, RecordDict
from flwr.app.message.message import make_message
from flwr.supercore.task_identity import TaskIdentity

from lift.assembly import plan_mixer
from lift.config.cohort import BratsData
from lift.config.generator import GeneratorChoice
from lift.config.kit import Kit, TaskRule
from lift.config.plan import FederationPlan, Plan, TaskPlan, TrainingPlan
from lift.config.site import PolicySettings, SiteConfig
from lift.generator.bundle import load_bundle
from lift.generator.networks import FrozenGenerator
from lift.protocol.codec import (
    Encoded,
    encode,
)
from lift.protocol.flower.apps import make_client_app
from lift.protocol.flower.records import pack
from lift.protocol.messages import (
    Failure,
    FailureKind,
    Kind,
    Parcel,
    StatisticsRequest,
    TrainRequest,
)
from lift.protocol.transport import SiteHandler
from lift_client.app import Release
from lift_client.journal import JOURNAL_FILE, Journal, verify
from lift_client.session import SiteSession
from tests.end_to_end.tiny_run import TinyRun
from tests.federation.parcels import F32, FINGERPRINT, a_plan, make_plan, statistics_of
from tests.federation.world import tiny_plan

pytestmark = [
    pytest.mark.timeout(300),
    # Flower's way of building an app
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),
]

KIT = Kit(
    federation="trial",
    site="east",
    address="localhost:8443",
    ca_sha256="c" * 64,
    generator_fingerprint=FINGERPRINT,
    task=TaskRule(source=("t1n",), target="t2f"),
)
POLICY = PolicySettings(
    privacy_modes=("none",), most_rounds=2, most_steps_per_round=40, least_patient_count_step=1
)


class Desk:
    """A site as the server sees it: what it says, what it computed, what it journaled."""

    def __init__(
        self,
        folder: Path,
        policy: PolicySettings = POLICY,
        kit: Kit = KIT,
        handler: SiteHandler | None = None,
        config: SiteConfig | None = None,
    ) -> None:
        self.computed: list[Parcel] = []
        self._handler = handler
        self._path = folder / JOURNAL_FILE
        config = config or SiteConfig(
            name="east",
            data=BratsData(root=folder),
            generator=GeneratorChoice(bundle=folder),
            policy=policy,
        )
        self._app = make_client_app(Release(self._compute, config, kit, Journal(self._path)))
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 2, 3

    def say(self, content: RecordDict, kind: str = "query") -> RecordDict:
        """The whole reply to any content."""
        metadata = Metadata(1, "m" * 64, 1, 2, "", "", time.time(), 60.0, kind)
        context = Context(run_id=1, node_id=2, node_config={}, state=RecordDict(), run_config={})
        reply = self._app(make_message(metadata=metadata, content=content), context)
        assert not reply.has_error()
        found: RecordDict = reply.content
        return found

    def refusal(self, content: RecordDict, kind: str = "query") -> str:
        """The class of a refusal, which is all that the reply holds."""
        reply = self.say(content, kind)
        assert set(reply) == {"lift.failure"}
        assert set(reply.config_records["lift.failure"]) == {"kind"}
        return str(reply.config_records["lift.failure"]["kind"])

    def journal(self) -> list[str]:
        """Kinds of the journal's lines; the chain is checked."""
        return [line.kind for line in verify(self._path).lines]

    def _compute(self, request: Parcel) -> Parcel | Failure:
        self.computed.append(request)
        return Failure(FailureKind.DATA) if self._handler is None else self._handler(request)


def asking(plan: Plan) -> RecordDict:
    return pack(encode(Parcel(Kind.STATISTICS, StatisticsRequest(plan=plan))))


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
        ({"federation": FederationPlan(rounds=10**9)}, {}),
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
    assert desk.refusal(edited(lambda e: e.update(version=2))) == "version"
    assert not desk.computed


@pytest.mark.parametrize("name", ["unknown key", "unknown kind"])
def test_the_refusal_of_an_unreadable_request_stands_in_the_journal(
    tmp_path: Path, name: str
) -> None:
    desk = Desk(tmp_path)
    desk.refusal(edited(EDITS[name]))
    assert desk.journal() == ["failure"]


def training(plan: Plan, round_index: int, tensors: Mapping[str, Any] | None = None) -> RecordDict:
    request = TrainRequest(plan_digest=plan.digest(), round=round_index)
    return pack(encode(Parcel(Kind.TRAIN, request, tensors or {"w": np.zeros(3, F32)})))


@dataclass
class Real:
    """A real session on real (tiny) volumes behind the desk."""

    folder: Path
    config: SiteConfig
    kit: Kit
    generator: FrozenGenerator
    plan: Plan

    def desk(self, policy: PolicySettings) -> Desk:
        """As after a start of the program."""
        config = self.config.model_copy(update={"policy": policy, "folder": self.folder})
        session = SiteSession(config, self.generator, self.folder)
        return Desk(self.folder, kit=self.kit, handler=session.handle, config=config)

    def mixer(self) -> dict[str, Any]:
        """A mixer that fits the plan."""
        values = plan_mixer(self.plan, self.generator).values()
        return {name: tensor.numpy() for name, tensor in values.items()}


@pytest.fixture
def real(volumes: TinyRun, tmp_path: Path) -> Real:
    device = torch.device("cpu")
    generator = load_bundle(volumes.bundle, expected_fingerprint=None, device=device)
    plan = Plan.from_data(tiny_plan(), "test").model_copy(
        update={
            "generator_fingerprint": generator.fingerprint,
            "federation": FederationPlan(rounds=2, deadline_s=20.0),
        }
    )
    config = SiteConfig(
        name="east",
        data=BratsData(root=volumes.site("east")),
        generator=GeneratorChoice(bundle=volumes.bundle),
        policy=POLICY,
        device="cpu",
    )
    rule = TaskRule(source=plan.task.source, target=plan.task.target)
    known = {"generator_fingerprint": generator.fingerprint, "task": rule}
    return Real(tmp_path, config, KIT.model_copy(update=known), generator, plan)


def test_a_generator_that_is_not_installed_here_is_refused_even_if_the_policy_allows_it(
    real: Real,
) -> None:
    desk = real.desk(POLICY.model_copy(update={"generators": ("b" * 64,)}))
    other = real.plan.model_copy(update={"generator_fingerprint": "b" * 64})
    assert desk.refusal(asking(other)) == "policy"
    assert not (real.folder / "plan.json").exists()
    assert desk.journal() == ["failure"]


def test_an_update_that_is_larger_than_the_policy_allows_stays_here(real: Real) -> None:
    desk = real.desk(POLICY.model_copy(update={"largest_update_bytes": 400}))
    assert set(desk.say(asking(real.plan))) == {"lift.parcel"}
    assert desk.refusal(training(real.plan, 1, real.mixer()), "train") == "policy"
    assert desk.journal() == ["statistics", "failure"]


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


def test_a_policy_that_was_tightened_holds_after_a_restart(real: Real) -> None:
    desk = real.desk(POLICY)
    desk.say(asking(real.plan))
    again = real.desk(POLICY.model_copy(update={"most_rounds": 1}))
    assert again.refusal(training(real.plan, 1, real.mixer()), "train") == "policy"
