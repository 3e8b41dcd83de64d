"""Tables of names as people and spreadsheets write them, read row by row.

Commas, tabs or bars part the cells, or whatever a first line `sep=X` says. The heading is matched
whatever its capitals and blanks. Empty rows and lines that begin with `#` are passed over. What
could mean two things is refused, and a row keeps the number of its line.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

LARGEST_TABLE_BYTES: Final = 64 << 20
_PARTING: Final = (",", "\t", "|")
_SPREADSHEETS: Final = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
_UTF_16: Final = (b"\xff\xfe", b"\xfe\xff")
_MOST_SHOWN: Final = 10
_LONGEST_SHOWN: Final = 40
_AS_CSV: Final = "Save it as 'CSV UTF-8' from the program that made it."
_FROM: Final = (
    "Save it as UTF-8: most editors ask for the encoding, and `iconv -f {} -t UTF-8 OLD > NEW` "
    "converts it."
)


class TableError(Exception):
    """A table that cannot be read as a whole.

    Attributes:
        seen: what was seen, with the line.
        remedy: what to do; empty where the caller's own is the best one.
    """

    def __init__(self, seen: str, remedy: str = "") -> None:
        super().__init__(seen)
        self.seen = seen
        self.remedy = remedy


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        line: of the file, from 1; of a row over several lines, the first.
        cells: column -> text without blanks around it.
        is_longer: whether it has more cells than the heading.
    """

    line: int
    cells: Mapping[str, str]
    is_longer: bool


@dataclass(frozen=True)
class Table:
    """A whole table.

    Attributes:
        columns: those that were asked for, under the names that were asked for.
        rows: in the file's order.
    """

    columns: frozenset[str]
    rows: tuple[Row, ...]


def read_table(path: Path, needed: Collection[str], others: Collection[str] = ()) -> Table:
    """The rows of a table, of the columns that are asked for.

    Args:
        path: a text in UTF-8, or in UTF-16 with its mark.
        needed: columns that it must have.
        others: columns that it may have.

    Raises:
        TableError: it cannot be read, is no text, lacks a column, has one twice, or a quotation
            mark in it is not closed.
    """
    lines = [
        # a comment stays as an empty line: the numbers of the others are those of the file
        "\n" if line.startswith("#") else line
        for line in io.StringIO(_text(path), newline=None)
    ]
    first = next((index for index, line in enumerate(lines) if line.strip()), None)
    if first is None:
        raise TableError("it has no rows")
    parting = _said_parting(lines[first])
    if parting is not None:
        lines[first] = "\n"
        first = next((index for index, line in enumerate(lines) if line.strip()), None)
        if first is None:
            raise TableError("it has no rows")
    names = [*needed, *others]
    if parting is None:
        parting = _parting(lines[first], needed, names)
    parsed = _parsed(lines, parting)
    heading_line, heading = parsed[0]
    columns = _columns(heading, names, heading_line)
    lacking = [name for name in needed if name not in columns.values()]
    if lacking:
        raise TableError(
            f"its heading, line {heading_line}, has no column {_quoted(lacking)}; its columns are "
            f"{_quoted(heading)}{_semicolons(lines[first], parting)}"
        )
    rows = [
        Row(
            line,
            {name: cells[place] for place, name in columns.items() if place < len(cells)},
            any(cells[len(heading) :]),
        )
        for line, cells in parsed[1:]
    ]
    return Table(frozenset(columns.values()), tuple(rows))


def not_utf_8(content: bytes, error: UnicodeDecodeError) -> tuple[str, str]:
    """What was seen, with the line, of a text whose bytes are not UTF-8; and what to do."""
    if content.startswith(_UTF_16):
        return "it is UTF-16, not UTF-8", _FROM.format("UTF-16")
    line = content.count(b"\n", 0, error.start) + 1
    seen = (
        f"line {line} is not UTF-8: its byte 0x{content[error.start]:02X} may be a letter of "
        "Latin-1 (Windows-1252)"
    )
    return seen, _FROM.format("WINDOWS-1252")


def _text(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            content = stream.read(LARGEST_TABLE_BYTES + 1)
    except OSError as error:
        raise TableError(
            error.strerror or type(error).__name__, "Correct the path, or let this user read it."
        ) from None
    if len(content) > LARGEST_TABLE_BYTES:
        raise TableError(f"it is larger than {LARGEST_TABLE_BYTES >> 20} MiB: it is no table")
    if content.startswith(_SPREADSHEETS):
        raise TableError("it is a spreadsheet's own file, no CSV table", _AS_CSV)
    encoding = "utf-16" if content.startswith(_UTF_16) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding == "utf-16":
            raise TableError("it begins as UTF-16 and is none", _AS_CSV) from None
        seen, remedy = not_utf_8(content, error)
        raise TableError(f"it is not a CSV table in UTF-8: {seen}", remedy) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise TableError(f"it is no CSV table: line {line} holds a byte 0", _AS_CSV)
    return text


def _said_parting(line: str) -> str | None:
    """What a spreadsheet's first line `sep=X` says, or None."""
    said = line.strip("\r\n").strip('"')
    return said[4] if len(said) == 5 and said[:4].lower() == "sep=" else None


def _parting(heading: str, needed: Collection[str], names: Collection[str]) -> str:
    """What parts the cells of the heading; the comma, where nothing fits."""
    fitting: dict[str, int] = {}
    for parting in _PARTING:
        try:
            found = {_plain(cell) for _, cells in _parsed([heading], parting) for cell in cells}
        except TableError:
            continue
        if all(_plain(name) in found for name in needed):
            fitting[parting] = sum(_plain(name) in found for name in names)
    return max(fitting, key=lambda parting: fitting[parting], default=",")


def _parsed(lines: Sequence[str], parting: str) -> list[tuple[int, list[str]]]:
    """Line and cells of each row that is not empty."""
    try:
        reader = csv.reader(lines, delimiter=parting, skipinitialspace=True, strict=True)
    except (TypeError, ValueError):
        raise TableError("its line `sep=` names nothing that can part cells") from None
    found, before = [], 0
    try:
        for cells in reader:
            stripped = [cell.strip() for cell in cells]
            if any(stripped):
                found.append((before + 1, stripped))
            before = reader.line_num
    except csv.Error as error:
        raise TableError(
            f"it is no CSV table from line {before + 1} on: {error}",
            "Look at the quotation marks there.",
        ) from None
    return found


def _columns(heading: Sequence[str], names: Collection[str], line: int) -> dict[int, str]:
    """Place -> the name that was asked for."""
    plain = Counter(_plain(name) for name in names)
    columns: dict[int, str] = {}
    plainly = [_plain(cell) for cell in heading]
    for name in names:
        # names that differ in their capitals alone are told apart by these
        as_written = plain[_plain(name)] > 1
        places = [
            place
            for place, cell in enumerate(heading if as_written else plainly)
            if cell == (name if as_written else _plain(name))
        ]
        if len(places) > 1:
            raise TableError(
                f"{len(places)} columns are called '{name}' in its heading, line {line}: which one "
                "is meant is not said",
                "Keep one column of each name.",
            )
        columns.update(dict.fromkeys(places, name))
    return columns


def _semicolons(heading: str, parting: str) -> str:
    if parting == ";" or ";" not in heading:
        return ""
    return (
        "; semicolons (;) part it, as spreadsheets write where a comma is for decimals: a first "
        "line `sep=;` says that this is meant"
    )


def _plain(name: str) -> str:
    return name.strip().casefold()


def _quoted(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name[:_LONGEST_SHOWN]}'" for name in names[:_MOST_SHOWN])
    return shown + (f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else "")
