"""The layout of a folder is told by what lies in it, and never guessed between two."""

from __future__ import annotations

from pathlib import Path

import pytest

from lift.cohort.guess import guess_layout
from lift.cohort.layouts import list_patients
from lift.config.cohort import AutoData
from lift.errors import DataError
from tests.lift.small_world import assert_four_parts

NAME = "BraTS-GLI-00001-000"
FILES = {
    "brats": [f"{NAME}/{NAME}-t1n.nii.gz", f"{NAME}/{NAME}-t2f.nii.gz"],
    "synthrad": ["1BA001/mr.nii.gz", "1BA001/ct.nii.gz", "overview/x.png"],
    "bids": ["sub-1/anat/sub-1_T1w.nii.gz", "sub-1/anat/sub-1_FLAIR.nii.gz"],
    "bids with sessions": ["sub-1/ses-1/anat/sub-1_ses-1_T1w.nii", "README"],
    "table": ["patients.csv", "scans/a.nii", "scans/b.nii", "other.csv"],
}
CHANNELS = {"synthrad": ["mr", "ct"], "bids with sessions": ["t1n"]}


def make(root: Path, kind: str) -> AutoData:
    for name in FILES[kind]:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    if kind == "table":
        (root / "patients.csv").write_text("patient,t1n,t2f\na,scans/a.nii,scans/b.nii\n")
        (root / "other.csv").write_text("age,sex\n")
    return AutoData(root=root)


@pytest.mark.parametrize("kind", FILES)
def test_every_layout_is_told(tmp_path: Path, kind: str) -> None:
    data, channels = make(tmp_path, kind), CHANNELS.get(kind, ["t1n", "t2f"])
    guess = guess_layout(data, channels)
    assert guess.data.layout == kind.split(maxsplit=1)[0]
    assert guess.evidence
    patients, refusals = list_patients(data, channels)
    assert len(patients) == 1
    assert refusals == []


def test_two_layouts_in_one_folder_are_nobody_s_to_choose(tmp_path: Path) -> None:
    make(tmp_path, "brats")
    with pytest.raises(DataError) as refused:
        guess_layout(make(tmp_path, "bids"), ["t1n"])
    assert_four_parts(refused.value)
    assert "brats (1 folders" in refused.value.seen
    assert "bids" in refused.value.seen


def test_nothing_that_fits_is_said(tmp_path: Path) -> None:
    (tmp_path / "scan.nii.gz").touch()
    with pytest.raises(DataError) as refused:
        guess_layout(AutoData(root=tmp_path), ["t1n"])
    assert_four_parts(refused.value)
    with pytest.raises(DataError) as refused:
        guess_layout(AutoData(root=tmp_path / "absent"), ["t1n"])
    assert_four_parts(refused.value)


def test_what_to_do_with_bad_files_is_kept(tmp_path: Path) -> None:
    make(tmp_path, "brats")
    data = AutoData(root=tmp_path, on_bad_file="stop")
    assert guess_layout(data, ["t1n"]).data.on_bad_file == "stop"
