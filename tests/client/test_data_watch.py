"""A data folder that changes under a client: one line says so, and a run keeps its patients."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lift.cohort import vetoes
from lift.cohort.split import SPLIT_FILE, read_split
from lift.config.cohort import BratsData
from lift.config.plan import Plan
from lift.config.site import CacheSettings, SiteConfig, SiteSettings
from lift.errors import DataError
from lift.generator.networks import FrozenGenerator
from lift.logs import TELL_EVERY_S
from lift.protocol.messages import (
    Failure,
    FailureKind,
    Kind,
    Parcel,
    StatisticsRequest,
    TrainRequest,
)
from lift.tasks.paired.building import plan_mixer
from lift_client.app import _steps_logged
from lift_client.check.data_watch import DataWatch
from lift_client.session import SiteSession
from tests.lift.small_world import small_generator, small_plan, write_brats_patient

PATIENTS = 7


@pytest.fixture(scope="module")
def generator() -> FrozenGenerator:
    return small_generator()


@pytest.fixture
def settings(tmp_path: Path) -> SiteSettings:
    for index in range(PATIENTS):
        write_brats_patient(tmp_path / "data", name(index), seed=index)
    return SiteSettings(
        name="north",
        data=BratsData(root=tmp_path / "data"),
        device="cpu",
        cache=CacheSettings(folder=tmp_path / "cache"),
    )


@pytest.fixture
def plan(generator: FrozenGenerator) -> Plan:
    return small_plan("zdiff", generator=generator, training={"steps": 1, "warmup_steps": 0})


def name(index: int) -> str:
    return f"BraTS-GLI-{index:05d}-000"


def lines(caplog: pytest.LogCaptureFixture, look: Callable[[], None]) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.INFO, "lift_client"):
        look()
    return [record.getMessage() for record in caplog.records]


def test_a_folder_that_goes_and_comes_back_is_two_lines(
    settings: SiteSettings, plan: Plan, caplog: pytest.LogCaptureFixture
) -> None:
    watch, root = DataWatch(settings, plan), settings.data.root
    assert lines(caplog, watch.look) == []
    root.rename(root.with_name("away"))
    (line,) = lines(caplog, watch.look)
    assert line.startswith("event=data_gone site=north cause=data ")
    assert "there is no such folder" in line
    assert "Mount the folder again" in line
    assert lines(caplog, watch.look) == []
    # what is left of a share that is not mounted
    root.mkdir()
    assert lines(caplog, watch.look) == []
    root.rmdir()
    root.with_name("away").rename(root)
    assert lines(caplog, watch.look) == ["event=data_back site=north"]


def test_who_came_went_or_changed_is_one_line(
    settings: SiteSettings, plan: Plan, caplog: pytest.LogCaptureFixture
) -> None:
    watch, root = DataWatch(settings, plan), settings.data.root
    write_brats_patient(root, name(20), seed=20)
    shutil.rmtree(root / name(1))
    next((root / name(2)).iterdir()).write_bytes(b"other")
    (line,) = lines(caplog, watch.look)
    assert "added=1 removed=1 changed=1" in line
    assert f'names="{name(20)}, {name(1)}, {name(2)}"' in line
    assert "next run" in line
    assert lines(caplog, watch.look) == []


def answer(
    generator: FrozenGenerator, settings: SiteSettings, plan: Plan, work: Path, round_index: int
) -> Parcel | Failure:
    """Of a client that was just started."""
    session = SiteSession(settings, generator, work)
    try:
        if round_index == 0:
            return session.handle(Parcel(Kind.STATISTICS, StatisticsRequest(plan=plan)))
        values = {n: v.numpy() for n, v in plan_mixer(plan, generator).values().items()}
        request = TrainRequest(plan_digest=plan.digest(), round=round_index)
        return session.handle(Parcel(Kind.TRAIN, request, values))
    finally:
        session.close()


def same(one: Parcel | Failure, other: Parcel | Failure) -> bool:
    assert isinstance(one, Parcel)
    assert isinstance(other, Parcel)
    return all(np.array_equal(one.tensors[n], other.tensors[n]) for n in one.tensors)


def test_a_run_keeps_the_patients_it_began_with(
    generator: FrozenGenerator,
    settings: SiteSettings,
    plan: Plan,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    work, root = tmp_path / "work", settings.data.root
    begun = answer(generator, settings, plan, work, 0)
    split = read_split(work / SPLIT_FILE)
    update = answer(generator, settings, plan, work, 1)
    for index in range(20, 26):
        write_brats_patient(root, name(index), seed=index)
    with caplog.at_level(logging.WARNING):
        assert same(answer(generator, settings, plan, work, 1), update)
    assert read_split(work / SPLIT_FILE) == split
    (line,) = [r.getMessage() for r in caplog.records if "patients_not_in_run" in r.getMessage()]
    assert "patients=6" in line
    assert "from the next run on" in line
    # another run takes them, and the same one if it begins anew
    other = plan.model_copy(update={"seed": plan.seed + 1})
    answer(generator, settings, other, tmp_path / "other", 0)
    assert len(read_split(tmp_path / "other" / SPLIT_FILE).everybody) == PATIENTS + 6
    assert not same(answer(generator, settings, plan, work, 0), begun)
    assert read_split(work / SPLIT_FILE) != split
    assert not same(answer(generator, settings, plan, work, 1), update)


def test_whoever_is_gone_moves_nobody_to_another_part(
    generator: FrozenGenerator,
    settings: SiteSettings,
    plan: Plan,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    work = tmp_path / "work"
    answer(generator, settings, plan, work, 0)
    split = read_split(work / SPLIT_FILE)
    update = answer(generator, settings, plan, work, 1)
    gone = split.train[0]
    (settings.data.root / gone).rename(tmp_path / gone)
    with caplog.at_level(logging.WARNING):
        assert not same(answer(generator, settings, plan, work, 1), update)
    assert read_split(work / SPLIT_FILE) == split
    (line,) = [r.getMessage() for r in caplog.records if "patients_gone" in r.getMessage()]
    assert gone in line
    (tmp_path / gone).rename(settings.data.root / gone)
    assert same(answer(generator, settings, plan, work, 1), update)
    shutil.rmtree(settings.data.root / gone)
    for patient in split.train[1:]:
        shutil.rmtree(settings.data.root / patient)
    with caplog.at_level(logging.ERROR):
        assert answer(generator, settings, plan, work, 1) == Failure(FailureKind.DATA)
    assert "no training patient of this run is left" in caplog.text


def test_a_folder_that_is_gone_at_a_start_is_a_refusal(
    generator: FrozenGenerator, settings: SiteSettings, plan: Plan, tmp_path: Path
) -> None:
    settings.data.root.rename(tmp_path / "away")
    assert answer(generator, settings, plan, tmp_path / "work", 0) == Failure(FailureKind.DATA)
    with pytest.raises(DataError):
        DataWatch(settings, plan)


def test_what_takes_long_says_now_and_then_how_far_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = 100.0
    log = _steps_logged(lambda: now)
    with caplog.at_level(logging.INFO, "lift_client"):
        for done in range(1, 11):
            log("north: features", done, 10)
            now += TELL_EVERY_S / 2
        log("north: round 1", 1, 1)
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        *(f"event=step step=north:_features done={done} of=10" for done in (3, 5, 7, 9)),
        "event=step_done step=north:_features done=10 of=10",
        "event=step_done step=north:_round_1 done=1 of=1",
    ]


def test_examinations_that_take_long_say_how_far_they_are(
    settings: SiteSettings,
    plan: Plan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from lift.cohort.layouts import list_patients

    seconds = iter(range(0, 10_000, int(TELL_EVERY_S / 2)))
    monkeypatch.setattr(vetoes, "monotonic", lambda: float(next(seconds)))
    checked = SiteConfig.from_data(
        {
            "name": "north",
            "data": {"layout": "brats", "root": str(settings.data.root)},
            "generator": {"bundle": "b"},
            "policy": {"privacy_modes": ["none"]},
            "folder": str(tmp_path / "work"),
        },
        "test",
    )
    found, _ = list_patients(settings.data, plan.task.channels)
    with caplog.at_level(logging.INFO, "lift"):
        vetoes.vetoed(checked, plan, found)
    told = [r.getMessage() for r in caplog.records if "checking_images" in r.getMessage()]
    assert told
    assert all(f"of={PATIENTS}" in line for line in told)
