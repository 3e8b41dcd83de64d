"""A hospital's own report after a real run: right, complete, private, and sent to nobody."""

from __future__ import annotations

import hashlib
import json
import stat
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import nibabel
import numpy as np
import pydicom
import pytest
import safetensors.numpy
import yaml
from pydicom.dataset import Dataset

from lift.markup import pointer
from lift.volumes.volume import read_volume
from tests import wording
from tests.federation.world import Federation, run
from tests.lift.formats.dicom_cases import series
from tests.lift.formats.dicom_cases import write as write_series
from tests.lift.report.test_report import Page, resolve

pytestmark = pytest.mark.timeout(300)
SITE = "east"
PLACE = "1.2.826.0.1.3680043.2.7.9"


@pytest.fixture(scope="module")
def report(finished: Federation) -> Path:
    """The folder of east's own report."""
    settings = finished.site(SITE) / "site.yaml"
    written = run("lift-client", "report", "--site", settings)
    assert written == f"report: {finished.site(SITE) / 'work' / 'report' / 'report.html'}\n"
    return finished.site(SITE) / "work" / "report"


def records(folder: Path) -> dict[str, Any]:
    return {
        name: json.loads((folder / name).read_text(encoding="utf-8"))
        for name in ("run.json", "metrics.json")
    }


def test_the_mixer_that_stays_is_the_one_of_the_run(finished: Federation) -> None:
    released = safetensors.numpy.load((finished.out / "mixer.safetensors").read_bytes())
    for name in finished.sites:
        path = finished.site(name) / "work" / "final-mixer.safetensors"
        kept = safetensors.numpy.load(path.read_bytes())
        assert set(kept) == set(released)
        assert all((kept[key] == released[key]).all() for key in released)


def test_its_figures_are_those_of_a_simulation_on_the_same_patients(
    simulated: Path, report: Path
) -> None:
    there = records(simulated)["metrics.json"]["sites"][SITE]
    own = records(report)["metrics.json"]["sites"][SITE]
    assert own["patients"] == there["patients"] > 0
    # a simulation has mixers to choose from that a site has not trained
    rows = {name: table for name, table in there["methods"].items() if name != "chosen"}
    for method, table in rows.items():
        for metric, figure in table.items():
            told = own["methods"][method][metric]
            # intervals are drawn with seeds of their own
            assert told["value"] == pytest.approx(figure["value"], rel=1e-9), (method, metric)
            assert told["n"] == figure["n"]
    alone = {"z_filter_local", "curves", "curves_z_filter"}
    assert set(own["methods"]) == {*rows, *alone, "chosen"}


def test_every_number_is_the_value_in_its_files(report: Path) -> None:
    page = (report / "report.html").read_text(encoding="utf-8")
    seen, loaded = Page(page), records(report)
    for key, value, _ in seen.numbers:
        assert float(value) == resolve(loaded, key), key
    keys = {key for key, _, _ in seen.numbers}
    assert pointer("metrics.json", "pooled", "federated_curves", "hf_error", "value") in keys
    assert pointer("run.json", "journal", "kinds", "train", "lines") in keys
    assert "must not leave the hospital" in seen.text
    assert "STAYS HERE" in seen.text
    assert "What left this hospital" in seen.text
    assert "rounds.jsonl" not in seen.text.split("How to reproduce this run")[0]


def test_it_says_what_left_and_adds_nothing_to_it(finished: Federation, report: Path) -> None:
    journal = finished.site(SITE) / "work" / "journal.jsonl"
    before = journal.read_bytes()
    told = records(report)["run.json"]["journal"]
    assert told["kinds"]["train"]["lines"] == 5
    assert told["kinds"]["guard"]["lines"] == 1
    assert told["whole"] is True
    last = json.loads(before.splitlines()[-1])
    assert told["head"] == last["hash"]
    run("lift-client", "report", "--site", finished.site(SITE) / "site.yaml")
    assert journal.read_bytes() == before


def test_nobody_else_may_read_it(report: Path) -> None:
    assert stat.S_IMODE(report.stat().st_mode) == 0o700
    files = [path for path in report.rglob("*") if path.is_file()]
    assert len(files) > 5
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name


def test_its_verdict_is_the_one_that_the_server_was_told(
    finished: Federation, report: Path
) -> None:
    told = json.loads((finished.out / "run.json").read_text(encoding="utf-8"))["guard"][SITE]
    assert records(report)["run.json"]["guard"][SITE] == told


def test_nothing_of_a_patient_reaches_the_server(finished: Federation, report: Path) -> None:
    assert list(report.glob("synthesis/*/*/federated_curves.nii.gz"))
    server = {path.name for path in finished.server.rglob("*")}
    assert not any(name.endswith(".nii.gz") for name in server)
    page = (finished.out / "report.html").read_text(encoding="utf-8")
    assert wording.NO_PATIENTS_AT_A_SERVER in page
    assert "BraTS-TST" not in page


