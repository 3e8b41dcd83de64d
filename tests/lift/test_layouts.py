from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lift.cohort.layouts import list_patients, tells_subjects
from lift.cohort.split import split_patients
from lift.config.cohort import (
    AutoData,
    BidsData,
    BratsData,
    CohortData,
    SynthradData,
    TableData,
)
from lift.config.plan import SplitPlan
from lift.config.site import SiteSettings
from lift.errors import ConfigError, DataError
from tests import wording


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def brats(root: Path, folder: str, *channels: str, suffix: str = ".nii.gz") -> None:
    touch(root, *(f"{folder}/{folder}-{channel}{suffix}" for channel in channels))


def test_brats_patients_are_listed_by_folder_and_grouped_by_person(tmp_path: Path) -> None:
    brats(tmp_path, "BraTS-GLI-00002-000", "t1n", "t2f", "seg")
    brats(tmp_path, "BraTS-GLI-00000-001", "t1n", "t2f", suffix=".nii")
    brats(tmp_path, "BraTS-GLI-00000-000", "t1n", "t2f", "t1c")
    touch(tmp_path, "PHANTOM.txt")
    patients, refusals = list_patients(BratsData(root=tmp_path), ["t1n", "t2f"])
    assert [patient.id for patient in patients] == [
        "BraTS-GLI-00000-000",
        "BraTS-GLI-00000-001",
        "BraTS-GLI-00002-000",
    ]
    assert [patient.subject for patient in patients] == [
        "BraTS-GLI-00000",
        "BraTS-GLI-00000",
        "BraTS-GLI-00002",
    ]
    assert refusals == []
    folder = tmp_path / "BraTS-GLI-00000-001"
    assert dict(patients[1].channels) == {
        "t1n": folder / "BraTS-GLI-00000-001-t1n.nii",
        "t2f": folder / "BraTS-GLI-00000-001-t2f.nii",
    }


def test_a_tumour_label_is_not_taken_for_the_patients_mask(tmp_path: Path) -> None:
    brats(tmp_path, "BraTS-GLI-00002-000", "t1n", "seg")
    patients, _ = list_patients(BratsData(root=tmp_path), ["t1n"])
    assert patients[0].mask is None


def test_synthrad_patients_have_their_own_mask(tmp_path: Path) -> None:
    for name in ("1PA004", "1BA001"):
        touch(tmp_path, *(f"{name}/{file}.nii.gz" for file in ("mr", "ct", "mask")))
    touch(tmp_path, "overview/1BA001_train.png")
    data = SynthradData(root=tmp_path)
    patients, refusals = list_patients(data, ["mr", "ct"], needs_mask=True)
    assert [(patient.id, patient.subject) for patient in patients] == [
        ("1BA001", "1BA001"),
        ("1PA004", "1PA004"),
    ]
    assert patients[0].mask == tmp_path / "1BA001" / "mask.nii.gz"
    # the challenge's folder of overview pictures is nobody
    assert refusals == []


@pytest.mark.parametrize(
    "files", [["mr.nii.gz", "mask.nii.gz"], ["mr.nii.gz", "ct.nii.gz"], ["MRI.nii.gz"]]
)
def test_an_incomplete_patient_is_refused_by_name_and_the_rest_go_on(
    tmp_path: Path, files: list[str]
) -> None:
    touch(tmp_path, *(f"1BA001/{file}.nii.gz" for file in ("mr", "ct", "mask")))
    touch(tmp_path, *(f"1BA002/{file}" for file in files))
    patients, refusals = list_patients(SynthradData(root=tmp_path), ["mr", "ct"], needs_mask=True)
    assert [patient.id for patient in patients] == ["1BA001"]
    assert [refusal.patient for refusal in refusals] == ["1BA002"]
    reason = refusals[0].reason
    assert all((reason.what, reason.where, reason.seen, reason.remedy))
    assert "'1BA002'" in reason.what
    assert "missing" in reason.seen
    with pytest.raises(DataError, match="1BA002"):
        list_patients(
            SynthradData(root=tmp_path, on_bad_file="stop"), ["mr", "ct"], needs_mask=True
        )


def test_a_folder_without_patients_is_refused(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "missing"):
        with pytest.raises(DataError, match="cannot list the patients"):
            list_patients(BratsData(root=root), ["t1n"])


