"""One tiny federation from the command to its files: contract, resume, repetition, variants."""

from __future__ import annotations

import io
import itertools
import json
import math
import multiprocessing
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import nibabel
import numpy as np
import pytest
import safetensors.numpy

import lift_simulation.cli
from lift.config.plan import MixerKind, Plan
from lift.config.simulation import MixerComparison
from lift.generator.card import read_card
from lift.mixer.curves import ChosenCurves
from lift.mixer.finished import read_mixer
from lift.tasks.paired.choice import Use
from lift.tasks.paired.contrast import CURVES_FILE, read_site_model, write_site_curves
from tests import wording
from tests.end_to_end.tiny_run import (
    PATIENTS,
    SOURCES,
    SPACING_MM,
    TARGET,
    Outcome,
    TinyRun,
    bytes_under,
    check_refusal,
    command,
    patient_name,
    run_here,
)

ROUNDS = 3
# what a run's bytes depend on; the other files hold times of day and seconds as well
EXACT = ("mixer.safetensors", "metrics.json")
METHODS = {
    "no_mixer",
    "z_median",
    "z_filter",
    "z_filter_local",
    "curves",
    "curves_z_filter",
    "control_2d",
    "control_2d_z_filter",
    "local_only",
    "local_curves",
    "local_longer",
    "local_steps",
    "federated_curves",
    "centralised",
    "real_smoothed",
    "other_patient",
    "chosen",
}
METRICS = {
    "psnr_db",
    "psnr_invariant_db",
    "ssim",
    "mae",
    "dz_mae",
    "dz_corr",
    "hf_error",
    "hf_coherence",
    "hf_ratio",
    "slice_gain",
    "tpr",
    "perceptual",
    "psnr_crop_db",
    "ssim_crop",
}


def _everything(tiny: TinyRun, out: str, **changes: object) -> Outcome:
    return tiny.simulate(
        out, compare=list(get_args(MixerComparison)), plan__federation__rounds=ROUNDS, **changes
    )


@pytest.fixture(scope="module")
def run(tiny: TinyRun) -> Path:
    """The folder of one whole run with every comparison."""
    bundle = bytes_under(tiny.bundle)
    done = _everything(tiny, "run")
    assert done.code == 0, done
    # frozen
    assert bytes_under(tiny.bundle) == bundle
    assert done.stdout.splitlines()[0] == f"result: {tiny.folder / 'run'}"
    return tiny.folder / "run"


@pytest.fixture(scope="module")
def plain(tiny: TinyRun) -> Path:
    """The folder of the shortest run: one round, no comparison."""
    _check_variant(tiny, "plain")
    return tiny.folder / "plain"


def test_a_run_leaves_what_the_contract_says_and_nothing_half_written(run: Path) -> None:
    files = set(bytes_under(run))
    wanted = {"run.json", "rounds.jsonl", "mixer.safetensors", "metrics.json", "report.html"}
    for index in range(ROUNDS + 1):
        wanted |= {f"checkpoints/round-{index:04d}{end}" for end in (".safetensors", ".json")}
    for site in PATIENTS:
        (patient,) = (run / "synthesis" / site).iterdir()
        names = ("target", "mask", "no_mixer", "z_median", "z_filter", "federated_curves")
        for name in (*names, *(f"source-{source}" for source in SOURCES)):
            wanted.add(f"synthesis/{site}/{patient.name}/{name}.nii.gz")
    assert wanted <= files
    assert not [name for name in files if name.endswith(".part") or "/." in name]
    # the features can be computed again, and are large
    assert not (run / "cache").exists()


