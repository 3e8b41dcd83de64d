"""Write packed_frames.json: the slices of `packed_voxels`, as dcmtk and OpenJPEG pack them.

To be run where dcmtk is installed: `python -m tests.lift.formats.make_packed_frames`.
"""

from __future__ import annotations

import base64
import json
import subprocess
import tempfile
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
import pydicom
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames

from tests.lift.formats.cases import Array
from tests.lift.formats.dicom_cases import series

PLACE: Final = Path(__file__).with_name("packed_frames.json")
SHAPE: Final = (36, 40, 2)
"""Columns, rows, slices: OpenJPEG packs no smaller pictures."""
KINDS: Final = ("u2", "i2", "u12", "i12")
TOOLS: Final = {
    str(uid.JPEGLossless): ["dcmcjpeg", "+el", "+sv", "4"],
    str(uid.JPEGLosslessSV1): ["dcmcjpeg", "+e1"],
    str(uid.JPEGLSLossless): ["dcmcjpls"],
    str(uid.JPEG2000Lossless): [],
}


def packed_voxels(kind: str) -> Array:
    """Numbers over the whole range of 16 bits, or of the lower 12 of them, in smooth waves."""
    x, y, z = np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij")
    wave = np.sin(x / 15) * np.cos(y / 17 + z)
    half = 1 << (11 if kind.endswith("12") else 15)
    data = np.clip(np.rint(wave * half), -half, half - 1)
    data.flat[:2] = -half, half - 1
    signed = kind.startswith("i")
    return np.asarray(data if signed else data + half).astype("<i2" if signed else "<u2")


def stored_as(kind: str, _: int, dataset: Dataset) -> None:
    """Say how many bits are stored."""
    if kind.endswith("12"):
        dataset.BitsStored, dataset.HighBit = 12, 11


def main() -> None:
    """Write the file anew."""
    frames: dict[str, dict[str, list[str]]] = {}
    for kind in KINDS:
        for syntax, tool in TOOLS.items():
            plain = series(packed_voxels(kind), change=partial(stored_as, kind))
            packed = [_packed(content, tool) for content in plain]
            frames.setdefault(kind, {})[syntax] = [base64.b64encode(one).decode() for one in packed]
    PLACE.write_text(json.dumps(frames, indent=1) + "\n", encoding="utf-8")


def _packed(content: bytes, tool: list[str]) -> bytes:
    if not tool:
        dataset = pydicom.dcmread(BytesIO(content))
        dataset.compress(uid.JPEG2000Lossless)
    else:
        with tempfile.TemporaryDirectory() as folder:
            plain, made = Path(folder) / "a", Path(folder) / "b"
            plain.write_bytes(content)
            subprocess.run([*tool, str(plain), str(made)], check=True, capture_output=True)
            dataset = pydicom.dcmread(made)
    (frame,) = generate_frames(dataset.PixelData, number_of_frames=1)
    return bytes(frame)


if __name__ == "__main__":
    main()
