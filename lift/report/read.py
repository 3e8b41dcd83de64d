"""What a run folder says, typed and checked: the report's, and any viewer's, only source.

:func:`read_run` reads the records, :func:`read_patient` the volumes of one held-out patient.
Keys that are not known here are passed over, so that a newer run can still be read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeVar

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray
from pydantic import BaseModel, JsonValue, ValidationError

from lift.errors import AffineError, DataError, VolumeError
from lift.records.extract import PUBLIC_ROUNDS_FILE, PublicRound
from lift.records.metrics import METRICS_FILE, Metrics
from lift.records.published import PUBLISHED_FILE, Published
from lift.records.rounds import ROUNDS_FILE, RoundRecord
from lift.records.rows import MIXER_ROWS
from lift.records.run import RUN_FILE, RunRecord
from lift.records.shipped import Shipped
from lift.report.terms import BETTER
from lift.strict_json import parse_model

Floats = NDArray[np.float32]
Plane = Literal["axial", "coronal", "sagittal"]

SYNTHESIS_FOLDER: Final = "synthesis"
STYLE_FOLDER: Final = "style-"
"""Begins the names of folders in it: new volumes of one stated grey scale each."""
SHOWN_METHODS: Final = ("no_mixer", "z_median", "z_filter", *MIXER_ROWS)
_NEEDED: Final = ("target", "mask", "no_mixer")
_SUFFIX: Final = ".nii.gz"
_SOURCE: Final = "source-"


@dataclass(frozen=True)
class PatientFolder:
    """One held-out patient under `synthesis/`; `missing` names the files it lacks."""

    site: str
    patient: str
    path: Path
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """A run folder's records.

    Attributes:
        record: `run.json`.
        rounds: the lines of `rounds.jsonl`, in the file's order.
        last_line_lost: whether a half-written last line was passed over.
        metrics: `metrics.json`, or None where the run has not got that far.
        patients: the folders under `synthesis/`, by site and patient.
        extract: of a release's folder: what is public of the rounds. `rounds` and `patients` are
            then empty, and `record` and `metrics` hold nothing by site.
        published: figures of others' publications, where the run is a public benchmark's.
    """

    record: RunRecord
    rounds: tuple[RoundRecord, ...]
    last_line_lost: bool
    metrics: Metrics | None
    patients: tuple[PatientFolder, ...]
    extract: tuple[PublicRound, ...] | None = None
    published: Published | None = None

    @property
    def sites(self) -> tuple[str, ...]:
        """All sites: those of `run.json` in its order, then any that only the metrics name."""
        named = dict.fromkeys(site.name for site in self.record.sites)
        if self.metrics is not None:
            named |= dict.fromkeys(sorted(self.metrics.sites))
        return tuple(named)

    def setting(self, section: str, key: str) -> JsonValue:
        """One setting of the plan, or None where the plan has not got it."""
        part = self.record.plan.get(section)
        return part.get(key) if isinstance(part, dict) else None

    @property
    def has_targets(self) -> bool:
        """Whether the task predicts a channel that patients have, and not new volumes."""
        return bool(self.setting("task", "source"))

    @property
    def shipped(self) -> Shipped | None:
        """What the run ships, where it had a choice and made it."""
        source, said = self.record.shipped, self.record.said
        if source is None:
            return None
        # nobody is asked under noise; what fewer than three sites said is in no release
        asked = self.setting("privacy", "mode") == "none"
        return Shipped(source, said, withheld=said is None and asked)

    @property
    def plane(self) -> Plane:
        """The slice plane; depth runs across it."""
        match self.setting("preprocessing", "plane"):
            case "coronal":
                return "coronal"
            case "sagittal":
                return "sagittal"
            case _:
                return "axial"


@dataclass(frozen=True)
class PatientVolumes:
    """One held-out patient's volumes on one grid, axes (right, anterior, superior), RAS+.

    Attributes:
        sources: channel -> normalised source.
        target: the real volume, normalised.
        predictions: METHOD -> normalised synthetic volume.
        mask: True inside.
        spacing_mm: voxel size along the three axes.
    """

    sources: dict[str, Floats]
    target: Floats
    predictions: dict[str, Floats]
    mask: NDArray[np.bool_]
    spacing_mm: tuple[float, float, float]


def read_run(run: Path) -> Run:
    """The records of one run folder, or of a release's.

    Only `run.json` must be there; what else is missing is empty or None. A half-written last
    line of `rounds.jsonl` (a run that was killed) is passed over and said.

    Raises:
        DataError: `run.json` is missing, or a file is damaged or does not fit.
    """
    record = _parse(RunRecord, _read_text(run / RUN_FILE), RUN_FILE)
    rounds, lost = read_rounds(run / ROUNDS_FILE)
    metrics = None
    if (run / METRICS_FILE).is_file():
        metrics = _parse(Metrics, _read_text(run / METRICS_FILE), METRICS_FILE)
        _check_metric_names(metrics)
    patients = _patient_folders(run / SYNTHESIS_FOLDER)
    published = None
    if (run / PUBLISHED_FILE).is_file():
        published = _parse(Published, _read_text(run / PUBLISHED_FILE), PUBLISHED_FILE)
    extract = _read_extract(run / PUBLIC_ROUNDS_FILE)
    return Run(record, rounds, lost, metrics, patients, extract, published)


def read_patient(folder: PatientFolder) -> PatientVolumes:
    """All volumes of one patient whose `missing` is empty.

    Raises:
        VolumeError: a file is damaged, not 3D, not finite, or the mask is empty.
        AffineError: the files do not share one grid.
    """
    names = sorted(file.name.removesuffix(_SUFFIX) for file in folder.path.glob(f"*{_SUFFIX}"))
    sources = [name for name in names if name.startswith(_SOURCE)]
    methods = [name for name in SHOWN_METHODS if name in names]
    target, affine = _read_volume(folder, "target")
    volumes: dict[str, Floats] = {}
    for name in (*sources, *methods, "mask"):
        voxels, own_affine = _read_volume(folder, name)
        if voxels.shape != target.shape or not np.allclose(own_affine, affine, atol=1e-3):
            raise AffineError(
                f"cannot show volume '{_place(folder, name)}'",
                seen=f"its grid is {voxels.shape}, the target's {target.shape}; a patient's "
                "volumes need the same shape and affine",
                remedy="Run the simulation again, or remove this patient's folder.",
            )
        volumes[name] = voxels
    mask = volumes["mask"] > 0
    if not mask.any():
        raise VolumeError(
            f"cannot show volume '{_place(folder, 'mask')}'",
            seen="the mask is empty; at least one voxel is needed",
            remedy="Run the simulation again, or remove this patient's folder.",
        )
    x, y, z = (float(side) for side in voxel_sizes(affine))
    return PatientVolumes(
        sources={name.removeprefix(_SOURCE): volumes[name] for name in sources},
        target=target,
        predictions={name: volumes[name] for name in methods},
        mask=mask,
        spacing_mm=(x, y, z),
    )


Model = TypeVar("Model", bound=BaseModel)


def _parse(model: type[Model], text: str | bytes, where: str) -> Model:
    try:
        return parse_model(model, text)
    except ValueError as error:
        problems = [str(error)]
        if isinstance(error, ValidationError):
            problems = [
                f"{'.'.join(str(part) for part in item['loc']) or 'content'}: {item['msg']}"
                for item in error.errors(include_input=False, include_url=False)
            ]
        raise DataError(
            "cannot read the run",
            where=where,
            seen="\n".join(problems[:10]),
            remedy="Nothing was changed. Run again with the same output folder to write it anew.",
        ) from None


def _read_text(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            "cannot read the run",
            where=path.name,
            seen=f"{error.strerror}; a report needs this file of the run folder",
            remedy="Give the folder that the run wrote, the one that holds run.json.",
        ) from None


def read_rounds(path: Path) -> tuple[tuple[RoundRecord, ...], bool]:
    """The lines of `rounds.jsonl`, and whether its last one was cut off and left out.

    Raises:
        DataError: a line is not what a run writes.
    """
    if not path.is_file():
        return (), False
    content = _read_text(path)
    *lines, rest = content.split(b"\n")
    records = [
        _parse(RoundRecord, line, f"{ROUNDS_FILE}, line {number}")
        for number, line in enumerate(lines, 1)
    ]
    if not rest.strip():
        return tuple(records), False
    # without its line feed the last line may be half a line: no half of an object is an object
    try:
        records.append(_parse(RoundRecord, rest, ROUNDS_FILE))
    except DataError:
        return tuple(records), True
    return tuple(records), False


def _read_extract(path: Path) -> tuple[PublicRound, ...] | None:
    if not path.is_file():
        return None
    return tuple(
        _parse(PublicRound, line, f"{PUBLIC_ROUNDS_FILE}, line {number}")
        for number, line in enumerate(_read_text(path).splitlines(), 1)
    )


def _check_metric_names(metrics: Metrics) -> None:
    tables = [
        *metrics.pooled.values(),
        *(table for site in metrics.sites.values() for table in site.methods.values()),
        *metrics.comparisons.pooled.values(),
        *(table for site in metrics.comparisons.sites.values() for table in site.values()),
        *(metrics.second_phantom or {}).values(),
    ]
    if unknown := sorted({name for table in tables for name in table} - set(BETTER)):
        raise DataError(
            "cannot read the run",
            where=METRICS_FILE,
            seen=f"unknown metrics {', '.join(unknown)}; known are {', '.join(BETTER)}",
            remedy="Write the report with the version of this software that made the run.",
        )


def _patient_folders(synthesis: Path) -> tuple[PatientFolder, ...]:
    found = []
    for site in sorted(path for path in synthesis.glob("*") if path.is_dir()):
        for patient in sorted(path for path in site.glob("*") if path.is_dir()):
            missing = tuple(
                names[0]
                for names in (*((name,) for name in _NEEDED), MIXER_ROWS)
                if not any((patient / f"{name}{_SUFFIX}").is_file() for name in names)
            )
            found.append(PatientFolder(site.name, patient.name, patient, missing))
    return tuple(found)


def _read_volume(folder: PatientFolder, name: str) -> tuple[Floats, NDArray[np.float64]]:
    return read_voxels(folder.path / f"{name}{_SUFFIX}", _place(folder, name))


def read_voxels(path: Path, place: str) -> tuple[Floats, NDArray[np.float64]]:
    """Voxels (x, y, z), RAS+, and affine of one file of the run; `place` is its name in errors.

    Raises:
        VolumeError: the file is damaged, not 3D or not finite.
    """
    try:
        image = nib.as_closest_canonical(nib.load(path))
        voxels = np.asarray(image.dataobj, dtype=np.float32)
    # nibabel, zlib and the file system each have errors of their own for a damaged file
    except Exception as error:
        raise VolumeError(
            f"cannot show volume '{place}'",
            seen=f"the file is damaged ({type(error).__name__}); a NIfTI volume is needed",
            remedy="Run the simulation again, or remove this patient's folder.",
        ) from None
    if voxels.ndim != 3 or not math.isfinite(float(voxels.sum(dtype=np.float64))):
        raise VolumeError(
            f"cannot show volume '{place}'",
            seen=f"its shape is {voxels.shape}; three axes of finite numbers are needed",
            remedy="Run the simulation again, or remove this patient's folder.",
        )
    return voxels, np.asarray(image.affine, dtype=np.float64)


def _place(folder: PatientFolder, name: str) -> str:
    return f"{SYNTHESIS_FOLDER}/{folder.site}/{folder.patient}/{name}{_SUFFIX}"
