"""DICOM: a folder with the slices of one series, or one enhanced multi-frame file.

Slices are put in order by their place along the normal of the slice plane, never by the names of
the files or their numbers. A stack that is not whole and regular is refused, and what is wrong with
it is named in mm. Slices that are shifted in their plane from one to the next (gantry tilt) keep
their true, sheared places.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lift.errors import VolumeError
from lift.volumes.formats import checks
from lift.volumes.formats.base import Format, Stored
from lift.volumes.formats.checks import (
    COPY_AGAIN,
    FETCH_IT,
    Decoded,
    Refusal,
    check_fetched,
    check_shape,
    check_size,
    with_fresh_header,
)
from lift.volumes.formats.dicom_image import (
    Frame,
    Image,
    describe,
    is_dicom,
    is_directory,
    parsing,
    read_dataset,
    read_pixels,
)
from lift.volumes.formats.packed import read_file

MOST_FILES: Final = 20_000
_NO_SLICES: Final = frozenset(
    f".{name}"
    for name in (
        *("txt", "csv", "tsv", "json", "xml", "yaml", "html", "htm", "md", "log", "ini", "inf"),
        *("pdf", "doc", "docx", "jpg", "jpeg", "png", "gif", "bmp", "zip", "db", "exe"),
        *("bval", "bvec"),
    )
)
"""Endings of what lies beside slices. A slice's own name may end in anything, as a UID does."""
_SAME_MM: Final = 0.01
"""Places that lie this close together are one place: headers round to 0.001 mm or so."""
_SAME_DIRECTION: Final = 1e-3
_EVEN: Final = 0.05
_ROUNDED_MM: Final = 0.11
_MOST_UNEVEN: Final = 0.2
"""A step that is off by more than 5% of the regular one, or what positions rounded to 0.1 mm make,
is irregular; by more than a fifth in any case."""
_MOST_NAMED: Final = 12
_FEW_FILES: Final = 3
_LONGEST_NAME: Final = 80
_FEWEST_OF_A_SLAB: Final = 3
_SAME_ECHO: Final = 1e-3
"""Echo times that differ by less than this share are one, written with other digits."""
_TAKE_ONE: Final = "Put each series into a folder of its own, and give the one that is meant."


@dataclass(frozen=True)
class Slice:
    """One slice of a series.

    Attributes:
        path: of its file.
        image: what the file says.
        frame: what it says of this slice.
        number: of the frame in its file, from 1.
    """

    path: Path
    image: Image
    frame: Frame
    number: int


def decode_series(folder: Path, refuse: Refusal) -> tuple[Decoded, str]:
    """The volume of one series, and its digest.

    Files without DICOM's mark are passed over when their names end as those of other things do
    (.txt, .json, .jpg ...), and so are folders and a DICOMDIR.

    Returns:
        What the series holds, and SHA-256 over the sorted digests of its files: whatever they are
        called.

    Raises:
        VolumeError: a file is damaged or no MR or CT image; files of several series, slices that
            are missing, doubled or irregular; several images at each place (4D); too large.
        AffineError: it does not say where its pixels lie.
    """
    found, digest = _listed(folder, refuse)
    if found[0].image.enhanced:
        return decode_file(_stored(found[0].path, refuse), refuse), digest
    slices, affine = _ordered(found, refuse)

    def pixels(index: int) -> NDArray[Any]:
        one = slices[index]
        of_file = refuse.within(one.path.name)
        dataset = read_dataset(_stored(one.path, of_file), of_file, pixels=True)
        plane: NDArray[Any] = read_pixels(dataset, one.image, of_file)[0]
        return plane

    return _assembled([one.image for one in slices], slices, affine, pixels, refuse), digest


def decode_file(stored: bytes, refuse: Refusal) -> Decoded:
    """What one enhanced multi-frame file holds.

    Raises:
        VolumeError: as `decode_series`, or it holds one slice.
        AffineError: it does not say where its pixels lie.
    """
    found = _frames_of(Path(), read_dataset(stored, refuse), refuse)
    image = found[0].image
    if not image.enhanced:
        raise refuse(
            "it is one slice of a series; a volume has at least 2", "Give the series' folder."
        )
    slices, affine = _ordered(found, refuse)
    _shape_and_size(image, len(slices), refuse)
    whole = read_pixels(read_dataset(stored, refuse, pixels=True), image, refuse)
    planes = [whole[one.number - 1] for one in slices]
    return _assembled([image], slices, affine, planes.__getitem__, refuse)


