"""Phantom cohorts with faults planted in some patients: what a site may really have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK

from lift.cohort.phantom.write import write_phantom_cohort
from lift.config.phantom import PhantomCohortConfig
from tests.client.fault import Array, Fault, load, on, save
from tests.client.planted_files import BRAIN_FILE_FAULTS, HEAD_FILE_FAULTS
from tests.client.planted_images import BRAIN_IMAGE_FAULTS
from tests.client.planted_table import TABLE_FAULTS, write_table
from tests.lift.formats.cases import itk_image

MR = ("t1n", "t2w", "t2f")
HEAD = ("mr", "ct")
KINDS = ("brains", "heads", "table")
LETTERS = ("xxx.x.x", "x...x.x", "xx..xxx", "x...x.x", "xxx.x.x")


def _axis(affine: Array, direction: int) -> int:
    """The file's axis that lies most along x, y or z."""
    return int(np.argmax(np.abs(affine[direction, :3]) / np.linalg.norm(affine[:3, :3], axis=0)))


def _truncated(files: Mapping[str, Path], _: Mapping[str, Path]) -> None:
    path = files["t2w"]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _with_nan(voxels: Array, affine: Array) -> tuple[Array, Array]:
    voxels = voxels.astype(np.float32)
    voxels[tuple(n // 2 for n in voxels.shape)] = np.nan
    return voxels, affine


def _no_orientation(files: Mapping[str, Path], _: Mapping[str, Path]) -> None:
    image = nibabel.load(files["t1n"])
    content = bytearray(image.to_bytes())
    header = image.header.copy()
    header["sform_code"] = header["qform_code"] = 0
    content[: header.sizeof_hdr] = header.binaryblock
    plain = files["t1n"].with_suffix("")
    plain.write_bytes(content)
    files["t1n"].unlink()


def _elsewhere(voxels: Array, affine: Array) -> tuple[Array, Array]:
    affine[0, 3] += 5.0
    return voxels, affine


def _moved(voxels: Array, affine: Array) -> tuple[Array, Array]:
    return np.roll(voxels, 3, axis=_axis(affine, 1)), affine


def _mirrored(voxels: Array, affine: Array) -> tuple[Array, Array]:
    return np.flip(voxels, axis=_axis(affine, 0)).copy(), affine


def _thick(voxels: Array, affine: Array) -> tuple[Array, Array]:
    """Every second slice, and straight lines between them."""
    along = _axis(affine, 2)
    stack = np.moveaxis(voxels.astype(np.float32), along, 0)
    acquired = stack[::2]
    places = np.minimum(np.arange(len(stack)) / 2, len(acquired) - 1)
    low = np.floor(places).astype(int)
    high = np.minimum(low + 1, len(acquired) - 1)
    share = (places - low)[:, None, None]
    made = (1 - share) * acquired[low] + share * acquired[high]
    return np.moveaxis(made, 0, along).astype(voxels.dtype), affine


def _written(voxels: Array, affine: Array) -> tuple[Array, Array]:
    along = _axis(affine, 2)
    stack = np.moveaxis(voxels, along, 0).copy()
    white = np.percentile(stack[stack > 0], 99)
    # where nobody's head is: the first corner of the picture
    for repeat in range(3):
        for row, text in enumerate(LETTERS):
            for column, dot in enumerate(text):
                if dot == "x":
                    stack[:, 1 + 8 * repeat + column, 1 + row] = white
    return np.moveaxis(stack, 0, along), affine


def _named(files: Mapping[str, Path], _: Mapping[str, Path]) -> None:
    voxels, affine = load(files["t2w"])
    save(files["t2w"], voxels, affine, aux_file=b"Doe^Jane")


def _cut(files: Mapping[str, Path], _: Mapping[str, Path]) -> None:
    for path in files.values():
        voxels, affine = load(path)
        along = _axis(affine, 2)
        up = affine[2, along] > 0
        kept = [slice(None)] * 3
        whole = voxels.shape[along]
        # the upper part of the brain is gone
        kept[along] = slice(0, int(0.6 * whole)) if up else slice(whole - int(0.6 * whole), whole)
        if not up:
            affine[:3, 3] += affine[:3, along] * (whole - int(0.6 * whole))
        save(path, voxels[tuple(kept)].copy(), affine)


def _copied(files: Mapping[str, Path], others: Mapping[str, Path]) -> None:
    for channel, path in files.items():
        voxels, affine = load(others[channel])
        # another number format: the bytes differ
        save(path, voxels.astype(np.float32), affine)


def _missing(files: Mapping[str, Path], _: Mapping[str, Path]) -> None:
    files["t2f"].unlink()


def _in_two_forms(files: Mapping[str, Path], _: Mapping[str, Path]) -> None:
    voxels, affine = load(files["t2f"])
    name = files["t2f"].name.replace(".nii.gz", ".nrrd")
    SimpleITK.WriteImage(itk_image(voxels, affine), str(files["t2f"].with_name(name)))


def _4d(voxels: Array, affine: Array) -> tuple[Array, Array]:
    return np.stack([voxels, voxels], axis=3), affine


def _colour(files: Mapping[str, Path], _: Mapping[str, Path]) -> None:
    voxels, affine = load(files["t2w"])
    colours = np.zeros(voxels.shape, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    save(files["t2w"], colours, affine)


def _in_cm(files: Mapping[str, Path], _: Mapping[str, Path]) -> None:
    for path in files.values():
        voxels, affine = load(path)
        affine[:3] /= 10
        save(path, voxels, affine)


BRAIN_FAULTS: dict[str, Fault] = {
    "truncated": Fault(_truncated, "readable", ("t2w",), "it ends early"),
    "NaN": Fault(on("t2f", _with_nan), "readable", ("t2f",), "NaN"),
    "constant": Fault(
        on("t2f", lambda v, a: (np.full_like(v, 7), a)), "readable", ("t2f",), "every voxel is 7"
    ),
    "4D": Fault(on("t2w", _4d), "readable", ("t2w",), "4 axes longer than 1"),
    "colour": Fault(_colour, "readable", ("t2w",), "colour"),
    "no orientation": Fault(_no_orientation, "place", ("t1n",), "sform_code is 0, qform_code is 0"),
    "another grid": Fault(on("t2w", _elsewhere), "one grid", ("t2w",), "5.000 mm apart"),
    "moved": Fault(on("t2f", _moved), "pairing", ("t2f",), "moved by"),
    "mirrored": Fault(on("t2w", _mirrored), "pairing", ("t2w",), "left-right mirrored"),
    "mirrored target": Fault(on("t2f", _mirrored), "pairing", ("t2f",), "left-right mirrored"),
    "copy": Fault(_copied, "duplicates", MR, "the same voxels under several names", twin=True),
    "missing channel": Fault(_missing, "files", ("",), "missing: t2f"),
    "two forms": Fault(_in_two_forms, "files", ("",), "t2f may be"),
    "name in a header": Fault(_named, "identifiers", ("t2w",), "aux_file", "warn"),
    "thick slices": Fault(on("t2f", _thick), "slice profile", ("t2f",), "acquired every", "warn"),
    "cut off": Fault(_cut, "field of view", MR, "of the largest area", "warn"),
    **BRAIN_FILE_FAULTS,
    **BRAIN_IMAGE_FAULTS,
}
HEAD_FAULTS: dict[str, Fault] = {
    "burnt-in text": Fault(
        on("mr", _written), "burnt-in text", ("mr",), "small sharp marks", "warn"
    ),
    "no intercept": Fault(
        on("ct", lambda v, a: ((v + 1024).clip(0).astype(np.int16), a)),
        "CT values",
        ("ct",),
        "none below 0",
    ),
    "windowed to 8 bits": Fault(
        on("ct", lambda v, a: (((v.clip(-160, 240) + 160) * 255 / 400).astype(np.uint8), a)),
        "CT values",
        ("ct",),
        "from 0 to 255",
    ),
    "in centimetres": Fault(_in_cm, "field of view", HEAD, "the body measures"),
    **HEAD_FILE_FAULTS,
}


@dataclass(frozen=True)
class Planted:
    """A cohort on disk.

    Attributes:
        root: its data folder.
        layout: brats, synthrad or table.
        channels: of its task.
        kinds: what may be planted in such a cohort.
        faults: patient -> what was planted there.
        twins: patient -> the patient that was copied.
        sound: the other patients.
        table: of a cohort in that layout.
    """

    root: Path
    layout: str
    channels: tuple[str, ...]
    kinds: Mapping[str, Fault]
    faults: dict[str, str]
    twins: dict[str, str]
    sound: frozenset[str]
    table: Path | None = None


def plant(folder: Path, kind: str, *, patients: int, seed: int) -> Planted:
    """A phantom cohort, each fault at a patient of its own, drawn by the seed.

    A share of the sound patients is stored in other formats.

    Args:
        folder: for the cohort's own folder.
        kind: "brains", "heads", or "table" for brains of which a table tells.
        patients: their number, the faulty ones among them.
        seed: of the phantoms and of who gets which fault.
    """
    of_heads = kind == "heads"
    faults = {"heads": HEAD_FAULTS, "brains": BRAIN_FAULTS, "table": TABLE_FAULTS}[kind]
    channels = HEAD if of_heads else MR
    root = folder / kind
    write_phantom_cohort(_cohort(of_heads, patients, seed + KINDS.index(kind)), root, workers=1)
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    people = [path.name for path in sorted(root.iterdir()) if path.is_dir()]
    drawn = [str(name) for name in rng.permutation(people)]
    planted = dict(zip(drawn, faults, strict=False))
    assert len(planted) == len(faults)
    rest = drawn[len(faults) :]
    twins = {}
    for name, fault in planted.items():
        twin = rest.pop() if faults[fault].twin else name
        faults[fault].change(files(root, name, channels), files(root, twin, channels))
        if twin != name:
            twins[name] = twin
    for name in rest[: 0 if kind == "table" else len(rest) // 5]:
        _stored_otherwise(files(root, name, channels))
    layout = {"heads": "synthrad", "brains": "brats", "table": "table"}[kind]
    sound = frozenset(rest) - set(twins.values())
    table = None
    if kind == "table":
        rows = {name: files(root, name, channels) for name in people}
        table, planted = write_table(root, rows, planted)
    return Planted(root, layout, channels, faults, planted, twins, sound, table)


def _cohort(of_heads: bool, patients: int, seed: int) -> PhantomCohortConfig:
    # slices of 3 mm, as acquired; some scanners of the phantom interpolate their FLAIR
    settings: dict[str, Any] = {
        "scanner": "north",
        "corruption": False,
        "in_plane_mm": 2.5,
        "patients": patients,
        "seed": seed,
        "channels": list(HEAD if of_heads else MR),
    }
    if of_heads:
        settings |= {"target": "ct", "skull_strip": False}
    return PhantomCohortConfig.from_data(settings, "test")


def files(root: Path, name: str, channels: tuple[str, ...]) -> dict[str, Path]:
    """A patient's files by channel, as the phantom wrote them."""
    prefix = "" if channels == HEAD else f"{name}-"
    return {channel: root / name / f"{prefix}{channel}.nii.gz" for channel in channels}


def _stored_otherwise(paths: Mapping[str, Path]) -> None:
    for suffix, path in zip((".mgz", ".nrrd", ".mha"), paths.values(), strict=False):
        voxels, affine = load(path)
        other = path.with_name(path.name.replace(".nii.gz", suffix))
        if suffix == ".mgz":
            nibabel.MGHImage(voxels.astype(np.float32), affine).to_filename(other)
        else:
            SimpleITK.WriteImage(itk_image(voxels, affine), str(other))
        path.unlink()
