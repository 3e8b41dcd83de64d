"""BIDS folders: sessions, entities, contrast agent, and what is not for us to guess."""

from __future__ import annotations

from pathlib import Path

import pytest

from lift.cohort.layouts import list_patients
from lift.config.cohort import BidsData
from lift.errors import ConfigError, DataError
from tests.lift.small_world import assert_four_parts

MR = ["t1n", "t1c", "t2w", "t2f"]


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def anat(root: Path, subject: str, *series: str, session: str = "") -> None:
    folder = f"{subject}/{session}/anat" if session else f"{subject}/anat"
    stem = f"{subject}_{session}" if session else subject
    touch(root, *(f"{folder}/{stem}_{name}" for name in series))


def bids(root: Path, **series: str) -> BidsData:
    return BidsData(root=root, series=series)


def test_each_session_is_a_volume_set_of_one_person(tmp_path: Path) -> None:
    whole = ("T1w.nii.gz", "ce-gd_T1w.nii.gz", "T2w.nii", "FLAIR.nii.gz", "T1w.json")
    anat(tmp_path, "sub-02", *whole)
    anat(tmp_path, "sub-01", *whole, session="ses-b")
    anat(tmp_path, "sub-01", *whole, session="ses-a")
    touch(tmp_path, "sub-03/dwi/sub-03_dwi.nii.gz", "derivatives/sub-02/anat/sub-02_T1w.nii.gz")
    touch(tmp_path, "dataset_description.json", "participants.tsv")
    patients, refusals = list_patients(bids(tmp_path), MR)
    # a subject without anatomical images is named too
    assert [refusal.patient for refusal in refusals] == ["sub-03"]
    assert "no folder anat" in refusals[0].reason.seen
    assert [(p.id, p.subject) for p in patients] == [
        ("sub-01_ses-a", "sub-01"),
        ("sub-01_ses-b", "sub-01"),
        ("sub-02", "sub-02"),
    ]
    names = {channel: path.name for channel, path in patients[2].channels.items()}
    assert names == {
        "t1n": "sub-02_T1w.nii.gz",
        "t1c": "sub-02_ce-gd_T1w.nii.gz",
        "t2w": "sub-02_T2w.nii",
        "t2f": "sub-02_FLAIR.nii.gz",
    }


def test_two_files_that_fit_are_refused_by_name_until_somebody_chooses(tmp_path: Path) -> None:
    anat(tmp_path, "sub-01", "acq-2d_T1w.nii.gz", "acq-3d_T1w.nii.gz", "FLAIR.nii.gz")
    anat(tmp_path, "sub-02", "acq-3d_T1w.nii.gz", "FLAIR.nii.gz")
    patients, refusals = list_patients(bids(tmp_path), ["t1n", "t2f"])
    assert [patient.id for patient in patients] == ["sub-02"]
    (refusal,) = refusals
    assert refusal.patient == "sub-01"
    assert_four_parts(refusal.reason)
    assert "sub-01_acq-2d_T1w.nii.gz or sub-01_acq-3d_T1w.nii.gz" in refusal.reason.seen
    assert "data.series" in refusal.reason.remedy
    patients, refusals = list_patients(bids(tmp_path, t1n="acq-3d_T1w"), ["t1n", "t2f"])
    assert [patient.id for patient in patients] == ["sub-01", "sub-02"]
    assert refusals == []


def test_a_missing_channel_is_named(tmp_path: Path) -> None:
    anat(tmp_path, "sub-01", "T1w.nii.gz")
    anat(tmp_path, "sub-02", "T1w.nii.gz", "FLAIR.nii.gz")
    _, refusals = list_patients(bids(tmp_path), ["t1n", "t2f"])
    assert "missing: t2f" in refusals[0].reason.seen


