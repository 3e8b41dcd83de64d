"""Files are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lift.files import (
    file_digest,
    write_atomically,
    write_json,
    write_json_lines,
)
from tests import wording


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@given(st.binary(max_size=64), st.binary(max_size=64))
def test_a_written_file_holds_the_last_content_alone(
    tmp_path: Path, first: bytes, second: bytes
) -> None:
    path = tmp_path / "deep" / "file.bin"
    write_atomically(path, first)
    write_atomically(path, second)
    assert path.read_bytes() == second
    assert names_in(path.parent) == ["file.bin"]
    assert file_digest(path) == hashlib.sha256(second).hexdigest()


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"round": 1})
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = os if step == "fsync" else Path
    monkeypatch.setattr(target, step, full)
    with pytest.raises(OSError, match=wording.NO_SPACE):
        write_json(path, {"round": 2})
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert names_in(tmp_path) == ["file.json"]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_json_lacks_are_refused_before_anything_is_written(
    tmp_path: Path, number: float
) -> None:
    path = tmp_path / "file.json"
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"loss": number})
    with pytest.raises(ValueError, match="JSON"):
        write_json_lines(path, [{"loss": 1.0}, {"loss": number}])
    assert names_in(tmp_path) == []


def test_a_digest_covers_a_file_of_several_blocks(tmp_path: Path) -> None:
    content = os.urandom((2 << 20) + 17)
    (tmp_path / "large").write_bytes(content)
    assert file_digest(tmp_path / "large") == hashlib.sha256(content).hexdigest()