def slices_of(path: Path, refuse: Refusal) -> list[Slice]:
    """The slices of a series' folder, or of one multi-frame file, in the order of its voxels.

    Raises:
        VolumeError: as `decode_series`, but that no pixels are read; or the file is no DICOM.
        AffineError: it does not say where its pixels lie.
    """
    if path.is_dir():
        found, _ = _listed(path, refuse)
    else:
        stored = _stored(path, refuse)
        if not is_dicom(stored[:132]):
            raise refuse("it is no DICOM file", "Give the folder of a series.")
        found = _frames_of(path, read_dataset(stored, refuse), refuse)
    return _ordered(found, refuse)[0]


def _listed(folder: Path, refuse: Refusal) -> tuple[list[Slice], str]:
    """The slices of a folder's files in any order, and the digest of the files."""
    found: list[Slice] = []
    digests: list[str] = []
    for path in series_files(folder, refuse):
        of_file = refuse.within(path.name)
        stored = _stored(path, of_file)
        if not _is_slice(path, stored, of_file):
            continue
        dataset = read_dataset(stored, of_file)
        if is_directory(dataset, of_file):
            continue
        digests.append(hashlib.sha256(stored).hexdigest())
        found += _frames_of(path, dataset, of_file)
    if not found:
        raise refuse("the folder holds no DICOM image", "Give the folder of one series.")
    if len(digests) > 1 and any(one.image.enhanced for one in found):
        raise refuse("a multi-frame image lies beside other images", _TAKE_ONE)
    return found, hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()


def _frames_of(path: Path, dataset: Any, refuse: Refusal) -> list[Slice]:
    image = describe(dataset, refuse)
    return [Slice(path, image, frame, number) for number, frame in enumerate(image.frames, 1)]


def _ordered(found: Sequence[Slice], refuse: Refusal) -> tuple[list[Slice], NDArray[np.float64]]:
    """The slices along their normal, and voxel -> mm in RAS+, (4, 4)."""
    if not found[0].image.enhanced:
        _check_one_series(found, refuse)
    order, affine = _stack(found, refuse)
    if not found[0].image.enhanced:
        _check_alike(found, refuse)
        _check_number(found, refuse)
    return [found[index] for index in order], affine


def series_files(folder: Path, refuse: Refusal) -> list[Path]:
    """The files of a folder, sorted by name; none of its own folders, no hidden ones.

    Raises:
        VolumeError: it cannot be read, or holds more files or bytes than any series.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        files = [path for path in paths if not path.is_dir()]
        gone = next((path for path in files[:MOST_FILES] if not path.exists()), None)
        if gone is not None:
            raise refuse.within(gone.name)("it is a link to a file that is not there", FETCH_IT)
        size = sum(path.stat().st_size for path in files[:MOST_FILES])
    except OSError as error:
        raise refuse(
            error.strerror or type(error).__name__, "Check the folder's permissions."
        ) from None
    if len(files) > MOST_FILES:
        raise refuse(
            f"the folder holds {len(files)} files; at most {MOST_FILES} are read as one series",
            "Give the folder of one series.",
        )
    if size > checks.LARGEST_VOLUME_BYTES:
        raise refuse.too_large(
            f"the folder's files are larger than {checks.LARGEST_VOLUME_BYTES >> 30} GiB, the most "
            "that is read as one series",
            "Give the folder of one series.",
        )
    return files


def _stored(path: Path, refuse: Refusal) -> bytes:
    return read_file(path, refuse, missing=refuse("a file of it is no longer there", COPY_AGAIN))


def _is_slice(path: Path, stored: bytes, refuse: Refusal) -> bool:
    if is_dicom(stored[:132]):
        return True
    if path.suffix.lower() in _NO_SLICES:
        return False
    check_fetched(stored, refuse)
    # passed over it would be missing, and at an end of the stack nobody would notice
    raise refuse("a file in its folder is no DICOM file", "Take it out, or copy it again.")


def _check_one_series(found: Sequence[Slice], refuse: Refusal) -> None:
    series = Counter(one.image.series for one in found)
    if len(series) == len(found) > 2:
        raise refuse(
            f"each of its {len(found)} files says that it is a series of its own (Series Instance "
            "UID), as some anonymisers write",
            "Export it again with one UID for the series.",
        )
    if len(series) > 1:
        sizes = ", ".join(str(count) for _, count in series.most_common(_MOST_NAMED))
        odd = _unlike(found, lambda one: one.image.series)
        raise refuse(
            f"files of {len(series)} series lie in one folder ({sizes} each){odd}", _TAKE_ONE
        )
    if len({one.image.modality for one in found}) > 1:
        odd = _unlike(found, lambda one: one.image.modality)
        raise refuse(f"MR and CT images lie in one folder{odd}", _TAKE_ONE)
    sizes_seen = {(one.image.columns, one.image.rows) for one in found}
    if len(sizes_seen) > 1:
        shown = ", ".join(f"{x} x {y}" for x, y in sorted(sizes_seen)[:_MOST_NAMED])
        odd = _unlike(found, lambda one: (one.image.columns, one.image.rows))
        raise refuse(f"its slices have several sizes: {shown} pixels{odd}", _TAKE_ONE)
    if len({one.image.dtype for one in found}) > 1:
        odd = _unlike(found, lambda one: one.image.dtype)
        raise refuse(f"its slices have several number formats{odd}", _TAKE_ONE)


def _unlike(found: Sequence[Slice], what: Callable[[Slice], Hashable]) -> str:
    """Which file is not as most of them are, for a message; empty of one file's frames."""
    usual, _ = Counter(what(one) for one in found).most_common(1)[0]
    path = next(one.path for one in found if what(one) != usual)
    return f"; '{path.name[:_LONGEST_NAME]}' is not as most of them" if path.name else ""


