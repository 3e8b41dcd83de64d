"""MLflow and Weights & Biases as installed: what they write offline, and that they stay offline."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from lift.config.tracking import MlflowSettings, WandbSettings
from lift.tracking.figures import final_figures, round_figures
from tests.lift.tracking_child import NAMES
from tests.lift.tracking_world import ABOUT, METRICS, line

ROOT = Path(__file__).parents[2]
needs_mlflow = pytest.mark.skipif(
    find_spec("mlflow") is None, reason="the extra mlflow is not installed here"
)
needs_wandb = pytest.mark.skipif(
    find_spec("wandb") is None, reason="the extra wandb is not installed here"
)
Steps = dict[str, dict[int, float]]


@pytest.fixture
def proxy() -> Iterator[socket.socket]:
    """What every HTTP request of a child would go through, if it made one."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        yield server


def _contacted(proxy: socket.socket) -> bool:
    try:
        proxy.accept()[0].close()
    except TimeoutError:
        return False
    return True


def _environment(proxy: socket.socket, home: Path) -> dict[str, str]:
    """As at a coordinator: nothing says that this is a test, which would switch telemetry off."""
    address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "PYTHONPATH") if name in os.environ}
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), address)
    return kept | proxies | {"HOME": str(home)}


def _command(out: Path, settings: dict[str, object], done: int, rounds: int) -> list[str]:
    child = [sys.executable, "-m", "tests.lift.tracking_child", str(out), json.dumps(settings)]
    return [*child, str(done), str(rounds)]


