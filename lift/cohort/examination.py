"""Checks of the site's own volumes, per patient: use, use with a warning, or veto.

One bad patient never stops the others. Nothing of a report leaves the site; it names files and
patients, because its reader is the operator who has to fix them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lift.cohort.memory import peak_mb, reset_peak
from lift.cohort.patients import Patient
from lift.cohort.preprocessing import grid_of
from lift.config.base import Settings
from lift.config.card import Vendor
from lift.config.plan import GridRule, OwnGrid, SpacingGrid
from lift.errors import AffineError, VolumeError
from lift.inspection.body import depth_axis, find_body
from lift.inspection.checks import (
    check_background,
    check_ct,
    check_field_of_view,
    check_foreground,
    check_grid,
    check_mr,
)
from lift.inspection.face import has_face
from lift.inspection.finding import Finding, Verdict, worst
from lift.inspection.header_place import check_header_place
from lift.inspection.identifiers import identifying_fields
from lift.inspection.pairing import pairing
from lift.inspection.scanner import scanner_of
from lift.inspection.slice_profile import SliceProfile, check_profile, estimate_profile
from lift.inspection.traces import burnt_in_text, content_digest
from lift.volumes.resampling import resample, resample_labels
from lift.volumes.volume import Volume, check_same_grid, read_volume, stored_files

VERSION: Final = 6
"""Of the checks: reports of another version are made again."""

CT: Final = "ct"
"""The channel whose values are Hounsfield units."""
_OWN_GRID: Final = OwnGrid()


class Remark(Settings):
    """One finding about one patient, in the words that the operator reads."""

    check: str
    channel: str = ""
    """Empty when it is about the patient as a whole."""
    verdict: Verdict
    seen: str
    remedy: str = ""


class ChannelFacts(Settings):
    """Facts about one channel of one patient. The data card counts them, rounded."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    depth_axis: int
    """The axis across the slices."""
    acquired_spacing_mm: float | None
    """Along that axis, as acquired; None where neither header nor voxels say it."""
    vendor: Vendor | None = None
    field_strength_t: float | None = None


class PatientReport(Settings):
    """Everything that was found about one patient; it stays at the site."""

    version: int = VERSION
    patient: str
    subject: str
    files: str
    """Digest of names, sizes and times of the files: another one means that they changed."""
    remarks: tuple[Remark, ...] = ()
    digests: dict[str, str] = Field(default_factory=dict)
    """Channel -> digest of what it shows, whatever the file, its number format and its axes."""
    channels: dict[str, ChannelFacts] = Field(default_factory=dict)
    """Of every channel that can be read."""
    seconds: float = 0.0
    peak_mb: float | None = None
    """Largest memory of the working process meanwhile; None where the system does not tell."""

    @property
    def verdict(self) -> Verdict:
        """The most severe of all remarks."""
        return worst(self.remarks)


@dataclass(frozen=True)
class _Read:
    channel: str
    volume: Volume
    mask: NDArray[np.bool_]
    profile: SliceProfile
    background: Finding | None
    """None for CT, whose air is none of the darkest values."""

    @property
    def has_body(self) -> bool:
        """Whether the mask can be the body: not where the background is grey."""
        return self.background is None or self.background.verdict != "veto"


def examine_patient(patient: Patient, root: Path, grid: GridRule = _OWN_GRID) -> PatientReport:
    """Read all channels of a patient, and check each one, then all together.

    Args:
        patient: its files.
        root: the data folder that messages name files relative to.
        grid: the plan's rule: with `own` all channels must lie on one grid.
    """
    coarsest = grid.spacing_mm if isinstance(grid, SpacingGrid) else None
    began = monotonic()
    reset_peak()
    remarks: list[Remark] = []
    read: list[_Read] = []
    for channel, path in sorted(patient.channels.items()):
        try:
            volume = read_volume(path, root=root, coarsest_mm=coarsest)
        except VolumeError as error:
            check = "place" if isinstance(error, AffineError) else "readable"
            remarks.append(_refused(check, channel, error))
            continue
        remarks += _texts(channel, path)
        one = _read(channel, volume)
        remarks += [_remark(found, channel) for found in _looked_at(one) if found.verdict != "use"]
        read.append(one)
    paired = [one for one in read if one.has_body]
    remarks += _together(paired, must_share_grid=isinstance(grid, OwnGrid))
    return PatientReport(
        patient=patient.id,
        subject=patient.subject,
        files=files_digest(patient.channels, grid),
        remarks=tuple(remarks),
        digests={one.channel: content_digest(one.volume.voxels) for one in read},
        channels={one.channel: _facts(one, patient.channels[one.channel]) for one in read},
        seconds=round(monotonic() - began, 2),
        peak_mb=peak_mb(),
    )


