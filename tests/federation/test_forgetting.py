"""Single sites' answers cannot be read in the network process's database when it has ended."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict
from flwr.supercore import constant, sql_mixin
from flwr.supercore.object_store.sql_object_store import SqlObjectStore

from lift.protocol.flower.forgetting import (
    KEPT,
    forget_answers,
    overwrite_what_is_deleted,
)
from lift.protocol.messages import Kind, Parcel, StatisticsRequest
from tests.federation.attackers import SITES, Server, deflate, reply_metadata, running_server
from tests.federation.parcels import make_plan
from tests.opened_modes import open_to_others

pytestmark = [
    pytest.mark.timeout(300),
    # Flower's way of calling its migrations, and of building an app
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
PIECE = 64
PIECES = 32


@pytest.fixture(autouse=True)
def _as_sqlite_is_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some systems build it so that it overwrites what is deleted: not all do."""
    plain = (*constant.SQLITE_PRAGMAS, ("secure_delete", "OFF"))
    monkeypatch.setattr(sql_mixin, "SQLITE_PRAGMAS", plain)


def marker(seed: int) -> bytes:
    """Bytes that nothing compresses."""
    return np.random.default_rng(seed).bytes(PIECE * PIECES)


def pieces_in(folder: Path, planted: bytes) -> int:
    """How many pieces of a marker stand in any of the database's files."""
    content = b"".join(path.read_bytes() for path in sorted(folder.glob("superlink.db*")))
    assert content
    pieces = [planted[at : at + PIECE] for at in range(0, len(planted), PIECE)]
    return sum(piece in content for piece in pieces)


def answered(server: Server, seeds: range) -> None:
    """Runs in which a site's answer holds a marker; it is read, and its run ends."""
    site = server.outlaw(SITES[0])
    assert site.activate().is_success
    request = Parcel(Kind.STATISTICS, StatisticsRequest(plan=make_plan()))
    for seed in seeds:
        with server.exchange({SITES[0]: request}, 5.0) as answers:
            asked = site.pull()
            metadata = reply_metadata(asked)
            record = ConfigRecord({"json": "{}", "safetensors": marker(seed)})
            site.push(metadata, deflate(metadata, RecordDict({"lift.parcel": record})))
            answers.result(60)


def test_no_answer_is_left_in_the_files_of_a_server_that_ended(tmp_path: Path) -> None:
    seeds = range(3)
    with running_server(tmp_path) as server:
        answered(server, seeds)
        admitted = set(server.coordinator.connected())
    assert [pieces_in(tmp_path, marker(seed)) for seed in seeds] == [0, 0, 0]
    with closing(sqlite3.connect(tmp_path / "superlink.db")) as database:
        names = {row[0] for row in database.execute("SELECT name FROM node")}
        runs = database.execute("SELECT count(*) FROM run").fetchone()[0]
    assert SITES[0] in admitted
    assert set(SITES) <= names
    assert runs == len(seeds)
    # the child's files have the mode of its own mask, not of this process's
    assert [name for name in open_to_others(tmp_path) if "superlink.db" in name] == []


@contextmanager
def store_of(folder: Path) -> Iterator[SqlObjectStore]:
    """Flower's own store of answers, in this process."""
    store = SqlObjectStore(str(folder / "superlink.db"))
    store.initialize()
    yield store
    # the last connection that closes brings the log's pages into the database
    store._engine.dispose()  # type: ignore[union-attr]  # it was made above


def make(folder: Path) -> None:
    """A database without an answer."""
    with store_of(folder):
        pass


def insert(folder: Path, planted: bytes) -> None:
    """An answer as Flower stores it."""
    with closing(sqlite3.connect(folder / "superlink.db")) as database:
        database.execute("INSERT INTO objects VALUES ('x', ?, 1, 1)", (planted,))
        database.commit()


def delete(folder: Path) -> None:
    """What Flower does when an answer was read."""
    with store_of(folder) as store:
        store.query("DELETE FROM objects")
    with closing(sqlite3.connect(folder / "superlink.db")) as database:
        assert database.execute("SELECT count(*) FROM objects").fetchone() == (0,)


def test_a_row_that_is_there_or_was_deleted_is_forgotten(tmp_path: Path) -> None:
    make(tmp_path)
    insert(tmp_path, marker(1))
    assert pieces_in(tmp_path, marker(1)) > PIECES / 2
    delete(tmp_path)
    # the old way: deleted, and still there
    assert pieces_in(tmp_path, marker(1)) > PIECES / 2
    insert(tmp_path, marker(2))
    forget_answers(tmp_path / "superlink.db")
    assert [pieces_in(tmp_path, marker(seed)) for seed in (1, 2)] == [0, 0]


def test_a_run_overwrites_what_it_deletes(tmp_path: Path) -> None:
    make(tmp_path)
    insert(tmp_path, marker(1))
    overwrite_what_is_deleted()
    delete(tmp_path)
    assert pieces_in(tmp_path, marker(1)) == 0


def test_a_log_that_a_killed_process_left_is_forgotten_at_the_next_start(tmp_path: Path) -> None:
    make(tmp_path)
    with closing(sqlite3.connect(tmp_path / "superlink.db")) as open_still:
        open_still.execute("INSERT INTO objects VALUES ('x', ?, 1, 1)", (marker(1),))
        open_still.commit()
        killed = tmp_path / "killed"
        killed.mkdir()
        for path in tmp_path.glob("superlink.db*"):
            shutil.copy(path, killed)
    assert (killed / "superlink.db-wal").stat().st_size > 0
    assert pieces_in(killed, marker(1)) > PIECES / 2
    forget_answers(killed / "superlink.db")
    assert pieces_in(killed, marker(1)) == 0


def test_a_file_that_is_no_database_is_left_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "superlink.db"
    forget_answers(path)
    assert not path.exists()
    path.write_bytes(b"no database" * 100)
    forget_answers(path)
    assert path.read_bytes() == b"no database" * 100
    assert "answers_not_forgotten" in caplog.text


def test_every_table_that_is_kept_is_one_of_flower_s(tmp_path: Path) -> None:
    make(tmp_path)
    with closing(sqlite3.connect(tmp_path / "superlink.db")) as database:
        rows = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    names = {row[0] for row in rows}
    assert names >= KEPT
    assert {"objects", "message", "message_res", "message_ins", "task_message"} <= names - KEPT
