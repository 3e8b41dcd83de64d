"""What a coordinator decides while a server waits."""

from __future__ import annotations

from pathlib import Path

import pytest

from lift.errors import RecordError
from lift_server.rounds.decision import (
    DECISION_FILE,
    LEFT_OUT_FILE,
    decide,
    forget_decision,
    sites_left_out,
    take_decision,
)

RUN, OTHER = "a" * 64, "b" * 64


def test_a_decision_is_taken_once_and_holds_for_its_run(tmp_path: Path) -> None:
    assert take_decision(tmp_path, RUN) is None
    decide(tmp_path, ["west", "east"])
    found = take_decision(tmp_path, RUN)
    assert found is not None
    assert found.without == ("east", "west")
    assert take_decision(tmp_path, RUN) is None
    assert sites_left_out(tmp_path, RUN) == ("east", "west")
    assert sites_left_out(tmp_path, OTHER) == ()
    decide(tmp_path, ["north"])
    take_decision(tmp_path, RUN)
    assert sites_left_out(tmp_path, RUN) == ("east", "north", "west")


def test_asking_again_leaves_nobody_out(tmp_path: Path) -> None:
    decide(tmp_path, [])
    assert take_decision(tmp_path, RUN) is not None
    assert sites_left_out(tmp_path, RUN) == ()
    assert not (tmp_path / LEFT_OUT_FILE).exists()


def test_a_decision_that_nobody_waited_for_is_forgotten(tmp_path: Path) -> None:
    forget_decision(tmp_path)
    decide(tmp_path, ["east"])
    forget_decision(tmp_path)
    assert take_decision(tmp_path, RUN) is None


@pytest.mark.parametrize("name", [DECISION_FILE, LEFT_OUT_FILE])
@pytest.mark.parametrize("content", [b"", b"{", b'{"without": ["../x"]}', b'{"runs": 1}'])
def test_a_damaged_file_stops_nothing_silently(tmp_path: Path, name: str, content: bytes) -> None:
    decide(tmp_path, ["east"])
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RecordError) as caught:
        take_decision(tmp_path, RUN)
    assert name in caught.value.where