def test_synthesis_lies_on_the_patients_own_grid(run: Path, tiny: TinyRun) -> None:
    for site in PATIENTS:
        (patient,) = (run / "synthesis" / site).iterdir()
        index = int(patient.name.split("-")[2])
        original = nibabel.load(tiny.file(site, index, TARGET))
        target = nibabel.load(patient / "target.nii.gz")
        federated = nibabel.load(patient / "federated_curves.nii.gz")
        for image in (target, federated):
            assert image.shape == original.shape
            np.testing.assert_allclose(image.affine, original.affine)
            assert image.header.get_zooms() == SPACING_MM
        # the real target, up to its normalisation: clipped at 0.1 and 99.9 percent
        voxels = np.asarray(original.dataobj, dtype=float)
        low, high = np.percentile(voxels, (0.1, 99.9))
        expected = 1000 * (np.clip(voxels, low, high) - low) / (high - low)
        np.testing.assert_allclose(target.get_fdata(), expected, atol=1e-2)
        inside = np.asarray(nibabel.load(patient / "mask.nii.gz").dataobj) > 0
        assert not federated.get_fdata()[~inside].any()
        assert federated.get_fdata()[inside].std() > 0


def test_metrics_hold_every_method_and_metric_with_n_and_interval(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    assert set(metrics) == {"sites", "pooled", "comparisons", "cross_site", "patients"}
    assert set(metrics["sites"]) == set(PATIENTS)
    for site in metrics["sites"].values():
        assert site["patients"] == 1
        _check_methods(site["methods"], n=1)
    _check_methods(metrics["pooled"], n=len(PATIENTS))
    for trained_at in PATIENTS:
        assert set(metrics["cross_site"][trained_at]) == set(PATIENTS)
        own = metrics["sites"][trained_at]["methods"]["local_only"]
        for tested_at, table in metrics["cross_site"][trained_at].items():
            # where sites are crossed, the two figures that decide stand for all
            assert set(table) == {"psnr_db", "dz_corr"}
            assert all(row["n"] == 1 for row in table.values())
            if tested_at == trained_at:
                assert table == {metric: own[metric] for metric in table}


def test_pooled_figures_are_means_over_patients(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    for method, table in metrics["pooled"].items():
        for metric, entry in table.items():
            values = [
                site["methods"][method][metric]["value"] for site in metrics["sites"].values()
            ]
            assert entry["value"] == pytest.approx(np.mean(values), rel=1e-12, abs=1e-12)


def test_the_record_of_the_run_is_complete(run: Path, tiny: TinyRun) -> None:
    record = json.loads((run / "run.json").read_text())
    assert record["complete"] is True
    assert record["started"] <= record["finished"]
    assert record["command"].startswith("lift-simulate --config ")
    plan = Plan.from_data(record["plan"], "run.json")
    assert plan.digest() == record["plan_digest"]
    fingerprint = read_card(tiny.bundle).fingerprint
    assert plan.generator_fingerprint == record["generator"]["fingerprint"] == fingerprint
    assert {"python", "lift-federated", "torch", "flwr", "numpy"} <= set(record["versions"])
    assert all(re.match(r"\d+\.\d+", version) for version in record["versions"].values())
    stages = {"cohorts", "features", "federated", "control_2d"}
    stages |= {"local_only", "local_steps", "centralised"}
    assert stages | {"evaluation", "synthesis", "report"} == set(record["seconds"])
    for site in record["sites"]:
        assert sum(site["patients"].values()) == PATIENTS[site["name"]]
        assert site["patients"]["test"] == 1
        assert site["refused"] == 0
        assert site["slice_spacing_mm"] == [SPACING_MM[2], SPACING_MM[2]]
    assert set(record["guard"]) == set(PATIENTS)
    for verdict in record["guard"].values():
        assert verdict["verdict"] in {"helped", "harmed", "undecided"}
        assert verdict["n"] == 2
        assert verdict["against_local_only_db"]["n"] == 2
    assert record["privacy"]["mode"] == "none"
    assert record["mixer"]["parameters"] == sum(
        tensor.numel() for tensor in read_mixer(run / "mixer.safetensors").values.values()
    )


def test_every_round_is_in_the_record_with_who_counted(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == list(range(ROUNDS + 1))
    assert [line["kind"] for line in lines] == ["statistics", *["train"] * ROUNDS]
    for line in lines:
        assert line["asked"] == line["answered"] == sorted(line["counted"]) == sorted(PATIENTS)
        assert line["refused"] == {}
        assert all(0 < size < 100_000 for size in line["bytes"].values())
    for line in lines[1:]:
        assert sum(line["counted"].values()) == pytest.approx(1)
        assert all(math.isfinite(loss) for loss in line["loss"].values())
    record = json.loads((run / "run.json").read_text())
    assert record["update_bytes"] == max(max(line["bytes"].values()) for line in lines[1:])


def test_training_changes_the_mixer_and_the_checkpoints_end_in_it(run: Path) -> None:
    states = [
        safetensors.numpy.load_file(run / "checkpoints" / f"round-{index:04d}.safetensors")
        for index in range(ROUNDS + 1)
    ]
    names = [name for name in states[0] if name.startswith("mixer/")]
    for before, after in itertools.pairwise(states):
        assert any((before[name] != after[name]).any() for name in names)
    finished = read_mixer(run / "mixer.safetensors")
    assert sorted(finished.values) == sorted(name.removeprefix("mixer/") for name in names)
    for name, tensor in finished.values.items():
        np.testing.assert_array_equal(tensor.numpy(), states[-1][f"mixer/{name}"])
    assert not finished.phantom


def test_the_finished_mixer_translates_as_the_run_did(run: Path, tiny: TinyRun) -> None:
    (patient,) = (run / "synthesis" / "east").iterdir()
    index = int(patient.name.split("-")[2])
    result = tiny.folder / "translated.nii.gz"
    words = [f"{name}={tiny.file('east', index, name)}" for name in SOURCES]
    # whatever this site's own patients chose of it
    chosen = read_site_model(run / "sites" / "east" / CURVES_FILE, len(SOURCES))
    plan = read_mixer(run / "mixer.safetensors").plan
    whole = tiny.folder / "whole-mixer.safetensors"
    write_site_curves(whole, ChosenCurves(chosen.curves, None, {}), Use("mixer"), {}, plan)
    words += ["--curves", str(whole)]
    done = run_here(
        "lift", "translate", *words, "--mixer", run, "--generator", tiny.bundle, "-o", result
    )
    assert done.code == 0, done
    assert done.stdout == f"{result}\n"
    wanted = nibabel.load(patient / "federated_curves.nii.gz").get_fdata()
    # 1000 is the written maximum: the bound for other chunks is 1e-4 of the range
    np.testing.assert_allclose(nibabel.load(result).get_fdata(), wanted, atol=0.1)


def test_the_same_command_leaves_a_finished_run_untouched(run: Path, tiny: TinyRun) -> None:
    before = bytes_under(run)
    done = _everything(tiny, "run")
    assert done.code == 0, done
    assert wording.ALREADY_COMPLETE in done.stderr
    assert bytes_under(run) == before


def test_a_dry_run_prints_the_plan_that_the_run_has_and_writes_nothing(
    run: Path, tiny: TinyRun
) -> None:
    nowhere = tiny.folder / "dry"
    config = tiny.folder / "settings-run.yaml"
    done = run_here("lift-simulate", "--config", config, "--output", nowhere, "--dry-run")
    assert done.code == 0, done
    shown, record = json.loads(done.stdout), json.loads((run / "run.json").read_text())
    for key in ("plan", "plan_digest"):
        assert shown[key] == record[key]
    assert shown["mixer_parameters"] == record["mixer"]["parameters"]
    assert shown["update_bytes_by_round_and_site"] == 4 * record["mixer"]["parameters"]
    assert not nowhere.exists()


def test_another_folder_and_another_order_of_the_sites_give_the_same_bytes(
    run: Path, tiny: TinyRun
) -> None:
    sites = [
        {"name": site, "data": {"layout": "brats", "root": str(tiny.site(site))}}
        for site in reversed(PATIENTS)
    ]
    done = _everything(tiny, "reversed", sites=sites)
    assert done.code == 0, done
    for name in EXACT:
        assert (tiny.folder / "reversed" / name).read_bytes() == (run / name).read_bytes()


def test_another_seed_gives_another_mixer(tiny: TinyRun, plain: Path) -> None:
    _check_variant(tiny, "seed", plan__seed=4)
    values = read_mixer(plain / "mixer.safetensors").values
    others = read_mixer(tiny.folder / "seed" / "mixer.safetensors").values
    assert any(bool((values[name] != others[name]).any()) for name in values)


# moments at which the power goes: the run is killed as soon as the file is there
MOMENTS = (
    "cache/*/entry.json",
    "checkpoints/round-0000.safetensors",
    "checkpoints/round-0002.json",
    "control_2d/checkpoints/round-0001.json",
    "baselines/local_east.safetensors",
    "metrics.json",
)


def test_a_run_killed_again_and_again_ends_with_the_same_bytes(run: Path, tiny: TinyRun) -> None:
    out = tiny.folder / "killed"
    words = command("lift-simulate", "--config", tiny.folder / "settings-run.yaml", "--output", out)
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        try:
            _wait_for(out, "cache", lambda: first.poll() is None)
        finally:
            first.kill()
    assert first.returncode == -signal.SIGKILL
    # one process has the imports behind it and forks each further run: quick starts
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lift_simulation.run", "torch._dynamo", "pytest"])
    reached = []
    for moment in MOMENTS:
        process = context.Process(target=_simulate, args=words)
        process.start()
        try:
            _wait_for(out, moment, process.is_alive)
        finally:
            process.kill()
            process.join()
        assert process.exitcode == -signal.SIGKILL, moment
        reached.append(_last_round(out))
        assert not (out / "report.html").exists()
    assert reached == sorted(reached)
    done = _everything(tiny, "killed")
    assert done.code == 0, done
    for name in EXACT:
        assert (out / name).read_bytes() == (run / name).read_bytes(), name
    assert _untimed(out / "rounds.jsonl") == _untimed(run / "rounds.jsonl")
    assert json.loads((out / "run.json").read_text())["complete"] is True
    left = {name for name in bytes_under(out) if not name.endswith(".part")}
    assert _undated(left) == _undated(bytes_under(run))


def _undated(names: Iterable[str]) -> list[str]:
    """File names without the second at which an event file was begun; none is lost."""
    return sorted(re.sub(r"tfevents\.\d+", "tfevents", name) for name in names)


def test_a_run_killed_while_its_report_was_written_still_gets_one(
    tiny: TinyRun, plain: Path
) -> None:
    out = tiny.folder / "no-report"
    shutil.copytree(plain, out)
    (out / "report.html").unlink()
    _check_variant(tiny, "no-report")
    assert (out / "report.html").is_file()
    for name in EXACT:
        assert (out / name).read_bytes() == (plain / name).read_bytes()


def test_checkpoints_of_another_plan_are_never_used(run: Path, tiny: TinyRun) -> None:
    out = tiny.folder / "foreign"
    (out / "checkpoints").mkdir(parents=True)
    for path in (run / "checkpoints").iterdir():
        (out / "checkpoints" / path.name).write_bytes(path.read_bytes())
    before = bytes_under(out / "checkpoints")
    done = tiny.simulate("foreign", plan__seed=5)
    check_refusal(done, 3, names=["another plan", str(out)])
    assert bytes_under(out / "checkpoints") == before


@pytest.mark.parametrize(
    "kind", sorted(set(get_args(MixerKind)) - {"zrefine", "trajectory_mapper"})
)
def test_every_other_kind_of_mixer_runs(tiny: TinyRun, kind: str) -> None:
    # the control is of zrefine's size and reach in the plane: no rival of a pyramid
    rows = () if kind == "pyramid" else ("control_2d", "control_2d_z_filter")
    _check_variant(tiny, kind, rows, plan__mixer__kind=kind, compare=["control_2d"])
    assert json.loads((tiny.folder / kind / "run.json").read_text())["mixer"]["kind"] == kind


def test_half_precision_updates_are_half_the_size_and_near_the_same_mixer(
    tiny: TinyRun, plain: Path
) -> None:
    _check_variant(tiny, "half", plan__federation__update_dtype="float16")
    half = tiny.folder / "half"
    values, half_values = (read_mixer(out / "mixer.safetensors").values for out in (plain, half))
    size, half_size = (
        json.loads((out / "run.json").read_text())["update_bytes"] for out in (plain, half)
    )
    numbers = sum(tensor.numel() for tensor in values.values())
    # two bytes a number before compression; compressed, full precision shrinks a little more
    assert numbers < size - half_size <= 2 * numbers
    for name, tensor in values.items():
        # an update is about 0.01 here: two steps of Adam at a learning rate of at most 5e-3
        np.testing.assert_allclose(half_values[name].numpy(), tensor.numpy(), atol=0.02 * 2**-11)
    assert any((half_values[name] != tensor).any() for name, tensor in values.items())


def test_momentum_on_the_server_runs(tiny: TinyRun) -> None:
    _check_variant(tiny, "momentum", plan__aggregation__optimiser="momentum")


def test_a_checkpoint_cut_short_costs_one_round_and_no_bit_of_mixer_or_moments(
    tiny: TinyRun,
) -> None:
    changes: dict[str, object] = {
        "plan__aggregation": {"optimiser": "adam", "learning_rate": 0.01, "ema": 0.5},
        "plan__federation__rounds": 3,
    }
    whole, cut = tiny.folder / "adam", tiny.folder / "adam-cut"
    _check_variant(tiny, whole.name, **changes)
    shutil.copytree(whole / "checkpoints", cut / "checkpoints")
    last = cut / "checkpoints" / "round-0002.safetensors"
    last.write_bytes(last.read_bytes()[:-100])
    _check_variant(tiny, cut.name, **changes)
    assert "event=checkpoint_damaged file=round-0002" in (cut / "log.txt").read_text()
    for name in EXACT:
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name


def test_leave_one_out_holds_every_patient_out_once(own: TinyRun) -> None:
    left = {"east": [1, 3], "west": [0, 4]}
    for site, patients in PATIENTS.items():
        for index in set(range(patients)) - set(left[site]):
            shutil.rmtree(own.patient(site, index))
    done = own.simulate("loo", leave_one_out=True)
    assert done.code == 0, done
    out = own.folder / "loo"
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["pooled"]["federated_curves"]["psnr_db"]["n"] == 4
    folds = sorted((out / "folds").iterdir())
    assert len(folds) == 4
    held_out: list[str] = []
    for fold in folds:
        plan = read_mixer(fold / "mixer.safetensors").plan
        held_out += plan.split.held_out
        splits = {
            site: json.loads((fold / "sites" / site / "split.json").read_text()) for site in left
        }
        tested = [f"{site}/{name}" for site, split in splits.items() for name in split["test"]]
        assert tested == list(plan.split.held_out)
        for site, indices in left.items():
            everyone = [name for part in splits[site].values() for name in part]
            assert sorted(everyone) == [patient_name(index) for index in indices]
    wanted = [f"{site}/{patient_name(index)}" for site in left for index in left[site]]
    assert sorted(held_out) == sorted(wanted)
    for site, indices in left.items():
        assert metrics["sites"][site]["patients"] == len(indices)
        names = sorted(path.name for path in (out / "synthesis" / site).iterdir())
        assert names == [patient_name(index) for index in indices]


def test_folds_hold_every_patient_out_once_and_their_figures_are_pooled(tiny: TinyRun) -> None:
    done = tiny.simulate("folds", folds=3, compare=["curves"], synthesis_patients=0)
    assert done.code == 0, done
    out = tiny.folder / "folds"
    everyone = {f"{s}/{patient_name(i)}" for s, count in PATIENTS.items() for i in range(count)}
    mixers = [read_mixer(fold / "mixer.safetensors") for fold in sorted((out / "folds").iterdir())]
    tested = [name for mixer in mixers for name in mixer.plan.split.held_out]
    assert len(mixers) == 3
    assert sorted(tested) == sorted(everyone)
    assert {len(mixer.plan.split.held_out) for mixer in mixers} == {3, 4}
    metrics = json.loads((out / "metrics.json").read_text())
    for method, figures in metrics["pooled"].items():
        assert figures["psnr_db"]["n"] == len(everyone), method
        rows = [r for site in metrics["patients"].values() for r in site[method].values()]
        mean = sum(row["psnr_db"] for row in rows) / len(rows)
        assert figures["psnr_db"]["value"] == pytest.approx(mean)
    named = {
        f"{s}/{p}" for s, rows in metrics["patients"].items() for p in rows["federated_curves"]
    }
    assert named == everyone
    assert (out / "report.html").is_file()


def _check_variant(
    tiny: TinyRun, out: str, rows: Collection[str] = (), /, **changes: object
) -> None:
    """The run ends, its figures (with these `rows` more) are finite, its mixer can be read."""
    done = tiny.simulate(out, synthesis_patients=0, **changes)
    assert done.code == 0, done
    metrics = json.loads((tiny.folder / out / "metrics.json").read_text())
    assert set(metrics["pooled"]) == {
        "no_mixer",
        "z_median",
        "z_filter",
        "federated_curves",
        "chosen",
        *rows,
    }
    for table in metrics["pooled"].values():
        _check_metrics(table, n=len(PATIENTS))
    finished = read_mixer(tiny.folder / out / "mixer.safetensors")
    assert all(bool(tensor.isfinite().all()) for tensor in finished.values.values())
    assert any(bool(tensor.any()) for tensor in finished.values.values())


def _check_methods(methods: Mapping[str, Any], *, n: int) -> None:
    assert set(methods) == METHODS
    for table in methods.values():
        _check_metrics(table, n=n)


def _check_metrics(table: Mapping[str, Any], *, n: int) -> None:
    assert set(table) == METRICS
    for metric, entry in table.items():
        assert set(entry) == {"value", "n", "low", "high", "unit"}
        assert math.isfinite(entry["value"])
        assert entry["n"] == n
        if n == 1:
            # one patient gives no interval, and none is made up
            assert entry["low"] is None
            assert entry["high"] is None
        else:
            assert entry["low"] <= entry["value"] <= entry["high"]
        unit = "dB" if metric.endswith("_db") else "normalised" if metric.endswith("mae") else ""
        assert entry["unit"] == unit


def _simulate(*words: str) -> None:
    """What the forked process runs: the command's own entry point, silent."""
    sys.argv = list(words)
    sys.stdout = sys.stderr = io.StringIO()
    lift_simulation.cli.main()


def _wait_for(out: Path, pattern: str, alive: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not any(out.glob(pattern)):
        assert alive(), f"the run ended before '{pattern}' was there"
        assert time.monotonic() < end, f"'{pattern}' did not come"
        time.sleep(0.002)


def _last_round(out: Path) -> int:
    return max((int(path.stem[-4:]) for path in out.glob("checkpoints/*.json")), default=-1)


def _untimed(path: Path) -> list[dict[str, object]]:
    """The lines of a record without what tells of this run alone.

    Those are seconds, sizes with times in them, and whether a round was begun after a restart.
    """
    return [
        {k: v for k, v in json.loads(line).items() if k not in {"seconds", "bytes", "resumed"}}
        for line in path.read_text().splitlines()
    ]
