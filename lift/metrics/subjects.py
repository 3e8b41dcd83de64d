"""A table of files and persons, so that each person counts once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from lift.csv_tables import TableError, read_table
from lift.errors import DataError
from lift.volumes.volume import stem_of

NOT_TOLD: Final = (
    "No --subjects: each file is taken for a person of its own. Where a person has several, "
    "intervals are too narrow."
)
"""Note for figures of files whose persons are not named."""

_COLUMNS: Final = ("file", "subject")
_SHOWN: Final = 5
_REMEDY: Final = (
    "Nothing was written. Correct the table: a column `file`, with paths relative to the folder, "
    "and a column `subject`, with one name for each person."
)


def read_subjects(path: Path) -> dict[str, str]:
    """FILE -> person, of a CSV table with the columns `file` and `subject`; others are passed over.

    Args:
        path: the table, as `lift.csv_tables` reads it.

    Raises:
        DataError: it cannot be read, lacks a column or a cell, or names a file twice.
    """
    try:
        table = read_table(path, _COLUMNS)
    except TableError as error:
        raise _wrong(path, error.seen, error.remedy) from None
    if not table.rows:
        raise _wrong(path, "it has no rows")
    found: dict[str, str] = {}
    for row in table.rows:
        line = row.line
        file, subject = (row.cells.get(column, "") for column in _COLUMNS)
        if row.is_longer:
            raise _wrong(path, f"line {line} has more cells than the heading")
        if not file or not subject:
            raise _wrong(path, f"line {line} has no file or no subject")
        if file in found:
            raise _wrong(path, f"line {line} is a second row of '{file}'")
        found[file] = subject
    return found


def subjects_of_files(
    table: Mapping[str, str], files: Iterable[str], *, folder: str = ""
) -> dict[str, str]:
    """FILE -> person, of exactly these files.

    A row `FOLDER/FILE` goes before a row `FILE`, for files of two folders that have one name. A
    row may name the file of another format, or none: where the name is not there, what it is
    without its ending counts.

    Args:
        table: of :func:`read_subjects`.
        files: relative to their folder.
        folder: its name.

    Raises:
        DataError: the table does not name some of them.
    """
    names = list(files)
    by_stem: dict[str, str | None] = {}
    for file, subject in table.items():
        stem = stem_of(file)
        # two rows of one name and two persons say nothing
        by_stem[stem] = subject if by_stem.get(stem, subject) == subject else None
    own = {
        name: table.get(
            f"{folder}/{name}",
            table.get(name, by_stem.get(stem_of(f"{folder}/{name}"), by_stem.get(stem_of(name)))),
        )
        for name in names
    }
    missing = [name for name, subject in own.items() if subject is None]
    if missing:
        shown = ", ".join(f"'{name}'" for name in missing[:_SHOWN])
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise DataError(
            "cannot tell whose volumes these are",
            where="--subjects",
            seen=f"no row for {shown}{more}; {len(names)} files need one each",
            remedy=_REMEDY,
        )
    return {name: subject for name, subject in own.items() if subject is not None}


def _wrong(path: Path, seen: str, remedy: str = "") -> DataError:
    return DataError(
        "cannot read the table of subjects",
        where=f"'{path}'",
        seen=seen,
        remedy=f"Nothing was written. {remedy}" if remedy else _REMEDY,
    )
