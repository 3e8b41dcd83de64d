"""Logs: one line an event, JSON with its fields, files of bounded size, nothing of libraries."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import pytest

from lift import logs
from lift.commands import console_of, log_lines
from lift.errors import DataError
from lift.logs import LogFormat, log_to_file
from lift.protocol.flower.children import end_child, start_child

MOST = 4096
logger = logging.getLogger("lift.test")
ERROR = DataError("cannot use 'a b'", where="here", seen='2 "parts"\n3 lines', remedy="Do it.")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = logging.raiseExceptions
    yield
    logging.raiseExceptions = before


def written(path: Path, log: Callable[[], object], log_format: LogFormat = "json") -> list[str]:
    with log_to_file(path, log_format):
        log()
    return path.read_text(encoding="utf-8").splitlines()


def fields(path: Path, log: Callable[[], object]) -> dict[str, Any]:
    (line,) = written(path, log)
    return dict(json.loads(line))


def test_a_json_line_has_the_fields_of_its_event(tmp_path: Path) -> None:
    line = fields(
        tmp_path / "log.txt",
        lambda: logger.warning(
            'event=answered site=%s kind=%s seconds=%.2f n=%d none=%s fix="%s" more="as it is"',
            "north 1",
            'a "b" c=d',
            1.2345,
            7,
            None,
            "Do this; then that.",
        ),
    )
    del line["time"]
    assert line == {
        "level": "warning",
        "logger": "lift.test",
        "event": "answered",
        "message": 'event=answered site=north 1 kind=a "b" c=d seconds=1.23 n=7 none=None '
        'fix="Do this; then that." more="as it is"',
        "site": "north 1",
        "kind": 'a "b" c=d',
        "seconds": 1.23,
        "n": 7,
        "none": "None",
        "fix": "Do this; then that.",
        "more": "as it is",
    }


def test_its_time_is_utc_with_milliseconds(tmp_path: Path) -> None:
    line = fields(tmp_path / "log.txt", lambda: logger.info("event=a"))
    assert len(line["time"]) == len("2026-01-01T00:00:00.000Z")
    assert line["time"].endswith("Z")


@pytest.mark.parametrize(
    "template", ["event=refused site=%s %s", "event=refused site=%s reason=%s"]
)
def test_an_error_is_told_in_its_parts(tmp_path: Path, template: str) -> None:
    line = fields(tmp_path / "log.txt", lambda: logger.error(template, "north", ERROR))
    assert (line["class"], line["what"]) == ("data", "cannot use 'a b'")
    assert (line["where"], line["seen"]) == ("here", '2 "parts"\n3 lines')
    assert line["fix"] == "Do it."
    assert line["site"] == "north"


def test_what_is_no_event_is_a_message(tmp_path: Path) -> None:
    line = fields(tmp_path / "log.txt", lambda: logger.info("100% of 3"))
    assert (line["event"], line["message"]) == (None, "100% of 3")


def test_pairs_in_one_argument_are_fields(tmp_path: Path) -> None:
    line = fields(tmp_path / "log.txt", lambda: logger.info("event=a %s", "kind=train round=5"))
    assert (line["kind"], line["round"]) == ("train", "5")


def test_a_field_replaces_no_part_of_the_head(tmp_path: Path) -> None:
    line = fields(tmp_path / "log.txt", lambda: logger.info("event=a level=%s time=%s", "x", "y"))
    assert line["level"] == "info"
    assert line["time"] != "y"


def test_a_traceback_is_in_its_json_line(tmp_path: Path) -> None:
    def fail() -> None:
        try:
            raise RuntimeError("what")
        except RuntimeError:
            logger.exception("event=bug")

    assert "RuntimeError: what" in fields(tmp_path / "log.txt", fail)["traceback"]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_quoted_text_begins_a_line_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_format: LogFormat
) -> None:
    # a report of pytest cannot hold this name when it comes from a process of several
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    name = "a\n2026-01-01 00:00:00,000 INFO lift forged\u2028\udcff"
    lines = written(tmp_path / "log.txt", lambda: logger.info("event=a file=%s", name), log_format)
    assert len(lines) == 1
    assert "event=a" in lines[0]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_log_and_its_predecessors_have_a_largest_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_format: LogFormat
) -> None:
    monkeypatch.setattr(logs, "LARGEST_LOG_BYTES", MOST)
    for _ in range(3):
        # as of a program that is started again
        with log_to_file(tmp_path / "log.txt", log_format):
            for number in range(300):
                logger.info("event=step number=%d", number)
    _check_bound(tmp_path, "log.txt")
    newest = (tmp_path / "log.txt").read_text().splitlines()[-1]
    assert "299" in newest


def test_a_child_that_talks_has_a_log_of_a_largest_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes have to do with it: one talks, the other one writes."""
    monkeypatch.setattr(logs, "LARGEST_LOG_BYTES", MOST)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "talking.py").write_text(
        "import sys\n"
        "for number in range(2000):\n"
        "    print('out', number)\n"
        "    print('err', number, file=sys.stderr)\n"
        "print('x' * 200000 + ' last', end='')\n"
    )
    child = start_child("talking", "", tmp_path / "logs" / "child.log")
    assert child.wait(60) == 0
    end_child(child)
    _check_bound(tmp_path / "logs", "child.log", longest=65_536)
    assert (tmp_path / "logs" / "child.log").read_text().endswith("last\n")


def _check_bound(folder: Path, name: str, *, longest: int = 0) -> None:
    files = sorted(folder.glob(f"{name}*"))
    assert [file.name for file in files] == [
        name,
        *(f"{name}.{number}" for number in range(1, logs.OLDER_LOGS + 1)),
    ]
    assert max(file.stat().st_size for file in files) <= max(MOST, longest + 1)


def test_warnings_of_libraries_are_no_operator_s_business(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    foreign = logging.getLogger("foreign.library")
    with closing(logging.StreamHandler(sys.stderr)) as own:
        foreign.addHandler(own)
        foreign.propagate = False

        def log() -> None:
            foreign.warning("take care")
            foreign.error("it broke")
            warnings.warn("deprecated", DeprecationWarning, stacklevel=1)
            logger.warning("event=ours")

        with warnings.catch_warnings():
            warnings.simplefilter("always")
            lines = written(tmp_path / "log.txt", log, "text")
        assert [line.split(" ", 3)[3] for line in lines] == [
            "foreign.library it broke",
            "lift.test event=ours",
        ]
        assert capfd.readouterr() == ("", "")
        # as before, behind the block
        assert (foreign.handlers, foreign.propagate) == ([own], False)
        foreign.removeHandler(own)


def test_in_json_all_that_a_program_tells_is_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    def program() -> None:
        with log_lines("lift-x", "json"):
            console = console_of("json", "lift.terminal")
            line = "[b]round 1[/b] " + "x" * 300
            console.print(line, markup=False, highlight=False, soft_wrap=True)
            raise ERROR

    with pytest.raises(click.exceptions.Exit) as caught:
        program()
    assert caught.value.exit_code == 3
    told, ended = map(json.loads, capfd.readouterr().err.splitlines())
    assert told["message"] == "[b]round 1[/b] " + "x" * 300
    assert (ended["event"], ended["exit"], ended["fix"]) == ("ended", 3, "Do it.")


def test_in_text_an_error_passes_as_it_is() -> None:
    with pytest.raises(DataError), log_lines("lift-x", "text"):
        raise ERROR