def test_contrast_agent_is_never_taken_for_none(tmp_path: Path) -> None:
    anat(tmp_path, "sub-01", "ce-gd_T1w.nii.gz")
    anat(tmp_path, "sub-02", "T1w.nii.gz")
    patients, refusals = list_patients(bids(tmp_path), ["t1n"])
    assert [patient.id for patient in patients] == ["sub-02"]
    assert [refusal.patient for refusal in refusals] == ["sub-01"]


def test_other_channels_and_masks_are_named_in_the_settings(tmp_path: Path) -> None:
    anat(tmp_path, "sub-01", "T2star.nii.gz", "CT.nii.gz", "desc-body_mask.nii.gz")
    data = bids(tmp_path, swi="T2star", mask="desc-body_mask")
    patients, _ = list_patients(data, ["swi", "ct"], needs_mask=True)
    assert patients[0].mask is not None
    assert patients[0].mask.name == "sub-01_desc-body_mask.nii.gz"
    with pytest.raises(DataError) as refused:
        list_patients(bids(tmp_path), ["swi"])
    assert_four_parts(refused.value)


@pytest.mark.parametrize("bad", ["", "../T1w", "T1w.nii", "a-b-c_T1w", "*_T1w", "T1w_"])
def test_a_pattern_that_is_none_is_refused(tmp_path: Path, bad: str) -> None:
    data = {"layout": "bids", "root": str(tmp_path), "series": {"t1n": bad}}
    with pytest.raises(ConfigError):
        BidsData.from_data(data, "site.yaml")


def test_an_empty_folder_is_nobody(tmp_path: Path) -> None:
    touch(tmp_path, "dataset_description.json", "derivatives/sub-01/anat/sub-01_T1w.nii.gz")
    with pytest.raises(DataError, match="cannot list"):
        list_patients(bids(tmp_path), ["t1n"])


def links(root: Path, subject: str, *series: str, session: str = "") -> None:
    folder = root / subject / session / "anat"
    folder.mkdir(parents=True, exist_ok=True)
    for name in series:
        stem = f"{subject}_{session}" if session else subject
        (folder / f"{stem}_{name}").symlink_to(f"../../.git/annex/objects/aa/{name}")


def test_every_subject_is_named_whatever_became_of_its_files(tmp_path: Path) -> None:
    both = ("T1w.nii.gz", "FLAIR.nii.gz")
    anat(tmp_path, "sub-01", *both)
    links(tmp_path, "sub-02", *both)
    anat(tmp_path, "sub-03", "T1w.nii.gz")
    links(tmp_path, "sub-03", "FLAIR.nii.gz")
    anat(tmp_path, "sub-04", *both, session="ses-1")
    links(tmp_path, "sub-04", *both, session="ses-2")
    # a follow-up of other images alone is no examination of this kind
    touch(tmp_path, "sub-04/ses-3/func/sub-04_ses-3_bold.nii.gz")
    anat(tmp_path, "sub-05", "T1w.mgz", "FLAIR.nrrd")
    touch(tmp_path, "sub-06/anat/T1w.nii.gz", "sub-07/anat/sub-07_T1w.NII.GZ")
    (tmp_path / "sub-08").mkdir()
    (tmp_path / "sub-09/anat").mkdir(parents=True)
    (tmp_path / "sub-10").symlink_to("../elsewhere/sub-10")
    touch(tmp_path, "sub-11/ses-1/dwi/sub-11_ses-1_dwi.nii.gz", "sub-template.txt")
    patients, refusals = list_patients(bids(tmp_path), ["t1n", "t2f"])
    assert [patient.id for patient in patients] == ["sub-01", "sub-04_ses-1"]
    said = {refusal.patient: refusal.reason for refusal in refusals}
    assert sorted(said) == [
        *("sub-02", "sub-03", "sub-04_ses-2", "sub-05", "sub-06", "sub-07", "sub-08", "sub-09"),
        *("sub-10", "sub-11"),
    ]
    for name in ("sub-02", "sub-03", "sub-04_ses-2"):
        assert "links to files that are not there" in said[name].seen
        assert "datalad get" in said[name].remedy
    assert "sub-05_T1w.mgz" in said["sub-05"].seen
    assert "T1w.nii.gz" in said["sub-06"].seen
    assert "holds nothing" in said["sub-08"].seen