def _check_alike(found: Sequence[Slice], refuse: Refusal) -> None:
    """Raise VolumeError unless the slices, one per position, belong to one scan."""
    saying = [one for one in found if one.image.frame_of_reference]
    places = [one.image.frame_of_reference for one in saying]
    # none, or one of its own for each file, is what some anonymisers write: it says nothing
    if 1 < len(set(places)) < len(places):
        odd = _unlike(saying, lambda one: one.image.frame_of_reference)
        raise refuse(
            f"its slices have {len(set(places))} frames of reference (Frame of Reference UID): "
            f"their places may be of several coordinate systems{odd}",
            _TAKE_ONE,
        )
    # 0 where none is said
    echoes = sorted({one.image.echo_ms or 0.0 for one in found})
    if echoes[-1] - echoes[0] > _SAME_ECHO * echoes[-1]:
        shown = ", ".join(f"{echo:g}" if echo else "none" for echo in echoes[:_MOST_NAMED])
        odd = _unlike(found, lambda one: one.image.echo_ms)
        raise refuse(f"its slices have several echo times: {shown} ms{odd}", _TAKE_ONE)
    if len({one.image.component for one in found}) > 1:
        kinds = ", ".join(sorted({one.image.component or "not said" for one in found}))
        odd = _unlike(found, lambda one: one.image.component)
        raise refuse(
            f"its slices are of several kinds, such as magnitude and phase images: {kinds} "
            f"(ImageType){odd}",
            _TAKE_ONE,
        )


def _check_number(found: Sequence[Slice], refuse: Refusal) -> None:
    """Raise VolumeError where fewer images are there than they say: ends leave no gap."""
    said = max((one.image.images_said or 0 for one in found), default=0)
    if len(found) < said:
        raise refuse(
            f"{len(found)} of {said} images are there, by its header's word (Images in "
            "Acquisition, Number of Slices and the like)",
            "Wait until the transfer has ended, or export the whole series again. Where the others "
            "are of another echo or time point, convert this one to NIfTI with dcm2niix.",
        )


