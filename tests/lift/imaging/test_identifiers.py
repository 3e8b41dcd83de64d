"""Texts in headers are found by the names of their fields; what they say is told to nobody."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from lift.inspection.identifiers import identifying_fields
from tests.lift.formats.dicom_cases import enhanced, series
from tests.lift.formats.dicom_cases import write as write_series

SECRETS = {
    "descrip": "DOE^JANE 1961-02-03",
    "aux_file": "pat_0815.txt",
    "intent_name": "J. Doe",
}


def write(path: Path, kind: type = nibabel.Nifti1Image, **texts: str) -> Path:
    image = kind(np.zeros((3, 3, 3), np.int16), np.eye(4))
    for field, text in texts.items():
        image.header[field] = text
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "odd name"])
def test_every_text_field_is_found_by_its_name(tmp_path: Path, kind: type, name: str) -> None:
    written = write(tmp_path / "x.nii.gz", kind, **SECRETS)
    path = tmp_path / name
    content = written.read_bytes()
    path.write_bytes(content if name.endswith("gz") else gzip.decompress(content))
    found = identifying_fields(path)
    assert found == tuple(sorted(SECRETS))
    assert not any(secret in " ".join(found) for secret in SECRETS.values())


@pytest.mark.parametrize(
    "signature", ["", "FSL5.0", "6.0.5:9e026117", "spm - 3D normalized", "TE=2.9"]
)
def test_the_signature_of_software_names_nobody(tmp_path: Path, signature: str) -> None:
    assert identifying_fields(write(tmp_path / "a.nii.gz", descrip=signature)) == ()


@pytest.mark.parametrize("text", ["TE=2.9;Time=141530.250", "Doe", "19610203", "FSL5.0 Doe"])
def test_a_time_a_name_and_a_date_are_not_signatures(tmp_path: Path, text: str) -> None:
    assert identifying_fields(write(tmp_path / "a.nii.gz", descrip=text)) == ("descrip",)


def test_extensions_are_named(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((3, 3, 3), np.int16), np.eye(4))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension(6, b"PatientName Doe"))
    nibabel.save(image, tmp_path / "a.nii")
    assert identifying_fields(tmp_path / "a.nii") == ("header extensions",)


@given(content=st.binary(max_size=700))
def test_other_bytes_are_no_header(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes"
    path.write_bytes(content)
    assert isinstance(identifying_fields(path), tuple)
    path.write_bytes(gzip.compress(content)[: max(2, len(content) // 2)])
    assert isinstance(identifying_fields(path), tuple)


def test_a_missing_file_has_none(tmp_path: Path) -> None:
    assert identifying_fields(tmp_path / "absent.nii") == ()


def test_a_text_header_is_told_by_the_kind_of_what_was_added(tmp_path: Path) -> None:
    image = SimpleITK.Image(3, 3, 3, SimpleITK.sitkInt16)
    for name in ("a.nrrd", "a.mha"):
        SimpleITK.WriteImage(image, str(tmp_path / name))
        assert identifying_fields(tmp_path / name) == ()
    for name, added, told in (
        ("a.nrrd", "# DOE^JANE", "comments"),
        ("a.nrrd", "DOE^JANE:=1961", "key/value pairs"),
        ("a.nrrd", "content: DOE^JANE", "content"),
        ("a.mha", "Comment = DOE^JANE", "Comment"),
        ("a.mha", "DOE^JANE = 1961", "fields beside the image's own"),
    ):
        first, rest = (tmp_path / name).read_bytes().split(b"\n", 1)
        (tmp_path / f"b-{name}").write_bytes(first + f"\n{added}\n".encode() + rest)
        assert identifying_fields(tmp_path / f"b-{name}") == (told,)


def test_attributes_of_a_series_are_told_by_keyword(tmp_path: Path) -> None:
    def one_named(index: int, dataset: Dataset) -> None:
        for element in list(dataset):
            if element.VR in {"PN", "LO", "SH", "LT", "DA"}:
                del dataset[element.tag]
        if index == 4:
            dataset.PatientName = "DOE^JANE"

    folder = write_series(series(change=one_named), tmp_path / "cleared")
    assert identifying_fields(folder) == ("PatientName",)
    (tmp_path / "a.dcm").write_bytes(enhanced())
    told = identifying_fields(tmp_path / "a.dcm")
    assert {"PatientID", "StudyDate", "AccessionNumber", "private tags"} <= set(told)
    assert not any("JANE" in name for name in told)
    assert identifying_fields(tmp_path) == told