def table(root: Path, text: str) -> TableData:
    (root / "patients.csv").write_text(text, encoding="utf-8")
    return TableData(root=root, table=root / "patients.csv")


def test_a_table_names_its_files_under_the_root(tmp_path: Path) -> None:
    touch(tmp_path, "b/t1.nii", "b/t2.nii", "a/t1.nii", "a/t2.nii", "a/m.nii")
    data = table(
        tmp_path,
        "\ufeffpatient,t1,t2,mask,age\nb, b/t1.nii ,b/t2.nii,,41\na,a/t1.nii,a/t2.nii,a/m.nii,\n",
    )
    patients, refusals = list_patients(data, ["t1", "t2"])
    assert [(p.id, p.subject, p.mask) for p in patients] == [
        ("a", "a", tmp_path / "a/m.nii"),
        ("b", "b", None),
    ]
    assert patients[1].channels["t1"] == tmp_path / "b/t1.nii"
    assert refusals == []
    assert [r.patient for r in list_patients(data, ["t1"], needs_mask=True)[1]] == ["b"]


def test_rows_of_a_table_with_one_subject_are_one_person(tmp_path: Path) -> None:
    touch(tmp_path, "1.nii", "2.nii", "3.nii")
    data = table(tmp_path, "patient,subject,t1\na, x ,1.nii\nb,x,2.nii\nc,c,3.nii\n")
    patients, _ = list_patients(data, ["t1"])
    assert [(one.id, one.subject) for one in patients] == [("a", "x"), ("b", "x"), ("c", "c")]
    # it is no channel, even where a file has the person's name
    touch(tmp_path, "x")
    assert all(set(one.channels) == {"t1"} for one in list_patients(data, ["t1"])[0])
    assert tells_subjects(data)


def test_a_table_without_subjects_is_said_to_take_each_row_for_a_person(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "1.nii", "2.nii")
    data = table(tmp_path, "patient,t1\na,1.nii\nb,2.nii\n")
    patients, _ = list_patients(data, ["t1"])
    assert [one.subject for one in patients] == ["a", "b"]
    assert "event=no_subject_column table=patients.csv" in caplog.text
    assert not tells_subjects(data)


def test_no_person_of_a_table_is_in_two_parts_of_the_split(tmp_path: Path) -> None:
    rows = [f"row-{index},person-{index % 20},v.nii" for index in range(60)]
    touch(tmp_path, "v.nii")
    data = table(tmp_path, "\n".join(["patient,subject,t1", *rows, ""]))
    patients, _ = list_patients(data, ["t1"])
    for split in (
        split_patients(patients, SplitPlan(key="k"), "north"),
        split_patients(patients, SplitPlan(key="k"), "north", one_by_one=True),
        # one of the three examinations is named
        split_patients(patients, SplitPlan(key="k", held_out=("north/row-7",)), "north"),
    ):
        own = {one.id: one.subject for one in patients}
        parts = [{own[i] for i in part} for part in (split.train, split.validation, split.test)]
        assert sum(map(len, parts)) == len(set().union(*parts)) == 20
    # rows without persons: some are in training and in the test at once
    bare = [replace(one, subject=one.id) for one in patients]
    split = split_patients(bare, SplitPlan(key="k"), "north")
    assert {own[i] for i in split.train} & {own[i] for i in split.test}