def _stack(found: Sequence[Slice], refuse: Refusal) -> tuple[list[int], NDArray[np.float64]]:
    """The order of the slices along their normal, and voxel -> mm in RAS+, (4, 4)."""
    if len(found) < 2:
        raise refuse("it is one slice; a volume has at least 2", "Give the folder of a series.")
    first = found[0].frame
    for frame in (one.frame for one in found):
        turned = max(
            float(np.abs(frame.along_row - first.along_row).max()),
            float(np.abs(frame.along_column - first.along_column).max()),
        )
        if turned > _SAME_DIRECTION:
            odd = _unlike(found, lambda one: tuple(np.round(one.frame.along_row, 2)))
            raise refuse(f"its slices lie in several directions{odd}", _TAKE_ONE)
        if not np.allclose(frame.spacing_mm, first.spacing_mm, rtol=1e-3, atol=0):
            odd = _unlike(found, lambda one: one.frame.spacing_mm)
            raise refuse(f"its slices have several pixel spacings{odd}", _TAKE_ONE)
    normal = np.cross(first.along_row, first.along_column)
    places = np.array([one.frame.position @ normal for one in found])
    order = [int(index) for index in np.argsort(places, kind="stable")]
    if not np.isfinite(places).all():
        raise refuse.of_place("its positions are not finite", COPY_AGAIN)
    _check_steps(places[order], [found[index] for index in order], refuse)
    positions = np.array([found[index].frame.position for index in order])
    step = (positions[-1] - positions[0]) / (len(order) - 1)
    line = positions[0] + np.arange(len(order))[:, None] * step
    off = np.linalg.norm(positions - line, axis=1)
    astray = float(off.max())
    if astray > _uneven_mm(float(np.linalg.norm(step))):
        raise refuse(
            f"its slices do not lie one above the other: one is {astray:.2f} mm off their line"
            f"{_named([found[order[int(off.argmax())]]])}",
            _TAKE_ONE,
        )
    affine = np.eye(4)
    affine[:3, 0] = first.along_row * first.spacing_mm[0]
    affine[:3, 1] = first.along_column * first.spacing_mm[1]
    affine[:3, 2] = step
    affine[:3, 3] = positions[0]
    return order, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _named(slices: Sequence[Slice]) -> str:
    """The files, for a message; empty of one file's frames."""
    names = [one.path.name[:_LONGEST_NAME] for one in slices[:_FEW_FILES] if one.path.name]
    return f" ({', '.join(repr(name) for name in names)})" if names else ""


def _check_steps(places: NDArray[np.float64], slices: Sequence[Slice], refuse: Refusal) -> None:
    """Raise unless slices at these sorted positions along the normal are complete and regular."""
    steps = np.diff(places)
    same = steps <= _SAME_MM
    counts = np.bincount(np.concatenate([[0], np.cumsum(~same)]))
    if same.any() and len(set(counts.tolist())) == 1:
        raise refuse(
            f"each of its {len(counts)} places has {counts[0]} images (echoes, time points or "
            "diffusion weightings); one volume is needed",
            "Export one of them as a series of its own.",
        )
    _check_slabs(places, slices, refuse)
    if same.any():
        _refuse_doubled(places, same, slices, refuse)
    smallest = _smallest_step(steps)
    apart = np.rint(steps / smallest)
    if (np.abs(steps - apart * smallest) > _uneven_mm(smallest)).any():
        worst = int(np.argmax(np.abs(steps - np.median(steps))))
        raise refuse(
            f"its slices are unevenly spaced: {steps.min():.2f} to {steps.max():.2f} mm, "
            f"{steps[worst]:.2f} mm after {places[worst]:.1f} mm along their normal"
            f"{_named(slices[worst : worst + 2])}",
            "Resample it to even slices, or take the patient out.",
        )
    missing = [
        place + smallest * (number + 1)
        for place, count in zip(places, apart, strict=False)
        for number in range(min(int(count) - 1, _MOST_NAMED))
    ]
    total = int((apart - 1).sum())
    usual = float(np.median(steps))
    thickness = [one.frame.thickness_mm or np.inf for one in slices]
    # slices no thicker than the smallest step leave gaps elsewhere
    one_step = smallest + _uneven_mm(smallest)
    if usual > one_step and max(thickness) > one_step:
        raise refuse(
            f"its slices are unevenly spaced: {steps.min():.2f} to {steps.max():.2f} mm apart, "
            f"usually {usual:.2f} mm; if {smallest:.2f} mm is right, {total} are missing"
            f"{_named([slices[int(np.argmin(steps))]])}",
            "Compare with the archive: export the whole series again, or resample it to even "
            "slices.",
        )
    if missing:
        shown = ", ".join(f"{place:.1f}" for place in missing[:_MOST_NAMED])
        raise refuse(
            f"{total} slices are missing: there are {len(places)}, {smallest:.2f} mm apart, and "
            f"none at {shown}{' ...' if total > _MOST_NAMED else ''} mm along their normal",
            "Export the whole series again from the archive.",
        )
    said = slices[0].frame.step_mm
    if said is not None and _is_half(smallest, said, slices[0].frame):
        raise refuse(
            f"slices are perhaps missing between all others: they lie {smallest:.2f} mm apart, and "
            f"its header says {said:.2f} mm (Spacing Between Slices)",
            "Compare with the archive. Where none is missing (some scanners write the gap there), "
            "convert it to NIfTI with dcm2niix.",
        )


