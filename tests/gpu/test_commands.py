"""Every command that computes, on a fake CUDA device: it ends, and does what it does on the CPU."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import nibabel
import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray

import lift
import lift_client.cli
from lift.config.kit import Kit
from lift.config.simulation import MixerComparison
from lift.config.site import SiteConfig
from lift.generator.card import read_card
from lift.tasks.paired.contrast import read_site_model
from lift_client.check.timing import time_one_patient
from tests.end_to_end.tiny_run import (
    ENTRY_POINTS,
    SOURCES,
    TARGET,
    Outcome,
    TinyRun,
    check_refusal,
    make_patient,
    patient_name,
    pretrain_settings,
    run_here,
    write_nifti,
)
from tests.enrolled import enrolled
from tests.gpu.checks import NEAR_DB
from tests.gpu.fake_cuda import fake_cuda
from tests.lift.unconditional.tiny_decoder import (
    plan_data,
    pretrain_data,
    write_bodies,
    write_settings,
)

DEVICES = ("cpu", "auto")
SPLIT = {"train": 0.4, "validation": 0.4}
NEAR = {"psnr_db": NEAR_DB, "ssim": 0.002, "dz_corr": 0.002, "hf_error": 0.02}
NEAR_FRECHET = 0.02
"""As a share of the figure."""


def on(device: str, program: str, *arguments: str | Path, uses: bool = True) -> Outcome:
    """A command where there is a CUDA device, unless it is told to stay on the CPU.

    Args:
        device: "cpu": without one.
        program: its name.
        arguments: its command line; whether it takes the device is for them to say.
        uses: whether it computes on a device at all.
    """
    ENTRY_POINTS["lift-client"] = lift_client.cli.main
    with fake_cuda() if device == "auto" else nullcontext() as fake:
        done = run_here(program, *arguments)
        assert done.code == 0, done
        assert fake is None or bool(fake.uploads) == uses
    return done


def figures(path: Path) -> dict[str, dict[str, float]]:
    """METHOD -> METRIC -> value over all patients."""
    pooled = json.loads(path.read_text(encoding="utf-8"))["pooled"]
    return {m: {n: row[n]["value"] for n in row} for m, row in pooled.items()}


def voxels(path: Path) -> NDArray[np.float64]:
    image: Any = nibabel.load(path)
    return np.asarray(image.dataobj, dtype=np.float64)


def check_near(found: NDArray[np.float64], expected: NDArray[np.float64]) -> None:
    """Two volumes differ by float16's rounding, not by more."""
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 0.01 * expected.max()


@pytest.fixture(scope="module")
def paired(tiny: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """DEVICE -> the folder of a whole simulated run."""
    folder = tmp_path_factory.mktemp("paired")
    runs = {}
    for device in DEVICES:
        config = tiny.settings(
            f"gpu-{device}",
            device=device,
            compare=list(get_args(MixerComparison)),
            plan__split=SPLIT,
        )
        runs[device] = folder / device
        on(device, "lift-simulate", "--config", config, "--output", runs[device])
    return runs


def test_a_simulation_s_table_is_that_of_the_cpu(paired: dict[str, Path]) -> None:
    expected, found = (figures(paired[device] / "metrics.json") for device in DEVICES)
    assert expected.keys() == found.keys()
    assert {
        "federated_curves",
        "local_only",
        "centralised",
        "control_2d_z_filter",
    } < expected.keys()
    for method, row in expected.items():
        for metric, most in NEAR.items():
            assert abs(found[method][metric] - row[metric]) <= most, (method, metric)


def test_translate_and_evaluate(tiny: TinyRun, paired: dict[str, Path], tmp_path: Path) -> None:
    target = tiny.file("east", 0, "t2f")
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "made.nii.gz").write_bytes(target.read_bytes())
    made, told = {}, {}
    for device in DEVICES:
        made[device] = tmp_path / device / "made.nii.gz"
        made[device].parent.mkdir()
        inputs = [f"{name}={tiny.file('east', 0, name)}" for name in SOURCES]
        where = ("--mixer", paired["cpu"], "--generator", tiny.bundle, "--device", device)
        on(device, "lift", "translate", *inputs, "-o", made[device], *where)
        pair = ("--predicted", made[device].parent, "--target", tmp_path / "real")
        done = on(device, "lift", "evaluate", *pair, "--protocol", "mr", uses=False)
        told[device] = json.loads(done.stdout)["metrics"]["psnr_db"]["value"]
    check_near(voxels(made["auto"]), voxels(made["cpu"]))
    assert abs(told["auto"] - told["cpu"]) <= NEAR_DB


