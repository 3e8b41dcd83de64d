"""Volumes of every format, and the headers of the two text formats, written by hand."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK
from numpy.typing import NDArray

from lift.volumes.formats.checks import Decoded, Refusal
from lift.volumes.formats.decode import decode

Array = NDArray[Any]
SHAPE = (4, 5, 6)
NAME = "JANE DOE"
"""Stands in every text field; no message and no header may hold it."""

NRRD = {
    "type": "int16",
    "dimension": "3",
    "space": "right-anterior-superior",
    "sizes": "4 5 6",
    "space directions": "(1,0,0) (0,1,0) (0,0,3)",
    "kinds": "domain domain domain",
    "endian": "little",
    "encoding": "raw",
    "space origin": "(-7,8,9.5)",
}
META = {
    "ObjectType": "Image",
    "NDims": "3",
    "Comment": NAME,
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "TransformMatrix": "-1 0 0 0 -1 0 0 0 1",
    "Offset": "7 -8 9.5",
    "ElementSpacing": "1 1 3",
    "DimSize": "4 5 6",
    "ElementType": "MET_SHORT",
    "ElementDataFile": "LOCAL",
}


def voxels(dtype: str = "<i2", shape: tuple[int, ...] = SHAPE) -> Array:
    """Numbers over the whole range of their type."""
    target = np.dtype(dtype)
    rng = np.random.default_rng(5)
    if target.kind == "f":
        return rng.normal(scale=300, size=shape).astype(target)
    limits = np.iinfo(target)
    raw = rng.integers(limits.min, limits.max, shape, dtype=target.newbyteorder("="), endpoint=True)
    raw.flat[:2] = limits.min, limits.max
    return raw.astype(target)


def stored(data: Array) -> bytes:
    """The voxels as every format stores them, the first axis fastest."""
    return data.tobytes(order="F")


def nrrd_text(changes: Mapping[str, str | None] | None = None) -> bytes:
    """The header of `voxels()`; a change to None takes a field away."""
    fields = {**NRRD, **(changes or {})}
    lines = [f"{key}: {text}" for key, text in fields.items() if text is not None]
    return "\n".join(["NRRD0005", *lines, f"patient:={NAME}", f"# {NAME}", "\n"]).encode()


def meta_text(changes: Mapping[str, str | None] | None = None) -> bytes:
    """The header of `voxels()`; a change to None takes a field away."""
    fields = {**META, **(changes or {})}
    # the field that ends a header stays where it is
    fields["ElementDataFile"] = fields.pop("ElementDataFile")
    return "".join(f"{key} = {text}\n" for key, text in fields.items() if text is not None).encode()


def nifti(data: Array, affine: Array, kind: Any = nibabel.Nifti1Image, **options: Any) -> Any:
    """A NIfTI image with a name in its text fields."""
    header = kind.header_class(endianness=">") if options.pop("big_endian", False) else None
    image = kind(data, affine, header, dtype=data.dtype)
    for text in ("descrip", "aux_file", "intent_name"):
        image.header[text] = NAME.encode()
    return image


def turned() -> Array:
    """A RAS+ affine, turned about two axes, with three different spacings."""
    a, b = 0.30, -0.17
    turn_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    turn_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn_x @ turn_z @ np.diag([0.9, 1.1, 5.0])
    affine[:3, 3] = (-40.25, 31.5, 12.125)
    return affine


def itk_image(data: Array, affine: Array) -> Any:
    """The same volume as ITK has it: axes in reverse, x and y to the left and to the back."""
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(data.T))
    lps = np.diag([-1, -1, 1]) @ affine[:3]
    spacing = np.linalg.norm(lps[:, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:, 3].tolist())
    return image


def itk_answer(path: Path) -> tuple[Array, Array]:
    """Voxels along the file's axes, and its affine in RAS+, as ITK reads them."""
    return placed(SimpleITK.ReadImage(str(path)))


def placed(image: Any) -> tuple[Array, Array]:
    """Voxels and RAS+ affine of an image that ITK has read."""
    data = SimpleITK.GetArrayFromImage(image).T
    affine = np.eye(4)
    origin = np.array(image.TransformContinuousIndexToPhysicalPoint((0.0, 0.0, 0.0)))
    for axis, unit in enumerate(np.eye(3)):
        place = image.TransformContinuousIndexToPhysicalPoint(unit.tolist())
        affine[:3, axis] = np.array(place) - origin
    affine[:3, 3] = origin
    return data, np.diag([-1, -1, 1, 1]) @ affine