def test_a_coordinators_file_and_a_local_mixer_can_be_compared(
    finished: Federation, report: Path, tmp_path: Path
) -> None:
    out = tmp_path / "own"
    site = finished.site(SITE) / "site.yaml"
    mixer = finished.out / "mixer.safetensors"
    run(
        "lift-client",
        "report",
        "--site",
        site,
        "--mixer",
        mixer,
        "--output",
        out,
        "--local-only",
        "--phantom",
    )
    own, first = records(out), records(report)
    assert "local_only" in own["metrics.json"]["pooled"]
    for method, table in first["metrics.json"]["pooled"].items():
        assert own["metrics.json"]["pooled"][method] == table
    assert own["run.json"]["mixer_digest"] == hashlib.sha256(mixer.read_bytes()).hexdigest()
    assert own["run.json"]["phantom"] is True
    assert "PHANTOM" in (out / "report.html").read_text(encoding="utf-8")


def test_without_a_mixer_it_says_what_is_missing(finished: Federation, tmp_path: Path) -> None:
    settings = yaml.safe_load((finished.site(SITE) / "site.yaml").read_text(encoding="utf-8"))
    for key in ("kit", "key"):
        settings[key] = str(
            finished.site(SITE) / settings.get(key, {"key": "site.key"}.get(key, key))
        )
    settings["folder"] = str(tmp_path / "empty")
    path = tmp_path / "site.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    with pytest.raises(AssertionError, match=f"{wording.NO_FINISHED_MIXER} yet"):
        run("lift-client", "report", "--site", path)


def site_with(finished: Federation, data: Path, path: Path) -> Path:
    """Settings of the same site, whose volumes lie elsewhere."""
    folder = finished.site(SITE)
    settings = yaml.safe_load((folder / "site.yaml").read_text(encoding="utf-8"))
    settings["data"]["root"] = str(data)
    for key, usual in (("kit", "kit"), ("key", "site.key"), ("folder", "work")):
        settings[key] = str(folder / settings.get(key, usual))
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def as_series(data: Path, folder: Path) -> Path:
    """A site's volumes as DICOM series in BraTS layout."""
    files = sorted(data.rglob("*.nii.gz"))
    for number, path in enumerate(files):
        image = nibabel.load(path)

        def change(index: int, dataset: Dataset, number: int = number) -> None:
            dataset.SOPInstanceUID = f"{PLACE}.{number}.{index}"
            dataset.FrameOfReferenceUID = PLACE

        made = series(np.asanyarray(image.dataobj), image.affine, change=change)
        write_series(made, folder / path.parent.name / path.name.removesuffix(".nii.gz"))
    return folder


def links_of(folder: Path) -> list[Path]:
    """What the page links, besides its own sections; a folder ends in a stroke."""
    seen = Page((folder / "report.html").read_text(encoding="utf-8"))
    places = [found["href"] for name, found in seen.tags if name == "a"]
    assert all(not place.startswith(("/", ".")) and ":" not in place for place in places)
    return [folder / unquote(place) for place in places if not place.startswith("#")]


def test_it_links_the_file_of_each_synthetic_volume_and_what_made_it(report: Path) -> None:
    links = links_of(report)
    patients = list((report / "synthesis" / SITE).iterdir())
    assert sorted(path.name for path in links) == sorted(
        ["chosen.nii.gz", "chosen.json"] * len(patients)
    )
    assert all(path.is_file() for path in links)
    made = json.loads(links[1].read_text(encoding="utf-8"))
    assert made["Synthetic"] is True
    assert made["MixerDigest"] == records(report)["run.json"]["mixer_digest"]


def test_of_dicom_sources_it_links_a_derived_series_too(
    finished: Federation, tmp_path: Path
) -> None:
    data = as_series(finished.tiny.site(SITE), tmp_path / "data")
    settings = site_with(finished, data, tmp_path / "site.yaml")
    # the second time replaces what the first one wrote
    uids = []
    for _ in range(2):
        run("lift-client", "report", "--site", settings, "--output", tmp_path / "own")
        found = [path for path in links_of(tmp_path / "own") if path.is_dir()]
        assert found
        slices = sorted(found[0].iterdir())
        uids.append(pydicom.dcmread(slices[0]).SeriesInstanceUID)
    assert uids[0] != uids[1]
    for folder in found:
        name = folder.name.removesuffix("-dicom")
        file, made = read_volume(folder.with_name(f"{name}.nii.gz")), read_volume(folder)
        within = 0.5001 * float(file.voxels.max()) / 65535
        np.testing.assert_allclose(made.voxels, file.voxels, rtol=0, atol=within)
        for path in folder.iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            one = pydicom.dcmread(path)
            assert (one.SyntheticData, one.FrameOfReferenceUID) == ("YES", PLACE)
    # without a frame of reference a series cannot be made: the file alone is linked
    for path in data.rglob("IM*"):
        one = pydicom.dcmread(path)
        del one.FrameOfReferenceUID
        one.save_as(path)
    run("lift-client", "report", "--site", settings, "--output", tmp_path / "own")
    assert not [path for path in links_of(tmp_path / "own") if path.is_dir()]
    assert not list((tmp_path / "own").rglob("*-dicom"))
