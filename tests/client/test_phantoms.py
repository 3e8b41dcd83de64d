"""`lift-client phantom`: a site reads each layout with the lines that the command prints."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import get_args

import nibabel
import pytest
import yaml
from typer.testing import CliRunner

from lift.cohort.layouts import list_patients
from lift.cohort.phantom.places import Layout
from lift.config.site import SiteSettings
from lift.errors import DataError
from lift.volumes.volume import read_volume
from lift_client.cli import app
from tests.end_to_end.tiny_run import command
from tests.federation.world import children, runs, until

CHANNELS = {"synthrad": ("mr", "ct")}
BRAIN = ("t1n", "t1c", "t2w", "t2f")


def written(folder: Path, *options: str) -> str:
    done = CliRunner().invoke(app, ["phantom", str(folder), "--patients", "1", *options])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("layout", get_args(Layout))
def test_a_site_reads_every_layout_with_the_lines_that_are_printed(
    tmp_path: Path, layout: str
) -> None:
    lines = yaml.safe_load(written(tmp_path / "data", "--layout", layout))
    channels = CHANNELS.get(layout, BRAIN)
    for data in (lines["data"], {"layout": "auto", "root": lines["data"]["root"]}):
        site = SiteSettings.from_data({"name": "north", "data": data}, "site.yaml")
        patients, refusals = list_patients(site.data, channels)
        assert refusals == []
        (patient,) = patients
        for channel in channels:
            assert min(read_volume(patient.channels[channel]).voxels.shape) > 1


def test_every_volume_and_the_folder_say_that_they_are_phantoms(tmp_path: Path) -> None:
    written(tmp_path / "data", "--layout", "bids")
    assert "PHANTOM" in (tmp_path / "data" / "PHANTOM.json").read_text(encoding="utf-8")
    volumes = list((tmp_path / "data").rglob("*.nii.gz"))
    assert len(volumes) == len(BRAIN)
    for path in volumes:
        assert b"PHANTOM" in bytes(nibabel.load(path).header["descrip"])


def test_a_folder_that_holds_something_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "patients.txt").write_text("mine", encoding="utf-8")
    done = CliRunner().invoke(app, ["phantom", str(tmp_path), "--patients", "1"])
    assert done.exit_code != 0
    assert isinstance(done.exception, DataError)
    assert "not empty" in done.exception.seen
    assert [path.name for path in tmp_path.iterdir()] == ["patients.txt"]


def test_its_workers_end_with_a_command_that_is_killed(tmp_path: Path) -> None:
    line = command("lift-client", "phantom", tmp_path / "data", "--patients", "99")
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            # their work has begun: two of them, and what multiprocessing has beside them
            until(lambda: any(tmp_path.rglob("*.nii.gz")), 120, "the first volume")
            workers = children(process.pid)
        finally:
            process.kill()
    assert len(workers) >= 2
    until(lambda: not any(map(runs, workers)), 60, "the end of the workers")


def test_another_seed_gives_other_phantoms_and_the_same_seed_the_same_bytes(tmp_path: Path) -> None:
    first, again, other = tmp_path / "first", tmp_path / "again", tmp_path / "other"
    for folder, seed in ((first, "4"), (again, "4"), (other, "5")):
        written(folder, "--layout", "table", "--seed", seed)
    volume = Path("PHA-00001/t1n.nii.gz")
    assert (first / volume).read_bytes() == (again / volume).read_bytes()
    assert (first / volume).read_bytes() != (other / volume).read_bytes()
