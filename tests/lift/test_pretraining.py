"""Pre-training: what is drawn, what is learned, exact resuming, the bundle at the end."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from typer.testing import CliRunner

from lift.cli import app
from lift.config.generator import PretrainConfig
from lift.config.plan import NyulRule, PercentileRule, PreprocessingPlan, TaskPlan
from lift.errors import ConfigError, DataError, GeneratorError
from lift.generator.bundle import load_bundle
from lift.generator.card import check_task
from lift.generator.pretraining import (
    CHECKPOINT_FILE,
    GRADIENT_WEIGHT,
    Pretrained,
    masked_loss,
    pretrain,
    rate_factor,
    train_on_arrays,
    validation_psnr_db,
)
from lift.generator.training_slices import TrainingPatient, draw_batch, split_by_subject

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread_and_settings_restored() -> Iterator[None]:
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


NETWORK = {"name": "unet", "n_source": 1, "width": 4, "multipliers": [1, 2]}


def settings(**changes: object) -> PretrainConfig:
    data: dict[str, Any] = {
        "network": NETWORK,
        "source": ["t1n"],
        "target": "t2f",
        "training_data": "made-up discs",
        "licence": "Apache-2.0",
        "cohorts": [{"layout": "brats", "root": "unused"}],
        "steps": 12,
        "batch_slices": 4,
        "learning_rate": 0.01,
        "checkpoint_steps": 5,
        "threads": 1,
    }
    return PretrainConfig.from_data(data | changes, "test")


def disc(seed: int, depth: int = 5, height: int = 24, width: int = 20) -> TrainingPatient:
    """Brighter and darker blobs in a disc; the target is the negative of the source."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    inside = (rows - height / 2) ** 2 + (columns - width / 2) ** 2 < 64
    mask = np.broadcast_to(inside, (depth, 1, height, width)).copy()
    values = 0.2 + 0.6 * rng.random((depth, 1, height // 4, width // 4))
    source = np.kron(values, np.ones((1, 1, 4, 4))) * mask
    target = (1 - source) * mask
    return TrainingPatient(f"p{seed}", source.astype(np.float16), target.astype(np.float16), mask)


DISCS = [disc(seed) for seed in range(6)]


def weights(trained: Pretrained) -> list[bytes]:
    return [tensor.numpy().tobytes() for tensor in trained.network.state_dict().values()]


def test_training_learns_the_relation(tmp_path: Path) -> None:
    short = train_on_arrays(settings(steps=1), DISCS, work=tmp_path / "a", device=CPU)
    losses: list[float] = []
    long = train_on_arrays(
        settings(steps=80),
        DISCS,
        work=tmp_path / "b",
        device=CPU,
        report=lambda done, total, loss: losses.append(loss),
    )
    assert len(losses) == 80
    assert np.mean(losses[-10:]) < 0.3 * np.mean(losses[:5])
    assert short.validation_psnr_db is not None
    assert long.validation_psnr_db is not None
    assert long.validation_psnr_db > short.validation_psnr_db + 6
    assert not long.network.training


def test_same_settings_and_data_give_the_same_bits(tmp_path: Path) -> None:
    first = train_on_arrays(settings(), DISCS, work=tmp_path / "a", device=CPU)
    again = train_on_arrays(settings(), DISCS, work=tmp_path / "b", device=CPU)
    other = train_on_arrays(settings(seed=1), DISCS, work=tmp_path / "c", device=CPU)
    assert weights(first) == weights(again) != weights(other)
    assert first.validation_psnr_db == again.validation_psnr_db


@pytest.mark.parametrize("over", ["picture", "mask"])
@pytest.mark.parametrize("killed_after", [3, 5, 8, 12])
def test_a_killed_training_ends_with_the_same_bits(
    tmp_path: Path, killed_after: int, over: str
) -> None:
    config = settings(network=NETWORK | {"normalise_over": over})

    def kill(done: int, total: int, loss: float) -> None:
        if done == killed_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_on_arrays(config, DISCS, work=tmp_path / "a", device=CPU, report=kill)
    steps: list[int] = []
    resumed = train_on_arrays(
        config,
        DISCS,
        work=tmp_path / "a",
        device=CPU,
        report=lambda done, total, loss: steps.append(done),
    )
    whole = train_on_arrays(config, DISCS, work=tmp_path / "b", device=CPU)
    assert weights(resumed) == weights(whole)
    last_checkpoint = 12 if killed_after == 12 else killed_after // 5 * 5
    assert steps == list(range(last_checkpoint + 1, 13))


@pytest.mark.parametrize(
    "difference", ["settings", "data", "damaged", "empty", "foreign", "card statements"]
)
def test_only_a_checkpoint_of_the_same_training_is_used(
    tmp_path: Path, difference: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / CHECKPOINT_FILE
    train_on_arrays(settings(), DISCS, work=tmp_path, device=CPU)
    config, patients = settings(), list(DISCS)
    match difference:
        case "settings":
            config = settings(learning_rate=0.02)
        case "data":
            patients[0] = disc(99)
        case "damaged":
            path.write_bytes(path.read_bytes()[:-100])
        case "empty":
            path.write_bytes(b"")
        case "foreign":
            path.write_bytes(b"\x02\0\0\0\0\0\0\0{}")
        case _:
            config = settings(licence="CC0", training_data="other words")
    steps: list[int] = []
    with caplog.at_level(logging.WARNING):
        train_on_arrays(
            config,
            patients,
            work=tmp_path,
            device=CPU,
            report=lambda done, total, loss: steps.append(done),
        )
    if difference == "card statements":
        assert steps == []
    else:
        assert steps == list(range(1, 13))
        assert "checkpoint_unused" in caplog.text


def test_divergence_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    broken = disc(0)
    broken.target[0, 0, 12, 10] = np.inf
    with pytest.raises(GeneratorError, match="learning_rate"):
        train_on_arrays(settings(), [broken], work=tmp_path, device=CPU)
    assert not (tmp_path / CHECKPOINT_FILE).exists()


@given(
    subjects=st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=12),
    share=st.sampled_from([0.0, 0.1, 0.5, 0.9]),
    seed=st.integers(0, 5),
)
def test_no_subject_is_trained_on_and_validated_on(
    subjects: list[str], share: float, seed: int
) -> None:
    one = np.zeros((1, 1, 1, 1))
    patients = [
        TrainingPatient(name, one.astype(np.float16), one.astype(np.float16), one > 0)
        for name in subjects
    ]
    training, validation = split_by_subject(patients, share, seed)
    kept, held = {p.subject for p in training}, {p.subject for p in validation}
    assert kept
    assert not kept & held
    assert len(training) + len(validation) == len(patients)
    assert bool(held) == (share > 0 and len(set(subjects)) > 1)


@pytest.mark.parametrize("window", [(8, 8), (24, 8), (128, 128)])
@pytest.mark.parametrize("context_slices", [0, 1])
def test_a_batch_holds_windows_of_matching_slices(
    window: tuple[int, int], context_slices: int
) -> None:
    config = settings(
        window=window,
        network={"name": "unet", "n_source": 1, "context_slices": context_slices},
        batch_slices=32,
    )
    patients = [disc(0), disc(1, depth=3, height=16, width=28)]
    source, target, mask = draw_batch(config, patients, np.random.default_rng(0))
    # the largest of the two patients' sides, unless the window is smaller
    sides = (min(window[0], 24), min(window[1], 28))
    assert source.shape == (32, 2 * context_slices + 1, *sides)
    assert target.shape == mask.shape == (32, 1, *sides)
    assert set(mask.flatten().tolist()) <= {0.0, 1.0}
    # undo the jitter in the mind: the target is 1 - source, so both are ordered oppositely
    for centre, wanted, inside in zip(
        source[:, context_slices], target[:, 0], mask[:, 0] > 0, strict=True
    ):
        assert float(centre[~inside].abs().sum()) == 0
        if int(inside.sum()) > 1 and float(centre[inside].std()) > 0:
            order = np.argsort(centre[inside].numpy(), kind="stable")
            assert np.all(np.diff(wanted[inside].numpy()[order]) <= 1e-3)


def test_slices_without_mask_are_never_drawn() -> None:
    patient = disc(0)
    patient.mask[[0, 1, 4]] = False
    patient.target[:] = np.arange(5, dtype=np.float16)[:, None, None, None]
    config = settings(batch_slices=64)
    _, target, _ = draw_batch(config, [patient], np.random.default_rng(0))
    assert set(target.flatten().tolist()) == {2.0, 3.0}


@pytest.mark.parametrize(("plane", "flipped"), [("axial", True), ("sagittal", False)])
def test_flips_are_between_left_and_right_only(plane: str, flipped: bool) -> None:
    patient = disc(0)
    patient.target[:] = np.arange(20, dtype=np.float16)
    config = settings(batch_slices=64, preprocessing={"plane": plane})
    _, target, _ = draw_batch(config, [patient], np.random.default_rng(0))
    forward = [bool(row[0] < row[-1]) for row in target[:, 0, 0]]
    assert (False in forward) == flipped
    assert True in forward


def test_loss_is_the_mean_over_the_mask() -> None:
    # error 1 2 / 3 9, the 9 outside: pixels (1 + 2 + 3) / 3, one difference along each axis
    pred = torch.tensor([[[[1.0, 2.0], [3.0, 9.0]]]])
    mask = torch.tensor([[[[1.0, 1.0], [1.0, 0.0]]]])
    zero = torch.zeros_like(pred)
    assert float(masked_loss(pred, zero, mask, "l1")) == pytest.approx(2 + GRADIENT_WEIGHT * 3)
    assert float(masked_loss(pred, zero, mask, "l2")) == pytest.approx(14 / 3 + GRADIENT_WEIGHT * 5)
    assert float(masked_loss(pred, zero, zero, "l1")) == 0


@given(steps=st.integers(1, 400))
def test_the_rate_warms_up_and_falls_towards_zero(steps: int) -> None:
    factors = [rate_factor(step, steps) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    peak = factors.index(max(factors))
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    if steps >= 100:
        assert factors[-1] < 0.01


def test_psnr_is_taken_inside_the_mask() -> None:
    class Half(torch.nn.Module):
        def forward(self, x: torch.Tensor, _mask: torch.Tensor) -> torch.Tensor:
            return x[:, :1] * 0 + 0.5

    patient = disc(0)
    patient.target[:] = np.where(patient.mask, 0.4, 7)
    measured = validation_psnr_db(Half(), patient, settings(), CPU)  # type: ignore[arg-type]
    assert measured == pytest.approx(-10 * math.log10(0.1**2), abs=0.01)


def write_nifti(path: Path, voxels: NDArray[np.int16]) -> None:
    image = nib.Nifti1Image(voxels, np.diag([2.0, 2.0, 3.0, 1.0]))
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)


def write_brats_patient(root: Path, number: int) -> None:
    """One patient of (20, 24, 5) voxels in BraTS 2023's layout."""
    patient = disc(number)
    name = f"BraTS-GLI-{number:05d}-000"
    for channel, array in (("t1n", patient.source), ("t2f", patient.target)):
        voxels = (array[:, 0].astype(np.float32) * 1000).transpose(2, 1, 0)
        write_nifti(root / name / f"{name}-{channel}.nii.gz", voxels.astype(np.int16))


def test_pretrain_makes_a_bundle_from_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "data"
    for number in range(4):
        write_brats_patient(root, number)
    bad = root / "BraTS-GLI-00003-000" / "BraTS-GLI-00003-000-t2f.nii.gz"
    bad.write_bytes(bad.read_bytes()[:100])
    config = settings(cohorts=[{"layout": "brats", "root": str(root)}], steps=6)
    with caplog.at_level(logging.WARNING):
        card = pretrain(config, tmp_path / "bundle", work=tmp_path / "work", device=CPU)
    assert "BraTS-GLI-00003-000" in caplog.text
    generator = load_bundle(tmp_path / "bundle", expected_fingerprint=card.fingerprint, device=CPU)
    assert generator.card == card
    assert card.trained_steps == 6
    assert card.validation_psnr_db is not None
    again = pretrain(config, tmp_path / "again", work=tmp_path / "other", device=CPU)
    assert again.fingerprint == card.fingerprint
    strict = settings(cohorts=[{"layout": "brats", "root": str(root), "on_bad_file": "stop"}])
    with pytest.raises(DataError, match="t2f"):
        pretrain(strict, tmp_path / "strict", work=tmp_path / "work", device=CPU)


def test_pretraining_speaks_from_its_first_step_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "data"
    for number in range(2):
        write_brats_patient(root, number)
    config = settings(cohorts=[{"layout": "brats", "root": str(root)}])
    told: list[tuple[str, int, int]] = []
    with caplog.at_level(logging.INFO):
        pretrain(
            config,
            tmp_path / "bundle",
            work=tmp_path / "work",
            device=CPU,
            progress=lambda what, done, total: told.append((what, done, total)),
        )
    assert told == [("patients read", 1, 2), ("patients read", 2, 2)]
    logged = re.findall(r"event=pretraining step=(\d+)", caplog.text)
    assert logged == ["1", "5", "10", "12"]


def test_the_command_shows_what_it_reads_and_its_first_step(tmp_path: Path) -> None:
    write_brats_patient(tmp_path / "data", 0)
    data = settings(cohorts=[{"layout": "brats", "root": str(tmp_path / "data")}], steps=2)
    config = tmp_path / "pretrain.yaml"
    config.write_text(data.model_dump_json(exclude_none=True), encoding="utf-8")
    done = CliRunner().invoke(
        app, ["pretrain", "--config", str(config), "-o", str(tmp_path / "b"), "--device", "cpu"]
    )
    assert done.exit_code == 0, done.output
    assert "patients read: 1" in done.stderr
    assert "step 1 of 2: loss" in done.stderr
    assert "step 2 of 2: loss" in done.stderr


def test_pretrain_refuses_a_cohort_without_a_usable_patient(tmp_path: Path) -> None:
    write_brats_patient(tmp_path, 0)
    (tmp_path / "BraTS-GLI-00000-000" / "BraTS-GLI-00000-000-t2f.nii.gz").unlink()
    config = settings(cohorts=[{"layout": "brats", "root": str(tmp_path)}])
    with pytest.raises(DataError):
        pretrain(config, tmp_path / "bundle", work=tmp_path / "work", device=CPU)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("source", "target", "channels"),
    [("t1n", "t2f", ["t1n", "t2f"]), ("mr", "ct", ["mr", "ct"])],
)
def test_pretrain_writes_its_phantoms_first(
    tmp_path: Path, source: str, target: str, channels: list[str]
) -> None:
    phantom = {"layout": "phantom", "patients": 1, "scanner": "north", "seed": 1}
    config = settings(
        cohorts=[phantom | {"in_plane_mm": 4.0, "channels": channels, "target": target}],
        source=[source],
        target=target,
        preprocessing={"mask": "file" if target == "ct" else "nonzero"},
        steps=1,
    )
    card = pretrain(config, tmp_path / "bundle", work=tmp_path / "work", device=CPU)
    assert (card.source, card.target, card.trained_steps) == ((source,), target, 1)
    # one patient: nobody is left to validate on
    assert card.validation_psnr_db is None
    volumes = list((tmp_path / "work").glob("phantom-*/*/*.nii.gz"))
    assert len(volumes) >= 2


def test_landmarks_are_learned_on_public_volumes_and_travel_with_the_generator(
    tmp_path: Path,
) -> None:
    for number in range(2):
        write_brats_patient(tmp_path / "data", number)
    first = settings(cohorts=[{"layout": "brats", "root": str(tmp_path / "data")}], steps=1)
    (tmp_path / "pretrain.yaml").write_text(first.canonical_json())
    done = CliRunner().invoke(app, ["landmarks", "--config", str(tmp_path / "pretrain.yaml")])
    assert done.exit_code == 0, done.output
    learned = yaml.safe_load(done.stdout)["preprocessing"]
    config = settings(cohorts=first.model_dump(mode="json")["cohorts"], preprocessing=learned)
    rule = config.preprocessing.rule("t1n")
    assert isinstance(rule, NyulRule)
    # each volume's own percentiles, brought to 0 and 0.8, averaged
    shares = []
    for number in range(2):
        patient = disc(number)
        voxels = np.rint(patient.source[patient.mask].astype(np.float32) * 1000 - 0.5)
        found = np.percentile(voxels, rule.percentiles)
        shares.append((found - found[0]) / (found[-1] - found[0]))
    np.testing.assert_allclose(rule.landmarks, 0.8 * np.mean(shares, axis=0), atol=0.01)
    card = pretrain(config, tmp_path / "bundle", work=tmp_path / "work", device=CPU)
    assert card.normalisation == {name: config.preprocessing.rule(name) for name in ("t1n", "t2f")}
    assert (
        load_bundle(tmp_path / "bundle", expected_fingerprint=card.fingerprint, device=CPU).card
        == card
    )
    task = TaskPlan(source=("t1n",), target="t2f")
    check_task(card, task, config.preprocessing)
    for other in (PreprocessingPlan(), changed_rules(PercentileRule(inside="mask"))):
        with pytest.raises(ConfigError, match="does not fit the plan"):
            check_task(card, task, other)


def changed_rules(rule: PercentileRule) -> PreprocessingPlan:
    return PreprocessingPlan(normalisation={"t1n": rule, "t2f": rule})
