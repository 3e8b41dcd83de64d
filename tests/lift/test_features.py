"""The feature cache: the same bits on a hit and on a miss, and no error from what is left over."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lift.cohort.preprocessing import preprocessing_digest
from lift.config.plan import MixerKind
from lift.errors import DataError
from lift.generator.blocks import block_slices, generate_blocks
from lift.generator.features import FeatureCache, Features, compute_features, feature_key
from lift.generator.networks import neighbour_channels
from tests.lift.mixer_cases import KINDS
from tests.lift.small_world import (
    SIZE,
    assert_four_parts,
    features_of,
    same_features,
    small_generator,
    small_plan,
    small_prepared,
)

KEY, OTHER_KEY, THIRD_KEY = "a" * 64, "b" * 64, "c" * 64
PLENTY_GB = 1.0
ENTRY = "entry.json"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def features() -> Features:
    return features_of(small_prepared(), small_generator(), "pooled_bigru")


EAST = {"owner": "east", "files": "e" * 64}
"""Whose an entry is."""


def cache_in(folder: Path, largest_gb: float = PLENTY_GB) -> FeatureCache:
    return FeatureCache(folder, largest_gb=largest_gb)


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def used_at(folder: Path, key: str, seconds: float) -> None:
    os.utime(folder / key / ENTRY, (seconds, seconds))


def only_whole_entries(folder: Path) -> bool:
    return all((entry / ENTRY).is_file() for entry in folder.iterdir()) and not list(
        folder.glob(".*")
    )


# --- what is computed


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_hit_gives_the_bits_of_a_miss(tmp_path: Path, kind: MixerKind) -> None:
    fresh = features_of(small_prepared(), small_generator(), kind)
    written = cache_in(tmp_path).write(KEY, fresh, **EAST)
    read = cache_in(tmp_path).read(KEY)
    assert read is not None
    assert same_features(written, fresh)
    assert same_features(read, fresh)
    assert all(tap.dtype == np.float16 for tap in read.taps.values())
    assert {read.source.dtype, read.pred.dtype} == {np.dtype(np.float32)}


def test_an_entry_without_target_has_none_when_it_is_read(tmp_path: Path) -> None:
    prepared = small_prepared(with_target=False)
    fresh = features_of(prepared, small_generator(), "zrefine_lite")
    assert cache_in(tmp_path).write(KEY, fresh, **EAST).target is None


def test_an_entry_is_mapped_and_cannot_be_written_through(
    tmp_path: Path, features: Features
) -> None:
    stored = cache_in(tmp_path).write(KEY, features, **EAST)
    assert isinstance(stored.pred, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        stored.pred[0] = 1.0


def test_features_are_those_of_the_generator_slice_by_slice(features: Features) -> None:
    generator, prepared = small_generator(), small_prepared()
    for index in range(features.depth):
        x = torch.from_numpy(prepared.source[index : index + 1])
        pred, taps = generator.predict(x, ("enc0", "bottleneck"))
        np.testing.assert_allclose(features.pred[index], pred[0].numpy(), atol=1e-5)
        np.testing.assert_allclose(
            features.taps["enc0"][index].astype(np.float32), taps["enc0"][0].numpy(), atol=5e-3
        )
        np.testing.assert_allclose(
            features.pooled["bottleneck"][index], taps["bottleneck"][0].mean((1, 2)), atol=5e-3
        )


def test_asking_for_taps_twice_or_in_another_order_changes_nothing() -> None:
    generator, prepared = small_generator(), small_prepared(5)
    one = compute_features(prepared, generator, ("enc0", "feat"), ("enc0",))
    other = compute_features(prepared, generator, ("feat", "enc0"), ("enc0",))
    assert same_features(one, other)


@pytest.mark.parametrize("context_slices", [0, 1])
@pytest.mark.parametrize("depth", [1, 8, 9, 17])
def test_blocks_do_not_depend_on_where_they_begin(context_slices: int, depth: int) -> None:
    generator = small_generator(context_slices=context_slices)
    prepared = small_prepared(depth)
    every = dict(generate_blocks(generator, prepared, ("enc0",)))
    assert sorted(every) == list(range(0, depth, block_slices(SIZE)))
    assert sum(block.pred.shape[0] for block in every.values()) == depth
    for first in every:
        later = dict(generate_blocks(generator, prepared, ("enc0",), first=first))
        assert sorted(later) == [start for start in sorted(every) if start >= first]
        for start, block in later.items():
            assert torch.equal(block.pred, every[start].pred)
            assert torch.equal(block.taps["enc0"], every[start].taps["enc0"])


@pytest.mark.parametrize("context_slices", [1, 2])
@pytest.mark.parametrize("depth", [1, 3, 9, 17])
def test_neighbours_at_block_borders_are_those_of_the_whole_stack(
    context_slices: int, depth: int
) -> None:
    generator = small_generator(context_slices=context_slices)
    prepared = small_prepared(depth)
    whole = neighbour_channels(torch.from_numpy(prepared.source), context_slices)
    for start, block in generate_blocks(generator, prepared, ()):
        stop = start + block.pred.shape[0]
        assert torch.equal(block.pred, generator.predict(whole[start:stop])[0])


@pytest.mark.parametrize(
    ("shape", "expected"), [((240, 240), 1), ((200, 200), 2), (SIZE, 8), ((4000, 4000), 1)]
)
def test_a_block_is_as_long_as_its_slices_allow(shape: tuple[int, int], expected: int) -> None:
    assert block_slices(shape) == expected


# --- the key


def test_the_key_changes_with_everything_that_the_content_depends_on() -> None:
    base = (("d1", "d2"), "generator", "rules", ("feat", "enc0"), ("bottleneck",))
    changed = [
        (("d1", "d3"), *base[1:]),
        (("d2", "d1"), *base[1:]),
        (("d1", "d2", "mask"), *base[1:]),
        (("d1d2",), *base[1:]),
        (base[0], "other", *base[2:]),
        (*base[:2], "other", *base[3:]),
        (*base[:3], ("feat",), base[4]),
        (*base[:4], ()),
        (*base[:3], ("feat", "enc0", "bottleneck"), ()),
    ]
    keys = [feature_key(*parts, precision="float32") for parts in (base, *changed)]
    # a GPU's features are no CPU's
    keys.append(feature_key(*base, precision="float16"))
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 64 for key in keys)
    again = feature_key(*base[:3], ("enc0", "feat"), base[4], precision="float32")
    assert again == keys[0]


def test_the_key_follows_generator_and_preprocessing() -> None:
    plans = [small_plan(), small_plan(preprocessing={"crop_margin": 1}), small_plan(target="ct")]
    generators = [small_generator(), small_generator(seed=1)]
    keys = {
        feature_key(
            ("d",), generator.fingerprint, preprocessing_digest(plan), (), (), precision="float32"
        )
        for plan in plans
        for generator in generators
    }
    assert len(keys) == 6


# --- what a crash leaves


def test_an_absent_entry_is_a_miss(tmp_path: Path) -> None:
    assert cache_in(tmp_path / "absent").read(KEY) is None


def test_a_left_over_unfinished_folder_is_not_an_entry(tmp_path: Path, features: Features) -> None:
    cache_in(tmp_path).write(KEY, features, **EAST)
    (tmp_path / KEY).rename(tmp_path / f".{KEY[:16]}.00000000.part")
    assert cache_in(tmp_path).read(KEY) is None
    assert same_features(cache_in(tmp_path).write(KEY, features, **EAST), features)


def test_what_crashed_writers_left_is_removed_once_nobody_can_be_writing_it(
    tmp_path: Path, features: Features
) -> None:
    for name, age_s in ((".old.00000000.part", 2 * 86400), (".young.00000000.part", 60)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "pred.npy").write_bytes(b"half")
        os.utime(tmp_path / name, (time.time() - age_s,) * 2)
    cache_in(tmp_path).write(KEY, features, **EAST)
    assert {entry.name for entry in tmp_path.iterdir()} == {KEY, ".young.00000000.part"}


DAMAGED_CARDS = ["", "{", "[]", "null", "{}", '{"arrays": []}', '{"arrays": {"pred": 3}}', "\x00"]


@pytest.mark.parametrize("text", DAMAGED_CARDS)
def test_a_damaged_card_leads_to_recomputation(
    tmp_path: Path, features: Features, text: str
) -> None:
    cache_in(tmp_path).write(KEY, features, **EAST)
    (tmp_path / KEY / ENTRY).write_text(text, encoding="utf-8")
    assert cache_in(tmp_path).read(KEY) is None
    assert same_features(cache_in(tmp_path).write(KEY, features, **EAST), features)
    assert only_whole_entries(tmp_path)


@pytest.mark.parametrize("damage", ["empty", "header", "cut", "missing", "shape", "type", "card"])
@pytest.mark.parametrize("name", ["pred", "tap-enc0", "pooled-bottleneck"])
def test_a_damaged_array_leads_to_recomputation(
    tmp_path: Path, features: Features, name: str, damage: str
) -> None:
    cache_in(tmp_path).write(KEY, features, **EAST)
    path = tmp_path / KEY / f"{name}.npy"
    content = path.read_bytes()
    match damage:
        case "empty":
            path.write_bytes(b"")
        case "header":
            path.write_bytes(content[:20])
        case "cut":
            path.write_bytes(content[:-4])
        case "missing":
            path.unlink()
        case "shape":
            np.save(path, np.load(path)[1:])
        case "type":
            np.save(path, np.load(path).astype(np.float64))
        case "card":
            card = json.loads((tmp_path / KEY / ENTRY).read_text(encoding="utf-8"))
            del card["arrays"]["pred"]
            (tmp_path / KEY / ENTRY).write_text(json.dumps(card), encoding="utf-8")
    assert cache_in(tmp_path).read(KEY) is None
    assert same_features(cache_in(tmp_path).write(KEY, features, **EAST), features)


def test_a_half_removed_entry_is_written_anew(tmp_path: Path, features: Features) -> None:
    cache_in(tmp_path).write(KEY, features, **EAST)
    # a removal that was interrupted after the card
    (tmp_path / KEY / ENTRY).unlink()
    assert cache_in(tmp_path).read(KEY) is None
    assert same_features(cache_in(tmp_path).write(KEY, features, **EAST), features)
    assert only_whole_entries(tmp_path)


# --- several at once


def _compute_and_write(folder: str) -> bytes:
    """In another process: what it reads of the entry after writing it, as bytes."""
    torch.set_num_threads(1)
    fresh = features_of(small_prepared(), small_generator(), "zrefine")
    stored = cache_in(Path(folder)).write(KEY, fresh, **EAST)
    return stored.pred.tobytes() + stored.taps["feat"].tobytes()


def test_two_processes_that_compute_one_entry_read_the_same(tmp_path: Path) -> None:
    with get_context("spawn").Pool(2) as pool:
        first, second = pool.map(_compute_and_write, [str(tmp_path)] * 2, chunksize=1)
    expected = features_of(small_prepared(), small_generator(), "zrefine")
    assert first == second == expected.pred.tobytes() + expected.taps["feat"].tobytes()
    assert [entry.name for entry in tmp_path.iterdir()] == [KEY]


def test_writers_at_the_same_moment_all_succeed(tmp_path: Path, features: Features) -> None:
    start = Barrier(4)

    def write(_: int) -> bool:
        start.wait()
        return same_features(cache_in(tmp_path).write(KEY, features, **EAST), features)

    for _ in range(5):
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(write, range(4)))
        assert [entry.name for entry in tmp_path.iterdir()] == [KEY]
        shutil.rmtree(tmp_path / KEY)


def test_writers_of_different_entries_under_one_small_cap_all_succeed(
    tmp_path: Path, features: Features
) -> None:
    cache_in(tmp_path).write(KEY, features, **EAST)
    cap_gb = 2.5 * bytes_of(tmp_path) / 1e9
    start = Barrier(3)

    def write(worker: int) -> bool:
        start.wait()
        keys = [f"{worker}{index}" * 32 for index in range(6)]
        # each its own run: what another one has written may go at any moment
        return all(
            same_features(cache_in(tmp_path, cap_gb).write(key, features, **EAST), features)
            for key in keys
        )

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(write, range(3)))
    assert not list(tmp_path.glob(".*"))


def test_an_entry_that_vanishes_while_room_is_counted_is_no_error(
    tmp_path: Path, features: Features
) -> None:
    cache_in(tmp_path).write(KEY, features, **EAST)
    # listed, yet gone when its size is asked for: what another process's removal looks like
    (tmp_path / KEY / "pred.npy").unlink()
    (tmp_path / KEY / "pred.npy").symlink_to(tmp_path / "nowhere")
    assert same_features(cache_in(tmp_path).write(OTHER_KEY, features, **EAST), features)


# --- size


def test_the_entry_used_longest_ago_goes_first(tmp_path: Path, features: Features) -> None:
    cache_in(tmp_path).write(KEY, features, **EAST)
    size_gb = bytes_of(tmp_path) / 1e9
    cache_in(tmp_path).write(OTHER_KEY, features, **EAST)
    used_at(tmp_path, KEY, 1000.0)
    used_at(tmp_path, OTHER_KEY, 2000.0)
    assert cache_in(tmp_path).read(KEY) is not None  # now the one that was used last
    cache_in(tmp_path, 2.5 * size_gb).write(THIRD_KEY, features, **EAST)
    assert {entry.name for entry in tmp_path.iterdir()} == {KEY, THIRD_KEY}


def test_nothing_goes_while_there_is_room(tmp_path: Path, features: Features) -> None:
    cache_in(tmp_path).write(KEY, features, **EAST)
    size_gb = bytes_of(tmp_path) / 1e9
    cache_in(tmp_path, 2.1 * size_gb).write(OTHER_KEY, features, **EAST)
    assert {entry.name for entry in tmp_path.iterdir()} == {KEY, OTHER_KEY}


def test_what_this_run_uses_never_goes(tmp_path: Path, features: Features) -> None:
    cache_in(tmp_path).write(KEY, features, **EAST)
    size_gb = bytes_of(tmp_path) / 1e9
    cache_in(tmp_path).write(OTHER_KEY, features, **EAST)
    cache = cache_in(tmp_path, 2.5 * size_gb)
    assert cache.read(KEY) is not None
    used_at(tmp_path, KEY, 1000.0)
    used_at(tmp_path, OTHER_KEY, 2000.0)
    cache.write(THIRD_KEY, features, **EAST)
    assert {entry.name for entry in tmp_path.iterdir()} == {KEY, THIRD_KEY}
    with pytest.raises(DataError) as caught:
        cache.write(OTHER_KEY, features, **EAST)
    assert_four_parts(caught.value)
    assert caught.value.where == "cache.largest_gb"
    assert {entry.name for entry in tmp_path.iterdir()} == {KEY, THIRD_KEY}


def test_one_entry_larger_than_the_cap_is_refused(tmp_path: Path, features: Features) -> None:
    with pytest.raises(DataError) as caught:
        cache_in(tmp_path, 1e-9).write(KEY, features, **EAST)
    assert_four_parts(caught.value)
    assert not list(tmp_path.iterdir())


# --- a disk that refuses


@pytest.mark.parametrize(
    "refusal",
    [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), OSError("96 requested and 16 written")],
    ids=["full", "short"],
)
def test_a_full_disk_has_its_own_error_and_leaves_nothing_half_written(
    tmp_path: Path, features: Features, monkeypatch: pytest.MonkeyPatch, refusal: OSError
) -> None:
    cache = cache_in(tmp_path)
    cache.write(OTHER_KEY, features, **EAST)
    save = np.save

    def full(path: Path, array: NDArray[Any], *, allow_pickle: bool) -> None:
        if path.name == "mask.npy":
            path.write_bytes(b"half")
            raise refusal
        save(path, array, allow_pickle=allow_pickle)

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(DataError) as caught:
        cache.write(KEY, features, **EAST)
    assert_four_parts(caught.value)
    assert caught.value.where == "cache.folder"
    assert str(refusal.strerror or refusal) in caught.value.seen
    monkeypatch.undo()
    assert [entry.name for entry in tmp_path.iterdir()] == [OTHER_KEY]
    assert same_features(cache.write(KEY, features, **EAST), features)


def test_a_cache_folder_that_cannot_be_made_is_a_data_error(
    tmp_path: Path, features: Features
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        cache_in(tmp_path / "file" / "cache").write(KEY, features, **EAST)
    assert_four_parts(caught.value)


def test_equal_features_are_told_from_different_ones(features: Features) -> None:
    """The comparison that the other tests rest on can fail."""
    assert same_features(features, dataclasses.replace(features))
    assert not same_features(features, dataclasses.replace(features, target=None))
    assert not same_features(features, dataclasses.replace(features, pred=features.pred + 1e-6))
    assert not same_features(features, dataclasses.replace(features, slice_spacing_mm=1.0))
