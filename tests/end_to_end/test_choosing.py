"""`lift-client choose`: what a site uses is compared, kept there, and followed by translations."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import yaml

from lift.config.plan import Plan
from lift.config.site import SiteConfig
from lift.errors import EXIT_CODES, ConfigError
from lift.generator.bundle import load_bundle
from lift.mixer.finished import FinishedMixer, write_mixer
from lift.tasks.paired.building import start_values
from lift.tasks.paired.choice import USES, Choice
from lift.tasks.paired.contrast import CURVES_FILE, read_site_model
from lift.tasks.paired.local import OWN_MIXER_FILE
from lift_client.own import choosing
from lift_client.own.choosing import Chosen, choose_model
from tests.end_to_end.test_contrast import CURVES
from tests.end_to_end.test_privacy import LOCAL
from tests.end_to_end.tiny_run import (
    SOURCES,
    TinyRun,
    check_refusal,
    make_patient,
    patient_name,
    run_here,
    run_outside,
    write_nifti,
)

PATIENTS = 8
STEPS = 3
ALONE = "local + curves"
STEPPED = f"mixer + {STEPS} local steps"


@pytest.fixture(autouse=True)
def _umask_restored() -> Iterator[None]:
    mask = os.umask(0)
    os.umask(mask)
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    os.umask(mask)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for index in range(PATIENTS):
        name = patient_name(index)
        for channel, voxels in make_patient(np.random.default_rng([7, index])).items():
            write_nifti(folder / name / f"{name}-{channel}.nii.gz", voxels)
    return folder


class Site:
    """A site's settings and a finished mixer, in a folder of their own."""

    def __init__(self, tiny: TinyRun, data: Path, folder: Path, **changes: object) -> None:
        generator = load_bundle(tiny.bundle, expected_fingerprint=None, device=torch.device("cpu"))
        plan = {"plan__mixer": CURVES, "plan__split": {"train": 0.5, "validation": 0.3}} | changes
        given = yaml.safe_load(tiny.settings("choosing", **plan).read_text())["plan"]
        self.plan = Plan.from_data(given | {"generator_fingerprint": generator.fingerprint}, "test")
        taps = torch.zeros(6).double()
        values = start_values(self.plan, generator, taps)
        self.mixer = folder / "mixer.safetensors"
        write_mixer(self.mixer, FinishedMixer(values, taps, self.plan, (), phantom=True))
        self.settings = folder / "site.yaml"
        self.settings.write_text(
            yaml.safe_dump(
                {
                    "name": "east",
                    "data": {"layout": "brats", "root": str(data)},
                    "generator": {"bundle": str(tiny.bundle)},
                    "policy": {"privacy_modes": ["none"], "image_checks": False},
                    "device": "cpu",
                }
            )
        )
        self.config = SiteConfig.from_yaml(self.settings).under(folder)
        self.curves = self.config.folder / CURVES_FILE
        self.own = self.config.folder / OWN_MIXER_FILE

    def choose(self, *, steps: int = STEPS, local: bool = False) -> Chosen:
        return choose_model(
            self.config,
            mixer=self.mixer,
            steps=steps,
            local=local,
            progress=lambda what, done, total: None,
        )


@pytest.fixture
def site(tiny: TinyRun, data: Path, tmp_path: Path) -> Site:
    return Site(tiny, data, tmp_path)


