"""Trackers hold what the record holds, however often a run was killed, and never disturb it."""

from __future__ import annotations

import errno
import json
import logging
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from lift.config.server import ServerConfig
from lift.config.simulation import SimulationConfig
from lift.config.tracking import MlflowSettings, TrackingSettings
from lift.errors import ConfigError
from lift.records.metrics import Metrics
from lift.tracking import mlflow_runs, tensorboard
from lift.tracking.figures import final_figures, round_figures, tag_part
from lift.tracking.run import Tracking
from tests import wording
from tests.lift.event_files import read_events
from tests.lift.tracking_world import (
    ABOUT,
    HOSTILE,
    METRICS,
    expected,
    line,
    rounded,
    write_rounds,
)

ROOT = Path(__file__).parents[2]
FINAL = {"pooled/federated/psnr_db": {4: 21.5}, "pooled/local_only:east/psnr_db": {4: 19.25}}


def _live(tracking: Tracking, out: Path, rounds: range) -> None:
    """As the round loop does: the record is on disk before anybody is told."""
    for number in rounds:
        write_rounds(out / "rounds.jsonl", number + 1)
        tracking.round_done(line(number))


def test_an_event_file_holds_every_figure_of_the_record(tmp_path: Path) -> None:
    with Tracking(TrackingSettings(), tmp_path) as tracking:
        tracking.begin(ABOUT, tmp_path / "rounds.jsonl")
        _live(tracking, tmp_path, range(5))
        tracking.finished(METRICS)
    events = read_events(tmp_path / "tensorboard")
    assert events.files == 1
    assert events.scalars == rounded(expected(tmp_path / "rounds.jsonl")) | FINAL
    assert events.texts == {
        "about/federation": "glioma",
        "about/plan_digest": "ab" * 32,
        "about/data": "PHANTOM",
    }
    assert socket.gethostname() not in "".join(p.name for p in (tmp_path / "tensorboard").iterdir())


def test_each_round_is_on_the_disk_when_it_was_told(tmp_path: Path) -> None:
    with Tracking(TrackingSettings(), tmp_path) as tracking:
        tracking.begin(ABOUT, tmp_path / "rounds.jsonl")
        for number in range(3):
            _live(tracking, tmp_path, range(number, number + 1))
            seconds = read_events(tmp_path / "tensorboard").scalars["round/seconds"]
            assert sorted(seconds) == list(range(number + 1))


@pytest.mark.parametrize("done", range(6))
@pytest.mark.parametrize("lost", ["nothing", "a line", "half a line", "the events"])
def test_a_resumed_run_ends_with_the_figures_of_an_uninterrupted_one(
    tmp_path: Path, done: int, lost: str
) -> None:
    rounds = tmp_path / "rounds.jsonl"
    killed = Tracking(TrackingSettings(), tmp_path)
    killed.begin(ABOUT, rounds)
    _live(killed, tmp_path, range(done))
    # killed here; the record is rebuilt from checkpoints only after the start
    if lost == "a line" and done:
        write_rounds(rounds, done - 1)
    if lost == "half a line" and done:
        rounds.write_text(rounds.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    if lost == "the events":
        for path in (tmp_path / "tensorboard").iterdir():
            path.write_bytes(b"damaged")
    with Tracking(TrackingSettings(), tmp_path) as tracking:
        tracking.begin(ABOUT, rounds)
        _live(tracking, tmp_path, range(done, 5))
        write_rounds(rounds, 5)
        tracking.finished(METRICS)
    events = read_events(tmp_path / "tensorboard")
    assert events.files == 1
    assert events.scalars == rounded(expected(rounds)) | FINAL
    # a killed process closes its files last, when nobody looks any more
    killed.close(complete=False)
    assert read_events(tmp_path / "tensorboard") == events


def test_each_fold_has_a_folder_of_its_own_and_the_whole_run_the_final_figures(
    tmp_path: Path,
) -> None:
    with Tracking(TrackingSettings(), tmp_path) as tracking:
        for fold in ("fold-000", "fold-001"):
            (tmp_path / fold).mkdir()
            tracking.begin(ABOUT, tmp_path / fold / "rounds.jsonl", part=fold)
            _live(tracking, tmp_path / fold, range(3))
        tracking.begin(ABOUT)
        tracking.finished(METRICS)
    for fold in ("fold-000", "fold-001"):
        events = read_events(tmp_path / "tensorboard" / fold)
        assert events.scalars == rounded(expected(tmp_path / fold / "rounds.jsonl"))
        assert events.texts["about/part"] == fold
    whole = read_events(tmp_path / "tensorboard")
    assert whole.scalars == {tag: {0: value[4]} for tag, value in FINAL.items()}


def test_what_the_server_knows_of_each_site_at_the_end_is_logged_by_site() -> None:
    row = {"psnr_over_no_mixer_db": {"value": 0.5, "n": 3}}
    sites = {"east": {"patients": 3, "methods": {"federated": row}}}
    metrics = Metrics.model_validate({"sites": sites, "pooled": {}})
    assert final_figures(metrics) == {"final_by_site/east/federated/psnr_over_no_mixer_db": 0.5}
    silent = Metrics.model_validate({"sites": {"east": {"patients": 3, "methods": {}}}})
    assert final_figures(silent) == {}


def test_hostile_names_make_no_folder_break_no_tag_and_stay_different(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    hostile = line(1, HOSTILE)
    with Tracking(TrackingSettings(), out) as tracking:
        tracking.begin(ABOUT, out / "rounds.jsonl")
        tracking.round_done(hostile)
    tags = set(read_events(out / "tensorboard").scalars)
    assert tags == set(round_figures(hostile))
    by_site = [tag for tag in tags if tag.startswith("bytes_by_site/")]
    assert len(by_site) == len(HOSTILE)
    assert all(re.fullmatch(r"[a-z_]+/[A-Za-z0-9_:.-]{1,64}", tag) for tag in tags)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in out.iterdir()] == ["tensorboard"]
    assert all(path.is_file() for path in (out / "tensorboard").iterdir())


def test_a_plain_name_stays_and_no_other_name_becomes_it() -> None:
    assert tag_part("Site_A-1") == "Site_A-1"
    odd = tag_part("Site A")
    assert odd not in {"Site A", "Site_A"}
    # a site that calls itself so gets another tag
    assert tag_part(odd) != odd


class _Full:
    """A disk that is full after some writes."""

    def __init__(self, path: str) -> None:
        self.left = 2

    def write(self, data: bytes) -> None:
        """Taken by the page cache."""

    def flush(self) -> None:
        """Fails once the disk is full."""
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    def close(self) -> None:
        """Fails as well."""
        raise OSError(errno.ENOSPC, "No space left on device")


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if "tracker_dropped" in r.getMessage()]