def test_a_full_device_is_an_operator_s_message(
    tiny: TinyRun, paired: dict[str, Path], tmp_path: Path
) -> None:
    inputs = [f"{name}={tiny.file('east', 0, name)}" for name in SOURCES]
    where = ("--mixer", paired["cpu"], "--generator", tiny.bundle)
    with fake_cuda(largest=5000):
        done = run_here("lift", "translate", *inputs, "-o", tmp_path / "x.nii.gz", *where)
    check_refusal(done, 2, names=["memory of the device is full", "device: cpu"])
    assert not (tmp_path / "x.nii.gz").exists()


def site_settings(folder: Path, data: Path, bundle: Path, device: str) -> Path:
    """An enrolled site's settings file."""
    path = enrolled(folder, "east").settings
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    settings |= {"generator": {"bundle": str(bundle)}, "device": device}
    settings["data"] = {"layout": "brats", "root": str(data)}
    return write_settings(path, settings)


@pytest.fixture
def _mask() -> Iterator[None]:
    """A command that writes private files narrows its process's mask."""
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)


@pytest.mark.usefixtures("_mask")
def test_a_site_s_own_report(tiny: TinyRun, paired: dict[str, Path], tmp_path: Path) -> None:
    found = {}
    for device in DEVICES:
        folder = tmp_path / device
        site = site_settings(folder, tiny.site("east"), tiny.bundle, device)
        words = ("--mixer", paired["cpu"] / "mixer.safetensors", "--local-only")
        on(device, "lift-client", "report", "--site", site, *words, "-o", folder / "report")
        found[device] = figures(folder / "report" / "metrics.json")
    assert found["cpu"].keys() == found["auto"].keys()
    for method, row in found["cpu"].items():
        assert abs(found["auto"][method]["psnr_db"] - row["psnr_db"]) <= NEAR_DB, method


def test_calibrate(tiny: TinyRun, paired: dict[str, Path], tmp_path: Path) -> None:
    found = {}
    for device in DEVICES:
        out = tmp_path / f"{device}.safetensors"
        words = ("--mixer", paired["cpu"], "--generator", tiny.bundle, "--device", device)
        on(device, "lift", "calibrate", tiny.site("west"), *words, "-o", out)
        found[device] = read_site_model(out, len(SOURCES))
    assert found["auto"].use == found["cpu"].use
    assert found["auto"].curves.any()
    torch.testing.assert_close(found["auto"].curves, found["cpu"].curves, atol=0.01, rtol=0)


def test_a_dry_run_is_timed_where_a_round_would_be(tiny: TinyRun, tmp_path: Path) -> None:
    site = site_settings(tmp_path, tiny.site("east"), tiny.bundle, "auto")
    config = SiteConfig.from_yaml(site).under(site.parent)
    kit = Kit.from_data(
        {
            "federation": "trial",
            "site": "east",
            "address": "localhost:1",
            "ca_sha256": "a" * 64,
            "generator_fingerprint": read_card(tiny.bundle).fingerprint,
            "task": {"source": list(SOURCES), "target": TARGET},
        },
        "test",
    )
    with fake_cuda() as device:
        found = time_one_patient(config, kit)
    assert found.step_s > 0
    assert any(place.startswith("lift/tasks/steps.py") for place in device.uploads), device.uploads