def decoded(path: Path) -> Decoded:
    """What the reader makes of a file."""
    return decode(path, Refusal(path.name, path.parent))[0]


def check_places(found: Array, wanted: Array, shape: tuple[int, ...], within_mm: float) -> None:
    """Nothing, when all eight corners lie together."""
    ends = np.array(np.meshgrid(*[(0, n - 1) for n in shape])).reshape(3, -1)
    corners = np.vstack([ends, np.ones(8)])
    assert np.abs((found - wanted) @ corners).max() <= within_mm


@dataclass(frozen=True)
class Example:
    """One volume as files.

    Attributes:
        path: the one that is named.
        files: name -> content, all in one folder.
        header: the one with the header.
        text: whether the header is text.
        packed: whether gzip packs the header too.
    """

    path: str
    files: Mapping[str, bytes]
    header: str = ""
    text: bool = False
    packed: bool = False

    def write(self, folder: Path) -> Path:
        """Put the files there: the path of the one that is named."""
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        return folder / self.path


def examples(data: Array) -> dict[str, Example]:
    """The same little volume in every format and form that is read."""
    raw, affine = stored(data), np.diag([1.0, 1, 3, 1])
    affine[:3, 3] = (-7, 8, 9.5)
    sizes = " ".join(map(str, data.shape))
    nrrd_type, meta_type = {
        "int16": ("int16", "MET_SHORT"),
        "float64": ("double", "MET_DOUBLE"),
    }[data.dtype.name]
    of_nrrd = {"type": nrrd_type, "sizes": sizes}
    of_meta = {"ElementType": meta_type, "DimSize": sizes}
    one, two = (nifti(data, affine, kind) for kind in (nibabel.Nifti1Image, nibabel.Nifti2Image))
    big = nifti(data.astype(data.dtype.newbyteorder(">")), affine, big_endian=True)
    pair = nifti(data, affine, nibabel.Nifti1Pair)
    head, body = pair.header.binaryblock, raw
    # MGH knows no float64
    single = data.astype(np.float32) if data.dtype.kind == "f" else data
    mgh = nibabel.MGHImage(single, affine).to_bytes()

    def packed(content: bytes) -> bytes:
        return gzip.compress(content, mtime=0)

    zlibbed = zlib.compress(raw)
    in_zlib = {**of_meta, "CompressedData": "True", "CompressedDataSize": str(len(zlibbed))}
    of_gzip = {**of_nrrd, "encoding": "gzip"}
    return {
        "nifti1": Example("a.nii", {"a.nii": one.to_bytes()}),
        "nifti1-gz": Example("a.nii.gz", {"a.nii.gz": packed(one.to_bytes())}, packed=True),
        "nifti1-big": Example("a.nii", {"a.nii": big.to_bytes()}),
        "nifti2": Example("a.nii", {"a.nii": two.to_bytes()}),
        "pair": Example("a.img", {"a.hdr": head, "a.img": body}, "a.hdr"),
        "pair-gz": Example(
            "a.hdr.gz", {"a.hdr.gz": packed(head), "a.img.gz": packed(body)}, packed=True
        ),
        "mgh": Example("a.mgh", {"a.mgh": mgh}),
        "mgz": Example("a.mgz", {"a.mgz": packed(mgh)}, packed=True),
        "nrrd": Example("a.nrrd", {"a.nrrd": nrrd_text(of_nrrd) + raw}, text=True),
        "nrrd-gz": Example("a.nrrd", {"a.nrrd": nrrd_text(of_gzip) + packed(raw)}, text=True),
        "nhdr": Example(
            "a.nhdr",
            {"a.nhdr": nrrd_text({**of_nrrd, "data file": "a.raw"}), "a.raw": raw},
            text=True,
        ),
        "nhdr-gz": Example(
            "a.nhdr",
            {"a.nhdr": nrrd_text({**of_gzip, "data file": "./b.gz"}), "b.gz": packed(raw)},
            text=True,
        ),
        "mha": Example("a.mha", {"a.mha": meta_text(of_meta) + raw}, text=True),
        "mha-zlib": Example("a.mha", {"a.mha": meta_text(in_zlib) + zlibbed}, text=True),
        "mhd": Example(
            "a.mhd",
            {"a.mhd": meta_text({**of_meta, "ElementDataFile": "a.raw"}), "a.raw": raw},
            text=True,
        ),
        "mhd-zlib": Example(
            "a.mhd",
            {"a.mhd": meta_text({**in_zlib, "ElementDataFile": "b.zraw"}), "b.zraw": zlibbed},
            text=True,
        ),
    }
