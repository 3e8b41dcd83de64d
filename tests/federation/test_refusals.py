"""What is refused, and that nothing else happens: apps, plans, updates, answers, connections."""

from __future__ import annotations

import io
import json
import os
import random
import re
import signal
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Metadata, MetricRecord, RecordDict
from flwr.app.message.message import make_message
from flwr.cli.build import build_fab_from_files
from flwr.common.constant import ErrorCode
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.task_identity import TaskIdentity

import lift.protocol.flower.coordinator as coordinator_module
from lift.assembly import plan_mixer
from lift.config.cohort import BratsData
from lift.config.generator import GeneratorChoice
from lift.config.kit import Kit, TaskRule
from lift.config.plan import FederationPlan, NoPrivacy, Plan, TaskPlan, TrainingPlan
from lift.config.site import PolicySettings, SiteConfig
from lift.errors import ProtocolError, QuorumError
from lift.generator.bundle import load_bundle
from lift.generator.networks import FrozenGenerator
from lift.mixer.z_filter import SCALE
from lift.protocol.codec import (
    LARGEST_TENSOR_BYTES,
    Encoded,
    decode_reply,
    decode_request,
    encode,
)
from lift.protocol.flower.apps import make_client_app
from lift.protocol.flower.executor import SuperNode
from lift.protocol.flower.records import pack, unpack
from lift.protocol.flower.stub import STUB_PYPROJECT, is_stub
from lift.protocol.flower.supernode import SuperNodeSettings
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
from lift.protocol.transport import SiteHandler
from lift_client.app import Release
from lift_client.enrolment import enrol
from lift_client.journal import JOURNAL_FILE, Journal, verify
from lift_client.session import SiteSession
from lift_server.rounds import FinishedRun, run_rounds
from lift_server.store import RunStore
from tests.end_to_end.tiny_run import TinyRun
from tests.federation.attackers import (
    ChildApi,
    Outlaw,
    Server,
    deflate,
    deflated_by_hand,
    fab_of,
    first_reply,
    flower_object,
    reply_metadata,
    running_server,
    site_settings,
    stub_fab,
)
from tests.federation.world import tiny_plan

pytestmark = [
    pytest.mark.timeout(300),
    # Flower's way of building an app
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),
]
PATIENTS = {"east": 6, "north": 5, "west": 4}
Trick = Callable[[Parcel, Parcel | None], Parcel]


def make_plan(**federation: Any) -> Plan:
    return Plan(
        task=TaskPlan(source=("t1n",), target="t2f"),
        federation=FederationPlan(**({"rounds": 2, "deadline_s": 20.0} | federation)),
        privacy=NoPrivacy(mode="none"),
    )


# --- at the server: updates -------------------------------------------------------------------


class ByHand:
    """A transport whose sites answer honestly, but for `north`, which answers with a trick."""

    def __init__(self, trick: Trick, *, in_round: int) -> None:
        self._trick = trick
        self._in_round = in_round
        self._before: Parcel | None = None

    def sites(self) -> list[str]:
        return sorted(PATIENTS)

    def exchange(self, requests: Mapping[str, Parcel], *, deadline_s: float) -> dict[str, Answer]:
        del deadline_s
        return {site: Answer(self._answer(site, requests[site]), 100) for site in requests}

    def _answer(self, site: str, request: Parcel) -> Parcel | Failure:
        honest = honest_answer(site, request)
        if site != "north":
            return honest
        body = request.body
        now = body.round if isinstance(body, TrainRequest) else 0
        given = honest
        if now == self._in_round and not isinstance(honest.body, GuardReply):
            given = self._trick(honest, self._before)
        self._before = honest
        return given


def honest_answer(site: str, request: Parcel) -> Parcel:
    body = request.body
    if isinstance(body, StatisticsRequest):
        return statistics_of(body.plan, PATIENTS[site])
    if isinstance(body, TrainRequest):
        reply = TrainReply(
            plan_digest=body.plan_digest, round=body.round, loss=1.0, validation_psnr_db=None
        )
        step = np.full(3, PATIENTS[site] / body.round, np.float32)
        return Parcel(Kind.TRAIN, reply, {"w": step, "b": step[:1]})
    digest = getattr(body, "plan_digest", "")
    guard = GuardReply(
        plan_digest=digest,
        verdict="undecided",
        against_no_mixer=None,
        against_z_filter=None,
        lowest_hf_share=None,
        highest_hf_share=None,
    )
    return Parcel(Kind.GUARD, guard)