def test_an_exported_bundle(tiny: TinyRun, paired: dict[str, Path], tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    words = ("-o", bundle, "--generator", tiny.bundle)
    on("cpu", "lift", "export-bundle", paired["cpu"], *words, uses=False)
    inputs = {name: str(tiny.file("east", 0, name)) for name in SOURCES}
    for device in DEVICES:
        with fake_cuda() if device == "auto" else nullcontext() as fake:
            lift.Translator(bundle, device).translate(inputs, tmp_path / f"{device}.nii.gz")
        assert fake is None or fake.uploads
    check_near(voxels(tmp_path / "auto.nii.gz"), voxels(tmp_path / "cpu.nii.gz"))


def test_pretraining_a_generator(tiny: TinyRun, tmp_path: Path) -> None:
    settings = pretrain_settings(tiny, steps=8)
    for device in DEVICES:
        on(device, "lift", "pretrain", "--config", settings, "-o", tmp_path / device)
    cards = [json.loads((tmp_path / d / "generator.json").read_text()) for d in DEVICES]
    assert cards[0].keys() == cards[1].keys()


@dataclass(frozen=True)
class Unconditional:
    """A decoder that was pre-trained on the device, two sites, and a simulated run of theirs."""

    bundle: Path
    sites: dict[str, Path]
    runs: dict[str, Path]


@pytest.fixture(scope="module")
def unconditional(tmp_path_factory: pytest.TempPathFactory) -> Unconditional:
    folder = tmp_path_factory.mktemp("unconditional")
    public = write_bodies(folder / "public", 77, 20)
    sites = {s: write_bodies(folder / s, 40 + i, 9) for i, s in enumerate(("east", "west"))}
    settings = write_settings(folder / "decoder.yaml", pretrain_data(public, steps=60))
    bundle = folder / "decoder"
    on("auto", "lift", "pretrain", "--config", settings, "-o", bundle)
    runs = {}
    for device in DEVICES:
        data: dict[str, object] = {
            "name": "tiny",
            "data_statement": "Random ellipsoids made by a test; no patient was scanned.",
            # random ellipsoids are no pair for the image checks
            "image_checks": False,
            "generator": {"bundle": str(bundle)},
            "sites": [
                {"name": site, "data": {"layout": "brats", "root": str(root)}}
                for site, root in sites.items()
            ],
            "plan": plan_data(split={"train": 0.6, "validation": 0.0}),
            "compare": ["local_only", "federated_samples"],
            "device": device,
            "generated_volumes": 8,
            "written_volumes": 1,
        }
        config = write_settings(folder / f"{device}.yaml", data)
        runs[device] = folder / f"run-{device}"
        on(device, "lift-simulate", "--config", config, "--output", runs[device])
    return Unconditional(bundle, sites, runs)


def test_new_volumes_are_as_far_from_real_ones_as_on_the_cpu(unconditional: Unconditional) -> None:
    expected, found = (figures(unconditional.runs[d] / "metrics.json") for d in DEVICES)
    assert expected.keys() == found.keys()
    for method, row in expected.items():
        if "frechet_coronal" not in row:
            continue  # the held-out volumes, with which all are compared
        value = found[method]["frechet_coronal"]
        assert abs(value - row["frechet_coronal"]) <= NEAR_FRECHET * row["frechet_coronal"], method


def test_generate_and_evaluate(unconditional: Unconditional, tmp_path: Path) -> None:
    for device in DEVICES:
        run, out = unconditional.runs["cpu"], tmp_path / device
        words = ("--generator", unconditional.bundle, "-n", "8", "--device", device)
        on(device, "lift", "generate", "--mixer", run, "-o", out, *words)
    made = sorted((tmp_path / "cpu").glob("*.nii.gz"))
    assert len(made) == 8
    for path in made:
        check_near(voxels(tmp_path / "auto" / path.name), voxels(path))
    sets = ("--generated", tmp_path / "auto", "--real", tmp_path / "cpu")
    on("auto", "lift", "evaluate", *sets, uses=False)


@pytest.mark.parametrize("kind", ["membership", "copies"])
def test_audit(
    tiny: TinyRun, paired: dict[str, Path], unconditional: Unconditional, tmp_path: Path, kind: str
) -> None:
    of_copies = kind == "copies"
    run = (unconditional.runs if of_copies else paired)["cpu"]
    bundle = unconditional.bundle if of_copies else tiny.bundle
    data = write_patients(tmp_path / "data", 16)
    words = ("--generated", "8") if of_copies else ("--references", "2")
    told = {}
    for device in DEVICES:
        site = site_settings(tmp_path / device, data, bundle, device)
        out = tmp_path / f"{device}.json"
        on(device, "lift", "audit", "patients", run, "--site", site, "-o", out, *words)
        told[device] = json.loads(out.read_text(encoding="utf-8"))["audit"]["attacks"]
    assert told["cpu"].keys() == told["auto"].keys()
    for attack, row in told["cpu"].items():
        # of 6 against 6 patients one that changes places with another moves it by a 36th
        assert abs(told["auto"][attack]["auc"] - row["auc"]) <= 3 / 36, attack


def write_patients(folder: Path, count: int) -> Path:
    """More patients of the tiny run's kind, in BraTS layout."""
    for index in range(count):
        patient = folder / patient_name(index)
        for channel, content in make_patient(np.random.default_rng([7, index])).items():
            write_nifti(patient / f"{patient.name}-{channel}.nii.gz", content)
    return folder
