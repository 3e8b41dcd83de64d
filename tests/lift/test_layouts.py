from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lift.cohort.layouts import list_patients, tells_subjects
from lift.cohort.split import split_patients
from lift.config.cohort import BratsData, SynthradData, TableData
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
        ("patient,t1\na,../secret.nii\n", "line 2 names a file outside"),
        ("patient,t1\na,/etc/passwd\n", "line 2 names a file outside"),
        ("patient,t1\na,x/../../secret.nii\n", "line 2 names a file outside"),
        ("patient,t1\na,t1.nii\na,t1.nii\n", "line 3 is a second row of 'a'"),
        ("patient,t1\n,t1.nii\n", "line 2 names no patient"),
        ("patient,t1\na,t1.nii,more\n", "line 2 has more cells"),
        ("patient,subject,t1\na,,t1.nii\n", "line 2 names no subject"),
        ("patient,t1,subject\na,t1.nii\n", "line 2 names no subject"),
        ("id,t1\na,t1.nii\n", "no column 'patient'"),
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