def statistics_of(plan: Plan, patients: int) -> Parcel:
    reply = StatisticsReply(
        plan_digest=plan.digest(),
        train_patients=patients,
        validation_patients=2,
        test_patients=2,
        refused_volumes=0,
        lowest_slice_spacing_mm=3.0,
        highest_slice_spacing_mm=3.0,
    )
    sums = {
        "z_filter_a": np.eye(6, dtype=np.int64) * SCALE // 8 * patients,
        "z_filter_b": np.full(6, SCALE // 16 * patients),
    }
    return Parcel(Kind.STATISTICS, reply, sums)


def federate(plan: Plan, folder: Path, trick: Trick, *, in_round: int) -> FinishedRun:
    return run_rounds(
        plan,
        ByHand(trick, in_round=in_round),
        RunStore(folder, plan.digest()),
        lambda taps: {"w": torch.zeros(3), "b": torch.zeros(1)},
        roster=lambda: sorted(PATIENTS),
    )


def with_tensors(parcel: Parcel, **tensors: Any) -> Parcel:
    kept = {n: np.asarray(v) for n, v in {**parcel.tensors, **tensors}.items() if v is not None}
    return Parcel(parcel.kind, parcel.body, kept)


def with_body(parcel: Parcel, **changes: Any) -> Parcel:
    return Parcel(parcel.kind, parcel.body.model_copy(update=changes), parcel.tensors)


def before(honest: Parcel, earlier: Parcel | None) -> Parcel:
    del honest
    assert earlier is not None
    return earlier


F32 = np.float32
UPDATES: dict[str, tuple[Trick, str]] = {
    "NaN": (lambda p, _: with_tensors(p, w=np.array([1, np.nan, 1], F32)), "NaN or infinity"),
    "infinity": (lambda p, _: with_tensors(p, b=np.array([-np.inf], F32)), "NaN or infinity"),
    "wrong shape": (lambda p, _: with_tensors(p, w=np.ones(4, F32)), "another shape"),
    "transposed": (lambda p, _: with_tensors(p, w=np.ones((3, 1), F32)), "another shape"),
    "a scalar": (lambda p, _: with_tensors(p, b=np.ones((), F32)), "another shape"),
    "missing tensor": (lambda p, _: with_tensors(p, b=None), "missing or extra"),
    "extra tensor": (lambda p, _: with_tensors(p, x=np.ones(1, F32)), "missing or extra"),
    "no tensor": (lambda p, _: with_tensors(p, w=None, b=None), "missing or extra"),
    "renamed tensor": (lambda p, _: with_tensors(p, b=None, B=np.ones(1, F32)), "missing or"),
    "huge norm": (lambda p, _: with_tensors(p, w=np.full(3, 1e30, F32)), "norm"),
    "largest float": (lambda p, _: with_tensors(p, w=np.full(3, 3e38, F32)), "norm"),
    "double precision": (lambda p, _: with_tensors(p, w=np.ones(3)), "not float32"),
    "whole numbers": (lambda p, _: with_tensors(p, w=np.ones(3, np.int64)), "not float32"),
    "the next round": (lambda p, _: with_body(p, round=3), "answers round 3"),
    "a far round": (lambda p, _: with_body(p, round=10**30), "answers round"),
    "another plan": (lambda p, _: with_body(p, plan_digest="0" * 64), "another plan"),
    "replayed": (before, "answers round 1"),
}


@pytest.mark.parametrize("name", UPDATES)
def test_a_bad_update_is_refused_by_name_and_leaves_no_trace_in_the_mixer(
    tmp_path: Path, name: str
) -> None:
    trick, reason = UPDATES[name]
    plan = make_plan(quorum_sites=2, quorum_patients=0.5)
    finished = federate(plan, tmp_path / "attacked", trick, in_round=2)
    record = finished.records[2]
    refused, counted = record["refused"], record["counted"]
    assert isinstance(refused, dict)
    assert isinstance(counted, dict)
    assert list(refused) == ["north"]
    assert reason in refused["north"]
    assert set(counted) == {"east", "west"}
    assert record["answered"] == sorted(PATIENTS)
    assert sum(counted.values()) == pytest.approx(1)
    # the very bits of a run in which the site kept silent
    silent = federate(plan, tmp_path / "silent", lambda p, _: silence(), in_round=2)  # type: ignore[arg-type,return-value]
    assert silent.records[2]["refused"] == {"north": "no_answer"}
    for tensor, value in silent.mixer.items():
        assert torch.equal(value, finished.mixer[tensor])
    honest = federate(plan, tmp_path / "honest", lambda p, _: p, in_round=2)
    assert not torch.equal(honest.mixer["w"], finished.mixer["w"])


def silence() -> Failure:
    return Failure(FailureKind.NO_ANSWER)


@pytest.mark.parametrize("name", UPDATES)
def test_a_bad_update_does_not_count_towards_the_quorum(tmp_path: Path, name: str) -> None:
    trick, reason = UPDATES[name]
    plan = make_plan()
    with pytest.raises(QuorumError) as caught:
        federate(plan, tmp_path, trick, in_round=2)
    assert caught.value.exit_code == 8
    assert "north" in caught.value.seen
    assert reason in caught.value.seen
    store = RunStore(tmp_path, plan.digest())
    resumed = store.resume()
    assert resumed is not None
    assert resumed[0] == 1
    assert len(store.records) == 2


HONEST_A = np.eye(6, dtype=np.int64) * SCALE // 8 * PATIENTS["north"]
STATISTICS: dict[str, Trick] = {
    "another plan": lambda p, _: with_body(p, plan_digest="0" * 64),
    "missing sums": lambda p, _: with_tensors(p, z_filter_b=None),
    "extra sums": lambda p, _: with_tensors(p, voxels=np.zeros(9)),
    "wrong shape": lambda p, _: with_tensors(p, z_filter_a=np.eye(7, dtype=np.int64)),
    "floats": lambda p, _: with_tensors(p, z_filter_b=np.full(6, np.nan)),
    "negative squares": lambda p, _: with_tensors(p, z_filter_a=-HONEST_A),
    "not symmetric": lambda p, _: with_tensors(p, z_filter_a=np.triu(HONEST_A + 1)),
}
IMPOSSIBLE: dict[str, Trick] = {
    # normalised volumes lie in [0, 1]: no mean square or product of differences is above 1
    "squares above 1": lambda p, _: with_tensors(p, z_filter_a=HONEST_A << 18),
    "products above 1": lambda p, _: with_tensors(p, z_filter_b=np.full(6, 2**62)),
    "smallest number": lambda p, _: with_tensors(p, z_filter_b=np.full(6, -(2**63))),
    "indefinite": lambda p, _: with_tensors(
        p, z_filter_a=HONEST_A + (1 - np.eye(6, dtype=np.int64)) * SCALE * 2
    ),
    "sums of no patient": lambda p, _: with_body(p, train_patients=0),
}


@pytest.mark.parametrize(
    "name",
    [
        *STATISTICS,
        *IMPOSSIBLE,
    ],
)
def test_sums_that_no_cohort_can_have_never_reach_the_z_filter(tmp_path: Path, name: str) -> None:
    trick = (STATISTICS | IMPOSSIBLE)[name]
    plan = make_plan(quorum_sites=2, quorum_patients=0.5)
    attacked = federate(plan, tmp_path / "attacked", trick, in_round=0)
    silent = federate(plan, tmp_path / "silent", lambda p, _: silence(), in_round=0)  # type: ignore[arg-type,return-value]
    assert "north" in attacked.records[0]["refused"]  # type: ignore[operator]
    assert torch.equal(attacked.taps, silent.taps)


# --- at the server: answers as Flower's objects -----------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("refusals")) as made:
        yield made


@pytest.fixture(scope="module")
def sites(server: Server) -> dict[str, Outlaw]:
    """Two admitted sites, connected."""
    made = {name: server.outlaw(name) for name in ("east", "north")}
    for site in made.values():
        assert site.activate().is_success
    return made


def honest_content(patients: int = 3) -> RecordDict:
    return pack(encode(statistics_of(make_plan(), patients)))


def answer_honestly(site: Outlaw, request: Metadata, patients: int = 3) -> None:
    metadata = reply_metadata(request)
    site.push(metadata, deflate(metadata, honest_content(patients)))


def no_body(site: Outlaw, to: Metadata) -> None:
    site.push(reply_metadata(to), deflated_by_hand(flower_object("Message", b"\xff\xff\xff")))


def no_content(site: Outlaw, to: Metadata) -> None:
    site.push(reply_metadata(to), deflated_by_hand(flower_object("Message", b"")))


def no_such_kind(site: Outlaw, to: Metadata) -> None:
    site.push(reply_metadata(to), deflated_by_hand(flower_object("CustomDataClass", b"x")))


def no_message(site: Outlaw, to: Metadata) -> None:
    site.push(reply_metadata(to), deflated_by_hand(flower_object("ConfigRecord", b"")))


def no_child(site: Outlaw, to: Metadata) -> None:
    metadata = reply_metadata(to)
    head, contents, _ = deflate(metadata, honest_content(11))
    site.push(metadata, (head, contents, ObjectTree(object_id=head)))


def no_array(site: Outlaw, to: Metadata) -> None:
    """A well-formed message whose array is none: numpy raises what nobody expects."""
    content = honest_content(12)
    empty = Array(dtype="uint8", shape=(1,), stype="numpy.ndarray", data=b"")
    del content["lift.parcel"]
    content.array_records["lift.parcel"] = ArrayRecord({"safetensors": empty})
    metadata = reply_metadata(to)
    site.push(metadata, deflate(metadata, content))


def vast_array(site: Outlaw, to: Metadata) -> None:
    """Its header asks for 9 TiB."""
    content = honest_content(13)
    packed = io.BytesIO()
    np.save(packed, np.zeros(1, np.uint8))
    data = packed.getvalue().replace(b"(1,), }            ", b"(9999999999999,), }")
    assert data != packed.getvalue()
    vast = Array(dtype="uint8", shape=(1,), stype="numpy.ndarray", data=data)
    del content["lift.parcel"]
    content.array_records["lift.parcel"] = ArrayRecord({"safetensors": vast})
    metadata = reply_metadata(to)
    site.push(metadata, deflate(metadata, content))


def another_record(site: Outlaw, to: Metadata) -> None:
    metadata = reply_metadata(to)
    site.push(
        metadata, deflate(metadata, RecordDict({"lift.parcel": ConfigRecord({"json": "{}"})}))
    )


def another_request(site: Outlaw, to: Metadata) -> None:
    """Outside it answers the request, inside it names one that nobody sent."""
    inner = reply_metadata(to, reply_to_message_id="f" * 64)
    site.push(reply_metadata(to), deflate(inner, honest_content(14)))


CRASHES = (no_body, no_content, no_such_kind, no_message, no_child, no_array, vast_array)


@pytest.mark.parametrize(
    "trick",
    [
        another_record,
        another_request,
        *CRASHES,
    ],
)
def test_an_answer_that_cannot_be_read_costs_its_own_site_alone(
    server: Server, sites: dict[str, Outlaw], trick: Callable[[Outlaw, Metadata], None]
) -> None:
    request = Parcel(Kind.STATISTICS, StatisticsRequest(plan=make_plan()))
    with server.exchange({"east": request, "north": request}, 3.0) as answers:
        answer_honestly(sites["east"], sites["east"].pull())
        trick(sites["north"], sites["north"].pull())
        found = answers.result(60)
    assert isinstance(found["east"].content, Parcel)
    assert isinstance(found["north"].content, Failure)


def test_a_site_that_dies_while_it_sends_does_not_hold_the_round_open(
    server: Server, sites: dict[str, Outlaw]
) -> None:
    request = Parcel(Kind.STATISTICS, StatisticsRequest(plan=make_plan()))
    with server.exchange({"east": request, "north": request}, 2.0) as answers:
        answer_honestly(sites["east"], sites["east"].pull(), 21)
        asked = sites["north"].pull()
        metadata = reply_metadata(asked, ttl=1.0)
        deflated = deflate(metadata, honest_content(22))
        pushed = sites["north"].announce(metadata, deflated)
        try:
            found = answers.result(12)
        except TimeoutError:
            found = None
            # what was withheld comes after all, so that the next test need not wait
            sites["north"].deliver(metadata.run_id, pushed, deflated)
    assert found is not None
    assert isinstance(found["east"].content, Parcel)
    assert found["north"].content == Failure(FailureKind.NO_ANSWER)


@pytest.mark.parametrize("inside", [False, True])
def test_a_site_cannot_answer_for_another_even_if_it_knows_its_numbers(
    server: Server, sites: dict[str, Outlaw], inside: bool
) -> None:
    request = Parcel(Kind.STATISTICS, StatisticsRequest(plan=make_plan()))
    with server.exchange({"east": request, "north": request}, 3.0) as answers:
        own, foreign = sites["east"].pull(), sites["north"].pull()
        forged = reply_metadata(foreign)
        # from outside: a reply in the other's name; inside: an own one that names the other's
        outer = reply_metadata(own) if inside else forged
        deflated = deflate(forged, honest_content(777 + inside))
        if inside:
            sites["east"].push(outer, deflated)
        else:
            with pytest.raises(httpx.HTTPStatusError, match="403"):
                sites["east"].push(outer, deflated)
        found = answers.result(60)
    assert isinstance(found["north"].content, Failure)


# --- at the site: apps ------------------------------------------------------------------------

MARK = "LIFT_ATTACK"
CODE = f"import pathlib, os\npathlib.Path(os.environ['{MARK}']).write_text('ran')\n".encode()
EVIL = STUB_PYPROJECT.replace(b"lift_client:none", b"client:app")
FABS: dict[str, bytes] = {
    "code": fab_of({"pyproject.toml": EVIL, "client.py": CODE, ".info/CONTENT": b""}),
    "extra file": fab_of({"pyproject.toml": STUB_PYPROJECT, ".info/CONTENT": b"", "a.py": CODE}),
    "another pyproject": fab_of({"pyproject.toml": EVIL, ".info/CONTENT": b""}),
    "out of the folder": fab_of(
        {"pyproject.toml": STUB_PYPROJECT, ".info/CONTENT": b"", "../../a.py": CODE}
    ),
    "no manifest": fab_of({"pyproject.toml": STUB_PYPROJECT}),
    "too large": fab_of({"pyproject.toml": STUB_PYPROJECT, ".info/CONTENT": b"x" * (1 << 20)}),
    "nothing": b"",
    "no archive": b"import os\n",
    "a folder": fab_of({"pyproject.toml/": b"", ".info/CONTENT": b""}),
}
LOOSE: dict[str, bytes] = {
    "a manifest of anything": fab_of({"pyproject.toml": STUB_PYPROJECT, ".info/CONTENT": CODE}),
    "a script before it": b"#!/bin/sh\n" + stub_fab(),
    "something after it": stub_fab() + CODE,
}


@pytest.mark.parametrize(
    "name",
    [
        *FABS,
        *LOOSE,
    ],
)
def test_the_executor_refuses_any_app_but_the_stub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    fab = (FABS | LOOSE)[name]
    monkeypatch.setenv(MARK, str(tmp_path / "ran"))
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "home"))
    asked: list[Parcel] = []
    reply = executed(tmp_path, fab, asked)
    assert reply.has_error()
    assert reply.error.code == ErrorCode.INVALID_FAB == 7
    assert not asked
    assert not (tmp_path / "ran").exists()
    assert not [path for path in (tmp_path / "home").rglob("*") if path.is_file()]


