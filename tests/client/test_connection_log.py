"""Which lines a connection's states leave in the site's log, and when a cause is looked for."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lift.protocol.flower.connection import KEY_IN_USE, ConnectionFile
from lift_client.check.verdict import Verdict
from lift_client.connection_log import ConnectionLog

OK = Verdict("network", "ok", "fine")
CLOCK = Verdict("clock", "problem", "600 s ahead of the server", "Set this machine's clock.")


@dataclass
class World:
    """A child's file, the reader of it, a clock and a preflight."""

    folder: Path
    caplog: pytest.LogCaptureFixture
    now: float = 0.0
    explained: int = 0
    verdicts: list[Verdict] = field(default_factory=lambda: [OK])

    def __post_init__(self) -> None:
        self.caplog.set_level(logging.INFO)
        path = self.folder / "connection.json"
        self.child = ConnectionFile(path)
        self.log = ConnectionLog(path, self._explain, clock=lambda: self.now)

    def _explain(self) -> Iterator[Verdict]:
        self.explained += 1
        yield from self.verdicts

    def look(self, seconds: float = 1.0) -> list[str]:
        """The new lines after some seconds."""
        self.now += seconds
        self.caplog.clear()
        self.log.look()
        return [record.getMessage() for record in self.caplog.records]


@pytest.fixture
def world(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> World:
    return World(tmp_path, caplog)


def test_a_connection_is_told_once(world: World) -> None:
    assert world.look() == []
    world.child.note("connected")
    assert world.look() == ["event=connected"]
    assert world.look() == []


def test_a_server_that_is_back_at_once_is_not_looked_into(world: World) -> None:
    world.child.note("connected")
    world.look()
    world.child.note("away")
    assert "event=server_away" in world.look()[0]
    world.child.note("connected")
    assert world.look(2.0) == ["event=connected_again"]
    assert world.explained == 0


def test_a_cause_is_looked_for_once_and_again_after_ten_minutes(world: World) -> None:
    world.verdicts = [OK, CLOCK]
    world.child.note("refused", 401)
    (line,) = world.look()
    assert "cause=clock" in line
    assert 'seen="600 s ahead of the server"' in line
    assert 'fix="Set this machine\'s clock."' in line
    # the child tries again and again
    world.child.note("connecting")
    world.look()
    world.child.note("refused", 401)
    assert world.look() == []
    assert "cause=clock" in world.look(601)[0]
    assert world.explained == 2


def test_a_refusal_that_the_preflight_cannot_explain_is_told_with_its_status(world: World) -> None:
    world.child.note("refused", 418)
    line = world.look()[0]
    assert "HTTP status 418" in line
    # a server that was moved, or just started, refuses once
    assert "Nothing to do now" in line


def test_a_key_in_use_needs_no_preflight(world: World) -> None:
    world.child.note("refused", KEY_IN_USE)
    assert "cause=key" in world.look()[0]
    assert world.explained == 0


def test_the_owner_hears_of_each_second_session(world: World) -> None:
    world.child.note("connected")
    world.look()
    for _ in range(2):
        world.child.note_second_session()
        assert "event=key_used_twice" in world.look()[0]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"state": "x"}', '{"status": 1}'])
def test_a_damaged_file_is_no_state(world: World, content: str) -> None:
    (world.folder / "connection.json").write_text(content, encoding="ascii")
    assert world.look() == []