def _check_slabs(places: NDArray[np.float64], slices: Sequence[Slice], refuse: Refusal) -> None:
    """Raise VolumeError where parts of the stack have distances of their own: slabs.

    Old sequential scanners make them so. Where the thickness does not say it, slices may be missing
    in one part: both are said.
    """
    steps = np.diff(places)
    tolerance = _uneven_mm(float(np.median(steps)))
    if (np.abs(steps - np.median(steps)) <= tolerance).all():
        return
    seen = f"its slices are unevenly spaced: {steps.min():.2f} to {steps.max():.2f} mm apart"
    parts = _parts_by_thickness(slices)
    if len(parts) > 1:
        thick = sorted({slices[part.start].frame.thickness_mm or 0.0 for part in parts})
        shown = ", ".join(f"{mm:g}" for mm in thick[:_MOST_NAMED])
        within = [steps[part.start : part.stop - 1] for part in parts]
        whole = all(np.ptp(own) <= tolerance for own in within if len(own))
        where = parts[1].start
        seen += (
            f", and {shown} mm thick (Slice Thickness): slabs of a sequential scan, the second "
            f"from {places[where]:.1f} mm along their normal on{_named([slices[where]])}"
        )
        seen += "" if whole else "; in one of them slices are missing, or it is uneven too"
    else:
        meet = _where_slabs_meet(steps, tolerance)
        if not meet:
            return
        shown = ", ".join(f"{places[where]:.1f}" for where in meet[:_MOST_NAMED])
        seen += (
            f": slabs that meet at {shown} mm along their normal"
            f"{_named([slices[where] for where in meet])}, or one part lacks every second slice"
        )
    raise refuse(seen, "Resample it to even slices, or take the patient out.")


def _parts_by_thickness(slices: Sequence[Slice]) -> list[range]:
    """Neighbouring slices of one Slice Thickness; a single part where it is not said throughout."""
    thickness = [one.frame.thickness_mm for one in slices]
    said = [mm for mm in thickness if mm is not None]
    if len(said) < len(slices):
        return [range(len(slices))]
    changes = [
        k
        for k in range(1, len(said))
        if abs(said[k] - said[k - 1]) > _EVEN * max(said[k - 1 : k + 1])
    ]
    return [range(a, b) for a, b in pairwise([0, *changes, len(slices)])]


def _where_slabs_meet(steps: NDArray[np.float64], tolerance: float) -> list[int]:
    """The steps before which a slab ends; none where the stack is no slabs of even steps.

    A slab has several steps of one length, and the next one another; one step between may be any.
    """
    ends = np.flatnonzero(np.abs(np.diff(steps)) > tolerance) + 1
    runs = [range(a, b) for a, b in pairwise([0, *ends.tolist(), len(steps)])]
    slabs = [run for run in runs if len(run) >= _FEWEST_OF_A_SLAB]
    joints = [run for run in runs if len(run) == 1]
    whole = len(slabs) + len(joints) == len(runs) and len(joints) < len(slabs)
    if not whole or runs[0] not in slabs or runs[-1] not in slabs:
        return []
    differ = all(abs(steps[a.start] - steps[b.start]) > tolerance for a, b in pairwise(slabs))
    return [slab.stop for slab in slabs[:-1]] if differ else []


def _uneven_mm(step: float) -> float:
    return min(max(_EVEN * step, _ROUNDED_MM), _MOST_UNEVEN * step)


def _smallest_step(steps: NDArray[np.float64]) -> float:
    """The distance of slices: the smallest seen, or the usual one where no multiples are seen."""
    smallest = float(steps.min())
    if np.abs(steps - np.rint(steps / smallest) * smallest).max() > _EVEN * smallest:
        return float(np.median(steps))
    return smallest


def _is_half(step: float, said: float, frame: Frame) -> bool:
    """Whether the header's distance of slices fits into the one that is seen several times.

    Spacing Between Slices is a distance of centres by the standard; some scanners write the gap
    between slices instead, which then adds up with the thickness to what is seen.
    """
    thickness = frame.thickness_mm or 0.0
    if said < thickness * (1 - _EVEN) and abs(said + thickness - step) <= _EVEN * step:
        return False
    # a word that does not fit the places at all is no word
    ratio = step / said
    return ratio >= 1.5 and abs(ratio - round(ratio)) <= _EVEN * ratio


