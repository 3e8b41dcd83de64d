"""A table of patients as a spreadsheet leaves it, with faults in some rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.client.fault import Fault


def _nothing(files: Mapping[str, Path], others: Mapping[str, Path]) -> None:
    """The fault is in the table alone."""


def _links(files: Mapping[str, Path], _: Mapping[str, Path]) -> None:
    for path in files.values():
        path.unlink()
        path.symlink_to(Path("..", ".git", "annex", "objects", path.name))


TABLE_FAULTS: dict[str, Fault] = {
    "free text": Fault(_nothing, "files", ("",), "File name too long"),
    "typing error": Fault(_nothing, "files", ("",), "there is no 'T1_mpr.nii.gz' for t1n"),
    "empty cell": Fault(_nothing, "files", ("",), "missing: t2w"),
    "too many cells": Fault(_nothing, "files", ("",), "has more cells than the heading"),
    "second row": Fault(_nothing, "files", ("",), "is a second row of"),
    "outside": Fault(_nothing, "files", ("",), "names a file outside the data folder"),
    "nameless": Fault(_nothing, "files", ("",), "names no patient"),
    "not fetched": Fault(_links, "files", ("",), "links to files that are not there"),
}


def write_table(
    root: Path, rows: Mapping[str, Mapping[str, Path]], faults: Mapping[str, str]
) -> tuple[Path, dict[str, str]]:
    """The table, and who is refused for which of the faults: a nameless row by its line.

    Semicolons part the cells, as the first line says; the heading has capitals and blanks; there
    are comments, empty rows, and a column that nobody asks for.

    Args:
        root: the data folder.
        rows: patient -> channel -> file.
        faults: patient -> what is wrong with its row.
    """
    lines = ["\ufeffsep=;", "# of the archive; by hand", "", "Patient ; T1N;T2w; T2F;Remark;Remark"]
    refused = dict(faults)
    for name, files in rows.items():
        cells = [name, *(str(path.relative_to(root)) for path in files.values()), "fine", ""]
        fault = faults.get(name, "")
        match fault:
            case "free text":
                cells[1] = "see the letter, " * 20
            case "typing error":
                cells[1] = "T1_mpr.nii.gz"
            case "empty cell":
                cells[2] = ""
            case "too many cells":
                cells.append("and more")
            case "second row":
                lines.append(";".join(cells))
            case "outside":
                cells[3] = "../secret.nii.gz"
            case "nameless":
                cells[0] = ""
                refused[f"line {len(lines) + 1}"] = refused.pop(name)
        lines += [";".join(cells), *([";;;;;", ""] if len(lines) % 3 == 0 else [])]
    path = root / "patients.csv"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path, refused
