"""The tests' own cache: made once, made anew when anything changes, whole or absent."""

from __future__ import annotations

import multiprocessing
import os
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from tests.cache import KEPT_S, cached


class Maker:
    """Writes one file, and a line of the log each time that it is asked."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def __call__(self, folder: Path) -> None:
        assert list(folder.iterdir()) == []
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_text("made")
        with self.log.open("a") as log:
            log.write("made\n")

    @property
    def times(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    return Maker(tmp_path / "log")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.py"
    path.write_text("SIZE = 1\n")
    return path


def take(tmp_path: Path, name: str, maker: Maker, source: Path) -> Path:
    return cached(tmp_path / name, "thing", maker, [source], cache=tmp_path / "cache")


def entries(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache" / "thing").iterdir() if path.is_dir()]


def test_it_is_made_once_and_given_to_all_as_a_copy(
    tmp_path: Path, maker: Maker, source: Path
) -> None:
    first = take(tmp_path, "first", maker, source)
    (first / "deep" / "file").write_text("damaged")
    second = take(tmp_path, "second", maker, source)
    assert (second / "deep" / "file").read_text() == "made"
    assert maker.times == 1


def test_another_digest_is_made_anew(tmp_path: Path, maker: Maker, source: Path) -> None:
    take(tmp_path, "first", maker, source)
    source.write_text("SIZE = 2\n")
    take(tmp_path, "second", maker, source)
    assert maker.times == 2
    assert len(entries(tmp_path)) == 2


def test_a_maker_that_dies_leaves_nothing(tmp_path: Path, maker: Maker, source: Path) -> None:
    def dies(folder: Path) -> None:
        maker(folder)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cached(tmp_path / "first", "thing", dies, [source], cache=tmp_path / "cache")
    assert entries(tmp_path) == []
    assert not (tmp_path / "first").exists()
    take(tmp_path, "second", maker, source)
    assert maker.times == 2


def take_together(tmp_path: Path, name: str, maker: Maker, source: Path, start: Barrier) -> None:
    start.wait()
    take(tmp_path, name, maker, source)


def test_two_processes_at_once_make_it_once(tmp_path: Path, maker: Maker, source: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(2)
    processes = [
        context.Process(target=take_together, args=(tmp_path, name, maker, source, start))
        for name in ("first", "second")
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert maker.times == 1
    for name in ("first", "second"):
        assert (tmp_path / name / "deep" / "file").read_text() == "made"


def test_what_nobody_uses_any_more_is_removed(tmp_path: Path, maker: Maker, source: Path) -> None:
    take(tmp_path, "first", maker, source)
    (old,) = entries(tmp_path)
    source.write_text("SIZE = 2\n")
    take(tmp_path, "second", maker, source)
    assert old.is_dir()
    long_ago = time.time() - KEPT_S - 60
    os.utime(old, (long_ago, long_ago))
    take(tmp_path, "third", maker, source)
    (kept,) = entries(tmp_path)
    assert kept != old