def test_a_part_that_is_no_magnitude_is_taken_only_where_it_is_named(tmp_path: Path) -> None:
    for index, part in enumerate(("phase", "real", "imag", "mag"), start=1):
        anat(tmp_path, f"sub-0{index}", f"part-{part}_T1w.nii.gz")
    patients, refusals = list_patients(bids(tmp_path), ["t1n"])
    assert [patient.id for patient in patients] == ["sub-04"]
    assert [refusal.patient for refusal in refusals] == ["sub-01", "sub-02", "sub-03"]
    patients, _ = list_patients(bids(tmp_path, t1n="part-phase_T1w"), ["t1n"])
    assert [patient.id for patient in patients] == ["sub-01"]


def test_a_series_may_be_the_one_without_an_entity(tmp_path: Path) -> None:
    anat(tmp_path, "sub-01", "T1w.nii.gz", "acq-lowres_T1w.nii.gz", "acq-lowres_rec-a_T1w.nii.gz")
    assert list_patients(bids(tmp_path), ["t1n"])[0] == []
    patients, _ = list_patients(bids(tmp_path, t1n="without-acq_T1w"), ["t1n"])
    assert patients[0].channels["t1n"].name == "sub-01_T1w.nii.gz"
    patients, _ = list_patients(bids(tmp_path, t1n="acq-*_without-rec_T1w"), ["t1n"])
    assert patients[0].channels["t1n"].name == "sub-01_acq-lowres_T1w.nii.gz"
    patients, _ = list_patients(bids(tmp_path, t1n="without-acq_without-rec_T1w"), ["t1n"])
    assert patients[0].channels["t1n"].name == "sub-01_T1w.nii.gz"


def test_images_beside_sessions_and_in_archives_are_somebodys(tmp_path: Path) -> None:
    both = ("T1w.nii.gz", "FLAIR.nii.gz")
    anat(tmp_path, "sub-01", *both)
    anat(tmp_path, "sub-01", *both, session="ses-2")
    touch(tmp_path, "sub-01.zip", "sub-02.tar.gz", "sub-03_T1w.nii.gz", "sub-03_FLAIR.nii.gz")
    patients, refusals = list_patients(bids(tmp_path), ["t1n", "t2f"])
    assert [(one.id, one.subject) for one in patients] == [
        ("sub-01", "sub-01"),
        ("sub-01_ses-2", "sub-01"),
    ]
    assert [refusal.patient for refusal in refusals] == ["sub-02", "sub-03"]
    assert "sub-03_FLAIR.nii.gz, sub-03_T1w.nii.gz" in refusals[1].reason.seen


def test_images_named_after_somebody_else_are_not_taken(tmp_path: Path) -> None:
    both = ("T1w.nii.gz", "FLAIR.nii.gz")
    anat(tmp_path, "sub-01", *both)
    stem = "sub-02/ses-1/anat/sub-02"
    touch(tmp_path, *(f"{stem}_{name}" for name in both))
    touch(tmp_path, *(f"sub-03/anat/sub-04_{name}" for name in both))
    touch(tmp_path, *(f"sub-05/ses-1/anat/sub-05_ses-2_{name}" for name in both))
    patients, refusals = list_patients(bids(tmp_path), ["t1n", "t2f"])
    assert [patient.id for patient in patients] == ["sub-01", "sub-02_ses-1"]
    said = {refusal.patient: refusal.reason.seen for refusal in refusals}
    assert sorted(said) == ["sub-03", "sub-05_ses-1"]
    assert "sub-04_T1w.nii.gz" in said["sub-03"]
