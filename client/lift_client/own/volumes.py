"""What the hospital's own report hands on of a patient: the synthetic volume as files of their own.

A NIfTI file with its sidecar, and a derived DICOM series where the first source is one. They hold
the patient's name where the source does, and stay with the report.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lift.cohort.preprocessing import restore, to_output_units
from lift.config.plan import Plan
from lift.errors import VolumeError
from lift.report.own import handed_on, series_folder
from lift.tasks.paired.methods import HeldOut
from lift.tasks.paired.synthesis import Floats
from lift.volumes.derived_series import (
    SourceSeries,
    is_dicom_path,
    read_source_series,
    write_derived_series,
)
from lift.volumes.synthetic import Synthesis, write_sidecar

logger = logging.getLogger(__name__)


def write_handed_on(
    folder: Path,
    held_out: HeldOut,
    predictions: Mapping[str, Floats],
    plan: Plan,
    sources: Mapping[str, Path],
    made: Synthesis,
) -> None:
    """Write the sidecar and, of DICOM sources, the series beside a held-out patient's volumes.

    What an earlier report left there is replaced.

    Args:
        folder: of the report's volumes; the patient's own is in it.
        held_out: the patient.
        predictions: METHOD -> slices; the one that the site would use is handed on.
        plan: of the mixer.
        sources: the patient's files.
        made: what made the volume.

    Raises:
        VolumeError: the disk refuses.
    """
    place = folder / held_out.site / held_out.patient
    method = handed_on(predictions)
    write_sidecar(place / f"{method}.nii.gz", made)
    for earlier in place.glob(series_folder("*")):
        shutil.rmtree(earlier)
    series = _series_of(held_out.patient, [sources[name] for name in plan.task.source])
    if series is None:
        return
    prepared = held_out.prepared
    inside = np.clip(np.asarray(predictions[method]), 0.0, 1.0) * np.asarray(prepared.mask)
    voxels, _ = to_output_units(restore(prepared, inside, background=0.0), plan, plan.task.target)
    write_derived_series(place / series_folder(method), voxels, series, made)


def _series_of(patient: str, sources: list[Path]) -> SourceSeries | None:
    """The series of the first source, or None where it is none or lacks what is needed."""
    if not is_dicom_path(sources[0]):
        return None
    try:
        return read_source_series(sources[0], sources)
    except VolumeError as error:
        logger.warning("event=no_series patient=%s reason=%s", patient, error.seen)
        return None
