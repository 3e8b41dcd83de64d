"""DICOM series and multi-frame files, written by hand with pydicom."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as Items

from tests.lift.formats.cases import NAME, turned, voxels

Array = NDArray[Any]
Change = Callable[[int, Dataset], None]
_ROOT = "1.2.826.0.1.3680043.10.9999"
_FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])


def geometry(affine: Array) -> tuple[list[float], list[float], Array, Array]:
    """Orientation, pixel spacing, first position and step, LPS+, of a RAS+ affine."""
    lps = _FLIP @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    axes = lps[:3, :2] / spacing[:2]
    # rows first: the distance between rows
    return [*axes[:, 0], *axes[:, 1]], [spacing[1], spacing[0]], lps[:3, 3], lps[:3, 2]


def header(data: Array, modality: str, *, enhanced: bool = False) -> Dataset:
    """What every file of a series says; a name in every text that there is."""
    dataset = Dataset()
    dataset.SOPClassUID = {
        ("MR", False): uid.MRImageStorage,
        ("CT", False): uid.CTImageStorage,
        ("MR", True): uid.EnhancedMRImageStorage,
        ("CT", True): uid.EnhancedCTImageStorage,
    }[modality, enhanced]
    dataset.Modality = modality
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"{_ROOT}.1", f"{_ROOT}.2"
    dataset.FrameOfReferenceUID = f"{_ROOT}.5"
    for keyword in (
        *("PatientName", "PatientID", "InstitutionName", "StudyDescription", "SeriesDescription"),
        *("ReferringPhysicianName", "OperatorsName", "PatientComments", "AccessionNumber"),
        *("ProtocolName", "StationName", "ImageComments", "OtherPatientIDs", "Manufacturer"),
    ):
        setattr(dataset, keyword, NAME)
    dataset.PatientBirthDate = dataset.StudyDate = "19480317"
    block = dataset.private_block(0x0011, NAME, create=True)
    block.add_new(0x01, "LO", NAME)
    dataset.Columns, dataset.Rows = data.shape[:2]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    bits = data.dtype.itemsize * 8
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = int(data.dtype.kind == "i")
    return dataset


def to_bytes(dataset: Dataset, syntax: str = uid.ExplicitVRLittleEndian) -> bytes:
    """The file of a data set."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = uid.UID(syntax)
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID", f"{_ROOT}.3")
    file = FileDataset("", dataset, file_meta=meta, preamble=bytes(128))
    stream = BytesIO()
    little = syntax != uid.ExplicitVRBigEndian
    pydicom.dcmwrite(
        stream,
        file,
        little_endian=little,
        implicit_vr=syntax == uid.ImplicitVRLittleEndian,
        force_encoding=True,
    )
    return stream.getvalue()


def series(
    data: Array | None = None,
    affine: Array | None = None,
    *,
    modality: str = "MR",
    syntax: str = uid.ExplicitVRLittleEndian,
    change: Change | None = None,
) -> list[bytes]:
    """The files of a series, one a slice, in order along the third axis.

    Args:
        data: (column, row, slice).
        affine: RAS+.
        modality: MR or CT.
        syntax: how the files are encoded.
        change: called with each slice's number and data set before it is written.
    """
    data = voxels() if data is None else data
    axes, spacing, first, step = geometry(turned() if affine is None else affine)
    files = []
    for index in range(data.shape[2]):
        dataset = header(data, modality)
        dataset.SOPInstanceUID = f"{_ROOT}.3.{index + 1}"
        dataset.InstanceNumber = 1000 - index
        dataset.ImageOrientationPatient = [f"{v:.10g}" for v in axes]
        dataset.PixelSpacing = [f"{v:.10g}" for v in spacing]
        dataset.ImagePositionPatient = [f"{v:.10g}" for v in first + index * step]
        dataset.SliceThickness = f"{np.linalg.norm(step):.10g}"
        if modality == "CT":
            dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
        big = syntax == uid.ExplicitVRBigEndian
        pixels = data[:, :, index].T.astype(data.dtype.newbyteorder(">" if big else "<"))
        dataset.PixelData = pixels.tobytes() + bytes(pixels.nbytes % 2)
        dataset["PixelData"].VR = "OW" if data.dtype.itemsize > 1 else "OB"
        if change is not None:
            change(index, dataset)
        files.append(to_bytes(dataset, syntax))
    return files


def enhanced(
    data: Array | None = None,
    affine: Array | None = None,
    *,
    modality: str = "MR",
    order: Sequence[int] | None = None,
    change: Callable[[Dataset], None] | None = None,
    syntax: str = uid.ExplicitVRLittleEndian,
) -> bytes:
    """One multi-frame file, its frames in any order."""
    data = voxels() if data is None else data
    axes, spacing, first, step = geometry(turned() if affine is None else affine)
    order = range(data.shape[2]) if order is None else order
    dataset = header(data, modality, enhanced=True)
    dataset.SOPInstanceUID = f"{_ROOT}.4"
    dataset.NumberOfFrames = len(order)
    shared, plane, measures, scale = Dataset(), Dataset(), Dataset(), Dataset()
    plane.ImageOrientationPatient = [f"{v:.10g}" for v in axes]
    measures.PixelSpacing = [f"{v:.10g}" for v in spacing]
    measures.SliceThickness = f"{np.linalg.norm(step):.10g}"
    scale.RescaleSlope, scale.RescaleIntercept = 1, -1024 if modality == "CT" else 0
    shared.PlaneOrientationSequence = Items([plane])
    shared.PixelMeasuresSequence = Items([measures])
    shared.PixelValueTransformationSequence = Items([scale])
    dataset.SharedFunctionalGroupsSequence = Items([shared])
    frames = []
    for index in order:
        frame, place = Dataset(), Dataset()
        place.ImagePositionPatient = [f"{v:.10g}" for v in first + index * step]
        frame.PlanePositionSequence = Items([place])
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = Items(frames)
    dataset.PixelData = b"".join(data[:, :, index].T.tobytes() for index in order)
    dataset["PixelData"].VR = "OW"
    if change is not None:
        change(dataset)
    return to_bytes(dataset, syntax)


def write(files: Sequence[bytes], folder: Path, seed: int = 3) -> Path:
    """Put files into a folder under names that say nothing of their order."""
    folder.mkdir(parents=True, exist_ok=True)
    names = np.random.default_rng(seed).permutation(len(files))
    for number, content in zip(names, files, strict=True):
        (folder / f"IM{number:04d}").write_bytes(content)
    return folder
