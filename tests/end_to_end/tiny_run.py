"""A federation of seconds: tiny volumes, a tiny generator, and the real commands on them."""

from __future__ import annotations

import contextlib
import copy
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import nibabel
import numpy as np
import torch
import yaml
from numpy.typing import NDArray

import lift.cli
import lift_simulation.cli
from lift.config.generator import GeneratorDescription, UNetConfig
from lift.files import file_digest, write_atomically
from lift.generator.bundle import make_card, save_bundle
from lift.generator.networks import build_network
from tests.cache import cached

SOURCES = ("t1n", "t2w")
TARGET = "t2f"
SHAPE = (32, 40, 12)
SPACING_MM = (2.0, 2.0, 3.0)
PATIENTS = {"east": 6, "west": 5}
ENTRY_POINTS = {"lift": lift.cli.main, "lift-simulate": lift_simulation.cli.main}
DROP = object()
"""As a changed setting's value: the key is left out."""


@dataclass(frozen=True)
class Outcome:
    """What a command left on the screen, and its exit code."""

    code: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class TinyRun:
    """A folder with two sites' volumes and a generator's bundle, ready for `lift-simulate`."""

    folder: Path

    @property
    def bundle(self) -> Path:
        """The generator's bundle."""
        return self.folder / "bundle"

    def site(self, name: str) -> Path:
        """A site's data folder."""
        return self.folder / "data" / name

    def patient(self, site: str, index: int) -> Path:
        """A patient's folder."""
        return self.site(site) / patient_name(index)

    def file(self, site: str, index: int, channel: str) -> Path:
        """A patient's file of one channel."""
        folder = self.patient(site, index)
        return folder / f"{folder.name}-{channel}.nii.gz"

    def settings(self, name: str = "settings", **changes: object) -> Path:
        """A settings file; `plan__federation__rounds=2` changes one key, `DROP` removes it."""
        data: dict[str, object] = {
            "name": "tiny",
            "data_statement": "Random ellipsoids made by a test; no patient was scanned.",
            # random ellipsoids are no pair for the image checks
            "image_checks": False,
            "generator": {"bundle": str(self.bundle)},
            "sites": [
                {"name": site, "data": {"layout": "brats", "root": str(self.site(site))}}
                for site in PATIENTS
            ],
            "plan": {
                "task": {"source": list(SOURCES), "target": TARGET},
                "seed": 3,
                "threads": 1,
                "mixer": {"kind": "zrefine", "width": 4},
                "training": {
                    "steps": 2,
                    "patients_per_step": 2,
                    "window": [6, 16, 16],
                    "warmup_steps": 1,
                },
                "federation": {"rounds": 1},
                "privacy": {"mode": "none"},
            },
            "compare": [],
            "device": "cpu",
            "synthesis_patients": 1,
        }
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(changed(data, changes)), encoding="utf-8")
        return path

    def simulate(self, out: str, **changes: object) -> Outcome:
        """Run `lift-simulate` in this process into `folder/out`."""
        config = self.settings(f"settings-{out}", **changes)
        return run_here("lift-simulate", "--config", config, "--output", self.folder / out)


def make_tiny_run(folder: Path) -> TinyRun:
    """The sites' volumes and a bundle that `lift pretrain` makes of them."""
    cached(folder, "tiny-run", _write_tiny_run, [Path(__file__)])
    return TinyRun(folder)


def make_bundle(folder: Path, *, seed: int = 0) -> str:
    """A small U-Net with random weights as a bundle; its fingerprint."""
    config = UNetConfig(width=4, multipliers=(1, 2), n_source=len(SOURCES))
    network = build_network(config, seed=seed)
    description = GeneratorDescription(
        network=config,
        source=SOURCES,
        target=TARGET,
        training_data="none: random weights",
        licence="Apache-2.0",
    )
    return save_bundle(folder, network, make_card(network, description, trained_steps=0))


def pretrain_settings(tiny: TinyRun, **changes: object) -> Path:
    """Settings of `lift pretrain` on the first site's volumes."""
    data: dict[str, object] = {
        "network": {"name": "unet", "width": 4, "multipliers": [1, 2], "n_source": len(SOURCES)},
        "source": list(SOURCES),
        "target": TARGET,
        "cohorts": [{"layout": "brats", "root": str(tiny.site("east"))}],
        "steps": 60,
        "batch_slices": 8,
        "window": [40, 48],
        "learning_rate": 1e-2,
        "validation_share": 0.0,
        "threads": 1,
        "training_data": "Random ellipsoids made by a test.",
        "licence": "Apache-2.0",
    }
    path = tiny.folder / "pretrain.yaml"
    path.write_text(yaml.safe_dump(changed(data, changes)), encoding="utf-8")
    return path