def _refuse_doubled(
    places: NDArray[np.float64],
    same: NDArray[np.bool_],
    slices: Sequence[Slice],
    refuse: Refusal,
) -> None:
    groups = np.concatenate([[0], np.cumsum(~same)])
    counts = np.bincount(groups)
    several = np.flatnonzero(counts > 1)
    doubled = [float(places[int(np.argmax(groups == g))]) for g in several]
    shown = ", ".join(f"{place:.1f}" for place in doubled[:_MOST_NAMED])
    first = [slices[int(index)] for index in np.flatnonzero(groups == several[0])]
    raise refuse(
        f"{len(doubled)} places have several images, at {shown}"
        f"{' ...' if len(doubled) > _MOST_NAMED else ''} mm along the slices' normal"
        f"{_named(first)}",
        "Take the doubles out, or put each series into a folder of its own.",
    )


def _shape_and_size(image: Image, count: int, refuse: Refusal) -> tuple[int, int, int]:
    shape = check_shape((image.columns, image.rows, count), refuse)
    check_size(shape, image.dtype, refuse)
    return shape


def _assembled(
    images: Sequence[Image],
    slices: Sequence[Slice],
    affine: NDArray[np.float64],
    pixels: Callable[[int], NDArray[Any]],
    refuse: Refusal,
) -> Decoded:
    """The slices as one array, (column, row, slice), unscaled where one scale is that of all."""
    shape = _shape_and_size(images[0], len(slices), refuse)
    scales = {(one.frame.slope, one.frame.inter) for one in slices}
    dtype = images[0].dtype if len(scales) == 1 else np.dtype(np.float64)
    data = np.empty(shape, dtype=dtype, order="F")
    for index, one in enumerate(slices):
        found = pixels(index).T
        if len(scales) == 1:
            data[:, :, index] = found
        else:
            data[:, :, index] = found * one.frame.slope + one.frame.inter
    slope, inter = scales.pop() if len(scales) == 1 else (1.0, 0.0)
    decoded = with_fresh_header(data, affine, refuse)
    return replace(decoded, slope=slope, inter=inter)


_DICOM_NAMES: Final = (
    *("PatientName", "PatientID", "OtherPatientIDs", "OtherPatientNames", "PatientBirthDate"),
    *("PatientBirthTime", "PatientAddress", "PatientTelephoneNumbers", "PatientComments"),
    *("PatientMotherBirthName", "MilitaryRank", "EthnicGroup", "Occupation", "AccessionNumber"),
    *("AdditionalPatientHistory", "MedicalRecordLocator", "IssuerOfPatientID", "StudyID"),
    *("InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName", "StationName"),
    *("ReferringPhysicianName", "PerformingPhysicianName", "OperatorsName", "PhysiciansOfRecord"),
    *("RequestingPhysician", "NameOfPhysiciansReadingStudy", "ResponsiblePerson"),
    *("DeviceSerialNumber", "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate"),
    *("AcquisitionDateTime", "StudyDescription", "SeriesDescription", "ProtocolName"),
    *("ImageComments", "RequestedProcedureDescription", "PerformedProcedureStepDescription"),
)


def _identifying(start: bytes, path: Path) -> set[str]:
    del start
    refuse = Refusal(path.name, None)
    missing = refuse("there is no such file", "Restore it.")
    try:
        stored = read_file(path, refuse, missing=missing)
        if not is_dicom(stored[:132]):
            return set()
        dataset = read_dataset(stored, refuse)
        with parsing(refuse):
            found = {name for name in _DICOM_NAMES if str(dataset.get(name, "") or "").strip()}
            tags = list(dataset.keys())
            if any(tag.is_private and not tag.is_private_creator for tag in tags):
                found.add("private tags")
    except VolumeError:
        return set()
    return found


def check_whole(refuse: Refusal) -> None:
    """Raise TooLargeError where a volume is read in parts, which DICOM is not."""
    if refuse.in_parts:
        raise refuse.too_large(
            "it is larger than memory, and DICOM is not read in parts",
            "Convert it to an uncompressed NIfTI file (.nii).",
        )


def _decode(file: Stored) -> Decoded:
    check_whole(file.refuse)
    return decode_file(file.whole, file.refuse)


FORMAT: Final = Format((".dcm",), is_dicom, _decode, _identifying, packed=False)
