"""Tables as people and spreadsheets write them: one reading, or a refusal with the line."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from lift.csv_tables import TableError, read_table
from tests.scale import TABLE_CASES
from tests.steps import counted

PLAIN = "patient,t1n,t2f\na,a/1.nii,a/2.nii\nb,b/1.nii,b/2.nii\n"
WANTED = [
    (2, {"patient": "a", "t1n": "a/1.nii", "t2f": "a/2.nii"}),
    (3, {"patient": "b", "t1n": "b/1.nii", "t2f": "b/2.nii"}),
]
SEMICOLONS = PLAIN.replace(",", ";")


def read(folder: Path, content: str | bytes) -> list[tuple[int, dict[str, str]]]:
    path = folder / "t.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    table = read_table(path, ["patient"], ["t1n", "t2f", "subject"])
    return [(row.line, dict(row.cells)) for row in table.rows if not row.is_longer]


@pytest.mark.parametrize(
    ("content", "shift"),
    [
        (PLAIN, 0),
        ("\ufeff" + PLAIN, 0),
        (PLAIN.encode("utf-16"), 0),
        (PLAIN.replace("\n", "\r\n"), 0),
        (PLAIN.replace("\n", "\r"), 0),
        (PLAIN.replace(",", "\t"), 0),
        (PLAIN.replace(",", "|"), 0),
        ("\ufeff" + PLAIN.replace(",", "\t"), 0),
        ("sep=;\n" + SEMICOLONS, 1),
        ("\ufeffsep=;\r\n" + SEMICOLONS, 1),
        ('"sep=;"\n' + SEMICOLONS, 1),
        ("SEP=,\n" + PLAIN, 1),
        ("sep=\t\n" + PLAIN.replace(",", "\t"), 1),
        (PLAIN.replace("patient,t1n,t2f", "Patient, T1N ,\u00a0t2F"), 0),
        (PLAIN.replace("patient,t1n,t2f", '"patient", "t1n", "t2f"'), 0),
        (PLAIN.replace("\n", ",,\n"), 0),
        ('# who\n\n# when, by "whom\n' + PLAIN, 3),
        ("\n  \n" + PLAIN, 2),
        (",,,\n" + PLAIN, 1),
    ],
)
def test_one_table_is_read_in_every_dialect(
    tmp_path: Path, content: str | bytes, shift: int
) -> None:
    assert read(tmp_path, content) == [(line + shift, cells) for line, cells in WANTED]


def test_a_row_keeps_the_number_of_its_line(tmp_path: Path) -> None:
    text = 'notes,patient,t1n\n\n# c\n"two\nlines",a,1\n,,\n"x",b,2\n'
    assert [(line, cells["patient"]) for line, cells in read(tmp_path, text)] == [
        (4, "a"),
        (7, "b"),
    ]


def test_a_columns_own_name_goes_by_its_capitals_where_two_differ_in_them_alone(
    tmp_path: Path,
) -> None:
    path = tmp_path / "t.csv"
    path.write_text("patient,T1,t1\na,1,2\n")
    table = read_table(path, ["patient"], ["t1", "T1"])
    assert dict(table.rows[0].cells) == {"patient": "a", "T1": "1", "t1": "2"}


@pytest.mark.parametrize(
    ("content", "seen"),
    [
        (SEMICOLONS, "semicolons (;)"),
        ("patient,t1n,t1n\na,1,2\n", "2 columns are called 't1n'"),
        ("patient,t1n,T1N\na,1,2\n", "2 columns are called 't1n'"),
        ("patient;t1n,t2f\n", "has no column 'patient'"),
        ("sep=;\n" + PLAIN, "has no column 'patient'"),
        ("\n\npatien,t1n\n", "its heading, line 3, has no column 'patient'"),
        ('patient,t1n\na,"1\nb,2\n', "from line 2 on"),
        ('patient,t1n\na,b"c"\nb,"2"x\n', "from line 3 on"),
        (PLAIN.replace("b/2", "\u00fc").encode("latin-1"), "line 3 is not UTF-8"),
        (PLAIN.replace("t2f", "t2f,gr\u00f6\u00dfe").encode("cp1252"), "0xF6"),
        (b"\xff\xfe" + PLAIN.encode("utf-16-le")[:-1], "UTF-16"),
        (PLAIN.replace("b/1", "b\0"), "line 3 holds a byte 0"),
        (b"PK\x03\x04" + bytes(99), "spreadsheet's own file"),
        ("", "no rows"),
        ("sep=;\n\n", "no rows"),
        ("# nothing\n", "no rows"),
    ],
)
def test_what_could_mean_two_things_is_refused(
    tmp_path: Path, content: str | bytes, seen: str
) -> None:
    with pytest.raises(TableError) as caught:
        read(tmp_path, content)
    assert seen in caught.value.seen


def test_latin_1_gets_a_remedy_that_works(tmp_path: Path) -> None:
    latin = PLAIN.replace("b/2", "M\u00fcller").encode("latin-1")
    with pytest.raises(TableError) as caught:
        read(tmp_path, latin)
    assert "iconv -f WINDOWS-1252 -t UTF-8" in caught.value.remedy
    assert read(tmp_path, latin.decode("cp1252"))[1][1]["t2f"] == "M\u00fcller.nii"


def test_a_file_too_large_or_missing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lift.csv_tables.LARGEST_TABLE_BYTES", 40)
    with pytest.raises(TableError, match="larger than"):
        read(tmp_path, PLAIN)
    with pytest.raises(TableError, match="No such file"):
        read_table(tmp_path / "none.csv", ["patient"])


PIECES = [
    *(
        b",",
        b";",
        b"\t",
        b"|",
        b'"',
        b'""',
        b"\n",
        b"\r",
        b"\r\n",
        b"\0",
        b"#",
        b"sep=;\n",
        b"sep=",
    ),
    *(
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\xe4",
        b"\xc3\xa4",
        b"\xe2\x80\xa8",
        b"\x1c",
        b" ",
        b"patient",
    ),
    *(b"t1n", b"T1N", b"../../x", b"/" * 300, b"a" * 5000, b'"' * 301, b"," * 5000, b"\n" * 500),
]


@pytest.mark.fuzz
@pytest.mark.parametrize("seed", range(4))
def test_any_bytes_are_a_table_or_a_refusal(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng([20, seed])
    starts = [PLAIN.encode(), ("sep=;\n" + SEMICOLONS).encode(), PLAIN.encode("utf-16")]
    outcomes = set()
    for _ in range(TABLE_CASES // 4):
        content = bytearray(starts[rng.integers(len(starts))])
        for _ in range(rng.integers(1, 6)):
            place = int(rng.integers(len(content) + 1))
            piece = PIECES[rng.integers(len(PIECES))] if rng.random() < 0.8 else rng.bytes(3)
            gone = int(rng.integers(4)) if rng.random() < 0.5 else 0
            content[place : place + gone] = piece
        path = tmp_path / "t.csv"
        path.write_bytes(bytes(content))
        outcome, _ = counted(
            partial(read_table, path, ["patient"], ["t1n", "t2f", "subject"]),
            most=20_000 + 40 * len(content),
        )
        if isinstance(outcome, TableError):
            assert outcome.seen
            assert len(outcome.seen) < 1000
        elif isinstance(outcome, Exception):
            raise outcome
        else:
            lines = [row.line for row in outcome.rows]
            assert lines == sorted(set(lines))
            assert all(set(row.cells) <= outcome.columns for row in outcome.rows)
        outcomes.add(type(outcome).__name__)
    assert outcomes == {"Table", "TableError"}
