"""Faults of files, folders and headers: of NIfTI, of DICOM series, of a patient who has none."""

from __future__ import annotations

import os
import shutil
import signal
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import nibabel
import numpy as np
from pydicom.dataset import Dataset

from lift.cohort.examination import PatientReport
from lift.cohort.patients import Patient
from lift.cohort.vetoes import examined
from lift.config.plan import GridRule
from tests.client.fault import Array, Fault, load, on
from tests.client.planted_images import NO_IMAGE, WRAPS, mask, signed_phase
from tests.lift.formats.dicom_cases import series

Files = Mapping[str, Path]
Change = Callable[[Files, Files], None]
KILLS: Final = "kills-who-looks"
"""A file in the folder of a patient at whom every process is killed."""


def examined_or_killed(patient: Patient, root: Path, grid: GridRule) -> PatientReport:
    """As `examined`, in a process that the system kills at some patients."""
    if (root / patient.id / KILLS).exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return examined(patient, root, grid)


def _in_header(channel: str, form: str, place: int, *values: float) -> Change:
    """Other numbers in a header, the rest of the file as it is."""

    def change(files: Files, _: Files) -> None:
        image = nibabel.load(files[channel])
        content = bytearray(image.to_bytes())
        struct.pack_into(form, content, place, *values)
        files[channel].with_suffix("").write_bytes(content)
        files[channel].unlink()

    return change


def _qform(channel: str, change: Callable[[Array], None]) -> Change:
    def apply(files: Files, _: Files) -> None:
        image = nibabel.load(files[channel])
        other = image.affine.copy()
        change(other)
        image.set_sform(image.affine, 1)
        image.set_qform(other, 1)
        image.to_filename(files[channel])

    return apply


def _by(mm: float) -> Callable[[Array], None]:
    def change(affine: Array) -> None:
        affine[0, 3] += mm

    return change


def _mirrored(affine: Array) -> None:
    affine[0] *= -1


def _header_among_voxels(files: Files, _: Files) -> None:
    path = files["t2f"]
    image = nibabel.load(path)
    pair = nibabel.Nifti1Pair(np.asanyarray(image.dataobj), image.affine)
    stem = path.name.removesuffix(".nii.gz")
    pair.to_filename(path.with_name(f"{stem}.hdr"))
    path.with_name(f"{stem}.img").write_bytes(image.to_bytes())
    path.unlink()


def _folder(files: Files) -> Path:
    return next(iter(files.values())).parent


def _circle(files: Files, _: Files) -> None:
    folder = _folder(files)
    shutil.rmtree(folder)
    folder.symlink_to(folder.name)


def _archive(files: Files, _: Files) -> None:
    folder = _folder(files)
    shutil.make_archive(str(folder), "zip", folder)
    shutil.rmtree(folder)


def _not_fetched(files: Files, _: Files) -> None:
    for path in files.values():
        path.unlink()
        path.symlink_to(Path("..", ".git", "annex", "objects", path.name))


def _pointer(files: Files, _: Files) -> None:
    files["t2f"].write_bytes(b"../.git/annex/objects/Wx/2J/MD5E-s12--ab.nii.gz/MD5E-s12--ab.nii.gz")


def _called(ending: str) -> Change:
    def change(files: Files, _: Files) -> None:
        for channel, path in files.items():
            path.rename(path.with_name(f"{channel}{ending}"))

    return change


def _kills(files: Files, _: Files) -> None:
    (_folder(files) / KILLS).touch()


def _series(
    channel: str,
    change: Callable[[int, Dataset], None] | None = None,
    *,
    kept: Callable[[int, int], bool] = lambda index, count: True,
    after: Callable[[list[bytes]], list[bytes]] = lambda files: files,
) -> Change:
    """The channel as a DICOM series of the slices that are kept."""

    def apply(files: Files, _: Files) -> None:
        path = files[channel]
        voxels, affine = load(path)
        modality = "CT" if channel == "ct" else "MR"
        stored = (np.rint(voxels) + 1024 * (modality == "CT")).astype(np.int16)
        made = series(stored, affine, modality=modality, change=change)
        made = after([one for index, one in enumerate(made) if kept(index, len(made))])
        folder = path.with_name(path.name.removesuffix(".nii.gz"))
        folder.mkdir()
        for index, content in enumerate(made):
            (folder / f"slice{index:03d}.dcm").write_bytes(content)
        path.unlink()

    return apply


def _set(**fields: Any) -> Callable[[int, Dataset], None]:
    def change(index: int, dataset: Dataset) -> None:
        for name, value in fields.items():
            setattr(dataset, name, value(index) if callable(value) else value)

    return change