def test_a_full_disk_drops_the_tracker_with_one_warning_and_the_rounds_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tensorboard, "RecordWriter", _Full)
    said: list[str] = []
    with Tracking(TrackingSettings(), tmp_path, say=said.append) as tracking:
        tracking.begin(ABOUT, tmp_path / "rounds.jsonl")
        _live(tracking, tmp_path, range(5))
        tracking.finished(METRICS)
        tracking.begin(ABOUT, part="fold-001")
    (warning,) = _warnings(caplog)
    assert "tracker=tensorboard" in warning
    assert wording.NO_SPACE in warning
    assert "look at the disk" in warning
    assert len(said) == 1


def test_a_folder_that_cannot_be_made_drops_the_tracker(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tensorboard").write_text("my notes", encoding="utf-8")
    with Tracking(TrackingSettings(), tmp_path) as tracking:
        tracking.begin(ABOUT, tmp_path / "rounds.jsonl")
        _live(tracking, tmp_path, range(2))
    assert len(_warnings(caplog)) == 1
    assert (tmp_path / "tensorboard").read_text(encoding="utf-8") == "my notes"


def _mlflow_ends_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """A run with both trackers, of which MLflow raises this when it is opened."""

    def opened(*_: object) -> NoReturn:
        raise error

    monkeypatch.setattr(mlflow_runs, "MlflowTracker", opened)
    with Tracking(TrackingSettings(mlflow=MlflowSettings()), tmp_path) as tracking:
        tracking.begin(ABOUT, tmp_path / "rounds.jsonl")
        _live(tracking, tmp_path, range(5))
        tracking.finished(METRICS)
    scalars = read_events(tmp_path / "tensorboard").scalars
    assert scalars == rounded(expected(tmp_path / "rounds.jsonl")) | FINAL


def test_a_missing_package_is_named_with_the_way_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _mlflow_ends_with(tmp_path, monkeypatch, ModuleNotFoundError("No module named 'mlflow'"))
    (warning,) = _warnings(caplog)
    assert "pip install 'lift-federated[mlflow]'" in warning


@pytest.mark.parametrize("error", [ValueError("odd\n2026 forged line\x1b[2J"), SystemExit(1)])
def test_whatever_a_package_raises_ends_the_tracker_alone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
) -> None:
    _mlflow_ends_with(tmp_path, monkeypatch, error)
    (warning,) = _warnings(caplog)
    assert "tracker=mlflow" in warning
    assert warning.isprintable()


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A service that answers once the event is set, at the end of the test at the latest."""
    answer = threading.Event()

    class Silent:
        def __init__(self, *_: object) -> None:
            answer.wait()

        def log(self, *_: object) -> None:
            """Takes what was kept for it."""

        def close(self, *, complete: bool) -> None:
            """Takes the end."""

    monkeypatch.setattr(mlflow_runs, "MlflowTracker", Silent)
    yield answer
    answer.set()


def test_a_service_that_does_not_answer_delays_no_round(
    tmp_path: Path, silent: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    settings = TrackingSettings(mlflow=MlflowSettings())
    # a round that waited for the service would wait for ever
    with Tracking(settings, tmp_path, close_within_s=threading.TIMEOUT_MAX) as tracking:
        tracking.begin(ABOUT, tmp_path / "rounds.jsonl")
        _live(tracking, tmp_path, range(5))
        tracking.finished(METRICS)
        assert not silent.is_set()
        silent.set()
    assert not _warnings(caplog)


def test_the_end_waits_for_a_silent_service_no_longer_than_it_may(
    tmp_path: Path, silent: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    settings = TrackingSettings(mlflow=MlflowSettings())
    with Tracking(settings, tmp_path, close_within_s=0.2) as tracking:
        tracking.begin(ABOUT, tmp_path / "rounds.jsonl")
        _live(tracking, tmp_path, range(5))
        tracking.finished(METRICS)
        assert not _warnings(caplog)
    assert not silent.is_set()
    (warning,) = _warnings(caplog)
    assert "within 0.2 s" in warning


def test_trackers_that_are_off_leave_nothing(tmp_path: Path) -> None:
    with Tracking(TrackingSettings(tensorboard=False), tmp_path) as tracking:
        tracking.begin(ABOUT, tmp_path / "rounds.jsonl")
        _live(tracking, tmp_path, range(2))
        tracking.finished(METRICS)
    assert [path.name for path in tmp_path.iterdir()] == ["rounds.jsonl"]


def _simulation(**more: object) -> SimulationConfig:
    data: dict[str, Any] = {
        "name": "mine",
        "data_statement": "none",
        "generator": {"builtin": "phantom-t1n-t1c-t2w-t2f"},
        "sites": [{"name": "east", "data": {"layout": "brats", "root": "data"}}],
        "plan": {
            "task": {"source": ["t1n"], "target": "t2f"},
            "privacy": {"mode": "none"},
        },
    }
    return SimulationConfig.from_data(data | more, "test")


def test_trackers_are_no_part_of_any_digest() -> None:
    plain = _simulation()
    tracked = _simulation(
        tracking={"tensorboard": False, "mlflow": {}, "wandb": {"mode": "online"}}
    )
    assert plain.tracking != tracked.tracking
    assert plain.digest() == tracked.digest()
    assert plain.plan.digest() == tracked.plan.digest()
    # what a run wrote before there were trackers is resumed
    assert "tracking" not in json.loads(plain.canonical_json())
    assert plain.digest() != _simulation(leave_one_out=True).digest()


def test_by_default_nothing_is_sent() -> None:
    for model in (SimulationConfig, ServerConfig):
        tracking = model.model_fields["tracking"].default
        assert tracking == TrackingSettings(tensorboard=True, mlflow=None, wandb=None)
    with_all = TrackingSettings.from_data({"mlflow": {}, "wandb": {}}, "test")
    assert with_all.mlflow is not None
    assert with_all.mlflow.uri is None
    assert with_all.wandb is not None
    assert with_all.wandb.mode == "offline"


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"mlflow": {"uri": "databricks"}}, "https://"),
        ({"mlflow": {"uri": "file:///tmp"}}, "https://"),
        ({"mlflow": {"uri": "https://me:secret@example.org"}}, "password"),
        ({"mlflow": {"experiment": "../x"}}, "experiment"),
        ({"wandb": {"uri": "https://example.org"}}, "mode: online"),
        ({"wandb": {"mode": "disabled"}}, "wandb.mode"),
        ({"tensorbord": False}, "tensorboard"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: object, word: str) -> None:
    with pytest.raises(ConfigError) as refused:
        TrackingSettings.from_data(settings, "test")
    assert word in refused.value.seen


def test_the_tracking_packages_are_loaded_only_when_a_run_begins() -> None:
    code = (
        "import sys, lift.tracking.run, lift.config.server, lift_server.cli\n"
        "print(sorted({'tensorboardX', 'mlflow', 'wandb'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_no_warning_is_given_by_a_run_that_goes_well(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="lift")
    with Tracking(TrackingSettings(), tmp_path) as tracking:
        tracking.begin(ABOUT, tmp_path / "rounds.jsonl")
        _live(tracking, tmp_path, range(2))
    assert not _warnings(caplog)
