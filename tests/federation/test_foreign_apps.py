"""A site runs what is installed there: any app but the stub is refused."""

from __future__ import annotations

import io
import os
import signal
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.cli.build import build_fab_from_files
from flwr.common.constant import ErrorCode

import lift.protocol.flower.coordinator as coordinator_module
from lift.protocol.codec import (
    encode,
)
from lift.protocol.flower.executor import SuperNode
from lift.protocol.flower.records import pack
from lift.protocol.flower.stub import STUB_PYPROJECT, is_stub
from lift.protocol.flower.supernode import SuperNodeSettings
from lift.protocol.messages import (
    Failure,
    FailureKind,
    Kind,
    Parcel,
    StatisticsRequest,
)
from lift_client.enrolment import enrol
from tests.federation.attackers import Server
from tests.federation.local_child import ChildApi, fab_of, first_reply, site_settings, stub_fab
from tests.federation.parcels import make_plan

pytestmark = [
    pytest.mark.timeout(300),
    # Flower's way of building an app
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),
]

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
