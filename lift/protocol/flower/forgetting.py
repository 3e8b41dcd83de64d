"""Removal of the sites' answers from the database of the network process.

It holds every message between its arrival and its reading, and SQLite leaves what was deleted in
free pages and in the write-ahead log: single sites' answers could be read there long after a run.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, Final

KEPT: Final = frozenset(
    {
        "alembic_version",
        "fab",
        "node",
        # a request that was seen must not count a second time
        "nonce_store",
        "objectstore_locks",
        "run",
        "run_series",
        "series_runs",
        "task",
    }
)
"""Tables that outlast a run: who is admitted, and that there were runs. All others are emptied, one
that Flower adds too."""
_PRAGMAS: Final = (
    # what is deleted is overwritten, and the log is cut off when its pages are in the database
    ("secure_delete", "ON"),
    ("journal_size_limit", "0"),
)
_WAIT_S: Final = 5.0
logger = logging.getLogger(__name__)


def overwrite_what_is_deleted() -> None:
    """Let every connection of Flower to a database overwrite the rows that it deletes.

    To be called before the first connection is made.
    """
    from flwr.supercore import sql_mixin

    module: Any = sql_mixin
    wanted = [item for item in _PRAGMAS if item not in module.SQLITE_PRAGMAS]
    module.SQLITE_PRAGMAS = (*module.SQLITE_PRAGMAS, *wanted)


def forget_answers(database: Path) -> None:
    """Empty every table but `KEPT`, and leave nothing of their rows in the file or beside it.

    Nobody else may have the database open. One that is not there, or is none, is left; the
    latter is logged. What the disk itself keeps of freed blocks is not ours to reach.
    """
    if not database.is_file():
        return
    try:
        _empty(database)
    except sqlite3.DatabaseError as error:
        logger.error("event=answers_not_forgotten reason=%s", type(error).__name__)  # noqa: TRY400
        return
    for beside in (database.with_name(f"{database.name}-wal"),):
        if beside.is_file() and beside.stat().st_size:
            os.truncate(beside, 0)


def _empty(database: Path) -> None:
    with closing(sqlite3.connect(database, timeout=_WAIT_S, isolation_level=None)) as connection:
        for name, value in _PRAGMAS:
            connection.execute(f"PRAGMA {name} = {value}")
        found = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        names = [str(row[0]) for row in found]
        for name in names:
            if name not in KEPT and not name.startswith("sqlite_"):
                quoted = name.replace('"', '""')
                connection.execute(f'DELETE FROM "{quoted}"')  # noqa: S608  # its own table's name
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        # free pages of earlier versions, which did not overwrite
        connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
