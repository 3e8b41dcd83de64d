"""Settings as people write them: numbers, encodings, and any bytes at all."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from lift.config.base import read_yaml
from lift.config.cohort import BidsData
from lift.errors import ConfigError
from tests.scale import TABLE_CASES
from tests.steps import counted


def read(folder: Path, content: str | bytes) -> object:
    path = folder / "site.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_yaml(path)


@pytest.mark.parametrize(
    "text",
    ["1e-5", "1E-5", "1.0e-5", "1.e-5", "+1e-5", ".1e-4", "10e-6", "0.1E-4", "100e-07"],
)
def test_a_small_number_is_a_number_however_it_is_written(tmp_path: Path, text: str) -> None:
    found = read(
        tmp_path, f"delta: {text}\nlist: [{text}, -{text.lstrip('+')}]\nmap: {{a: {text}}}\n"
    )
    assert found == {"delta": 1e-5, "list": [1e-5, -1e-5], "map": {"a": 1e-5}}


def test_what_only_looks_like_a_number_stays_a_text(tmp_path: Path) -> None:
    texts = ["1e-5mm", "e-5", "1e", "1e-", "a1e-5", "1e5e5", "1e-5.", "v1e5", "1.2.3e4"]
    for text in [*texts, '"1e-5"', "'1e5'"]:
        assert read(tmp_path, f"name: {text}\n") == {"name": text.strip("\"'")}
    # large ones are numbers too, and whole ones stay whole
    assert read(tmp_path, "a: 1e5\nb: 12\nc: 1e400\n") == {"a": 1e5, "b": 12, "c": float("inf")}


@pytest.mark.parametrize(
    ("content", "seen", "remedy"),
    [
        ("a: 1\nname: M\u00fcnchen\n".encode("latin-1"), "line 2 is not UTF-8", "WINDOWS-1252"),
        ("a: 1\n# gr\u00f6\u00dfer\n".encode("cp1252"), "byte 0xF6", "WINDOWS-1252"),
        ("a: 1\n".encode("utf-16"), "UTF-16", "UTF-16"),
    ],
)
def test_another_encoding_gets_a_remedy_that_works(
    tmp_path: Path, content: bytes, seen: str, remedy: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, content)
    assert seen in caught.value.seen
    assert f"iconv -f {remedy} -t UTF-8" in caught.value.remedy
    assert read(tmp_path, content.decode(remedy))


START = b"""\
layout: bids
root: /data
on_bad_file: skip
series: &s {t1n: acq-3d_T1w, t2f: FLAIR}
"""
PIECES = [
    *(
        b": ",
        b"- ",
        b"{",
        b"}",
        b"[",
        b"]",
        b"&a ",
        b"*a",
        b"*s",
        b"<<: *s",
        b"!!python/none x",
        b"!x ",
    ),
    *(
        b"|\n",
        b">\n",
        b"'",
        b'"',
        b"#",
        b"---\n",
        b"...\n",
        b"? ",
        b"\t",
        b"\n",
        b"  ",
        b"\0",
        b"\xff",
    ),
    *(
        b"1e-5",
        b"1e999",
        b".nan",
        b"0x1F",
        b"1:30:00",
        b"2001-01-01",
        b"~",
        b"${HOME}",
        b"${NO_SUCH}",
    ),
    *(
        b"[" * 200,
        b"a: " * 100,
        b"- " * 200,
        b"[*s,*s,*s,*s]\n",
        b"\xef\xbb\xbf",
        b"\xe4",
        b"%YAML 9.9\n",
    ),
]


@pytest.mark.fuzz
@pytest.mark.parametrize("seed", range(4))
def test_any_bytes_are_settings_or_a_refusal(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng([21, seed])
    outcomes = set()
    path = tmp_path / "site.yaml"
    for _ in range(TABLE_CASES // 4):
        content = bytearray(START)
        for _ in range(rng.integers(1, 5)):
            place = int(rng.integers(len(content) + 1))
            piece = PIECES[rng.integers(len(PIECES))] if rng.random() < 0.8 else rng.bytes(3)
            gone = int(rng.integers(6)) if rng.random() < 0.5 else 0
            content[place : place + gone] = piece
        path.write_bytes(bytes(content))
        outcome, _ = counted(partial(BidsData.from_yaml, path), most=8_000_000)
        if isinstance(outcome, ConfigError):
            assert all((outcome.what, outcome.where, outcome.seen, outcome.remedy))
            assert len(str(outcome)) < 5000
        elif isinstance(outcome, Exception):
            raise outcome
        outcomes.add(type(outcome).__name__)
    assert outcomes == {"BidsData", "ConfigError"}
