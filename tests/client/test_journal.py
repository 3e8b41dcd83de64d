"""The journal: nothing is changed, lost or added unnoticed, and a crash loses nothing."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lift.errors import RecordError
from lift.protocol.messages import Kind
from lift.wire.groups import PURPOSES
from lift_client.gate import journal as module
from lift_client.gate.journal import (
    START,
    Entry,
    Journal,
    TensorNote,
    describe_tensors,
    read_journal,
    verify,
)
from tests import wording

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
NO_ROOM = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def make_entry(number: int, purpose: str = PURPOSES[Kind.TRAIN]) -> Entry:
    return Entry(
        run="ab" * 32,
        round=number,
        kind="train",
        tensors=(TensorNote(name="body.weight", dtype="float32", shape=(8, 4, 3)),),
        bytes=384,
        sha256=hashlib.sha256(str(number).encode()).hexdigest(),
        receiver="lift.example.org:8443",
        purpose=purpose,
    )


def make_journal(path: Path, lines: int) -> Journal:
    journal = Journal(path, clock=lambda: NOON)
    for number in range(1, lines + 1):
        journal.append(make_entry(number))
    return journal


@pytest.fixture(scope="session")
def five_lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    make_journal(path, 5)
    return path


@pytest.fixture
def copy(five_lines: Path, tmp_path: Path) -> Path:
    for name in ("journal.jsonl", "journal.head"):
        shutil.copy(five_lines.with_name(name), tmp_path / name)
    return tmp_path / "journal.jsonl"


def first_bad_line(path: Path) -> int:
    before = path.read_bytes()
    with pytest.raises(RecordError) as caught:
        verify(path)
    assert caught.value.exit_code == 9
    with pytest.raises(RecordError):
        Journal(path)
    assert path.read_bytes() == before, "a damaged journal is kept as it is"
    return caught.value.line


def test_a_line_says_what_leaves_and_is_hashed_over_its_own_bytes(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "journal.jsonl"
    journal = Journal(path, clock=lambda: NOON)
    hashes = [journal.append(make_entry(1)), journal.append(make_entry(2))]
    previous = START
    for text, expected in zip(path.read_text().splitlines(), hashes, strict=True):
        record = json.loads(text)
        # what the module's docstring promises to somebody with a text editor and sha256sum
        body = text.replace(f',"hash":"{record["hash"]}"', "")
        assert hashlib.sha256(body.encode()).hexdigest() == record["hash"] == expected
        assert record["previous"] == previous
        previous = record["hash"]
    assert record["time"] == "2026-11-22T12:00:00.000+00:00"
    assert record["number"] == 2
    assert record["tensors"] == [{"name": "body.weight", "dtype": "float32", "shape": [8, 4, 3]}]
    assert (record["clip"], record["noise"]) == (None, None)
    assert json.loads((tmp_path / "deep" / "journal.head").read_text()) == {
        "count": 2,
        "last_hash": hashes[1],
    }
    assert verify(path).lines[1].numbers == 96


@given(data=st.data())
def test_any_changed_byte_is_found_at_its_line(
    copy: Path, five_lines: Path, data: st.DataObject
) -> None:
    content = bytearray(five_lines.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    old = content[place]
    content[place] = data.draw(st.integers(0, 255).filter(lambda byte: byte != old))
    copy.write_bytes(content)
    # a line ends with its newline
    assert first_bad_line(copy) == five_lines.read_bytes()[:place].count(b"\n") + 1


@given(place=st.integers(0, 4))
def test_any_deleted_line_is_found(copy: Path, five_lines: Path, place: int) -> None:
    lines = five_lines.read_bytes().splitlines(keepends=True)
    copy.write_bytes(b"".join(lines[:place] + lines[place + 1 :]))
    assert first_bad_line(copy) == place + 1


@given(data=st.data())
def test_any_inserted_line_is_found(copy: Path, five_lines: Path, data: st.DataObject) -> None:
    lines = five_lines.read_bytes().splitlines(keepends=True)
    place = data.draw(st.integers(0, 5))
    inserted = data.draw(st.sampled_from([b"\n", b"{}\n", b"\r\n", *lines]))
    changed = [*lines[:place], inserted, *lines[place:]]
    copy.write_bytes(b"".join(changed))
    # a repeated line is found where the copy stands
    expected = next(n for n, line in enumerate(changed, start=1) if n > 5 or line != lines[n - 1])
    assert first_bad_line(copy) == expected


@given(pair=st.sampled_from([(i, j) for i in range(5) for j in range(i + 1, 5)]))
def test_any_two_lines_swapped_are_found(
    copy: Path, five_lines: Path, pair: tuple[int, int]
) -> None:
    lines = five_lines.read_bytes().splitlines(keepends=True)
    i, j = pair
    lines[i], lines[j] = lines[j], lines[i]
    copy.write_bytes(b"".join(lines))
    assert first_bad_line(copy) == i + 1


@given(data=st.data())
def test_any_cut_off_end_is_found(copy: Path, five_lines: Path, data: st.DataObject) -> None:
    content = five_lines.read_bytes()
    kept = content[: data.draw(st.integers(0, len(content) - 1))]
    copy.write_bytes(kept)
    assert first_bad_line(copy) == kept.count(b"\n") + 1


def test_a_missing_journal_or_head_is_found(copy: Path) -> None:
    head = copy.with_name("journal.head")
    kept = head.read_bytes()
    head.unlink()
    assert first_bad_line(copy) == 5
    head.write_bytes(kept)
    copy.unlink()
    with pytest.raises(RecordError, match="missing or cut off"):
        verify(copy)


@given(data=st.data())
def test_a_changed_head_is_found_or_says_the_same(copy: Path, data: st.DataObject) -> None:
    head = copy.with_name("journal.head")
    kept = head.read_bytes()
    content = bytearray(kept)
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] = data.draw(st.integers(0, 255))
    head.write_bytes(content)
    try:
        verify(copy)
    except RecordError:
        return
    finally:
        head.write_bytes(kept)
    assert json.loads(content) == json.loads(kept)


def test_a_chain_rewritten_behind_the_head_is_found(copy: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "journal.jsonl"
    journal = Journal(other, clock=lambda: NOON + timedelta(days=1))
    for number in range(1, 6):
        journal.append(make_entry(number))
    shutil.copy(other, copy)
    assert first_bad_line(copy) == 5


@given(cut=st.integers(1, 600))
def test_a_torn_last_line_is_set_aside_and_noted(tmp_path: Path, cut: int) -> None:
    path = tmp_path / str(cut) / "journal.jsonl"
    make_journal(path, 3)
    head = path.with_name("journal.head").read_bytes()
    whole = path.read_bytes()
    Journal(path, clock=lambda: NOON).append(make_entry(4))
    line = path.read_bytes()[len(whole) :]
    # all of the line but its newline is torn too
    torn = line[: min(cut, len(line) - 1)]
    path.write_bytes(whole + torn)
    path.with_name("journal.head").write_bytes(head)

    assert verify(path).unfinished == torn
    journal = Journal(path, clock=lambda: NOON)
    assert path.with_name("journal.torn-1").read_bytes() == torn
    note = verify(path).lines[-1]
    assert (note.number, note.kind, note.run, note.bytes) == (4, "note", "", 0)
    assert "journal.torn-1" in note.purpose
    assert note.sha256 == hashlib.sha256(torn).hexdigest()
    journal.append(make_entry(4))
    reading = verify(path)
    assert [line.kind for line in reading.lines] == ["train"] * 3 + ["note", "train"]
    assert path.read_bytes().startswith(whole)
    shutil.rmtree(path.parent)


def test_a_crash_while_a_torn_line_is_set_aside_loses_nothing(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with copy.open("ab") as stream:
        stream.write(b'{"number":6,')

    def full(*_: object) -> None:
        raise NO_ROOM

    monkeypatch.setattr(module, "write_atomically", full)
    with pytest.raises(OSError, match=wording.NO_SPACE):
        Journal(copy)
    monkeypatch.undo()
    Journal(copy)
    note = verify(copy).lines[-1]
    assert copy.with_name("journal.torn-2").read_bytes() == b'{"number":6,'
    assert "journal.torn-2" in note.purpose


def test_a_crash_between_line_and_head_is_no_damage(copy: Path) -> None:
    head = copy.with_name("journal.head")
    before = head.read_bytes()
    Journal(copy, clock=lambda: NOON).append(make_entry(6))
    head.write_bytes(before)
    assert len(verify(copy).lines) == 6
    journal = Journal(copy, clock=lambda: NOON)
    assert head.read_bytes() != before, "the head is brought up to date before anything is added"
    journal.append(make_entry(7))
    assert len(verify(copy).lines) == 7


def test_a_head_two_lines_behind_is_damage(copy: Path) -> None:
    head = copy.with_name("journal.head")
    before = head.read_bytes()
    journal = Journal(copy, clock=lambda: NOON)
    journal.append(make_entry(6))
    journal.append(make_entry(7))
    head.write_bytes(before)
    assert first_bad_line(copy) == 6


def test_the_first_line_without_a_head_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    make_journal(path, 1)
    path.with_name("journal.head").unlink()
    assert len(verify(path).lines) == 1
    make_journal(path, 1)
    assert len(verify(path).lines) == 2


@pytest.mark.parametrize("seam", ["fsync", "head"])
def test_a_full_disk_stops_the_sending_and_the_next_line_goes_on(
    copy: Path, monkeypatch: pytest.MonkeyPatch, seam: str
) -> None:
    journal = Journal(copy, clock=lambda: NOON)

    def full(*_: object) -> None:
        raise NO_ROOM

    monkeypatch.setattr(*((os, "fsync") if seam == "fsync" else (module, "write_json")), full)
    with pytest.raises(OSError, match=wording.NO_SPACE):
        journal.append(make_entry(6))
    monkeypatch.undo()
    journal.append(make_entry(6))
    journal.append(make_entry(7))
    lines = verify(copy).lines
    # the line of the failed try stands: it may say too much, never too little
    assert [line.round for line in lines] == [1, 2, 3, 4, 5, 6, 6, 7]
    assert "the same bytes as in line 6" in lines[6].purpose


def test_damage_under_a_running_client_stops_the_next_line(copy: Path) -> None:
    journal = Journal(copy, clock=lambda: NOON)
    lines = copy.read_bytes().splitlines(keepends=True)
    copy.write_bytes(b"".join(lines[:-1]))
    with pytest.raises(RecordError, match="line 5"):
        journal.append(make_entry(6))


def test_sending_the_same_bytes_again_says_so(copy: Path) -> None:
    for _ in range(2):
        # also after a restart
        Journal(copy, clock=lambda: NOON).append(make_entry(3))
    lines = verify(copy).lines
    assert [
        line.purpose.endswith("(Repetition: the same bytes as in line 3.)") for line in lines
    ] == [False] * 5 + [True] * 2
    assert lines[5].sha256 == lines[2].sha256


def test_the_same_bytes_in_another_round_are_no_repetition(copy: Path) -> None:
    entry = make_entry(3).model_copy(update={"round": 9})
    Journal(copy, clock=lambda: NOON).append(entry)
    assert verify(copy).lines[-1].purpose == PURPOSES[Kind.TRAIN]


def test_several_processes_write_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from lift_client.gate.journal import Entry, Journal\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "for number in range(20):\n"
        "    journal.append(Entry(run='ab' * 32, round=number, kind='train', tensors=(), bytes=0,\n"
        "        sha256=f'{int(sys.argv[2]) * 1000 + number:064x}', receiver='r', purpose='p'))\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", script, str(path), str(n)]) for n in range(3)
    ]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0, 0]
    assert len(verify(path).lines) == 60


def test_reading_changes_nothing_and_needs_no_right_to_write(copy: Path) -> None:
    before = sorted(path.name for path in copy.parent.iterdir())
    assert len(read_journal(copy).lines) == 5
    assert sorted(path.name for path in copy.parent.iterdir()) == before
    assert read_journal(copy.with_name("never.jsonl")).last_hash == START


@pytest.mark.parametrize("purpose", ["", "two\nlines", "\x1b[2J", "x" * 401])
def test_an_entry_is_one_plain_sentence(purpose: str) -> None:
    with pytest.raises(ValueError, match="purpose"):
        make_entry(1, purpose)


def test_tensors_are_described_by_name_format_and_shape() -> None:
    tensors: dict[str, np.ndarray] = {"b": np.zeros((2, 3), np.float16), "a": np.array(1, np.int64)}
    assert describe_tensors(tensors) == (
        TensorNote(name="a", dtype="int64", shape=()),
        TensorNote(name="b", dtype="float16", shape=(2, 3)),
    )
    assert [note.numbers for note in describe_tensors(tensors)] == [1, 6]


def rehashed(records: list[dict[str, object]], *, chained: bool) -> bytes:
    """Lines whose own hashes fit, as somebody with a SHA-256 tool would make them."""
    content = b""
    previous: object = START
    for record in records:
        fields = {name: value for name, value in record.items() if name != "hash"}
        if chained:
            fields["previous"] = previous
        body = json.dumps(fields, separators=(",", ":"))
        previous = hashlib.sha256(body.encode()).hexdigest()
        content += f'{body[:-1]},"hash":"{previous}"}}\n'.encode()
    return content


@given(place=st.integers(0, 4))
def test_a_line_edited_together_with_its_own_hash_breaks_the_chain(
    copy: Path, five_lines: Path, place: int
) -> None:
    records = [json.loads(text) for text in five_lines.read_bytes().splitlines()]
    assert rehashed(records, chained=False) == five_lines.read_bytes()
    records[place]["bytes"] = 1
    copy.write_bytes(rehashed(records, chained=False))
    # found where the next line names the old hash; of the last line by the head
    assert first_bad_line(copy) == min(place + 2, 5)


@given(place=st.integers(0, 3))
def test_a_chain_rewritten_without_renumbering_is_found_even_with_its_head(
    copy: Path, five_lines: Path, place: int
) -> None:
    records = [json.loads(text) for text in five_lines.read_bytes().splitlines()]
    del records[place]
    content = rehashed(records, chained=True)
    copy.write_bytes(content)
    head = {"count": 4, "last_hash": json.loads(content.splitlines()[-1])["hash"]}
    copy.with_name("journal.head").write_text(json.dumps(head))
    assert first_bad_line(copy) == place + 1