def _track(
    proxy: socket.socket, out: Path, settings: dict[str, object], *, done: int = 0, rounds: int = 5
) -> dict[str, Any]:
    """One start of a run in a process of its own, which dialled nobody."""
    home = out.parent / "home"
    home.mkdir(exist_ok=True)
    out.mkdir(exist_ok=True)
    process = subprocess.run(
        _command(out, settings, done, rounds),
        cwd=ROOT,
        env=_environment(proxy, home),
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert process.returncode == (0 if rounds == 5 else 9), process.stderr
    said: dict[str, Any] = json.loads(process.stdout)
    assert said == {"dialled": [], "warnings": []}
    assert process.stderr == ""
    assert not _contacted(proxy)
    # nothing of a run belongs into the user's own folders
    assert list(home.iterdir()) == []
    return said


def _expected() -> Steps:
    found: Steps = {}
    for number in range(5):
        for tag, value in round_figures(line(number, NAMES)).items():
            found.setdefault(tag, {})[number] = value
    for tag, value in final_figures(METRICS).items():
        found[tag] = {4: value}
    return found


def _mlflow_store(out: Path) -> tuple[Steps, list[tuple[str, str, str]]]:
    """Figures and runs of the local store, read from its tables."""
    steps: Steps = {}
    with contextlib.closing(sqlite3.connect(out / "mlflow" / "mlflow.db")) as store:
        for tag, step, value in store.execute("SELECT key, step, value FROM metrics"):
            assert step not in steps.setdefault(tag, {}), (tag, step)
            steps[tag][step] = value
        runs = store.execute("SELECT run_uuid, name, status FROM runs").fetchall()
    return steps, runs


@needs_mlflow
def test_mlflow_offline_holds_every_figure_and_dials_nobody(
    tmp_path: Path, proxy: socket.socket
) -> None:
    out = tmp_path / "out"
    _track(proxy, out, {"mlflow": {}})
    steps, ((run, name, status),) = _mlflow_store(out)
    assert steps == _expected()
    assert (name, status) == ("glioma (PHANTOM)", "FINISHED")
    assert json.loads((out / "mlflow" / "runs.json").read_text())["run"]["id"] == run
    assert {path.name for path in (out / "mlflow").iterdir()} == {"mlflow.db", "runs.json"}


@needs_mlflow
def test_a_resumed_run_goes_on_with_the_same_mlflow_run(
    tmp_path: Path, proxy: socket.socket
) -> None:
    out = tmp_path / "out"
    _track(proxy, out, {"mlflow": {}}, rounds=3)
    _, ((first, _, status),) = _mlflow_store(out)
    assert status == "KILLED"
    _track(proxy, out, {"mlflow": {}}, done=3)
    steps, ((run, _, status),) = _mlflow_store(out)
    assert steps == _expected()
    assert (run, status) == (first, "FINISHED")


def _wandb_records(out: Path) -> list[Any]:
    """The messages of the one offline run, out of the blocks of its log."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = (out / "wandb").glob("offline-run-*/run-*.wandb")
    content = path.read_bytes()
    messages, part, place = [], b"", 7
    while place < len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        size, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        part += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in {1, 4}:
            messages.append(Record.FromString(part))
            part = b""
    return messages


def _wandb_steps(records: list[Any]) -> Steps:
    steps: Steps = {}
    for message in records:
        if message.WhichOneof("record_type") == "history":
            items = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in message.history.item
            }
            step = int(items["_step"])
            for tag, value in items.items():
                if not tag.startswith("_"):
                    assert step not in steps.setdefault(tag, {}), (tag, step)
                    steps[tag][step] = value
    return steps


@needs_wandb
def test_wandb_offline_holds_every_figure_nothing_of_the_machine_and_dials_nobody(
    tmp_path: Path, proxy: socket.socket
) -> None:
    out = tmp_path / "out"
    _track(proxy, out, {"wandb": {}})
    records = _wandb_records(out)
    assert _wandb_steps(records) == _expected()
    content = b"".join(message.SerializeToString() for message in records)
    host = socket.gethostname().encode()
    # a name of two letters lies in random numbers too: as a string of a message it has its length
    assert bytes([len(host)]) + host not in content
    assert len(host) < 6 or host not in content
    for private in (str(tmp_path), str(ROOT), sys.executable):
        assert private.encode() not in content
    kinds = {message.WhichOneof("record_type") for message in records}
    assert not kinds & {"stats", "output", "output_raw", "environment", "alert"}, kinds
    (described,) = (message.run for message in records if message.HasField("run"))
    config = {item.key: json.loads(item.value_json) for item in described.config.update}
    config.pop("_wandb", None)
    assert config == ABOUT.texts
    assert described.display_name == "glioma (PHANTOM)"


@needs_wandb
def test_a_resumed_run_keeps_its_wandb_id_and_ends_with_every_figure(
    tmp_path: Path, proxy: socket.socket
) -> None:
    out = tmp_path / "out"
    _track(proxy, out, {"wandb": {}}, rounds=3)
    first = json.loads((out / "wandb" / "runs.json").read_text())
    _track(proxy, out, {"wandb": {}}, done=3)
    assert json.loads((out / "wandb" / "runs.json").read_text()) == first
    assert first["run"]["id"] in next((out / "wandb").glob("offline-run-*")).name
    assert _wandb_steps(_wandb_records(out)) == _expected()


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(
            {"mlflow": MlflowSettings(uri="http://tracker.invalid").model_dump()},
            marks=needs_mlflow,
            id="mlflow",
        ),
        pytest.param(
            {"wandb": WandbSettings(mode="online", uri="http://tracker.invalid").model_dump()},
            marks=needs_wandb,
            id="wandb",
        ),
    ],
)
def test_a_tracker_that_was_asked_to_send_is_seen_to_dial(
    tmp_path: Path, proxy: socket.socket, settings: dict[str, object]
) -> None:
    # without it the tests above could not fail
    environment = _environment(proxy, tmp_path) | {"WANDB_API_KEY": "0" * 40}
    command = _command(tmp_path, settings, 0, 5)
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            end = time.monotonic() + 100
            while not (seen := _contacted(proxy)) and time.monotonic() < end:
                pass
        finally:
            process.kill()
    assert seen
