"""Trackers are told exactly what the record of rounds says, and can neither delay nor end a run."""

from __future__ import annotations

import json
import logging
import socket
import struct
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboardX.proto.event_pb2 import Event

from lift.config.simulation import SimulationConfig
from lift.config.tracking import MlflowSettings, TrackingSettings, WandbSettings
from lift.round_record import RoundRecord
from lift.tracking import trackers as module
from lift.tracking.figures import final_figures, round_figures, tag_of
from lift.tracking.trackers import Trackers, about_run, tracking
from tests.end_to_end.tiny_run import TinyRun, make_tiny_run, run_here
from tests.server.live_world import HOSTILE, SITES, round_line

ABOUT = {"name": "PHANTOM test", "plan_digest": "ab" * 32}
METRICS = {"pooled": {"federated": {"psnr_db": {"value": 21.5}, "ssim": {"value": None}}}}
Found = dict[tuple[str, int], float]


def lines(count: int, sites: Sequence[str] = SITES, *, noise: bool = False) -> list[dict[str, Any]]:
    return [round_line(index, sites, noise=noise) for index in range(count + 1)]


def expected(records: Sequence[Mapping[str, Any]]) -> Found:
    return {
        (tag, record["round"]): value
        for record in records[1:]
        for tag, value in round_figures(RoundRecord.model_validate(record)).items()
    }


def read_events(folder: Path) -> tuple[Found, dict[str, str]]:
    """Scalars and texts of all event files; TFRecord framing read by hand, checksums unused."""
    scalars: Found = {}
    texts: dict[str, str] = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (size,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + size])
            at += 16 + size
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    assert (value.tag, event.step) not in scalars, "told twice"
                    scalars[value.tag, event.step] = value.simple_value
                else:
                    texts[value.tag.removesuffix("/text_summary")] = value.tensor.string_val[
                        0
                    ].decode()
    return scalars, texts


def check_same(found: Found, wanted: Found) -> None:
    assert set(found) == set(wanted)
    for key, value in wanted.items():
        assert found[key] == pytest.approx(value, rel=1e-6), key


def told(out: Path, settings: TrackingSettings, *counts: int, noise: bool = False) -> None:
    """A run that is told of so many rounds at each of its starts."""
    for start, count in enumerate(counts):
        with tracking(settings, out, ABOUT) as trackers:
            first = counts[start - 1] if start else 0
            for done in range(first, count + 1):
                trackers.rounds(lines(done, noise=noise))
            if count == counts[-1]:
                trackers.finished(METRICS)


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("counts", [(9,), (4, 9), (9, 9)], ids=["whole", "resumed", "at the end"])
def test_the_event_files_hold_every_round_once(
    tmp_path: Path, counts: tuple[int, ...], *, noise: bool
) -> None:
    told(tmp_path, TrackingSettings(), *counts, noise=noise)
    scalars, texts = read_events(tmp_path / "tensorboard")
    wanted = expected(lines(9, noise=noise)) | {("final/federated/psnr_db", 9): 21.5}
    check_same(scalars, wanted)
    assert texts["name"] == "PHANTOM test"
    assert any(tag == "privacy/epsilon" for tag, _ in scalars) == noise
    assert ("loss/mean", 3) in scalars or noise


def test_a_round_is_told_as_its_record_says() -> None:
    record = RoundRecord.model_validate(round_line(7, SITES))
    figures = round_figures(record)
    assert figures["round/counted"] == 2
    assert figures["round/missed"] == 1
    assert figures["round/bytes"] == sum(record.bytes.values())
    assert figures["loss/harbour"] == record.loss["harbour"]
    assert "loss/valley" not in figures
    assert final_figures(METRICS) == {"final/federated/psnr_db": 21.5}


@given(one=st.text(max_size=80), two=st.text(max_size=80))
def test_no_name_makes_folders_and_no_two_share_a_tag(one: str, two: str) -> None:
    assert "/" not in tag_of(one)
    assert len(tag_of(one)) <= 40
    assert tag_of(one).isascii()
    assert (tag_of(one) == tag_of(two)) == (one == two)


def test_hostile_sites_are_told_apart(tmp_path: Path) -> None:
    records = lines(3, HOSTILE)
    with tracking(TrackingSettings(), tmp_path, ABOUT) as trackers:
        trackers.rounds(records)
    scalars, _ = read_events(tmp_path / "tensorboard")
    check_same(scalars, expected(records))
    assert len({tag for tag, _ in scalars if tag.startswith("loss/")}) == len(HOSTILE) + 1
    assert all(path.is_file() for path in (tmp_path / "tensorboard").iterdir())


