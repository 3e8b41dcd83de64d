"""JSON and YAML of others: one reader, strict, and no text that ends it in another way."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lift.audit.documents import read_signed
from lift.config.base import read_yaml
from lift.config.kit import Kit
from lift.config.plan import MOST_ROUNDS
from lift.config.site import SiteConfig
from lift.errors import (
    CheckpointError,
    ConfigError,
    LiftError,
    ProtocolError,
    RecordError,
    VersionMismatchError,
)
from lift.mixer.finished import read_mixer
from lift.protocol.codec import Encoded, decode_request, encode
from lift.protocol.messages import PROTOCOL_VERSION, Kind, Parcel, TrainRequest
from lift.strict_json import DEEPEST, LARGEST_NUMBER, is_version, parse_json
from lift.tracking.run import _recorded
from lift_client.enrolment import read_kit
from lift_client.gate.journal import Entry, Journal, verify
from lift_server.sites.roster import Roster

ROOT: Final = Path(__file__).parents[2]
DEEP: Final = "[" * 200_000
REFUSED: Final = {
    "deep": DEEP,
    "deep and closed": "[" * (DEEPEST + 2) + "]" * (DEEPEST + 2),
    "deep objects": '{"a":' * 100_000,
    "twice": '{"a": 1, "a": 1}',
    "twice inside": '[{"b": {"a": 1, "a": 2}}]',
    "NaN": "[NaN]",
    "infinity": '{"a": -Infinity}',
    "beyond a double": "1e400",
    "65 bits": str(LARGEST_NUMBER),
    "a page of digits": "9" * 4000,
    "more than Python reads": "9" * 5000,
    "nothing": "",
    "two": "{} {}",
}
# what reads JSON in its own way, and why that is right
ALLOWED: Final = {
    "lift/strict_json.py": "the reader itself",
    "lift/config/base.py": "what was just written from plain data; YAML in the one reader of YAML",
    "lift/mixer/finished.py": "what was just written from a plan",
    "lift/cohort/phantom/write.py": "what was just written from settings",
    "lift/inspection/scanner.py": "hints beside a volume by others' converters, which write NaN; "
    "bounded, and what cannot be read is no hint",
    "lift/privacy/book.py": "a line that was just written",
    "lift/protocol/flower/superlink.py": "a child's command line, from its parent",
    "server/lift_server/watch/board.py": "what was just written from plain data",
    "server/lift_server/watch/live/__main__.py": "a child's settings, from its parent",
}
READERS: Final = {"loads", "load", "JSONDecoder", "model_validate_json", "validate_json"}


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_what_is_refused_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_json(text)
    assert len(str(caught.value)) < 80
    with pytest.raises(ValueError, match=r"."):
        parse_json(text.encode())


def test_bytes_are_utf_8() -> None:
    assert parse_json('{"ä": 1}'.encode()) == {"ä": 1}
    for content in (b'"\xff"', '{"a": 1}'.encode("utf-16")):
        with pytest.raises(ValueError, match="UTF-8"):
            parse_json(content)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(1 - LARGEST_NUMBER, LARGEST_NUMBER - 1)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_all_else_is_read_as_python_reads_it(data: object) -> None:
    text = json.dumps(data)
    assert parse_json(text) == json.loads(text) == data
    nested = "[" * DEEPEST + "1" + "]" * DEEPEST
    assert parse_json(nested) == json.loads(nested)


@pytest.mark.parametrize("found", [True, 1.0, "1", None, 2])
def test_a_version_is_a_whole_number(found: object) -> None:
    assert is_version(1, 1)
    assert not is_version(found, 1)
    kit = {
        "federation": "trial",
        "site": "east",
        "address": "localhost:1",
        "ca_sha256": "c" * 64,
        "generator_fingerprint": "f" * 64,
        "task": {"source": ["t1n"], "target": "t2f"},
    }
    assert Kit.from_data(kit | {"format_version": 1}, "kit").format_version == 1
    with pytest.raises(ConfigError, match="format_version"):
        Kit.from_data(kit | {"format_version": found}, "kit")


def message(**changes: str) -> Encoded:
    """A train request whose text was changed after it was written."""
    request = TrainRequest(plan_digest="0" * 64, round=1)
    made = encode(Parcel(Kind.TRAIN, request, {}))
    text = made.text
    for old, new in changes.items():
        before = {"round": '"round":1', "version": f'"version":{PROTOCOL_VERSION}'}[old]
        assert before in text
        text = text.replace(before, new)
    return Encoded(text, made.block)


def test_messages_with_two_equal_keys_or_endless_numbers_are_refused() -> None:
    assert decode_request(message()).kind is Kind.TRAIN
    for new in ('"round":1,"round":2', '"round":' + "9" * 30, f'"round":{MOST_ROUNDS + 1}'):
        with pytest.raises(ProtocolError):
            decode_request(message(round=new))
    for new in ('"version":true', '"version":1.0'):
        with pytest.raises(VersionMismatchError):
            decode_request(message(version=new))
    with pytest.raises(ProtocolError):
        decode_request(Encoded(DEEP, message().block))


def test_no_round_can_make_a_journal_unreadable(tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        TrainRequest(plan_digest="0" * 64, round=10**4000)
    with pytest.raises(ValidationError):
        entry(10**30)
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append(entry(MOST_ROUNDS))
    assert verify(tmp_path / "journal.jsonl").lines[0].round == MOST_ROUNDS
    Journal(tmp_path / "journal.jsonl").append(entry(1))


def test_a_journal_whose_line_gives_a_key_twice_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path).append(entry(1))
    whole = path.read_bytes()
    body = whole.split(b',"hash"')[0]
    # a line by somebody who can hash: what one reader sees is not what another one sees
    body = body.replace(b'"round":1', b'"round":7,"round":1')
    digest = hashlib.sha256(body + b"}").hexdigest()
    path.write_bytes(body + b',"hash":"' + digest.encode() + b'"}\n')
    (tmp_path / "journal.head").write_text(json.dumps({"count": 1, "last_hash": digest}))
    with pytest.raises(RecordError, match="form of a journal"):
        verify(path)
    path.write_bytes(whole)
    digest = json.loads(whole)["hash"]
    (tmp_path / "journal.head").write_text(f'{{"count":7,"count":1,"last_hash":"{digest}"}}')
    with pytest.raises(RecordError):
        Journal(path)


def test_files_of_others_end_in_a_message_of_four_parts(tmp_path: Path) -> None:
    for text in REFUSED.values():
        path = tmp_path / "file.json"
        path.write_text(text)
        (tmp_path / "kit.json").write_text(text)
        for read in (Roster.read, read_signed, lambda _: read_kit(tmp_path)):
            with pytest.raises(LiftError):
                read(path)
        assert _recorded(path) == []


def test_a_mixer_with_a_deep_card_is_refused(tmp_path: Path) -> None:
    header = json.dumps({"__metadata__": {"lift": DEEP}}).encode()
    path = tmp_path / "mixer.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError):
        read_mixer(path)


def laughs(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x]"]
    for level in range(1, levels):
        below = ", ".join([f"*a{level - 1}"] * 8)
        lines.append(f"a{level}: &a{level} [{below}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        (laughs(7), "more than 100000 values"),
        (laughs(40), "more than 100000 values"),
        ("a: &a [*a]\n", "inside what it names"),
        ("a: &a {b: {c: *a}}\n", "inside what it names"),
        ("a: " + "[" * 70 + "]" * 70, "nested deeper"),
        ("a: " + "[" * 5000, "YAML"),
        ("a: " + "9" * 5000, "YAML"),
    ],
)
def test_a_yaml_text_that_is_too_large_is_refused(tmp_path: Path, text: str, seen: str) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert seen in caught.value.seen


def test_a_number_that_json_cannot_write_is_no_fault_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("name: 0x" + "f" * 5000)
    with pytest.raises(ConfigError, match="kind that settings cannot hold"):
        SiteConfig.from_yaml(path)


def test_honest_aliases_are_read(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("a: &a {x: 1}\nb: *a\n" + laughs(4).replace("a", "b"))
    found = read_yaml(path)
    assert isinstance(found, dict)
    assert found["b"] == {"x": 1}


def test_nobody_else_reads_json_or_yaml_of_others() -> None:
    sources = [*ROOT.glob("lift/**/*.py"), *ROOT.glob("*/lift_*/**/*.py")]
    assert len(sources) > 100
    found = {path.relative_to(ROOT).as_posix() for path in sources if set(readers(path))}
    assert found == set(ALLOWED)


def readers(path: Path) -> Iterator[str]:
    """Calls of the readers of json, yaml and pydantic in a module."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Attribute) and node.attr in READERS:
            of_module = isinstance(node.value, ast.Name) and node.value.id in {"json", "yaml"}
            if of_module or node.attr.endswith("validate_json"):
                yield node.attr


def entry(round_index: int) -> Entry:
    """A journal's line-to-be."""
    return Entry(
        run="a" * 64,
        round=round_index,
        kind="train",
        tensors=(),
        bytes=0,
        sha256="b" * 64,
        receiver="localhost:1",
        purpose=f"A test of {datetime.now(UTC).year}.",
    )
