"""What the checks say of real volumes; skipped without them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lift.inspection.checks import check_ct, check_grid, check_mr
from lift.inspection.face import has_face
from lift.inspection.pairing import pairing
from lift.inspection.slice_profile import estimate_profiles, through_plane_axis
from lift.volumes.volume import Volume, read_volume

pytestmark = pytest.mark.real_data
MS = "open_ms_mni_4contrast"
IXI = "ixi_hh_t1_2mm/IXI012-HH-1211-T1_ds.nii.gz"
TUMOUR = "brain_tumor_progression_4contrast"


def tissue(volume: Volume) -> NDArray[np.bool_]:
    return np.asarray(volume.voxels > np.percentile(volume.voxels, 60))


@pytest.mark.parametrize(
    ("name", "acquired_mm"),
    [
        # acquired in slices of 3.3 mm and as an isotropic volume, all resampled to 1, then 2 mm
        ("patient07_t1", 3.3),
        ("patient19_t2", 3.3),
        ("patient07_flair", None),
        ("patient19_flair", None),
    ],
)
def test_thick_series_in_a_template_space_are_told_from_isotropic_ones(
    real_data: Path, name: str, acquired_mm: float | None
) -> None:
    volume = read_volume(real_data / MS / f"{name}.nii.gz")
    profiles = estimate_profiles(volume.voxels, tissue(volume), volume.spacing_mm)
    assert [profile.is_resampled for profile in profiles[:2]] == [False, False]
    if acquired_mm is None:
        assert profiles[2].basis == "as stored"
        assert through_plane_axis(profiles) is None
    else:
        assert profiles[2].basis == "spectrum"
        assert profiles[2].acquired_spacing_mm == pytest.approx(acquired_mm, rel=0.15)
        assert through_plane_axis(profiles) == 2


def test_series_on_their_own_grid_are_as_stored(real_data: Path) -> None:
    for name in (IXI, f"{TUMOUR}/study1_flair.nii.gz", f"{TUMOUR}/study3_t1.nii.gz"):
        volume = read_volume(real_data / name)
        profiles = estimate_profiles(volume.voxels, tissue(volume), volume.spacing_mm)
        assert not any(profile.is_resampled for profile in profiles), name


def test_real_channels_pair_within_a_patient_only(real_data: Path) -> None:
    one, other = ("patient07", "patient19")
    t1 = read_volume(real_data / MS / f"{one}_t1.nii.gz")
    for patient, verdict in ((one, "use"), (other, "veto")):
        flair = read_volume(real_data / MS / f"{patient}_flair.nii.gz").voxels
        found = pairing(t1.voxels, flair, t1.voxels > 0, flair > 0, t1.spacing_mm)
        assert found.finding.verdict == verdict
        swapped = flair[::-1]
        found = pairing(t1.voxels, swapped, t1.voxels > 0, swapped > 0, t1.spacing_mm)
        assert found.finding.verdict == "veto"


@pytest.mark.parametrize(
    ("name", "is_present"),
    [(IXI, True), (f"{TUMOUR}/study1_t1.nii.gz", True), (f"{MS}/patient07_t1.nii.gz", False)],
)
def test_real_faces_are_found(real_data: Path, name: str, is_present: bool) -> None:
    volume = read_volume(real_data / name)
    assert has_face(volume.voxels, volume.spacing_mm).is_present == is_present


def test_real_values_are_taken_for_what_they_are(real_data: Path) -> None:
    ct = read_volume(real_data / "format_robustness/ct_hu_3mm_int32.nii.gz")
    assert check_ct(ct.voxels).verdict == "use"
    assert check_mr(ct.voxels).verdict != "use"
    for name in (IXI, f"{TUMOUR}/study2_t2.nii.gz", f"{MS}/patient19_t2.nii.gz"):
        mr = read_volume(real_data / name)
        assert check_mr(mr.voxels).verdict == "use"
        assert check_ct(mr.voxels).verdict == "veto"
        assert check_grid(mr.affine).verdict == "use"
    windowed = read_volume(real_data / "format_robustness/ct_gantry_tilt_sheared.nii.gz")
    assert check_ct(windowed.voxels).verdict == "veto"