def test_the_executor_works_on_the_stub(tmp_path: Path) -> None:
    asked: list[Parcel] = []
    assert executed(tmp_path, coordinators_stub(), asked).has_content()
    assert len(asked) == 1


def coordinators_stub() -> bytes:
    content, _ = build_fab_from_files({"pyproject.toml": STUB_PYPROJECT})
    return bytes(content)


def executed(folder: Path, fab: bytes, asked: list[Parcel]) -> Any:
    """What the real executor hands back for a request under this app."""
    secret = folder / "executor.secret"
    secret.write_bytes(b"s" * 64)
    request = pack(encode(Parcel(Kind.STATISTICS, StatisticsRequest(plan=make_plan()))))
    child = ChildApi(fab, request, folder, secret=b"s" * 64)
    return first_reply(child, folder, asked)


@pytest.mark.parametrize("name", ["code", "extra file", "another pyproject"])
def test_the_sites_child_refuses_the_app_before_anybody_sees_the_request(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    fab = FABS[name]
    enrolled = enrol(tmp_path / "site", "new")
    server.coordinator.admit({"new": enrolled.key.with_suffix(".pub").read_text().strip()})
    monkeypatch.setenv(MARK, str(tmp_path / "ran"))
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(coordinator_module, "build_fab_from_files", lambda _: (fab, ""))
    address = f"localhost:{server.settings.listen_port}"
    settings = site_settings(tmp_path, address)
    settings = SuperNodeSettings(**{**vars(settings), "ca": server.settings.ca})
    child = SuperNode(settings, tmp_path / "connection.log")
    request = Parcel(Kind.STATISTICS, StatisticsRequest(plan=make_plan()))
    child.look_after()
    try:
        with server.exchange({"new": request}, 30.0) as answers:
            found = answers.result(60)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.stop()
    # nobody took a request over: the child itself answered
    assert found["new"].content == Failure(FailureKind.POLICY)
    assert not (tmp_path / "ran").exists()
    files = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert not [file for file in files if file.endswith((".py", ".fab"))]


def test_whatever_the_archive_is_there_is_a_verdict() -> None:
    rng = np.random.default_rng(5)
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", method) as archive:
            archive.writestr("pyproject.toml", STUB_PYPROJECT)
            archive.writestr(".info/CONTENT", b"x" * 50)
        for _ in range(500):
            damaged = bytearray(packed.getvalue())
            for place in rng.integers(len(damaged), size=3):
                damaged[place] = rng.integers(256)
            assert is_stub(bytes(damaged)) in {True, False}


# --- at the site: plans -----------------------------------------------------------------------

FINGERPRINT = "a" * 64
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


def a_plan(**changes: Any) -> Plan:
    values = {"generator_fingerprint": FINGERPRINT} | changes
    return make_plan().model_copy(update=values)


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


# --- both sides: messages ---------------------------------------------------------------------

MUTATIONS = int(os.environ.get("LIFT_MUTATIONS", "20000"))
"""The whole test is `LIFT_MUTATIONS=100000`: 50 s on one core."""
MOST_MEMORY_MB = 200
READ: Mapping[bool, Callable[[Encoded], Parcel]] = {True: decode_request, False: decode_reply}
NUMBERS = ("1e400", "-1e400", "NaN", "Infinity", "9" * 30, "9" * 5000, "-1", "0.5", "1e-400")
WORDS = ('""', '"x"', "null", "true", "[]", "{}", '"\\ud800"', '"\\u0000"', "[[[[]]]]")
HEADERS: tuple[bytes, ...] = (
    b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
    b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}',
    b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}',
    b'{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,4]}}',
    b'{"a":{"dtype":"F32","shape":[18446744073709551616],"data_offsets":[0,4]}}',
    b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}',
    b'{"a":{"dtype":"F32","shape":[0,9223372036854775808],"data_offsets":[0,0]}}',
    b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,18446744073709551615]}}',
    b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
    b'"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
    b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
    b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
    b'{"a":{"dtype":"OBJECT","shape":[1],"data_offsets":[0,4]}}',
    b'{"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}',
    b'{"a":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}',
    b'{"a":{"dtype":"F4","shape":[8],"data_offsets":[0,4]}}',
    b'{"a":{"dtype":"BOOL","shape":[4],"data_offsets":[0,4]}}',
    b'{"a":{"dtype":"C64","shape":[],"data_offsets":[0,8]}}',
    b'{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}',
    b'{"a":{"dtype":"F32","shape":[' + b"1," * 99 + b'1],"data_offsets":[0,4]}}',
    b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
    b'{"__metadata__":{"a":1}}',
    b'{"__metadata__":{"format":"pt"}}',
    b"[" * 5000,
    b"{}",
    b"",
)