@pytest.fixture
def prefer(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let the rule come to this method."""

    def set_to(method: str) -> None:
        def rule(figures: dict[str, list[float]], *, otherwise: str) -> Choice:
            del otherwise
            return Choice(method, dict.fromkeys(figures, 0.0), 2)

        monkeypatch.setattr(choosing, "choose", rule)

    return set_to


def test_the_command_shows_every_method_and_writes_what_translations_follow(site: Site) -> None:
    words = ("choose", "--site", site.settings, "--mixer", site.mixer, "--local-steps", STEPS)
    done = run_outside("lift-client", *map(str, words), "--local")
    assert done.code == 0, done
    for name in (*(use.name for use in USES), STEPPED, ALONE):
        assert name in done.stdout, name
    assert f"curves: {site.curves}" in done.stdout
    assert "--curves" in done.stderr
    again = run_outside("lift-client", *map(str, words), "--local", "--json")
    told = json.loads(again.stdout)
    assert told["chosen"] in done.stdout.split("chosen: ")[1]
    assert told["patients"] == 2
    chosen = next(row for row in told["methods"] if row["method"] == told["chosen"])
    assert chosen["difference_db"] == chosen["error_db"] == 0
    assert read_site_model(site.curves, len(SOURCES)).name == told["chosen"]
    assert stat.S_IMODE(site.curves.stat().st_mode) == 0o600
    # the split that it made goes, and the run's own is left alone
    assert {path.name for path in site.config.folder.iterdir()} <= {
        CURVES_FILE,
        OWN_MIXER_FILE,
        "cache",
    }


def test_a_translation_follows_a_mixer_of_the_sites_own(
    site: Site, tiny: TinyRun, tmp_path: Path, prefer: Callable[[str], None]
) -> None:
    sources = [f"{name}={tiny.file('east', 1, name)}" for name in SOURCES]
    words: list[str | Path] = ["translate", *sources, "--mixer", site.mixer]
    words += ["--generator", tiny.bundle, "--curves", site.curves]

    def translated(name: str) -> np.ndarray:
        done = run_here("lift", *words, "-o", tmp_path / f"{name}.nii.gz")
        assert done.code == 0, done
        assert ("local steps" in done.stderr) == (name == "own")
        image = nibabel.load(tmp_path / f"{name}.nii.gz")
        return np.asarray(image.dataobj)

    prefer("mixer")
    assert site.choose().own_mixer is None
    shared = translated("shared")
    prefer(STEPPED)
    chosen = site.choose()
    assert chosen.own_mixer == site.own
    assert not chosen.protected
    assert stat.S_IMODE(site.own.stat().st_mode) == 0o600
    assert np.abs(translated("own") - shared).max() > 0
    # without its file nothing is translated in its name
    site.own.rename(tmp_path / "away")
    gone = run_here("lift", *words, "-o", tmp_path / "gone.nii.gz")
    check_refusal(gone, EXIT_CODES["data"].number, names=[OWN_MIXER_FILE])
    assert not (tmp_path / "gone.nii.gz").exists()
    (tmp_path / "away").rename(site.own)
    # what nobody uses any more does not lie about
    prefer("curves")
    site.choose()
    assert not site.own.exists()


def test_the_same_command_chooses_and_trains_the_same(
    site: Site, prefer: Callable[[str], None]
) -> None:
    prefer(STEPPED)
    site.choose()
    first = site.own.read_bytes()
    site.choose()
    assert site.own.read_bytes() == first


def test_no_local_step_is_left_out_and_few_patients_compare_nothing(
    tiny: TinyRun, data: Path, tmp_path: Path
) -> None:
    site = Site(tiny, data, tmp_path)
    rows = site.choose(steps=0).rows
    assert [row.method for row in rows] == [use.name for use in USES]
    (tmp_path / "few").mkdir()
    few = Site(tiny, data, tmp_path / "few", plan__split={"train": 0.9, "validation": 0.0})
    chosen = few.choose(local=True)
    assert chosen.rows == ()
    assert chosen.choice.method == "mixer"
    assert read_site_model(few.curves, len(SOURCES)).name == "mixer"


def test_under_patient_privacy_it_says_that_an_own_mixer_breaks_the_promise(
    tiny: TinyRun, data: Path, tmp_path: Path, prefer: Callable[[str], None]
) -> None:
    site = Site(tiny, data, tmp_path, plan__privacy=LOCAL, plan__split={"train": 0.4})
    prefer(STEPPED)
    chosen = site.choose()
    assert chosen.protected
    words: list[str | Path] = ["translate", "x", "--mixer", site.own, "-o", tmp_path / "x.nii.gz"]
    done = run_here("lift", *words, "--generator", tiny.bundle)
    assert done.code != 0
    assert "not a finished mixer" in done.stderr


def test_a_mixer_without_contrast_has_nothing_to_choose(
    tiny: TinyRun, data: Path, tmp_path: Path
) -> None:
    plain = Site(tiny, data, tmp_path, plan__mixer={**CURVES, "contrast": "none"})
    with pytest.raises(ConfigError, match="nothing to choose"):
        plain.choose()
    assert not plain.curves.exists()