class Stuck:
    """A tracker that fails, or waits, at its second round."""

    def __init__(self, wait: threading.Event | None) -> None:
        self.wait = wait
        self.steps: list[int] = []

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        del figures
        self.steps.append(step)
        if step < 2:
            return
        if self.wait is None:
            raise OSError(28, "No space left on device")
        self.wait.wait(60)

    def close(self) -> None:
        raise AssertionError("a dropped tracker is left alone")


def test_a_failing_tracker_is_dropped_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stuck = Stuck(None)
    monkeypatch.setattr(module, "TensorBoard", lambda *_: stuck)
    with caplog.at_level(logging.WARNING), tracking(TrackingSettings(), tmp_path, ABOUT) as made:
        for done in range(6):
            made.rounds(lines(done))
        made.finished(METRICS)
    assert stuck.steps == [1, 2]
    (warning,) = caplog.messages
    assert "tracker_dropped" in warning
    assert "No space left" in warning


def test_a_tracker_that_hangs_delays_no_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wait = threading.Event()
    monkeypatch.setattr(module, "TensorBoard", lambda *_: Stuck(wait))
    monkeypatch.setattr(module, "_CLOSE_S", 0.2)
    trackers = Trackers(TrackingSettings(), tmp_path, ABOUT)
    # each of these returns at once, or the test would hang here
    for done in range(6):
        trackers.rounds(lines(done))
    trackers.close()
    assert any("trackers_slow" in message for message in caplog.messages)
    wait.set()


def test_a_missing_package_is_said_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(*_: object) -> None:
        raise ImportError("No module named 'wandb'")

    monkeypatch.setattr(module, "Wandb", missing)
    settings = TrackingSettings(tensorboard=False, wandb=WandbSettings())
    with tracking(settings, tmp_path, ABOUT) as trackers:
        trackers.rounds(lines(2))
    assert any("lift-federated[wandb]" in message for message in caplog.messages)


@pytest.fixture
def only_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """No connection of this process leaves the machine."""
    real = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in {"127.0.0.1", "::1", "localhost"}:
            raise AssertionError(f"a connection to {address}")
        real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("only_here")
@pytest.mark.parametrize("counts", [(5,), (3, 5)], ids=["whole", "resumed"])
def test_mlflow_keeps_one_run_in_the_runs_own_folder(
    tmp_path: Path, counts: tuple[int, ...]
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the extra `mlflow` is not installed")
    settings = TrackingSettings(tensorboard=False, mlflow=MlflowSettings())
    told(tmp_path, settings, *counts)

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("lift-federated")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.tags["plan_digest"] == ABOUT["plan_digest"]
    found: Found = {}
    for tag in run.data.metrics:
        for metric in client.get_metric_history(run.info.run_id, tag):
            assert (tag, metric.step) not in found, "told twice"
            found[tag, metric.step] = metric.value
    check_same(found, expected(lines(5)) | {("final/federated/psnr_db", 5): 21.5})


@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("only_here")
def test_wandb_writes_a_run_without_a_connection(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="the extra `wandb` is not installed")
    told(tmp_path, TrackingSettings(tensorboard=False, wandb=WandbSettings()), 5)
    (written,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    content = written.read_bytes()
    assert b"loss/harbour" in content
    assert ABOUT["plan_digest"].encode() in content
    # nothing of the machine goes along
    assert b"not told" in content
    assert b"requirements.txt" not in content
    assert str(tmp_path).encode() not in content
    state = json.loads((tmp_path / "tracking.json").read_text(encoding="utf-8"))
    assert state["wandb"]["told"] == {"": 5}
    assert state["wandb"]["identity"] in written.name


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return make_tiny_run(tmp_path_factory.mktemp("tiny"))


def test_a_simulation_leaves_event_files_that_equal_its_record(
    tiny: TinyRun, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = run_here("lift-simulate", "--config", tiny.settings(), "--output", out)
    assert done.code == 0, done.stderr
    records = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    scalars, texts = read_events(out / "tensorboard")
    finals = final_figures(json.loads((out / "metrics.json").read_text(encoding="utf-8")))
    last = records[-1]["round"]
    check_same(scalars, expected(records) | {(tag, last): v for tag, v in finals.items()})
    assert finals
    assert texts["plan_digest"] == json.loads((out / "run.json").read_text())["plan_digest"]


def test_trackers_decide_nothing_of_a_run(tiny: TinyRun) -> None:
    plain = SimulationConfig.from_yaml(tiny.settings())
    tracked = plain.model_copy(update={"tracking": TrackingSettings(mlflow=MlflowSettings())})
    assert tracked.results_digest() == plain.results_digest()
    other = plain.model_copy(update={"name": "another"})
    assert other.results_digest() != plain.results_digest()
    assert about_run("x", plain.plan, phantom=True)["name"] == "PHANTOM x"
