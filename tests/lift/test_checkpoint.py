"""Checkpoints: whole or absent, of one plan and one version."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lift.errors import CheckpointError, VersionMismatchError
from lift_server.rounds.checkpoint import (
    CHECKPOINT_VERSION,
    Checkpoint,
    read_checkpoints,
    write_checkpoint,
)
from tests.lift.small_world import assert_four_parts

PLAN, OTHER_PLAN = "a" * 64, "b" * 64


def checkpoint(number: int, *, plan: str = PLAN) -> Checkpoint:
    random = torch.Generator().manual_seed(number)
    tensors = {
        "mixer/first.weight": torch.randn(3, 2, generator=random).T,
        "mixer/out.bias": torch.randn(1, generator=random),
        "moments/count": torch.tensor(number, dtype=torch.int64),
        "z_filter/taps": torch.randn(6, generator=random, dtype=torch.float64),
    }
    return Checkpoint(number, plan, tensors, {"round": number, "loss": 0.1 + number})


def write_rounds(folder: Path, count: int) -> None:
    for number in range(count):
        write_checkpoint(folder, checkpoint(number))


def assert_same(one: Checkpoint, other: Checkpoint) -> None:
    assert (one.round, one.plan_digest, one.record) == (
        other.round,
        other.plan_digest,
        other.record,
    )
    assert one.tensors.keys() == other.tensors.keys()
    for name, tensor in one.tensors.items():
        assert tensor.dtype == other.tensors[name].dtype
        assert torch.equal(tensor, other.tensors[name])


def rewrite_card(folder: Path, number: int, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / f"round-{number:04d}.json"
    card = json.loads(path.read_text(encoding="utf-8"))
    change(card)
    path.write_text(json.dumps(card), encoding="utf-8")


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    write_rounds(tmp_path, 3)
    found = read_checkpoints(tmp_path, PLAN)
    assert len(found) == 3
    for number, one in enumerate(found):
        assert_same(one, checkpoint(number))


def test_a_missing_or_empty_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert read_checkpoints(tmp_path, PLAN) == []
    assert read_checkpoints(tmp_path / "absent", PLAN) == []


def test_a_group_holds_its_own_tensors_alone() -> None:
    group = checkpoint(1).group("mixer")
    assert set(group) == {"first.weight", "out.bias"}
    assert checkpoint(1).group("mix") == {}


def test_a_checkpoint_of_the_same_round_is_replaced(tmp_path: Path) -> None:
    write_rounds(tmp_path, 2)
    newer = Checkpoint(1, PLAN, {"mixer/a": torch.zeros(2)}, {"again": True})
    write_checkpoint(tmp_path, newer)
    assert_same(read_checkpoints(tmp_path, PLAN)[1], newer)


@settings(max_examples=25)
@given(
    st.sampled_from(["json", "safetensors"]),
    st.sampled_from(["cut", "flipped", "removed", "emptied"]),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 2),
)
def test_any_damage_leaves_the_checkpoints_before_it(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, damage: str, place: float, number: int
) -> None:
    folder = tmp_path_factory.mktemp("checkpoints")
    write_rounds(folder, 3)
    path = folder / f"round-{number:04d}.{suffix}"
    content = path.read_bytes()
    at = int(place * len(content))
    if damage == "removed":
        path.unlink()
    elif damage == "emptied":
        path.write_bytes(b"")
    elif damage == "cut":
        # a card may lose its line end: what it says is still whole
        path.write_bytes(content[: min(at, len(content) - 2)])
    elif suffix == "json":
        path.write_bytes(content[: len(content) // 2] + b"\xff" + content[len(content) // 2 :])
    else:
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    found = read_checkpoints(folder, PLAN)
    assert len(found) == number
    for index, one in enumerate(found):
        assert_same(one, checkpoint(index))


@pytest.mark.parametrize("from_end", [1, 30, 60])
def test_one_flipped_bit_in_a_tensor_is_damage(tmp_path: Path, from_end: int) -> None:
    write_rounds(tmp_path, 2)
    path = tmp_path / "round-0001.safetensors"
    content = bytearray(path.read_bytes())
    content[-from_end] ^= 1
    path.write_bytes(content)
    safetensors.torch.load_file(path)  # the file's own format does not notice
    assert [one.round for one in read_checkpoints(tmp_path, PLAN)] == [0]


@pytest.mark.parametrize("text", ["[]", "null", "3", '"x"', "{}", '{"version": 1}'])
def test_a_card_of_another_form_counts_as_damage_and_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    write_rounds(tmp_path, 2)
    (tmp_path / "round-0001.json").write_text(text, encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        assert [one.round for one in read_checkpoints(tmp_path, PLAN)] == [0]
    assert "event=checkpoint_damaged" in caplog.text


def test_tensors_that_were_written_without_their_card_do_not_count(tmp_path: Path) -> None:
    write_rounds(tmp_path, 2)
    (tmp_path / "round-0001.json").unlink()
    assert [one.round for one in read_checkpoints(tmp_path, PLAN)] == [0]
    # the run goes on from there, and writes the round again
    write_checkpoint(tmp_path, checkpoint(1))
    assert_same(read_checkpoints(tmp_path, PLAN)[1], checkpoint(1))


def test_another_plans_checkpoints_are_refused_and_kept(tmp_path: Path) -> None:
    write_rounds(tmp_path, 2)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CheckpointError) as caught:
        read_checkpoints(tmp_path, OTHER_PLAN)
    assert_four_parts(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_another_version_is_refused_whatever_else_it_holds(tmp_path: Path) -> None:
    write_rounds(tmp_path, 1)
    rewrite_card(tmp_path, 0, lambda card: card.update(version=CHECKPOINT_VERSION + 1))
    with pytest.raises(VersionMismatchError) as caught:
        read_checkpoints(tmp_path, OTHER_PLAN)
    assert_four_parts(caught.value)


def test_a_newer_card_with_other_keys_is_another_version_and_not_damage(tmp_path: Path) -> None:
    write_rounds(tmp_path, 1)

    def newer(card: dict[str, Any]) -> None:
        card.update(version=CHECKPOINT_VERSION + 1)
        del card["sha256"]

    rewrite_card(tmp_path, 0, newer)
    with pytest.raises(VersionMismatchError):
        read_checkpoints(tmp_path, PLAN)


def test_those_after_a_damaged_one_never_come_back(tmp_path: Path) -> None:
    write_rounds(tmp_path, 4)
    (tmp_path / "round-0002.safetensors").write_bytes(b"damaged")
    assert len(read_checkpoints(tmp_path, PLAN)) == 2
    # the run goes on from there, and dies after the round that was damaged
    write_checkpoint(tmp_path, checkpoint(2))
    assert len(read_checkpoints(tmp_path, PLAN)) == 3
    assert (tmp_path / "round-0003.json.stale").is_file()
