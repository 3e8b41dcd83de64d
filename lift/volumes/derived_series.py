"""A synthetic volume as a derived DICOM series, in the place and the study of its source.

What its files say is in `lift.volumes.series_headers`.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from nibabel.orientations import apply_orientation, ornt_transform
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite

from lift.errors import AffineError
from lift.process import files_kept_private
from lift.volumes.formats.checks import Refusal
from lift.volumes.formats.dicom import Slice, slices_of
from lift.volumes.formats.dicom_image import is_dicom, read_dataset
from lift.volumes.formats.packed import read_file
from lift.volumes.series_headers import (
    StoredValues,
    common_part,
    image_part,
    place_part,
    said_of,
    source_item,
)
from lift.volumes.synthetic import Synthesis
from lift.volumes.volume import CANONICAL, Volume, read_volume

_IMPLEMENTATION: Final = uid.UID("2.25.326231099656077840837707319057754788773")
_VERSION_NAME: Final = "LIFT-FEDERATED"
_SAME_VOXEL: Final = 0.1
_START: Final = 132
_SAME_MM: Final = 0.01
_SAME_DIRECTION: Final = 1e-3


@dataclass(frozen=True)
class SourceSeries:
    """The series that a derived one is made on.

    Attributes:
        name: of its folder or file.
        volume: its voxels and grid.
        slices: in the order of the third axis of its grid.
        others: slices of further series that the volume was computed from, in any order.
        said: what is taken over of its first slice's header, as text.
    """

    name: str
    volume: Volume
    slices: tuple[Slice, ...]
    others: tuple[Slice, ...]
    said: Mapping[str, str]


def read_source_series(path: Path, inputs: Iterable[Path] = ()) -> SourceSeries:
    """The series of a folder, or of one multi-frame file.

    Args:
        path: the folder or the file.
        inputs: what the volume is computed from; those that are DICOM are referred to as well.

    Raises:
        VolumeError: the series cannot be read, is no DICOM, or does not say of which study or in
            which frame of reference it is, one for all slices.
        AffineError: it does not say where its pixels lie.
    """
    refuse = Refusal(path.name, None, verb="derive from")
    slices = tuple(slices_of(path, refuse))
    whole = "Export the series again from the archive, or write NIfTI alone."
    images = [one.image for one in slices]
    for what, found in (
        ("Study Instance UID", {image.study for image in images}),
        ("Frame of Reference UID", {image.frame_of_reference for image in images}),
    ):
        if len(found) > 1 or not all(uid.UID(one).is_valid for one in found):
            seen = (
                f"its slices have {len(found)} different" if len(found) > 1 else "it has no valid"
            )
            raise refuse(f"{seen} {what}; a derived series must have the same one", whole)
    named = {(image.instance, one.number) for image, one in zip(images, slices, strict=True)}
    if len(named) < len(slices) or not all(uid.UID(image.instance).is_valid for image in images):
        raise refuse("its slices have no SOP Instance UIDs of their own to refer to", whole)
    gone = refuse("a file of it is no longer there", whole)
    header = read_dataset(read_file(slices[0].path, refuse, missing=gone), refuse)
    said = said_of(header, refuse)
    others = tuple(one for other in inputs for one in _slices_of_input(other))
    return SourceSeries(path.name, read_volume(path), slices, others, said)


def is_dicom_path(path: Path) -> bool:
    """Whether a volume is read as DICOM: a folder, or a file that begins as such files do."""
    try:
        if path.is_dir():
            return True
        with path.open("rb") as stream:
            return is_dicom(stream.read(_START))
    except OSError:
        # whoever reads it says why it cannot be
        return False


def check_new_folder(folder: Path) -> None:
    """Raise VolumeError unless a series can be written into a folder: a new or an empty one."""
    try:
        if not folder.is_dir():
            seen = "a file has this name" if folder.exists() or folder.is_symlink() else ""
        else:
            seen = "the folder is not empty" if any(folder.iterdir()) else ""
    except OSError as error:
        seen = error.strerror or type(error).__name__
    if seen:
        refuse = Refusal(folder.name, folder.parent, verb="write")
        raise refuse(seen, "No series was written. Name a new folder; a series has one of its own.")


def check_on_series(volume: Volume, source: SourceSeries, name: str) -> None:
    """Raise AffineError unless a volume's voxels are those of the series.

    Converters compute the places of all slices from two of them, and headers round: up to a tenth
    of a voxel apart it is the same grid. What is written has the places of the series.

    Args:
        volume: the first source, whose grid the synthetic volume has.
        source: the series.
        name: of that channel.
    """
    shape, other = source.volume.voxels.shape, volume.voxels.shape
    if shape == other:
        ends = np.array(np.meshgrid(*((0, length - 1) for length in shape))).reshape(3, -1)
        corners = np.vstack([ends, np.ones(ends.shape[1])])
        off = np.linalg.inv(source.volume.affine) @ volume.affine @ corners - corners
        farthest = float(np.abs(off).max())
        if farthest <= _SAME_VOXEL:
            return
        seen = f"corners lie up to {farthest:.2f} voxels apart; at most {_SAME_VOXEL} is one grid"
    else:
        seen = f"{' x '.join(map(str, other))} voxels; the series has {' x '.join(map(str, shape))}"
    raise AffineError(
        f"the synthetic volume would not lie on the series '{source.name}'",
        where="--dicom",
        seen=f"it has the grid of the first source '{name}', which is another one: {seen}",
        remedy="Nothing was written. Give the series that the first source was made of, or that "
        "series as the first source.",
    )


def write_derived_series(
    folder: Path,
    voxels: NDArray[Any],
    source: SourceSeries,
    made: Synthesis,
) -> None:
    """Write a volume as one file for each slice, with new UIDs, in the place of the source's.

    Instance numbers grow along the normal of the slices. Values are stored in 16 bits: HU exactly,
    others to within half of 1/65535 of their range. The folder is complete or absent, and readable
    by its owner alone: it holds a patient's name.

    Args:
        folder: new or empty.
        voxels: (x, y, z) RAS+, on the grid of `source`.
        source: the series whose patient, study and places are taken over.
        made: what made the volume.

    Raises:
        VolumeError: the folder is not empty, the values are not finite or of a range beyond 16
            bits, or the disk refuses.
        ValueError: the shape differs.
    """
    if voxels.shape != source.volume.voxels.shape:
        raise ValueError(f"shape {voxels.shape} is not {source.volume.voxels.shape}")
    check_new_folder(folder)
    data = _along_file_axes(voxels, source.volume)
    refuse = Refusal(folder.name, folder.parent, verb="write")
    stored = StoredValues.of(data, made, refuse)
    common, image = common_part(source.said, made), image_part(source.said, made, stored)
    with files_kept_private():
        folder = folder.absolute()
        unfinished = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
        try:
            unfinished.mkdir(parents=True)
            for index, one in enumerate(source.slices):
                dataset = Dataset()
                for part in (common, image, place_part(one, source.slices)):
                    dataset.update(part)
                dataset.InstanceNumber = index + 1
                dataset.SOPInstanceUID = uid.generate_uid(prefix=None)
                dataset.SourceImageSequence = [
                    source_item(each) for each in (one, *_others_there(one, source.others))
                ]
                dataset.PixelData = _little_endian(stored.numbers[:, :, index].T)
                dataset["PixelData"].VR = "OW"
                _write(unfinished / f"slice-{index + 1:04d}.dcm", dataset)
            unfinished.rename(folder)
        except OSError as error:
            raise refuse(
                error.strerror or type(error).__name__,
                "No series was written. Free disk space or choose another folder.",
            ) from None
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def _little_endian(plane: NDArray[Any]) -> bytes:
    return plane.astype(plane.dtype.newbyteorder("<")).tobytes()


def _along_file_axes(voxels: NDArray[Any], like: Volume) -> NDArray[Any]:
    """RAS+ voxels as (column, row, slice) of the series."""
    turned: NDArray[Any] = apply_orientation(
        voxels, ornt_transform(CANONICAL, like.grid.orientation)
    )
    return turned


def _slices_of_input(path: Path) -> list[Slice]:
    return slices_of(path, Refusal(path.name, None)) if is_dicom_path(path) else []


def _others_there(one: Slice, others: Sequence[Slice]) -> list[Slice]:
    """The slices of other series that lie on this one pixel by pixel."""
    if not others:
        return []
    off = np.array([each.frame.position for each in others]) - one.frame.position
    near = np.flatnonzero(np.linalg.norm(off, axis=1) <= _SAME_MM)
    return [
        each
        for each in (others[int(index)] for index in near)
        if uid.UID(each.image.instance).is_valid
        and each.image.instance != one.image.instance
        and each.image.frame_of_reference == one.image.frame_of_reference
        and (each.image.columns, each.image.rows) == (one.image.columns, one.image.rows)
        and np.allclose(each.frame.spacing_mm, one.frame.spacing_mm, rtol=_SAME_DIRECTION, atol=0)
        and np.allclose(each.frame.along_row, one.frame.along_row, atol=_SAME_DIRECTION)
        and np.allclose(each.frame.along_column, one.frame.along_column, atol=_SAME_DIRECTION)
    ]


def _write(path: Path, dataset: Dataset) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    meta.ImplementationClassUID, meta.ImplementationVersionName = _IMPLEMENTATION, _VERSION_NAME
    dataset.file_meta = meta
    with path.open("xb") as stream:
        dcmwrite(stream, dataset, enforce_file_format=True)
        stream.flush()
        os.fsync(stream.fileno())
