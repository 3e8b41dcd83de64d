"""Trackers of whole simulated runs: the record's figures, whatever happens, and the same mixer."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from lift_server.rounds.store import RunStore
from tests.end_to_end.tiny_run import PATIENTS, TinyRun, run_outside
from tests.lift.event_files import Events, read_events
from tests.lift.tracking_world import expected, rounded

EXACT = ("mixer.safetensors", "metrics.json")
ROUNDS = 3


class Killed(BaseException):
    """The process ends here."""


def check_events(out: Path, events: Events) -> None:
    """Assert that these are the record's figures and the final ones, each once."""
    pooled = json.loads((out / "metrics.json").read_text())["pooled"]
    final = {
        f"pooled/{method}/{metric}": {ROUNDS: float(np.float32(measure["value"]))}
        for method, table in pooled.items()
        for metric, measure in table.items()
        if measure["value"] is not None
    }
    assert len(final) > 20
    assert events.files == 1
    assert events.scalars == rounded(expected(out / "rounds.jsonl")) | final


@pytest.fixture(scope="module")
def run(tiny: TinyRun) -> Path:
    done = tiny.simulate("tracked", compare=["control_2d"], plan__federation__rounds=ROUNDS)
    assert done.code == 0, done
    assert "tracking" not in done.stderr
    return tiny.folder / "tracked"


def test_a_run_leaves_an_event_file_with_the_federations_record(run: Path) -> None:
    events = read_events(run / "tensorboard")
    check_events(run, events)
    # the control's rounds are of another federation
    assert (run / "control_2d" / "rounds.jsonl").is_file()
    described = json.loads((run / "run.json").read_text())
    assert events.texts == {
        "about/federation": "tiny",
        "about/plan_digest": described["plan_digest"],
    }


@pytest.mark.parametrize("moment", ["before a round is told", "after the last round"])
def test_a_killed_run_ends_with_the_figures_of_its_record(
    run: Path, tiny: TinyRun, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    name = moment.replace(" ", "_")
    save = RunStore.save

    def killed(self: RunStore, round_index: int, *rest: object) -> None:
        save(self, round_index, *rest)  # type: ignore[arg-type]  # handed on as they come
        if round_index == (1 if moment.startswith("before") else ROUNDS):
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "save", killed)
        with pytest.raises(Killed):
            tiny.simulate(name, compare=["control_2d"], plan__federation__rounds=ROUNDS)
    # the trackers may change when a run is resumed: here to the defaults, said in full
    done = tiny.simulate(
        name,
        compare=["control_2d"],
        plan__federation__rounds=ROUNDS,
        tracking={"tensorboard": True, "mlflow": None, "wandb": None},
    )
    assert done.code == 0, done
    out = tiny.folder / name
    check_events(out, read_events(out / "tensorboard"))
    for file in EXACT:
        assert (out / file).read_bytes() == (run / file).read_bytes()


def test_every_fold_has_a_sub_folder(own: TinyRun) -> None:
    for site, patients in PATIENTS.items():
        for index in range(patients):
            if (site, index) not in {("east", 1), ("east", 3), ("west", 0), ("west", 4)}:
                for file in own.patient(site, index).iterdir():
                    file.unlink()
                own.patient(site, index).rmdir()
    done = own.simulate("loo", leave_one_out=True)
    assert done.code == 0, done
    out = own.folder / "loo"
    folds = sorted(path.name for path in (out / "folds").iterdir())
    assert len(folds) == 4
    for fold in folds:
        events = read_events(out / "tensorboard" / f"fold-{fold}")
        assert events.scalars == rounded(expected(out / "folds" / fold / "rounds.jsonl"))
    whole = read_events(out / "tensorboard").scalars
    assert whole
    assert all(tag.startswith("pooled/") for tag in whole)


def test_all_trackers_at_once_change_nothing_of_the_result(run: Path, tiny: TinyRun) -> None:
    for package in ("mlflow", "wandb"):
        if find_spec(package) is None:
            pytest.skip(f"the extra {package} is not installed here")
    out = tiny.folder / "all"
    config = tiny.settings(
        "settings-all",
        compare=["control_2d"],
        plan__federation__rounds=ROUNDS,
        tracking={"mlflow": {}, "wandb": {}},
    )
    # not in this process: the packages leave hooks in theirs
    done = run_outside("lift-simulate", "--config", config, "--output", out)
    assert done.code == 0, done
    assert "tracking" not in done.stderr
    assert (out / "mlflow" / "mlflow.db").is_file()
    assert list((out / "wandb").glob("offline-run-*/run-*.wandb"))
    for file in EXACT:
        assert (out / file).read_bytes() == (run / file).read_bytes()
    assert _timeless(out) == _timeless(run)


def _timeless(out: Path) -> list[dict[str, object]]:
    lines = (out / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    # seconds travel in the messages, and change their length
    return [
        {k: v for k, v in json.loads(line).items() if k not in {"seconds", "bytes"}}
        for line in lines
    ]
