"""Pairs of image and label, a segmenter on them, and the whole experiment in its smallest form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from matplotlib.image import imread
from torch import Tensor

import lift_benchmarks.downstream.__main__ as program
from lift.config.simulation import SimulationConfig
from lift.errors import AffineError, ConfigError, DataError, VolumeError
from lift.tasks.unconditional.decoder import FrozenDecoder
from lift.tasks.unconditional.moments import LARGEST
from lift_benchmarks.downstream.config import (
    DownstreamConfig,
    Entry,
    PairSegmenterSettings,
    list_entries,
)
from lift_benchmarks.downstream.pairs import (
    Pair,
    PairForm,
    joint_gaussian,
    new_pair,
    pair_form,
    pair_trajectory,
    read_pair,
    signed_distances,
)
from lift_benchmarks.downstream.pictures import draw_pairs
from lift_benchmarks.downstream.run import sources_of
from lift_benchmarks.downstream.summary import read_drawn
from lift_benchmarks.downstream.volumes import Volumes
from lift_simulation.segmenter import (
    Source,
    Stack,
    augmentation,
    dice,
    predict,
    stack_of,
    train_segmenter,
)
from tests.end_to_end.downstream_world import GAUSSIAN, SITES, SMALL, World, make_world
from tests.end_to_end.tiny_run import (
    ENTRY_POINTS,
    SHAPE,
    bytes_under,
    check_refusal,
    run_here,
    write_nifti,
)
from tests.lift.unconditional.tiny_decoder import (
    CPU,
    tiny_decoder,
    tiny_plan,
)

FOLDER = Path(program.__file__).parent
PRESETS = Path(__file__).parents[2] / "configs" / "presets"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    ENTRY_POINTS[program.PROGRAM] = program.main
    return make_world(tmp_path_factory.mktemp("downstream"))


@pytest.fixture(scope="module")
def frozen(world: World) -> FrozenDecoder:
    return tiny_decoder(world.bundle)


@pytest.fixture(scope="module")
def form(frozen: FrozenDecoder) -> PairForm:
    plan = tiny_plan(frozen, unconditional__trajectory="gaussian", unconditional__gaussian=GAUSSIAN)
    return pair_form(plan, frozen, (12, 12), 12.0)


@pytest.fixture(scope="module")
def pairs(world: World, frozen: FrozenDecoder) -> dict[str, list[Pair]]:
    plan = tiny_plan(frozen)
    return {
        site: [
            read_pair(patient, plan, frozen, root=world.root(site), label=world.label(patient.id))
            for patient in (world.patient(site, index) for index in range(number))
        ]
        for site, number in SITES.items()
    }


def trajectories(
    pairs: dict[str, list[Pair]], decoder: FrozenDecoder, form: PairForm
) -> dict[str, list[list[Tensor]]]:
    return {s: [[pair_trajectory(p, decoder, form)] for p in found] for s, found in pairs.items()}


def test_a_label_lies_where_its_volume_shows_it(pairs: dict[str, list[Pair]]) -> None:
    for pair in pairs["east"]:
        assert pair.label.shape == pair.voxels.shape
        # the ball is the brightest thing of a test's volume
        assert dice(pair.voxels > 0.8, pair.label) > 0.85


def test_all_waves_give_the_distances_back_and_none_is_clipped(form: PairForm) -> None:
    whole = PairForm(form.image, form.grid, form.grid, form.reach_mm)
    for distances in (torch.rand(3, *form.grid) * 2 - 1, -torch.ones(2, *form.grid)):
        waves = whole.waves_of(distances)
        assert waves.shape == (len(distances), form.grid[0] * form.grid[1])
        assert float(waves.abs().max()) <= LARGEST * (1 + 1e-6)
        torch.testing.assert_close(whole.distances_of(waves), distances, atol=1e-5, rtol=0)


def test_signed_distances_are_distances() -> None:
    label = torch.zeros(5, 9, 9, dtype=torch.bool)
    label[2, 4, 4] = True
    found = signed_distances(label, (3.0, 2.0, 2.0), 10.0)
    assert float(found[2, 4, 4]) == pytest.approx(0.1)
    assert float(found[2, 4, 5]) == pytest.approx(-0.1)
    assert float(found[1, 4, 4]) == pytest.approx(-0.2)
    assert float(found[2, 4, 0]) == pytest.approx(-0.7)
    assert torch.equal(found > 0, label)
    assert float(signed_distances(~label, (3.0, 2.0, 2.0), 1.0).max()) == 1.0


def test_sites_make_the_gaussian_that_one_place_would_make(
    pairs: dict[str, list[Pair]], frozen: FrozenDecoder, form: PairForm
) -> None:
    found = trajectories(pairs, frozen, form)
    gaussian, counted = joint_gaussian(found, form)
    assert counted == {"east": 24, "west": 24, "small": 0}
    one_place = {"all": [*reversed(found["west"]), *found["east"]]}
    pooled, _ = joint_gaussian(one_place, form)
    assert torch.equal(gaussian.mean, pooled.mean)
    assert torch.equal(gaussian.factor, pooled.factor)
    with_small, _ = joint_gaussian({"all": [one for site in found.values() for one in site]}, form)
    assert not torch.equal(gaussian.mean, with_small.mean)
    with pytest.raises(DataError, match="no patient"):
        joint_gaussian({"small": found["small"]}, form)


def test_a_new_pair_has_its_own_label(
    pairs: dict[str, list[Pair]], frozen: FrozenDecoder, form: PairForm
) -> None:
    gaussian, _ = joint_gaussian(trajectories(pairs, frozen, form), form)

    def made(index: int) -> Pair:
        return new_pair(
            gaussian, frozen, form, seed=4, index=index, slices=12, slice_spacing_mm=3.0
        )

    new = [made(index) for index in range(12)]
    assert torch.equal(new[7].label, made(7).label)
    assert torch.equal(new[7].voxels, made(7).voxels)
    assert len({pair.voxels.sum().item() for pair in new}) == 12

    def contrast(pair: Pair, label: Tensor) -> float:
        around = signed_distances(label, pair.body.spacing_mm, 12.0)
        shell = (around < 0) & (around > -0.6)
        return float(pair.voxels[label].mean() - pair.voxels[shell].mean())

    own = [contrast(pair, pair.label) for pair in new]
    others = [
        contrast(pair, other.label) for pair, other in zip(new, [*new[1:], new[0]], strict=True)
    ]
    assert min(own) > 0
    assert np.mean(own) > 1.3 * np.mean(others)
    picture = draw_pairs(pairs["east"][:3], new[:4])
    assert picture.startswith(b"\x89PNG")


def test_bad_labels_are_refused(world: World, frozen: FrozenDecoder, tmp_path: Path) -> None:
    plan, patient = tiny_plan(frozen), world.patient("east", 0)
    empty, moved = tmp_path / "empty.nii.gz", tmp_path / "moved.nii.gz"
    corner = np.zeros(SHAPE, dtype=np.uint8)
    # a label is there, but nowhere that the decoder sees
    corner[0, 0, 0] = 1
    write_nifti(empty, corner, dtype=np.uint8)
    write_nifti(moved, np.ones(SHAPE) * (np.arange(SHAPE[2]) > 4), shift_mm=9.0)
    for path, error in ((empty, VolumeError), (moved, AffineError)):
        with pytest.raises(error, match=path.name):
            read_pair(patient, plan, frozen, root=world.root("east"), label=path)
    with pytest.raises(VolumeError):
        read_pair(patient, plan, frozen, root=world.root("east"), label=tmp_path / "none.nii.gz")


def test_pairs_need_whole_trajectories_and_pixels_for_their_waves(frozen: FrozenDecoder) -> None:
    chain = tiny_plan(frozen, unconditional__trajectory="gaussian")
    with pytest.raises(ConfigError, match="sketch"):
        pair_form(chain, frozen, (4, 4), 5.0)
    sketch = tiny_plan(
        frozen, unconditional__trajectory="gaussian", unconditional__gaussian=GAUSSIAN
    )
    with pytest.raises(ConfigError, match="waves"):
        pair_form(sketch, frozen, (25, 4), 5.0)


def test_dice_of_known_masks() -> None:
    a, b = torch.zeros(1, 2, 4), torch.zeros(1, 2, 4)
    a[0, 0], b[0, 0, 1:] = 1, 1
    assert dice(a, b) == pytest.approx(6 / 7)
    assert dice(a, torch.zeros_like(a)) == 0.0
    assert dice(a * 0, a * 0) == 1.0


def test_a_segmenter_learns_and_one_seed_is_one_network(pairs: dict[str, list[Pair]]) -> None:
    stacks = [stack_of(pair.voxels, pair.label) for pair in pairs["east"]]
    source, unseen = [Source(stacks[:12], 1.0)], stacks[12:]

    def score(
        settings: PairSegmenterSettings, seed: int, *, augmented: bool = False
    ) -> list[float]:
        network = train_segmenter(source, settings, seed=seed, augmented=augmented, device=CPU)
        return [dice(predict(network, stack), stack.label) for stack in unseen]

    before = torch.get_rng_state()
    trained = score(SMALL, 3)
    assert np.mean(trained) > 0.7
    assert np.mean(score(SMALL.model_copy(update={"steps": 1}), 3)) < 0.5
    short = SMALL.model_copy(update={"steps": 8})
    assert score(short, 3, augmented=True) == score(short, 3, augmented=True)
    assert score(short, 3, augmented=True) != score(short, 4, augmented=True)
    assert score(short, 3, augmented=True) != score(short, 3)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ValueError, match="no volume"):
        train_segmenter([Source([], 1.0)], SMALL, seed=1, augmented=False, device=CPU)
    with pytest.raises(ValueError, match="add up to 1"):
        train_segmenter([Source(stacks, 0.5)], SMALL, seed=1, augmented=False, device=CPU)


def test_augmentation_moves_a_label_with_its_image() -> None:
    label = torch.zeros(4, 24, 16)
    label[:, 8:16, 5:11] = 1
    change, moved = augmentation(5), 0
    for _ in range(20):
        image, shown = change(label.repeat_interleave(3, 0), label)
        moved += not torch.equal(shown, label)
        threshold = float(image.min() + image.max()) / 2
        assert dice(image[1::3] > threshold, shown) > 0.85
    assert moved > 8


def test_rows_see_what_they_are_called() -> None:
    def stack(value: float) -> Stack:
        return stack_of(torch.full((2, 4, 4), value), torch.zeros(2, 4, 4))

    own = [[stack(0.0)] for _ in range(5)]
    new, broken, everyone = [stack(1.0)], [stack(2.0)], [stack(3.0)]
    volumes = Volumes(own, everyone, new, broken, {})

    def seen(row: Any, few: int, seed: int = 0) -> list[tuple[list[int], float]]:
        flat = [person[0] for person in own]
        found = sources_of(volumes, Entry(row, few, seed), 0.25)
        return [
            ([k for k, one in enumerate(flat) if any(one is s for s in x.stacks)], x.share)
            for x in found
        ]

    three = seen("real", 3)[0][0]
    assert len(three) == 3
    assert set(seen("real", 2)[0][0]) < set(three)
    assert {tuple(seen("real", 3, seed)[0][0]) for seed in range(8)} != {tuple(three)}
    assert seen("both_augmented", 3) == [(three, 0.75), ([], 0.25)]
    assert sources_of(volumes, Entry("both", 3, 0), 0.25)[1].stacks is new
    assert sources_of(volumes, Entry("synthetic", 0, 0), 0.25)[0].stacks is new
    assert sources_of(volumes, Entry("shuffled", 0, 0), 0.25)[0].stacks is broken
    assert sources_of(volumes, Entry("all_real_augmented", 0, 0), 0.25)[0].stacks is everyone


def test_the_whole_experiment_and_its_resume(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("--config", world.config(), "--settings", world.settings(), "--output", out)
    done = run_here(program.PROGRAM, *words)
    assert done.code == 0, done
    for word in ("both_augmented", "all_real", "Control (broken pairs are worse): held", "small 0"):
        assert word in done.stdout, done.stdout
    data = json.loads((out / "downstream.json").read_text(encoding="utf-8"))
    assert data["in_gaussian"] == {"east": 20, "west": 20, "small": 0}
    assert data["held_out"] == {"east": 4, "west": 4, "small": 1}
    rows = {row["cell"]: row for row in data["rows"]}
    assert len(rows) == 9
    assert all(row["dice"]["n"] == 9 and row["dice_own"]["n"] == 1 for row in rows.values())
    for name, found in data["comparisons"].items():
        a, b = name.split(" - ")
        assert found["value"] == pytest.approx(rows[a]["dice"]["value"] - rows[b]["dice"]["value"])
        own = data["comparisons_own"][name]
        assert own["n"] == 1
        direct = rows[a]["dice_own"]["value"] - rows[b]["dice_own"]["value"]
        assert own["value"] == pytest.approx(direct)
    assert data["comparisons"]["synthetic - shuffled"]["low"] > 0
    # no patient is named in what is shown
    for name in ("downstream.json", "downstream.md"):
        assert "BraTS-TST" not in (out / name).read_text(encoding="utf-8")
    for name in ("downstream.png", "pairs.png"):
        assert np.ptp(imread(out / name)[..., :3]) == 1
    drawn = read_drawn(out)
    assert set(drawn.by_number["both"]) == {2}
    assert set(drawn.once) >= {"synthetic", "shuffled", "all_real"}

    before = bytes_under(out / "trainings")
    lost = out / "trainings" / "both-2-seed0.json"
    kept = json.loads(lost.read_text(encoding="utf-8"))["dice"]
    lost.unlink()
    again = run_here(program.PROGRAM, *words)
    assert again.code == 0, again
    assert again.stderr.count("kept\n") == 8
    assert json.loads(lost.read_text(encoding="utf-8"))["dice"] == kept
    assert set(bytes_under(out / "trainings")) == set(before)
    # planted: whole pairs that are no better than broken ones
    whole, broken = (out / "trainings" / f"{row}-seed0.json" for row in ("synthetic", "shuffled"))
    record = json.loads(broken.read_text(encoding="utf-8"))
    same = record | {"dice": json.loads(whole.read_text(encoding="utf-8"))["dice"]}
    broken.write_text(json.dumps(same), encoding="utf-8")
    useless = run_here(program.PROGRAM, *words)
    assert "Control (broken pairs are worse): failed" in useless.stdout
    broken.write_text(json.dumps(record), encoding="utf-8")
    # other pairs: nothing of this is kept; one more number of patients: all of it
    more = world.settings("more", data_sets__tiny__few=[1, 2])
    third = run_here(program.PROGRAM, *words[:3], more, *words[4:], "--cell", "real-1")
    assert third.code == 0, third
    assert "| real | 1 |" in third.stdout
    assert "| shuffled |" in third.stdout
    other = world.settings("other", pairs=13)
    fourth = run_here(program.PROGRAM, *words[:3], other, *words[4:], "--cell", "shuffled")
    assert fourth.code == 0, fourth
    assert "kept" not in fourth.stderr
    assert "| real |" not in fourth.stdout


@pytest.mark.parametrize(
    ("config", "settings", "word"),
    [
        ({"name": "another"}, {}, "another"),
        ({}, {"data_sets__tiny__site": "nowhere"}, "nowhere"),
        ({}, {"data_sets__tiny__few": [7]}, "7 of small"),
        ({}, {"data_sets__tiny__few": [2, 2]}, "once"),
        ({}, {"data_sets__tiny__labels": "labels.nii.gz"}, "{patient}"),
        ({}, {"data_sets__tiny__tissue": "wm"}, "tissue"),
        ({}, {"data_sets__tiny__labels": "", "data_sets__tiny__tissue": "wm"}, "no phantoms"),
        ({"plan__unconditional__gaussian": {"positions": 6}}, {}, "sketch"),
    ],
)
def test_settings_that_mean_nothing_are_refused(
    world: World, tmp_path: Path, config: dict[str, object], settings: dict[str, object], word: str
) -> None:
    words = ("--config", world.config("bad", **config), "--settings")
    refused = run_here(
        program.PROGRAM, *words, world.settings("wrong", **settings), "--output", tmp_path
    )
    check_refusal(refused, 2, names=(word,))
    assert not (tmp_path / "trainings").exists()


def test_an_unknown_cell_is_refused(world: World, tmp_path: Path) -> None:
    words = ("--config", world.config(), "--settings", world.settings(), "--output", tmp_path)
    refused = run_here(program.PROGRAM, *words, "--cell", "real-9")
    check_refusal(refused, 2, names=("real-9", "both_augmented-2"))


def test_the_shipped_settings_fit_the_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIFT_TEST_DATA", "data")
    shipped = DownstreamConfig.from_yaml(FOLDER / "settings.yaml")
    for path in (FOLDER / "phantom.yaml", PRESETS / "real-hippocampus.yaml"):
        preset = SimulationConfig.from_yaml(path)
        data = shipped.data_sets[preset.name]
        assert data.site in [site.name for site in preset.sites]
        assert bool(data.tissue) == preset.phantom
        cells = {entry.cell for entry in list_entries(shipped, data)}
        assert len(cells) == 5 + 4 * len(data.few)
    assert len(shipped.data_sets) == 2
    raw = yaml.safe_load((FOLDER / "phantom.yaml").read_text(encoding="utf-8"))
    assert "PHANTOM" in raw["data_statement"]
