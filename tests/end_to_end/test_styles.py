"""Two phantom scanners of different intensity: volumes in the grey scale of either, on request."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from lift.config.cohort import BratsData
from lift.config.site import SiteSettings
from lift.files import file_digest
from lift.mixer.finished import read_mixer
from lift.tasks.unconditional.decoder import FrozenDecoder
from lift.tasks.unconditional.grid import same_view
from lift_client.tasks.unconditional import UnconditionalWork
from tests.end_to_end.tiny_run import (
    check_refusal,
    make_patient,
    patient_name,
    run_here,
    write_nifti,
)
from tests.lift.unconditional.tiny_decoder import CHANNEL, plan_data, write_settings

GAMMA = {"bright": 0.6, "dark": 1.7}
"""Exponent of a scanner's grey values, which no normalisation by percentiles takes away."""
PATIENTS, NEW = 12, 6


@dataclass(frozen=True)
class Styled:
    """A finished run of two scanners."""

    out: Path
    bundle: Path

    def generate(self, folder: Path, *words: str) -> list[np.ndarray]:
        done = run_here(
            "lift", "generate", "--mixer", self.out, "--generator", self.bundle, "-n", str(NEW),
            "-o", folder, *words,
        )  # fmt: skip
        assert done.code == 0, done
        return [voxels(Path(line)) for line in done.stdout.splitlines()]


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj, dtype=np.float64) / 1000


@pytest.fixture(scope="module")
def styled(pca_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Styled:
    folder = tmp_path_factory.mktemp("styles")
    for number, (site, gamma) in enumerate(GAMMA.items()):
        for index in range(PATIENTS):
            values = make_patient(np.random.default_rng([90 + number, index]))[CHANNEL]
            name = patient_name(index)
            path = folder / site / name / f"{name}-{CHANNEL}.nii.gz"
            top = values.max()
            write_nifti(path, ((values / top) ** gamma * top).astype(np.float32))
    settings = {
        "name": "styles",
        "data_statement": "PHANTOM: random ellipsoids made by a test; no patient was scanned.",
        "image_checks": False,
        "generator": {"bundle": str(pca_bundle)},
        "sites": [
            {"name": site, "data": {"layout": "brats", "root": str(folder / site)}}
            for site in GAMMA
        ],
        "plan": plan_data(
            split={"train": 0.6, "validation": 0.0},
            unconditional__trajectory="gaussian",
            unconditional__gaussian={"positions": 6, "axes": 3},
            unconditional__site_styles=True,
            federation__rounds=0,
        ),
        "compare": [],
        "device": "cpu",
        "generated_volumes": 10,
        "written_volumes": 4,
    }
    config = write_settings(folder / "run.yaml", settings)
    done = run_here("lift-simulate", "--config", config, "--output", folder / "out")
    assert done.code == 0, done
    return Styled(folder / "out", pca_bundle)


def grey(volumes: list[np.ndarray]) -> np.ndarray:
    """Mean and logarithm of the spread of each volume, averaged: a grey scale as data has it."""
    return np.asarray(np.mean([[v.mean(), np.log(v.std())] for v in volumes], axis=0))


def spread(volumes: list[np.ndarray]) -> float:
    """How much the volumes' mean grey values differ."""
    return float(np.std([v.mean() for v in volumes]))


def nearer(volumes: list[np.ndarray], own: np.ndarray, other: np.ndarray) -> float:
    """Above 0 where the volumes' grey scale is nearer to `own` than to `other`."""
    found = grey(volumes)
    return float(np.abs(found - other).sum() - np.abs(found - own).sum())


@pytest.fixture(scope="module")
def real(
    styled: Styled, pca: FrozenDecoder, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, np.ndarray]:
    """The grey scales of each scanner's held-out volumes, in the generated ones' field of view."""
    plan = read_mixer(styled.out / "mixer.safetensors").plan
    found = {}
    for site in GAMMA:
        data = BratsData(root=styled.out.parent / site)
        settings = SiteSettings(name=site, data=data)
        folder = tmp_path_factory.mktemp(site)
        work = UnconditionalWork(settings, plan, pca, work=folder, report=None)
        views = [same_view(work.body(patient), 12, 3.0) for patient in work.split.test]
        assert len(views) >= 2
        found[site] = grey([view.voxels[0, 0].double().numpy() for view in views])
    return found


def test_volumes_of_a_style_are_nearer_to_that_scanners_and_swapped_ones_to_the_other(
    styled: Styled, real: dict[str, np.ndarray], tmp_path: Path
) -> None:
    made = {site: styled.generate(tmp_path / site, "--style", site) for site in GAMMA}
    bright, dark = real["bright"], real["dark"]
    # four axes blur: both styles' volumes are flatter than real ones
    apart = float(np.abs(bright - dark).sum())
    assert nearer(made["bright"], bright, dark) > 0.1 * apart
    assert nearer(made["dark"], dark, bright) > 0.1 * apart
    # judged under the other's name they are the wrong way round, so the judge does tell
    assert nearer(made["dark"], bright, dark) < -0.1 * apart
    assert nearer(made["bright"], dark, bright) < -0.1 * apart
    # of nobody's in particular they lie between
    mean = grey(styled.generate(tmp_path / "mean", "--style", "mean"))
    assert grey(made["dark"])[0] < mean[0] < grey(made["bright"])[0]
    # and all volumes of a style have one grey scale, drawn ones many
    drawn = styled.generate(tmp_path / "drawn")
    spread = {
        name: np.std([v.mean() for v in vs]) for name, vs in (made | {"drawn": drawn}).items()
    }
    assert max(spread["bright"], spread["dark"]) < 0.7 * spread["drawn"]


def test_a_styled_series_is_the_same_again_and_says_what_it_is(
    styled: Styled, tmp_path: Path
) -> None:
    words = ["--style", "dark", "--spacing", "2", "--field-of-view", "30x80x72"]
    for name in ("one", "other"):
        made = styled.generate(tmp_path / name, *words)
        assert {v.shape for v in made} == {(18, 20, 15)}
    digests = [
        [file_digest(path) for path in sorted((tmp_path / name).glob("*.nii.gz"))]
        for name in ("one", "other")
    ]
    assert digests[0] == digests[1]
    series = json.loads((tmp_path / "one" / "series.json").read_text())
    assert series["style"] == "dark"
    assert (series["slices"], series["slice_spacing_mm"]) == (15, 2.0)
    assert series["field_of_view_mm"] == [30, 80, 72]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--style", "north"], ["known: bright, dark, mean"]),
        (["--field-of-view", "wide"], ["as in 120x192x160"]),
        (
            ["--slices", "12", "--spacing", "3", "--field-of-view", "40"],
            ["12 slices of 3 mm are 36 mm", "Leave one of the three out"],
        ),
    ],
)
def test_what_cannot_be_had_is_refused_and_nothing_is_written(
    styled: Styled, tmp_path: Path, words: list[str], told: list[str]
) -> None:
    done = run_here(
        "lift", "generate", "--mixer", styled.out, "--generator", styled.bundle,
        "-o", tmp_path / "new", *words,
    )  # fmt: skip
    check_refusal(done, 2, names=told)
    assert not (tmp_path / "new").exists()


def test_the_report_shows_the_same_volumes_in_every_style(styled: Styled) -> None:
    page = (styled.out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "in the styles bright, dark, mean" in page
    shown = [
        voxels(styled.out / "synthesis" / f"style-{site}" / "volume-0000.nii.gz").mean()
        for site in GAMMA
    ]
    assert shown[0] > shown[1]