def _odd(index: int, dataset: Dataset) -> None:
    """What is no reason to refuse: texts of one number, UIDs by file, a UID in another field."""
    dataset.EchoTime = "3" if index % 2 else "3.00"
    dataset.FrameOfReferenceUID = f"1.2.3.{index}"
    dataset.add_new(0x00090010, "LO", "ARCHIVE")
    dataset.add_new(0x00091001, "UI", "1.2.840.10008.1.2.1.99")


def _bare(files: list[bytes]) -> list[bytes]:
    return [content[132:] for content in files]


def _one_cut(files: list[bytes]) -> list[bytes]:
    return [*files[:5], files[5][:-300], *files[6:]]


def _half_above(index: int, count: int) -> bool:
    return index < count // 2 or index % 2 == 0


_ODD_WORDS: Final = "the header holds text"
BRAIN_FILE_FAULTS: dict[str, Fault] = {
    "inside its header": Fault(
        _in_header("t1n", "<f", 108, 0), "readable", ("t1n",), "field vox_offset"
    ),
    "at the end of its header": Fault(
        _in_header("t2w", "<f", 108, 348), "readable", ("t2w",), "field vox_offset"
    ),
    "header among its voxels": Fault(
        _header_among_voxels, "readable", ("t2f",), "begins with a NIfTI header"
    ),
    "folder in a circle": Fault(_circle, "files", ("",), "symbolic links"),
    "not fetched": Fault(_not_fetched, "files", ("",), "links to files that are not there"),
    "pointer": Fault(_pointer, "readable", ("t2f",), "its content was not fetched"),
    "another format alone": Fault(_called(".mnc"), "files", ("",), "holds t1n.mnc, t2f.mnc"),
    "other names": Fault(_called("-3d.nii.gz"), "files", ("",), "holds t1n-3d.nii.gz"),
    "in an archive": Fault(_archive, "files", ("",), "it has no folder"),
    "killed": Fault(_kills, "looking", ("",), "the process that looked at it was killed"),
    "two places": Fault(_qform("t2w", _by(25)), "header's place", ("t2w",), "25.0 mm apart"),
    "two places nearby": Fault(
        _qform("t1n", _by(0.5)), "header's place", ("t1n",), "0.5 mm apart", "warn"
    ),
    "mirrored by its qform": Fault(
        _qform("t2f", _mirrored), "header's place", ("t2f",), "mirrored: voxel"
    ),
    "two sizes": Fault(
        _in_header("t1n", "<f", 80, 5.0), "header's place", ("t1n",), "5 x 2.5 x 3 mm by pixdim"
    ),
    "mosaic": Fault(
        _series("t2w", _set(ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"])),
        "readable",
        ("t2w",),
        "it is a mosaic",
    ),
    "two slabs": Fault(
        _series("t2f", kept=_half_above), "readable", ("t2f",), "slabs that meet at"
    ),
    "lost end": Fault(
        _series("t1n", _set(ImagesInAcquisition=lambda _: 60), kept=lambda i, _: i < 30),
        "readable",
        ("t1n",),
        "30 of 60 images are there",
    ),
    "lost slice": Fault(
        _series(
            "t2w",
            _set(SliceThickness=lambda i: "3.00" if i % 2 else "3.01"),
            kept=lambda i, _: i != 12,
        ),
        "readable",
        ("t2w",),
        "1 slices are missing",
    ),
    "one bad slice": Fault(_series("t2f", after=_one_cut), "readable", ("t2f",), "slice005.dcm"),
    "odd and sound": Fault(_series("t2w", _odd), "identifiers", ("t2w",), _ODD_WORDS, "warn"),
    "without preamble": Fault(
        _series("t2f", after=_bare), "identifiers", ("t2f",), _ODD_WORDS, "warn"
    ),
}
HEAD_FILE_FAULTS: dict[str, Fault] = {
    "slabs by thickness": Fault(
        _series("ct", _set(SliceThickness=lambda i: "3" if i < 20 else "6"), kept=_half_above),
        "readable",
        ("ct",),
        "mm thick (Slice Thickness): slabs",
    ),
    "lost base": Fault(
        _series("ct", _set(NumberOfSlices=90), kept=lambda i, _: i > 20),
        "readable",
        ("ct",),
        "of 90 images are there",
    ),
    "phase of a head": Fault(
        on("mr", signed_phase), "MR values", ("mr",), WRAPS, beside=(*NO_IMAGE, "background")
    ),
    "mask of a head": Fault(on("mr", mask), "MR values", ("mr",), "2 distinct", beside=NO_IMAGE),
}
