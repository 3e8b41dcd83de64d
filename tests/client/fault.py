"""A fault that is planted in a patient, and the pieces of which changes of files are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
PHANTOM = b"PHANTOM, simulated, no patient"


@dataclass(frozen=True)
class Fault:
    """What is done to a patient, and what must be said of it.

    Attributes:
        change: called with the patient's files by channel and, for a twin, another patient's.
        check: the check that must find it.
        channels: where; an empty name stands for the patient as a whole.
        says: words of the reason, which is true of this fault and of few others.
        verdict: of the patient.
        twin: whether a second patient, from which it copies, must be told too.
        beside: other checks that may tell of it too: what is no image fails several.
    """

    change: Callable[[Mapping[str, Path], Mapping[str, Path]], None]
    check: str
    channels: tuple[str, ...]
    says: str
    verdict: str = "veto"
    twin: bool = False
    beside: tuple[str, ...] = ()


def load(path: Path) -> tuple[Array, Array]:
    """Voxels and affine of a NIfTI file, to be changed."""
    image = nibabel.load(path)
    return np.asanyarray(image.dataobj).copy(), image.affine.copy()


def save(path: Path, voxels: Array, affine: Array, **texts: bytes) -> None:
    """Write a phantom as NIfTI, with texts in fields of its header."""
    image = nibabel.Nifti1Image(voxels, affine)
    image.header["descrip"] = PHANTOM
    for field, text in texts.items():
        image.header[field] = text
    image.to_filename(path)


def on(channel: str, change: Callable[[Array, Array], tuple[Array, Array]]) -> Any:
    """A change of one channel's voxels and affine."""

    def apply(files: Mapping[str, Path], _: Mapping[str, Path]) -> None:
        voxels, affine = change(*load(files[channel]))
        save(files[channel], voxels, affine)

    return apply