@pytest.mark.parametrize("cell", ["", "  ", "missing.nii", "."])
def test_a_row_without_a_usable_file_lacks_that_channel(tmp_path: Path, cell: str) -> None:
    touch(tmp_path, "t1.nii")
    patients, refusals = list_patients(
        table(tmp_path, f"patient,t1,t2\na,t1.nii,{cell}\n"), ["t1", "t2"]
    )
    assert patients == []
    assert "missing: t2; found: t1" in refusals[0].reason.seen


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("id,t1\na,t1.nii\n", "no column 'patient'"),
        ("patient,t1,t1\na,t1.nii,t1.nii\n", "2 columns are called 't1' in its heading, line 1"),
        ("patient,t1,T1\na,t1.nii,t1.nii\n", "2 columns are called 't1'"),
        ("patient,Patient,t1\na,b,t1.nii\n", "2 columns are called 'patient'"),
        ("patient;t1\na;t1.nii\n", "semicolons (;)"),
        ('patient,t1\na,"t1.nii\n', "line 2"),
        ("patient,t1\n", "no rows"),
        ("", "no rows"),
    ],
)
def test_a_wrong_table_is_refused_as_a_whole(tmp_path: Path, text: str, seen: str) -> None:
    root = tmp_path / "data"
    touch(root, "t1.nii")
    touch(tmp_path, "secret.nii")
    with pytest.raises(DataError) as caught:
        list_patients(table(root, text), ["t1"])
    assert seen in caught.value.seen
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("row", "named", "seen"),
    [
        ("a,../secret.nii", "a", "line 4 of the table names a file outside"),
        ("a,/etc/passwd", "a", "line 4 of the table names a file outside"),
        ("a,x/../../secret.nii", "a", "line 4 of the table names a file outside"),
        ("ok,t1.nii", "ok", "line 4 of the table is a second row of 'ok', after line 3"),
        (",t1.nii", "line 4", "line 4 of the table names no patient"),
        ("a,t1.nii,,more", "a", "line 4 of the table has more cells"),
        ("a," + "free text " * 30, "a", "line 4 of the table, t1: its files cannot be looked at"),
        ("a,loop", "a", "line 4 of the table, t1: its files cannot be looked at"),
        ("a,gone.nii", "a", "links to files that are not there: gone.nii"),
        ("a,T1_mpr.nii", "a", "there is no 'T1_mpr.nii' for t1 (line 4 of the table)"),
    ],
)
def test_one_bad_row_is_refused_by_line_and_the_others_go_on(
    tmp_path: Path, row: str, named: str, seen: str
) -> None:
    root = tmp_path / "data"
    touch(root, "t1.nii")
    touch(tmp_path, "secret.nii")
    (root / "gone.nii").symlink_to("annex/objects/gone.nii")
    (root / "loop").symlink_to("loop")
    data = table(root, f"patient,t1\n\nok,t1.nii\n{row}\nlast,t1.nii,\n")
    patients, refusals = list_patients(data, ["t1"])
    assert [patient.id for patient in patients] == ["last", "ok"][: 1 if named == "ok" else 2]
    assert {refusal.patient for refusal in refusals} == {named}
    assert seen in refusals[0].reason.seen
    assert refusals[0].reason.remedy
    stop = data.model_copy(update={"on_bad_file": "stop"})
    with pytest.raises(DataError) as caught:
        list_patients(stop, ["t1"])
    assert seen in caught.value.seen


def test_a_row_without_its_subject_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "t1.nii")
    for text in ("patient,subject,t1\na,,t1.nii\n", "patient,t1,subject\na,t1.nii\n"):
        _, (refusal,) = list_patients(table(tmp_path, text), ["t1"])
        assert "line 2 of the table names no subject" in refusal.reason.seen


def test_a_column_that_no_channel_asks_for_may_hold_any_text(tmp_path: Path) -> None:
    touch(tmp_path, "t1.nii")
    data = table(tmp_path, f"patient,notes,t1,notes\na,{'../x ' * 100},t1.nii,\0".replace("\0", ""))
    patients, refusals = list_patients(data, ["t1"])
    assert [dict(one.channels) for one in patients] == [{"t1": tmp_path / "t1.nii"}]
    assert refusals == []


def test_a_missing_or_binary_table_is_refused(tmp_path: Path) -> None:
    data = TableData(root=tmp_path, table=tmp_path / "patients.csv")
    with pytest.raises(DataError, match=wording.NO_SUCH_FILE):
        list_patients(data, ["t1"])
    data.table.write_bytes(b"patient,t1\n\xff\xfe\x00,\x80\n")
    with pytest.raises(DataError, match="CSV"):
        list_patients(data, ["t1"])


def test_the_layout_decides_which_keys_a_site_may_set() -> None:
    site = SiteSettings.from_data(
        {"name": "north", "data": {"layout": "table", "root": "/data", "table": "p.csv"}}, "x"
    )
    assert site.data == TableData(root=Path("/data"), table=Path("p.csv"))
    for data in (
        {"layout": "brats", "root": "/data", "table": "p.csv"},
        {"layout": "table", "root": "/data"},
        {"layout": "nifti", "root": "/data"},
        {"root": "/data"},
    ):
        with pytest.raises(ConfigError):
            SiteSettings.from_data({"name": "north", "data": data}, "x")