def make_patient(rng: np.random.Generator) -> dict[str, NDArray[np.int16]]:
    """Channels of one ellipsoid with structure; the target follows from the sources."""
    axes = [np.linspace(-1, 1, n) for n in SHAPE]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    radii = rng.uniform(0.75, 0.95, 3)
    inside = (x / radii[0]) ** 2 + (y / radii[1]) ** 2 + (z / radii[2]) ** 2 < 1
    waves = [np.sin(rng.uniform(2, 5) * (x + y * rng.normal() + z * rng.normal())) for _ in "ab"]
    contrasts = {
        "t1n": 2 + waves[0],
        "t2w": 2 - waves[0] + waves[1],
        TARGET: 2 + 0.5 * waves[0] + waves[1] * waves[0],
    }
    noise = rng.normal(0, 0.05, (len(contrasts), *SHAPE))
    return {
        name: np.where(inside, np.maximum(200 * (values + noise[i]), 1), 0).astype(np.int16)
        for i, (name, values) in enumerate(contrasts.items())
    }


def changed(data: dict[str, object], changes: Mapping[str, object]) -> dict[str, object]:
    """A copy of settings with some keys changed: `plan__seed` is `seed` in the section `plan`."""
    result: Any = copy.deepcopy(data)
    for path, value in changes.items():
        *parents, key = path.split("__")
        place = result
        for parent in parents:
            place = place.setdefault(parent, {})
        if value is DROP:
            del place[key]
        else:
            place[key] = value
    return dict(result)


def patient_name(index: int) -> str:
    """Folder name of a patient in BraTS layout."""
    return f"BraTS-TST-{index:05d}-000"


def write_nifti(
    path: Path, voxels: NDArray[Any], *, shift_mm: float = 0.0, dtype: type[np.generic] = np.int16
) -> None:
    """A NIfTI file of the tiny grid's spacing, moved along x by `shift_mm`."""
    affine = np.diag([*SPACING_MM, 1.0])
    affine[0, 3] = shift_mm
    image = nibabel.Nifti1Image(voxels.astype(dtype), affine)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)


def run_here(program: str, *arguments: str | Path) -> Outcome:
    """One of the real commands in this process, from its entry point to its exit code."""
    argv = [program, *map(str, arguments)]
    stdout, stderr = io.StringIO(), io.StringIO()
    code = 0
    with (
        mock.patch.object(sys, "argv", argv),
        torch_as_before(),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        try:
            ENTRY_POINTS[program]()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
    return Outcome(code, stdout.getvalue(), stderr.getvalue())


def run_outside(program: str, *arguments: str | Path, cwd: Path | None = None) -> Outcome:
    """One of the real commands in a process of its own."""
    done = subprocess.run(
        command(program, *arguments), capture_output=True, text=True, check=False, cwd=cwd
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def command(program: str, *arguments: str | Path) -> list[str]:
    """The command line of an installed program, of this very environment."""
    return [str(Path(sys.executable).parent / program), *map(str, arguments)]


def check_refusal(outcome: Outcome, code: int, *, names: Sequence[str] = ()) -> str:
    """Assert a four-part message with this exit code, no traceback, and these words in it.

    Returns the message.
    """
    assert outcome.code == code, outcome
    assert "Traceback" not in outcome.stderr
    lines = outcome.stderr.splitlines()
    starts = [i for i, line in enumerate(lines) if re.search(rf" \[\w+, exit {code}\]$", line)]
    assert starts, outcome.stderr
    headline = lines[starts[-1]]
    message = lines[starts[-1] :]
    assert re.match(r"[\w-]+: \S.* in \S.* \[\w+, exit \d+\]$", headline), headline
    # the details: what was seen against what is needed, then what to do
    assert len(message) >= 3, outcome.stderr
    assert all(line.startswith("  ") and line.strip() for line in message[1:]), outcome.stderr
    text = "\n".join(message)
    for word in names:
        assert word in text, (word, text)
    return text


def bytes_under(folder: Path, *, without: Iterable[str] = ()) -> dict[str, str]:
    """Relative path -> SHA-256 of every file, hidden ones included."""
    skipped = set(without)
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in skipped:
            found[name] = file_digest(path)
    return found


def flip_byte(path: Path, position: int) -> None:
    """Damage one byte of a file."""
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    write_atomically(path, bytes(content))


def _write_tiny_run(folder: Path) -> None:
    tiny = TinyRun(folder)
    for number, (site, patients) in enumerate(PATIENTS.items()):
        for index in range(patients):
            rng = np.random.default_rng([number, index])
            for channel, voxels in make_patient(rng).items():
                write_nifti(tiny.file(site, index, channel), voxels)
    settings = pretrain_settings(tiny)
    trained = run_here("lift", "pretrain", "--config", settings, "-o", tiny.bundle)
    assert trained.code == 0, trained
    settings.unlink()  # it names this folder, which goes


@contextlib.contextmanager
def torch_as_before() -> Iterator[None]:
    """Commands fix threads and kernels for their process; this one goes on with other tests."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        if workspace is None:
            os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
