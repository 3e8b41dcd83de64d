"""qform, sform and pixdim that contradict each other are said, with both places in mm."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from lift.inspection.finding import Finding, Verdict
from lift.inspection.header_place import check_header_place
from lift.volumes.volume import read_volume
from tests.lift.formats.cases import examples, turned, voxels

Array = NDArray[Any]


def found(
    folder: Path,
    qform: Callable[[Array], None] | None = None,
    *,
    codes: tuple[int, int] = (1, 1),
    pixdim: tuple[float, float, float] | None = None,
    kind: Any = nibabel.Nifti1Image,
) -> Finding:
    other = turned()
    if qform is not None:
        qform(other)
    image = kind(voxels(), turned())
    image.set_qform(other, codes[0])
    image.set_sform(turned(), codes[1])
    content = bytearray(image.to_bytes())
    if pixdim is not None:
        place, form = (80, "<3f") if kind is nibabel.Nifti1Image else (112, "<3d")
        struct.pack_into(form, content, place, *pixdim)
    (folder / "a.nii").write_bytes(bytes(content))
    return check_header_place(read_volume(folder / "a.nii").grid)


def mirrored(affine: Array) -> None:
    affine[:3, 0] *= -1


def mirrored_in_place(affine: Array) -> None:
    """About the volume's own middle: the corners are only exchanged."""
    affine[:3, 3] += affine[:3, 0] * (voxels().shape[0] - 1)
    affine[:3, 0] *= -1


def by(mm: float) -> Callable[[Array], None]:
    def moved(affine: Array) -> None:
        affine[1, 3] += mm

    return moved


def turned_by(degrees: float) -> Callable[[Array], None]:
    def change(affine: Array) -> None:
        turn = np.deg2rad(degrees)
        about_z = np.eye(3)
        about_z[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
        affine[:3, :3] = about_z @ affine[:3, :3]

    return change


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize(
    ("qform", "codes", "verdict"),
    [
        (None, (1, 1), "use"),
        (None, (1, 2), "use"),
        (by(0.01), (1, 1), "use"),
        (by(0.5), (1, 1), "warn"),
        (by(25.0), (1, 1), "veto"),
        (by(25.0), (1, 2), "warn"),
        (by(25.0), (1, 4), "warn"),
        (by(25.0), (0, 1), "use"),
        (turned_by(90.0), (1, 1), "veto"),
        (turned_by(2.0), (1, 1), "warn"),
        (mirrored, (1, 1), "veto"),
        (mirrored, (1, 4), "veto"),
        (mirrored_in_place, (1, 2), "veto"),
    ],
)
def test_two_places_are_said_in_mm(
    tmp_path: Path, qform: Any, codes: tuple[int, int], verdict: Verdict, kind: Any
) -> None:
    one = found(tmp_path, qform, codes=codes, kind=kind)
    assert one.verdict == verdict
    if verdict != "use":
        assert "by its qform" in one.seen
        assert "by its sform" in one.seen
        assert "mm apart" in one.seen
        assert ("mirrored" in one.seen) == (qform in {mirrored, mirrored_in_place})


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize(
    ("pixdim", "codes", "verdict"),
    [
        ((0.9, 1.1, 5.0), (0, 1), "use"),
        ((0.9, 1.1, 5.02), (0, 1), "use"),
        ((0.9, 1.1, 5.2), (0, 1), "warn"),
        ((0.9, 1.1, 1.2), (0, 1), "veto"),
        ((float("nan"), 1.1, 5.0), (0, 1), "veto"),
        ((0.9, float("inf"), 5.0), (0, 1), "veto"),
        ((5.0, 1.1, 5.0), (0, 2), "veto"),
        ((1.0, 1.0, 1.0), (0, 1), "warn"),
    ],
)
def test_two_sizes_are_said_in_mm(
    tmp_path: Path,
    pixdim: tuple[float, float, float],
    codes: tuple[int, int],
    verdict: Verdict,
    kind: Any,
) -> None:
    one = found(tmp_path, codes=codes, pixdim=pixdim, kind=kind)
    assert one.verdict == verdict
    assert ("by pixdim" in one.seen) == (verdict != "use")


def test_a_qform_that_is_no_rotation_is_said(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(voxels(), turned())
    image.set_qform(turned(), 1)
    image.set_sform(turned(), 1)
    content = bytearray(image.to_bytes())
    struct.pack_into("<3f", content, 256, 0.9, 0.9, 0.9)
    (tmp_path / "a.nii").write_bytes(bytes(content))
    one = check_header_place(read_volume(tmp_path / "a.nii").grid)
    assert one.verdict == "warn"
    assert "qform" in one.seen


@pytest.mark.parametrize("name", examples(voxels()))
def test_every_format_has_one_place(tmp_path: Path, name: str) -> None:
    grid = read_volume(examples(voxels())[name].write(tmp_path)).grid
    assert check_header_place(grid).verdict == "use"