def no_look(monkeypatch: pytest.MonkeyPatch, part: str, code: int, *calls: str) -> None:
    """From now on these calls of the system fail for paths with this part."""
    for call in calls:
        real = getattr(os, call)

        def failing(path: Any, *args: Any, real: Any = real, **more: Any) -> Any:
            if not isinstance(path, int) and part in os.fspath(path):
                raise OSError(code, os.strerror(code), os.fspath(path))
            return real(path, *args, **more)

        monkeypatch.setattr(os, call, failing)


LAYOUTS: dict[str, Callable[[Path], CohortData]] = {
    "brats": lambda root: BratsData(root=root / "brats"),
    "synthrad": lambda root: SynthradData(root=root / "synthrad"),
    "bids": lambda root: BidsData(root=root / "bids"),
    "table": lambda root: TableData(root=root / "table", table=root / "table/t.csv"),
    "auto": lambda root: AutoData(root=root / "brats"),
}


@pytest.mark.parametrize(
    "calls", [("stat",), ("stat", "lstat"), ("listdir", "scandir"), ("stat", "listdir")]
)
@pytest.mark.parametrize("code", [errno.EACCES, errno.ESTALE, errno.EIO, errno.ENAMETOOLONG])
@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_patient_that_cannot_be_looked_at_is_refused_and_the_others_go_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    layout: str,
    deep: bool,
    code: int,
    calls: tuple[str, ...],
) -> None:
    for index in (1, 2, 3):
        brats(tmp_path / "brats", f"BraTS-GLI-0000{index}-000", "mr", "ct")
        touch(tmp_path / "synthrad", f"1BA00{index}/mr.nii.gz", f"1BA00{index}/ct.nii.gz")
        stem = f"sub-00{index}/anat/sub-00{index}"
        touch(tmp_path / "bids", f"{stem}_T1w.nii.gz", f"{stem}_CT.nii.gz")
        touch(tmp_path / "table", f"p00{index}/mr.nii.gz", f"p00{index}/ct.nii.gz")
    rows = [f"p00{i},p00{i}/mr.nii.gz,p00{i}/ct.nii.gz" for i in (1, 2, 3)]
    (tmp_path / "table/t.csv").write_text("\n".join(["patient,mr,ct", *rows]))
    data = LAYOUTS[layout](tmp_path)
    part = {"synthrad": "1BA002", "bids": "sub-002", "table": "p002"}.get(layout, "GLI-00002-000")
    no_look(monkeypatch, part + ("/" if deep else ""), code, *calls)
    patients, refusals = list_patients(data, ["mr", "ct"])
    named = {patient.id for patient in patients} | {refusal.patient for refusal in refusals}
    assert len(named) == 3
    assert len({patient.id for patient in patients if part not in patient.id}) == 2
    looked_into = "stat" in calls or (layout != "table" and not deep)
    if looked_into:
        (refusal,) = refusals
        assert part in refusal.patient
        assert os.strerror(code) in refusal.reason.seen
        assert refusal.reason.remedy
    monkeypatch.undo()
    # negative control: what can be looked at is used
    assert len(list_patients(data, ["mr", "ct"])[0]) == 3


def test_a_patient_that_yields_no_file_is_named(tmp_path: Path) -> None:
    root = tmp_path
    for name in ("1BA001", "1BA002"):
        touch(root, f"{name}/mr.nii.gz", f"{name}/ct.nii.gz")
    (root / "1BA003").mkdir()
    touch(root, "1BA004/mr.mnc", "1BA005/MR.NII.GZ", "1BA006/dicom/IM1", "1BA007/mr.nii.gz.part")
    (root / "1BA008").symlink_to("nowhere")
    touch(root, "1BA009/x")
    for channel in ("mr", "ct"):
        (root / f"1BA009/{channel}.nii.gz").symlink_to(f"../.git/annex/{channel}")
    touch(root, "1BA010/ct.nii.gz")
    (root / "1BA010/mr.nii.gz").symlink_to("nowhere.nii.gz")
    touch(root, ".git/x/y.nii.gz", "overview/1BA001.png", "code/run.py", "lost+found/x.nii.gz")
    patients, refusals = list_patients(SynthradData(root=root), ["mr", "ct"])
    assert [patient.id for patient in patients] == ["1BA001", "1BA002"]
    said = {refusal.patient: refusal.reason for refusal in refusals}
    assert sorted(said) == [f"1BA{index:03d}" for index in range(3, 11)]
    assert "holds nothing" in said["1BA003"].seen
    assert "mr.mnc" in said["1BA004"].seen
    assert "MR.NII.GZ" in said["1BA005"].seen
    for name in ("1BA009", "1BA010"):
        assert "links to files that are not there: mr.nii.gz" in said[name].seen
        assert "git annex get" in said[name].remedy