def _facts(one: _Read, path: Path) -> ChannelFacts:
    scanner, acquired = scanner_of(path), one.profile.acquired_spacing_mm
    if not one.profile.is_resampled and scanner.slice_thickness_mm is not None:
        # the voxels show nothing: thicker than the grid, by its own word
        acquired = max(scanner.slice_thickness_mm, one.profile.stored_spacing_mm)
    x, y, z = one.volume.voxels.shape
    return ChannelFacts(
        shape=(x, y, z),
        spacing_mm=one.volume.spacing_mm,
        depth_axis=_depth_axis(one.volume),
        acquired_spacing_mm=acquired,
        vendor=scanner.vendor,
        field_strength_t=scanner.field_strength_t,
    )


def _looked_at(one: _Read) -> list[Finding]:
    """Everything that can be checked on one channel alone."""
    if one.background is not None and not one.has_body:
        # whatever else is said would rest on a mask of the whole volume, or be no reason beside it
        values = check_mr(one.volume.voxels)
        own = [values] if values.verdict == "veto" else []
        return [
            check_grid(one.volume.affine),
            check_header_place(one.volume.grid),
            *own,
            one.background,
        ]
    voxels, spacing = one.volume.voxels, one.volume.spacing_mm
    axis = _depth_axis(one.volume)
    return [
        check_grid(one.volume.affine),
        check_header_place(one.volume.grid),
        check_foreground(one.mask),
        *([] if one.background is None else [one.background]),
        check_field_of_view(one.mask, spacing, axis=axis),
        check_ct(voxels) if one.channel == CT else check_mr(voxels),
        check_profile(one.profile),
        burnt_in_text(voxels, one.mask, axis=axis).finding,
        has_face(voxels, spacing, body=one.mask).finding,
    ]


def _read(channel: str, volume: Volume) -> _Read:
    axis = _depth_axis(volume)
    mask = find_body(volume.voxels, volume.spacing_mm, axis=axis)
    return _Read(
        channel,
        volume,
        mask,
        estimate_profile(volume.voxels, mask, volume.spacing_mm, axis=axis),
        None if channel == CT else check_background(volume.voxels, mask),
    )


def _depth_axis(volume: Volume) -> int:
    return depth_axis(volume.spacing_mm)


def files_digest(channels: Mapping[str, Path], grid: GridRule = _OWN_GRID) -> str:
    """Names, sizes and times of a patient's files, the checks' version and the rule for grids."""
    found: list[object] = [VERSION, grid.model_dump(mode="json")]
    for channel, path in sorted(channels.items()):
        try:
            files = [(file.name, file.stat()) for file in stored_files(path)]
        except (OSError, VolumeError):
            found.append([channel, path.name, None])
            continue
        found += [[channel, name, stat.st_size, stat.st_mtime_ns] for name, stat in files]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def _together(read: Sequence[_Read], *, must_share_grid: bool) -> list[Remark]:
    remarks = []
    for other in read[1:]:
        first = read[0]
        voxels, mask = other.volume.voxels, other.mask
        try:
            check_same_grid(first.volume, other.volume, (first.channel, other.channel))
        except AffineError as error:
            if must_share_grid:
                remarks.append(_refused("one grid", other.channel, error))
                continue
            here, there = grid_of(first.volume), grid_of(other.volume)
            voxels = resample(voxels, there, here, background=float(voxels.min()))
            mask = resample_labels(mask.astype(np.uint8), there, here) > 0
        found = pairing(
            first.volume.voxels,
            voxels,
            first.mask,
            mask,
            first.volume.spacing_mm,
            axis=_depth_axis(first.volume),
        ).finding
        if found.verdict != "use":
            remarks.append(_remark(found, other.channel))
    return remarks


def _texts(channel: str, path: Path) -> list[Remark]:
    fields = identifying_fields(path)
    if not fields:
        return []
    return [
        Remark(
            check="identifiers",
            channel=channel,
            verdict="warn",
            seen=f"the header holds text: {', '.join(fields)}",
            remedy="Check it, and remove what identifies a patient. It never leaves this site.",
        )
    ]


def _refused(check: str, channel: str, error: VolumeError) -> Remark:
    seen = f"{error.what}: {error.seen}"
    return Remark(check=check, channel=channel, verdict="veto", seen=seen, remedy=error.remedy)


def _remark(found: Finding, channel: str) -> Remark:
    return Remark(
        check=found.check,
        channel=channel,
        verdict=found.verdict,
        seen=f"{found.seen}; needed: {found.needed}",
        remedy=found.remedy,
    )