def examples() -> list[tuple[bool, Parcel]]:
    """One of each kind, with whether it is a request."""
    plan = a_plan()
    weight: Any = np.arange(6, dtype=F32).reshape(2, 3)
    mixer = {"a.weight": weight, "b": np.ones(1, np.float16)}
    train = TrainReply(plan_digest=plan.digest(), round=2, loss=0.5, validation_psnr_db=21.0)
    return [
        (True, Parcel(Kind.STATISTICS, StatisticsRequest(plan=plan))),
        (True, Parcel(Kind.TRAIN, TrainRequest(plan_digest=plan.digest(), round=1), mixer)),
        (True, Parcel(Kind.GUARD, GuardRequest(plan_digest=plan.digest()), mixer)),
        (False, statistics_of(plan, 4)),
        (False, Parcel(Kind.TRAIN, train, mixer)),
        (False, honest_answer("east", Parcel(Kind.GUARD, GuardRequest(plan_digest=plan.digest())))),
    ]


def torn(content: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, cut, doubled or put in."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        where, length = rng.randrange(len(changed) + 1), rng.randint(1, 16)
        action = rng.randrange(5)
        if action == 0 and changed:
            changed[where % len(changed)] ^= 1 << rng.randrange(8)
        elif action == 1:
            del changed[where : where + length]
        elif action == 2:
            changed[where:where] = changed[where : where + length]
        elif action == 3:
            changed[where:where] = rng.randbytes(length)
        else:
            del changed[where:]
    return bytes(changed)


def rewritten(text: str, rng: random.Random) -> str:
    """JSON with a value replaced, a key renamed, doubled or gone: still JSON, most of the time."""
    values = list(re.finditer(r"(?<=:)(-?[\d.]+|\"[^\"]*\"|null|\[[^\[\]{}]*\])", text))
    keys = list(re.finditer(r"\"(\w+)\":", text))
    value, key = rng.choice(values), rng.choice(keys)
    action = rng.randrange(4)
    if action == 0:
        new = rng.choice((*NUMBERS, *WORDS))
        return text[: value.start()] + new + text[value.end() :]
    if action == 1:
        new = rng.choice(keys)[1] if rng.random() < 0.5 else "__class__"
        return text[: key.start()] + f'"{new}":' + text[key.end() :]
    if action == 2:
        other = rng.choice((*NUMBERS, *WORDS))
        return text[: key.start()] + f"{key[0]}{other}," + text[key.start() :]
    return (
        text[: value.start()] + text[rng.choice(values).start() : value.end()] + text[value.end() :]
    )


def with_header(block: bytes, rng: random.Random) -> bytes:
    """A safetensors block whose header or its length is a lie."""
    header = rng.choice(HEADERS)
    if rng.random() < 0.3:
        (length,) = struct.unpack("<Q", block[:8])
        header = torn(block[8 : 8 + length], rng)
    lies = (0, 1, len(header) - 1, len(header) + 1, 10**8, 2**63, 2**64 - 1)
    told = rng.choice(lies) if rng.random() < 0.3 else len(header)
    return struct.pack("<Q", max(told, 0)) + header + b"\0" * rng.choice((0, 3, 4, 8))


def mutated(encoded: Encoded, rng: random.Random) -> RecordDict:
    """What travels, after an attack on one of its layers."""
    text, block = encoded.text, encoded.block
    layer = rng.randrange(6)
    if layer == 0:
        text = torn(text.encode(), rng).decode("utf-8", "replace")
    elif layer in {1, 2}:
        text = rewritten(text, rng)
    elif layer == 3:
        block = torn(block, rng)
    elif layer == 4:
        block = with_header(block, rng)
    packed = zlib.compress(block, 1)
    if layer == 5:
        packed = torn(packed, rng)
    return RecordDict({"lift.parcel": ConfigRecord({"json": text, "safetensors": packed})})


def same(first: Parcel, second: Parcel) -> bool:
    return (first.kind, first.body, set(first.tensors)) == (
        second.kind,
        second.body,
        set(second.tensors),
    ) and all(
        first.tensors[name].dtype == second.tensors[name].dtype
        and first.tensors[name].shape == second.tensors[name].shape
        and first.tensors[name].tobytes() == second.tensors[name].tobytes()
        for name in first.tensors
    )


def test_a_tensor_without_axes_comes_back_as_it_was() -> None:
    parcel = examples()[4][1]
    parcel = Parcel(parcel.kind, parcel.body, {"scale": np.asarray(F32(2.0))})
    assert same(decode_reply(encode(parcel)), parcel)


def test_a_mutated_message_is_refused_or_is_a_whole_message() -> None:
    rng = random.Random(11)
    known = [(READ[request], parcel, encode(parcel)) for request, parcel in examples()]
    for read, parcel, encoded in known:
        assert same(read(unpack(pack(encoded))), parcel)
    refused, equal, other = 0, 0, 0
    for _ in range(MUTATIONS):
        read, sent, encoded = known[rng.randrange(len(known))]
        try:
            # nothing but these two: a VersionMismatchError is a ProtocolError as well
            found = read(unpack(mutated(encoded, rng)))
        except ProtocolError:
            refused += 1
            continue
        if same(found, sent):
            equal += 1
            continue
        other += 1
        # another number or name, then: it is what it says, down to the bytes that it would send
        whole = {name: np.atleast_1d(tensor) for name, tensor in found.tensors.items()}
        parcel = Parcel(found.kind, found.body, whole)
        assert same(read(encode(parcel)), parcel)
    assert refused > MUTATIONS / 2
    assert min(equal, other) > MUTATIONS / 1000


RECORDS: dict[str, RecordDict] = {
    "none": RecordDict(),
    "of another name": RecordDict({"other": ConfigRecord({"json": "{}", "safetensors": b""})}),
    "of another kind": RecordDict({"lift.parcel": MetricRecord({"json": 1})}),
    "without a part": RecordDict({"lift.parcel": ConfigRecord({"json": "{}"})}),
    "with one more part": RecordDict(
        {"lift.parcel": ConfigRecord({"json": "{}", "safetensors": b"", "more": 1})}
    ),
    "text for bytes": RecordDict({"lift.parcel": ConfigRecord({"json": "{}", "safetensors": ""})}),
    "bytes for text": RecordDict({"lift.parcel": ConfigRecord({"json": b"", "safetensors": b""})}),
    "not compressed": RecordDict({"lift.parcel": ConfigRecord({"json": "", "safetensors": b"x"})}),
    "a list for bytes": RecordDict({"lift.parcel": ConfigRecord({"json": "", "safetensors": [1]})}),
}


@pytest.mark.parametrize("record", list(RECORDS))
def test_a_record_of_another_form_is_refused(record: str) -> None:
    with pytest.raises(ProtocolError):
        unpack(RECORDS[record])


BOMBS: dict[str, Callable[[], bytes]] = {
    "zeros": lambda: bytes(LARGEST_TENSOR_BYTES),
    "more than is read": lambda: bytes(2 * LARGEST_TENSOR_BYTES),
    "one large tensor": lambda: one_tensor(LARGEST_TENSOR_BYTES - 200),
    "most tensors": lambda: empty_tensors(4096),
    "too many tensors": lambda: empty_tensors(600_000),
    "most axes": lambda: axes(33_500_000),
}


def headed(header: bytes, content: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + content


def one_tensor(size: int) -> bytes:
    size -= size % 4
    header = f'{{"a":{{"dtype":"F32","shape":[{size // 4}],"data_offsets":[0,{size}]}}}}'
    return headed(header.encode(), bytes(size))


def empty_tensors(count: int) -> bytes:
    one = '"%x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return headed(("{" + ",".join(one % number for number in range(count)) + "}").encode())


def axes(count: int) -> bytes:
    shape = ("1," * count)[:-1]
    return headed(f'{{"a":{{"dtype":"F32","shape":[{shape}],"data_offsets":[0,4]}}}}'.encode())


DECODER = """
import resource, sys
from pathlib import Path
from flwr.app import ConfigRecord, RecordDict
from lift.errors import ProtocolError
from lift.protocol.codec import decode_reply
from lift.protocol.flower.records import unpack
text, packed = Path(sys.argv[1]).read_text(), Path(sys.argv[2]).read_bytes()
content = RecordDict({"lift.parcel": ConfigRecord({"json": text, "safetensors": packed})})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    decode_reply(unpack(content))
except ProtocolError:
    pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("name", list(BOMBS))
def test_no_message_takes_more_memory_than_is_stated(tmp_path: Path, name: str) -> None:
    packed = zlib.compress(BOMBS[name]())
    assert len(packed) < 8 << 20
    (tmp_path / "text").write_text(encode(examples()[4][1]).text)
    (tmp_path / "packed").write_bytes(packed)
    done = subprocess.run(
        [sys.executable, "-c", DECODER, str(tmp_path / "text"), str(tmp_path / "packed")],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert int(done.stdout) < MOST_MEMORY_MB
