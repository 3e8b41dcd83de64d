"""A site whose disk is full says so in a class of its own, and answers when there is room."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest

from lift.config.cohort import BratsData
from lift.config.site import CacheSettings, SiteSettings
from lift.protocol.messages import Failure, FailureKind, Kind, Parcel, StatisticsRequest
from lift_client import session as module
from lift_client.session import SiteSession
from tests.lift.small_world import small_generator, small_plan, write_brats_patient


def test_a_full_disk_is_its_own_class_and_the_next_request_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    generator = small_generator()
    (tmp_path / "data").mkdir()
    for index in range(4):
        write_brats_patient(tmp_path / "data", f"BraTS-GLI-{index:05d}-000", seed=index)
    settings = SiteSettings(
        name="north",
        data=BratsData(root=tmp_path / "data"),
        device="cpu",
        cache=CacheSettings(folder=tmp_path / "cache"),
    )
    session = SiteSession(settings, generator, tmp_path)
    plan = small_plan(generator=generator)
    request = Parcel(Kind.STATISTICS, StatisticsRequest(plan=plan))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "plan.json"))

    with monkeypatch.context() as patch:
        patch.setattr(module, "store_plan", full)
        with caplog.at_level(logging.ERROR):
            assert session.handle(request) == Failure(FailureKind.DISK)
    (line,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "cause=disk" in line.getMessage()
    assert "plan.json" in line.getMessage()
    assert line.exc_info is None
    assert isinstance(session.handle(request), Parcel)
    session.close()
