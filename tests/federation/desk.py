"""A site's end of the wire without a wire: requests go in, answers, journal and work are seen."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Context, Metadata, RecordDict
from flwr.app.message.message import make_message
from flwr.supercore.task_identity import TaskIdentity

from lift.config.cohort import BratsData
from lift.config.generator import GeneratorChoice
from lift.config.kit import Kit, TaskRule
from lift.config.plan import FederationPlan, Plan
from lift.config.site import PolicySettings, SiteConfig
from lift.generator.bundle import load_bundle
from lift.generator.networks import FrozenGenerator
from lift.protocol.codec import encode
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
from lift.tasks.answers import Forms, answer_forms
from lift.tasks.paired.building import plan_mixer
from lift_client.app import Release
from lift_client.gate.journal import JOURNAL_FILE, Journal, verify
from lift_client.session import SiteSession
from tests.end_to_end.tiny_run import TinyRun
from tests.federation.parcels import F32, FINGERPRINT
from tests.federation.planting import with_scan
from tests.federation.world import tiny_plan

KIT = Kit(
    federation="trial",
    site="east",
    address="localhost:8443",
    ca_sha256="c" * 64,
    generator_fingerprint=FINGERPRINT,
    task=TaskRule(source=("t1n",), target="t2f"),
)
POLICY = PolicySettings(
    privacy_modes=("none",),
    most_rounds=2,
    most_steps_per_round=40,
    least_patient_count_step=1,
    image_checks=False,
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
        generator: FrozenGenerator | None = None,
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
        # without a generator nothing is ever answered, and no answer has a form
        forms: Forms = (lambda _kind, _plan: None) if generator is None else answer_forms(generator)
        gate = Release(self._compute, config, kit, Journal(self._path), forms)
        self._app = make_client_app(gate)
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
        return str(reply.config_records["lift.failure"]["kind"]).rstrip(" ")

    def journal(self) -> list[str]:
        """Kinds of the journal's lines; the chain is checked."""
        return [line.kind for line in verify(self._path).lines]

    def _compute(self, request: Parcel) -> Parcel | Failure:
        self.computed.append(request)
        return Failure(FailureKind.DATA) if self._handler is None else self._handler(request)


def asking(plan: Plan) -> RecordDict:
    return pack(encode(Parcel(Kind.STATISTICS, StatisticsRequest(plan=plan))))


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

    def desk(self, policy: PolicySettings, *, planting: bool = False) -> Desk:
        """As after a start of the program; `planting`: with a session that sends too much."""
        config = self.config.model_copy(update={"policy": policy, "folder": self.folder})
        session = SiteSession(config, self.generator, self.folder)
        return Desk(
            self.folder,
            kit=self.kit,
            handler=(lambda r: with_scan(session.handle(r))) if planting else session.handle,
            config=config,
            generator=self.generator,
        )

    def mixer(self) -> dict[str, Any]:
        """A mixer that fits the plan."""
        values = plan_mixer(self.plan, self.generator).values()
        return {name: tensor.numpy() for name, tensor in values.items()}


def real_site(volumes: TinyRun, folder: Path) -> Real:
    """The site `east` with its volumes, and a plan of two rounds."""
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
    return Real(folder, config, KIT.model_copy(update=known), generator, plan)