@pytest.mark.parametrize("form", ["nii.gz", "series", "dcm", "mha"])
def test_a_channel_in_one_form_is_found_and_in_two_is_refused(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "1BA001"
    touch(folder, "ct.nii")
    if form == "series":
        touch(folder / "mr", "IM0001")
    else:
        touch(folder, f"mr.{form}")
    data = SynthradData(root=tmp_path)
    (patient,), refusals = list_patients(data, ["mr", "ct"])
    assert patient.channels["mr"].name in {"mr", f"mr.{form}"}
    assert refusals == []
    touch(folder, "mr.nrrd")
    patients, (refusal,) = list_patients(data, ["mr", "ct"])
    assert patients == []
    assert "mr may be " in refusal.reason.seen
    assert " or " in refusal.reason.seen


def test_a_patient_in_an_archive_or_beside_the_folders_is_named(tmp_path: Path) -> None:
    root = tmp_path / "brats"
    for index in (1, 2):
        brats(root, f"BraTS-GLI-0000{index}-000", "t1n", "t2f")
    loose = [f"BraTS-GLI-00003-001-{channel}.nii.gz" for channel in ("t1n", "t2f")]
    touch(root, *loose, "BraTS-GLI-00004-000.zip", "BraTS-GLI-00005-000.tar.gz")
    # of a patient that has a folder, of nobody, and other files
    touch(root, "BraTS-GLI-00001-000.zip", "all.zip", "BraTS-GLI-00006-000.json", "list.csv")
    patients, refusals = list_patients(BratsData(root=root), ["t1n", "t2f"])
    assert [patient.id for patient in patients] == [f"BraTS-GLI-0000{i}-000" for i in (1, 2)]
    said = {refusal.patient: refusal.reason.seen for refusal in refusals}
    assert sorted(said) == ["BraTS-GLI-00003-001", "BraTS-GLI-00004-000", "BraTS-GLI-00005-000"]
    assert refusals[0].subject == "BraTS-GLI-00003"
    assert all(name in said["BraTS-GLI-00003-001"] for name in loose)
    assert "BraTS-GLI-00004-000.zip" in said["BraTS-GLI-00004-000"]


@pytest.mark.parametrize(
    ("data", "place", "name", "channels"),
    [
        (SynthradData, "Task1/brain", "1BA001", ("mr", "ct")),
        (SynthradData, "synthRAD2025_Task1_Train/Task1/AB", "1ABA005", ("mr", "ct")),
        (BratsData, "TrainingData", "BraTS-GLI-00000-000", ("t1n", "t2f")),
    ],
)
def test_patients_in_a_folder_below_the_one_that_is_named_are_pointed_at(
    tmp_path: Path,
    data: type[BratsData | SynthradData],
    place: str,
    name: str,
    channels: tuple[str, ...],
) -> None:
    prefix = f"{name}-" if data is BratsData else ""
    touch(tmp_path / place, *(f"{name}/{prefix}{channel}.mha" for channel in channels))
    with pytest.raises(DataError, match="cannot list") as refusal:
        list_patients(data(root=tmp_path), channels)
    assert f"'{place}' below it: set data.root" in refusal.value.remedy
    assert name not in str(refusal.value)
    assert len(list_patients(data(root=tmp_path / place), channels)[0]) == 1


def test_a_folder_without_patients_anywhere_points_nowhere(tmp_path: Path) -> None:
    touch(tmp_path, "Task1/overview/1BA001.png")
    with pytest.raises(DataError, match="cannot list") as refusal:
        list_patients(SynthradData(root=tmp_path), ["mr", "ct"])
    assert "below it" not in refusal.value.remedy
