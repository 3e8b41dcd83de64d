"""Phantom cohorts with faults planted in some patients: what a site may really have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK
from numpy.typing import NDArray

from lift.cohort.phantom.write import write_phantom_cohort
from lift.config.phantom import PhantomCohortConfig
from tests.lift.formats.cases import itk_image

Array = NDArray[Any]
PHANTOM = b"PHANTOM, simulated, no patient"
MR = ("t1n", "t2w", "t2f")
HEAD = ("mr", "ct")
LETTERS = ("xxx.x.x", "x...x.x", "xx..xxx", "x...x.x", "xxx.x.x")


@dataclass(frozen=True)
class Fault:
    """What is done to a patient, and what must be said of it.

    Attributes:
        change: called with the patient's files by channel and, for a twin, another patient's.
        check: the check that must find it.
        channels: where; an empty name stands for the patient as a whole.
        verdict: of the patient.
        twin: whether a second patient, from which it copies, must be told too.
        beside: other checks that may tell of it too: what is no image fails several.
    """

    change: Callable[[Mapping[str, Path], Mapping[str, Path]], None]
    check: str
    channels: tuple[str, ...]
    verdict: str = "veto"
    twin: bool = False
    beside: tuple[str, ...] = ()


def _load(path: Path) -> tuple[Array, Array]:
    image = nibabel.load(path)
    return np.asanyarray(image.dataobj).copy(), image.affine.copy()


def _save(path: Path, voxels: Array, affine: Array, **texts: bytes) -> None:
    image = nibabel.Nifti1Image(voxels, affine)
    image.header["descrip"] = PHANTOM
    for field, text in texts.items():
        image.header[field] = text
    image.to_filename(path)


def _on(channel: str, change: Callable[[Array, Array], tuple[Array, Array]]) -> Any:
    def apply(files: Mapping[str, Path], _: Mapping[str, Path]) -> None:
        voxels, affine = change(*_load(files[channel]))
        _save(files[channel], voxels, affine)

    return apply


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
    voxels, affine = _load(files["t2w"])
    _save(files["t2w"], voxels, affine, aux_file=b"Doe^Jane")


def _cut(files: Mapping[str, Path], _: Mapping[str, Path]) -> None:
    for path in files.values():
        voxels, affine = _load(path)
        along = _axis(affine, 2)
        up = affine[2, along] > 0
        kept = [slice(None)] * 3
        whole = voxels.shape[along]
        # the upper part of the brain is gone
        kept[along] = slice(0, int(0.6 * whole)) if up else slice(whole - int(0.6 * whole), whole)
        if not up:
            affine[:3, 3] += affine[:3, along] * (whole - int(0.6 * whole))
        _save(path, voxels[tuple(kept)].copy(), affine)


def _copied(files: Mapping[str, Path], others: Mapping[str, Path]) -> None:
    for channel, path in files.items():
        voxels, affine = _load(others[channel])
        # another number format: the bytes differ
        _save(path, voxels.astype(np.float32), affine)


def _missing(files: Mapping[str, Path], _: Mapping[str, Path]) -> None:
    files["t2f"].unlink()


def _in_two_forms(files: Mapping[str, Path], _: Mapping[str, Path]) -> None:
    voxels, affine = _load(files["t2f"])
    name = files["t2f"].name.replace(".nii.gz", ".nrrd")
    SimpleITK.WriteImage(itk_image(voxels, affine), str(files["t2f"].with_name(name)))


def _4d(voxels: Array, affine: Array) -> tuple[Array, Array]:
    return np.stack([voxels, voxels], axis=3), affine


def _colour(files: Mapping[str, Path], _: Mapping[str, Path]) -> None:
    voxels, affine = _load(files["t2w"])
    colours = np.zeros(voxels.shape, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    _save(files["t2w"], colours, affine)


def _in_cm(files: Mapping[str, Path], _: Mapping[str, Path]) -> None:
    for path in files.values():
        voxels, affine = _load(path)
        affine[:3] /= 10
        _save(path, voxels, affine)


def _labels(voxels: Array, affine: Array) -> tuple[Array, Array]:
    """Boxes of four voxels, each with its own number, where the head is."""
    places = np.indices(voxels.shape) // 4
    codes = places[0] + 37 * places[1] + 1009 * places[2] + 1
    return np.where(voxels > voxels.mean(), codes, 0).astype(np.int32), affine


def _phase(voxels: Array, affine: Array) -> tuple[Array, Array]:
    places = np.indices(voxels.shape) / 5
    angle = np.angle(np.exp(1j * (places[0] + places[1] * 1.3 + places[2])))
    inside = voxels > voxels.mean()
    return np.where(inside, np.rint((angle + np.pi) * 650), 0).astype(np.int16), affine


def _two_places(files: Mapping[str, Path], _: Mapping[str, Path]) -> None:
    image = nibabel.load(files["t2w"])
    other = image.affine.copy()
    other[0, 3] += 25
    image.set_sform(image.affine, 1)
    image.set_qform(other, 1)
    image.to_filename(files["t2w"])


def _inside_its_header(files: Mapping[str, Path], _: Mapping[str, Path]) -> None:
    content = bytearray(nibabel.load(files["t1n"]).to_bytes())
    content[108:112] = bytes(4)
    files["t1n"].with_suffix("").write_bytes(content)
    files["t1n"].unlink()


def _not_fetched(files: Mapping[str, Path], _: Mapping[str, Path]) -> None:
    for path in files.values():
        path.unlink()
        path.symlink_to(Path("..", ".git", "annex", "objects", path.name))


NO_IMAGE = ("slice profile", "pairing", "face")
BRAIN_FAULTS: dict[str, Fault] = {
    "truncated": Fault(_truncated, "readable", ("t2w",)),
    "NaN": Fault(_on("t2f", _with_nan), "readable", ("t2f",)),
    "constant": Fault(_on("t2f", lambda v, a: (np.full_like(v, 7), a)), "readable", ("t2f",)),
    "4D": Fault(_on("t2w", _4d), "readable", ("t2w",)),
    "colour": Fault(_colour, "readable", ("t2w",)),
    "no orientation": Fault(_no_orientation, "place", ("t1n",)),
    "another grid": Fault(_on("t2w", _elsewhere), "one grid", ("t2w",)),
    "moved": Fault(_on("t2f", _moved), "pairing", ("t2f",)),
    "mirrored": Fault(_on("t2w", _mirrored), "pairing", ("t2w",)),
    "mirrored target": Fault(_on("t2f", _mirrored), "pairing", ("t2f",)),
    "copy": Fault(_copied, "duplicates", MR, twin=True),
    "missing channel": Fault(_missing, "files", ("",)),
    "two forms": Fault(_in_two_forms, "files", ("",)),
    "name in a header": Fault(_named, "identifiers", ("t2w",), "warn"),
    "thick slices": Fault(_on("t2f", _thick), "slice profile", ("t2f",), "warn"),
    "cut off": Fault(_cut, "field of view", MR, "warn"),
    "label map": Fault(_on("t2f", _labels), "MR values", ("t2f",), beside=NO_IMAGE),
    "phase image": Fault(_on("t2f", _phase), "MR values", ("t2f",), beside=NO_IMAGE),
    "two places": Fault(_two_places, "header's place", ("t2w",)),
    "inside its header": Fault(_inside_its_header, "readable", ("t1n",)),
    "not fetched": Fault(_not_fetched, "files", ("",)),
}
HEAD_FAULTS: dict[str, Fault] = {
    "burnt-in text": Fault(_on("mr", _written), "burnt-in text", ("mr",), "warn"),
    "no intercept": Fault(
        _on("ct", lambda v, a: ((v + 1024).clip(0).astype(np.int16), a)), "CT values", ("ct",)
    ),
    "windowed to 8 bits": Fault(
        _on("ct", lambda v, a: (((v.clip(-160, 240) + 160) * 255 / 400).astype(np.uint8), a)),
        "CT values",
        ("ct",),
    ),
    "in centimetres": Fault(_in_cm, "field of view", HEAD),
}


@dataclass(frozen=True)
class Planted:
    """A cohort on disk.

    Attributes:
        root: its data folder.
        layout: brats or synthrad.
        channels: of its task.
        kinds: what may be planted in such a cohort.
        faults: patient -> what was planted there.
        twins: patient -> the patient that was copied.
        sound: the other patients.
    """

    root: Path
    layout: str
    channels: tuple[str, ...]
    kinds: Mapping[str, Fault]
    faults: dict[str, str]
    twins: dict[str, str]
    sound: frozenset[str]


def plant(folder: Path, kind: str, *, patients: int, seed: int) -> Planted:
    """A phantom cohort, each fault at a patient of its own, drawn by the seed.

    A share of the sound patients is stored in other formats.

    Args:
        folder: for the cohort's own folder.
        kind: "brains" or "heads".
        patients: their number, the faulty ones among them.
        seed: of the phantoms and of who gets which fault.
    """
    of_heads = kind == "heads"
    faults, channels = (HEAD_FAULTS, HEAD) if of_heads else (BRAIN_FAULTS, MR)
    root = folder / kind
    write_phantom_cohort(_cohort(of_heads, patients, seed + of_heads), root, workers=1)
    rng = np.random.default_rng([seed, int(of_heads)])
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
    for name in rest[: len(rest) // 5]:
        _stored_otherwise(files(root, name, channels))
    layout = "synthrad" if of_heads else "brats"
    sound = frozenset(rest) - set(twins.values())
    return Planted(root, layout, channels, faults, planted, twins, sound)


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
        voxels, affine = _load(path)
        other = path.with_name(path.name.replace(".nii.gz", suffix))
        if suffix == ".mgz":
            nibabel.MGHImage(voxels.astype(np.float32), affine).to_filename(other)
        else:
            SimpleITK.WriteImage(itk_image(voxels, affine), str(other))
        path.unlink()
