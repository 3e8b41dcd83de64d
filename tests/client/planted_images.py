"""What may be given as a magnitude image and is none, and volumes around a grey background."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from tests.client.fault import Array, Fault, on

NO_IMAGE: Final = ("slice profile", "pairing", "face")
"""What may be said of it too: what is no image fails several checks."""


def _labels(scale: float) -> Callable[[Array, Array], tuple[Array, Array]]:
    """Boxes of four voxels, each with its own number, where the head is."""

    def change(voxels: Array, affine: Array) -> tuple[Array, Array]:
        places = np.indices(voxels.shape) // 4
        codes = (places[0] + 37 * places[1] + 1009 * places[2] + 1) * scale
        made = np.where(voxels > voxels.mean(), codes, 0)
        return made.astype(np.int32 if scale == 1 else np.float32), affine

    return change


def mask(voxels: Array, affine: Array) -> tuple[Array, Array]:
    """Where the head is."""
    return (voxels > voxels.mean()).astype(np.uint8) * 255, affine


def _angle(voxels: Array) -> Array:
    places = np.indices(voxels.shape) / 5
    return np.asarray(np.angle(np.exp(1j * (places[0] + places[1] * 1.3 + places[2]))))


def _phase(voxels: Array, affine: Array) -> tuple[Array, Array]:
    inside = voxels > voxels.mean()
    whole = np.rint((_angle(voxels) + np.pi) * 650)
    return np.where(inside, whole, 0).astype(np.int16), affine


def signed_phase(voxels: Array, affine: Array) -> tuple[Array, Array]:
    """Angles, and noise around them."""
    noise = np.random.default_rng(4).uniform(-np.pi, np.pi, voxels.shape)
    return np.where(voxels > voxels.mean(), _angle(voxels), noise).astype(np.float32), affine


def _grey(offset: float) -> Callable[[Array, Array], tuple[Array, Array]]:
    """Signed values, as of phase-sensitive inversion recovery, around a grey background."""

    def change(voxels: Array, affine: Array) -> tuple[Array, Array]:
        inside = voxels > 0.1 * float(np.percentile(voxels, 99))
        signed = np.where(inside, voxels - np.median(voxels[inside]), 0.0) + offset
        return signed.astype(np.float32), affine

    return change


def _elsewhere(voxels: Array, affine: Array) -> tuple[Array, Array]:
    return np.roll(voxels, voxels.shape[1] // 2, axis=1), affine


EQUAL: Final = "equal to their neighbours"
WRAPS: Final = "jump from its one end to the other"
BRAIN_IMAGE_FAULTS: dict[str, Fault] = {
    "label map": Fault(on("t2f", _labels(1)), "MR values", ("t2f",), EQUAL, beside=NO_IMAGE),
    "scaled label map": Fault(
        on("t2w", _labels(0.37)), "MR values", ("t2w",), EQUAL, beside=NO_IMAGE
    ),
    "mask": Fault(on("t2f", mask), "MR values", ("t2f",), "2 distinct values", beside=NO_IMAGE),
    "phase image": Fault(on("t2f", _phase), "MR values", ("t2f",), WRAPS, beside=NO_IMAGE),
    "signed phase": Fault(
        on("t2w", signed_phase), "MR values", ("t2w",), WRAPS, beside=(*NO_IMAGE, "background")
    ),
    "grey background": Fault(on("t1n", _grey(0)), "background", ("t1n",), "the background lies at"),
    "grey background of another": Fault(
        on("t2w", _grey(4000)), "background", ("t2w",), "the background lies at"
    ),
    "unpaired bodies": Fault(
        on("t2f", _elsewhere), "pairing", ("t2f",), "the bodies overlap by", beside=("face",)
    ),
}
