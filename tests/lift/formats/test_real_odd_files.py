"""Real odd files are read as SimpleITK and nibabel read them, or refused with the reason."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from lift.errors import AffineError, VolumeError
from lift.volumes.volume import check_same_grid, read_volume, write_volume
from tests import wording
from tests.lift.formats.cases import check_places, decoded, itk_answer

pytestmark = pytest.mark.real_data

READ = [
    "bigendian_scwhite.nii",
    "ct_gantry_tilt_sheared.nii.gz",
    "ct_hu_3mm_int32.nii.gz",
    "ct_hu_3mm_small_int16.nii.gz",
    "ct_lung_small.mha",
    "mr_abdomen_3mm.nii.gz",
    "mr_breast.nrrd",
    "mr_flair_oblique_4mm_uint16.nii.gz",
    "nibabel_anatomical.nii",
    "nibabel_standard.nii.gz",
]
REFUSED = {
    "EMPTY.nii.gz": "the file is empty",
    "NOTGZIP_text.nii.gz": "damaged",
    "TRUNCATED_half.nii.gz": "ends early",
    "mr_4d_pcasl.nii.gz": "4 axes longer than 1",
    "nibabel_analyze.hdr": "left and right cannot be told apart",
    "nibabel_example_nifti2.nii.gz": "4 axes longer than 1",
    "nibabel_functional.nii": "4 axes longer than 1",
    "nibabel_test.mgz": "4 axes longer than 1",
    # every third slice, more or less, was kept
    "dicom_t1post_siemens": "slices are missing: there are 8, 6.50 mm apart",
}
# ITK refuses sheared axes, or takes the quaternion beside them
NOT_FOR_ITK = {"ct_gantry_tilt_sheared.nii.gz"}


@pytest.fixture
def folder(real_data: Path) -> Path:
    return real_data / "format_robustness"


def test_every_real_odd_file_is_in_one_of_the_tables(folder: Path) -> None:
    found = {path.name for path in folder.iterdir()} - {"SOURCE.md"}
    assert found == {*READ, *REFUSED}


@pytest.mark.parametrize("name", READ)
def test_a_real_file_is_read_where_others_read_it(folder: Path, name: str, tmp_path: Path) -> None:
    found = decoded(folder / name)
    data = found.data * found.slope + found.inter
    if name not in NOT_FOR_ITK:
        values, affine = itk_answer(folder / name)
        np.testing.assert_allclose(data, values, rtol=1e-6)
        check_places(found.affine, affine, data.shape, 1e-3)
    if ".nii" in name:
        image = nibabel.load(folder / name)
        np.testing.assert_array_equal(data, np.asarray(image.dataobj))
        check_places(found.affine, image.affine, data.shape, 1e-6)
    volume = read_volume(folder / name)
    write_volume(tmp_path / "a.nii.gz", volume.voxels, volume)
    again = read_volume(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(again.voxels, volume.voxels)
    check_same_grid(volume, again, ("a", "b"))


@pytest.mark.parametrize(("name", "seen"), REFUSED.items())
def test_a_real_file_that_cannot_be_used_is_refused(folder: Path, name: str, seen: str) -> None:
    with pytest.raises(VolumeError) as caught:
        read_volume(folder / name, root=folder)
    assert seen in caught.value.seen
    assert isinstance(caught.value, AffineError) == (wording.SIDES_UNKNOWN in seen)
