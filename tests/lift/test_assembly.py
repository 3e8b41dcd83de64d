"""The plan's mixer, and the finished mixer as one file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch

from lift.config.plan import MixerKind
from lift.errors import CheckpointError, VersionMismatchError
from lift.guard import SiteProfile
from lift.mixer.finished import MIXER_FILE_VERSION, FinishedMixer, read_mixer, write_mixer
from lift.tasks.paired.building import frozen_parts, plan_mixer, start_values
from tests.lift.mixer_cases import KINDS, TAPS
from tests.lift.small_world import assert_four_parts, random_mixer, small_generator, small_plan

GENERATOR = small_generator()
NAME = "mixer.safetensors"


def finished(kind: MixerKind = "zrefine") -> FinishedMixer:
    plan = small_plan(kind, generator=GENERATOR)
    return FinishedMixer(
        values=random_mixer(plan, GENERATOR).values(),
        taps=TAPS,
        plan=plan,
        sites=(
            SiteProfile("helped", 1.0, 3.0, 0.1, 0.2),
            SiteProfile("undecided", 5.0, 5.0, None, None),
        ),
        phantom=True,
    )


def rewrite(
    path: Path, change: Callable[[dict[str, Any]], object], *, without: str = "", key: str = "lift"
) -> None:
    with safetensors.safe_open(path, framework="pt") as stream:
        card = json.loads(stream.metadata()["lift"])
    tensors = safetensors.torch.load_file(path)
    tensors.pop(without, None)
    change(card)
    safetensors.torch.save_file(tensors, path, metadata={key: json.dumps(card)})


def assert_refused(path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_mixer(path)
    assert_four_parts(caught.value)
    assert caught.value.where == path.name


@pytest.mark.parametrize("kind", KINDS)
def test_a_finished_mixer_is_read_as_it_was_written(tmp_path: Path, kind: MixerKind) -> None:
    one = finished(kind)
    write_mixer(tmp_path / NAME, one)
    other = read_mixer(tmp_path / NAME)
    assert other.values.keys() == one.values.keys()
    assert all(torch.equal(other.values[name], one.values[name]) for name in one.values)
    assert other.taps.dtype == torch.float64
    assert torch.equal(other.taps, one.taps)
    assert other.plan == one.plan
    assert other.plan.digest() == one.plan.digest()
    assert (other.sites, other.phantom) == (one.sites, one.phantom)
    plan_mixer(other.plan, GENERATOR).load_values(other.values)


def test_equal_mixers_give_equal_files(tmp_path: Path) -> None:
    write_mixer(tmp_path / "one.safetensors", finished())
    again = finished()
    shuffled = dict(reversed(list(again.values.items())))
    write_mixer(
        tmp_path / "two.safetensors",
        FinishedMixer(shuffled, again.taps, again.plan, again.sites, again.phantom),
    )
    assert (tmp_path / "one.safetensors").read_bytes() == (
        tmp_path / "two.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.9999])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / NAME
    write_mixer(path, finished())
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert_refused(path)


def test_a_missing_file_a_folder_and_another_file_are_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path / "absent.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    assert_refused(tmp_path / "folder.safetensors")
    (tmp_path / "text.safetensors").write_text("not a mixer " * 50, encoding="utf-8")
    assert_refused(tmp_path / "text.safetensors")
    # safetensors of something else
    safetensors.torch.save_file({"weight": torch.zeros(2)}, tmp_path / NAME)
    assert_refused(tmp_path / NAME)


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "unknown version": lambda card: card.pop("version"),
    "no plan": lambda card: card.pop("plan"),
    "unknown setting": lambda card: card["plan"].update(surprise=1),
    "no privacy": lambda card: card["plan"].pop("privacy"),
    "plan of text": lambda card: card.update(plan="zrefine"),
    "sites of numbers": lambda card: card.update(sites=[1]),
    "sites missing": lambda card: card.update(sites=None),
    "site without verdict": lambda card: card["sites"][0].pop("verdict"),
    "no phantom": lambda card: card.pop("phantom"),
    "phantom of text": lambda card: card.update(phantom="no"),
    "another verdict": lambda card: card["sites"][0].update(verdict="<script>alert(1)</script>"),
    "spacing of text": lambda card: card["sites"][0].update(lowest_slice_spacing_mm="thin"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_card_that_does_not_fit_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / NAME
    write_mixer(path, finished())
    rewrite(path, CHANGES[name])
    assert_refused(path)


def test_a_file_without_taps_or_card_is_refused(tmp_path: Path) -> None:
    path = tmp_path / NAME
    write_mixer(path, finished())
    rewrite(path, lambda _: None)
    read_mixer(path)  # the rewriting itself does no harm
    rewrite(path, lambda _: None, without="z_filter/taps")
    assert_refused(path)
    write_mixer(path, finished())
    rewrite(path, lambda _: None, key="other")
    assert_refused(path)


def test_another_version_is_refused_whatever_else_it_holds(tmp_path: Path) -> None:
    path = tmp_path / NAME
    write_mixer(path, finished())

    def newer(card: dict[str, Any]) -> None:
        card.update(version=MIXER_FILE_VERSION + 1)
        del card["plan"]

    rewrite(path, newer)
    with pytest.raises(VersionMismatchError) as caught:
        read_mixer(path)
    assert_four_parts(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_the_plan_alone_decides_the_mixer_one_starts_from(kind: MixerKind) -> None:
    plan = small_plan(kind)
    torch.manual_seed(1)
    one = plan_mixer(plan, GENERATOR).values()
    torch.manual_seed(2)
    other = plan_mixer(plan, GENERATOR).values()
    assert all(torch.equal(one[name], other[name]) for name in one)
    reseeded = plan_mixer(plan.model_copy(update={"seed": 12}), GENERATOR).values()
    assert any(not torch.equal(one[name], reseeded[name]) for name in one)


def test_the_start_holds_the_fitted_taps() -> None:
    start = start_values(small_plan(), GENERATOR, TAPS)
    assert torch.equal(start["z_taps.conv.weight"].flatten(), TAPS.float())
    without = start_values(small_plan("zconv"), GENERATOR, TAPS)
    assert not any(name.startswith("z_taps") for name in without)


def test_a_mixer_knows_of_the_generator_what_it_may() -> None:
    parts = frozen_parts(GENERATOR)
    assert dict(parts.tap_strides) == {"enc0": 1, "enc1": 2, "bottleneck": 4, "feat": 1}
    assert dict(parts.tap_channels) == {"enc0": 4, "enc1": 8, "bottleneck": 8, "feat": 4}
    assert parts.n_source == 2
    assert parts.decode is not None
