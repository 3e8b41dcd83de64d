"""Translation of source volumes to one synthetic volume, on the grid of the input."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from lift.cohort.patients import Patient
from lift.cohort.preprocessing import (
    Prepared,
    is_hounsfield,
    prepare,
    restore,
    to_output_units,
)
from lift.device import fix_threads
from lift.errors import ConfigError
from lift.generator.blocks import generate_blocks
from lift.generator.networks import FrozenGenerator
from lift.guard import concerns
from lift.metrics.hf_share import hf_share
from lift.mixer.finished import FinishedMixer
from lift.tasks.paired.building import check_generator, loaded_mixer, start_values
from lift.tasks.paired.choice import Use, blend
from lift.tasks.paired.contrast import SiteModel
from lift.tasks.paired.synthesis import Floats, GeneratedStream, mix
from lift.volumes.derived_series import (
    check_new_folder,
    check_on_series,
    read_source_series,
    write_derived_series,
)
from lift.volumes.synthetic import Synthesis, check_sidecar, write_sidecar
from lift.volumes.volume import check_written_name, write_volume

logger = logging.getLogger(__name__)
OnConcern = Literal["warn", "fall_back"]


@dataclass(frozen=True)
class Translated:
    """The written file, and the concern of the guard.

    Attributes:
        method: `mixer`, or `no_mixer` where the guard fell back.
        concern: why the mixer may not help on this volume, or None.
    """

    method: Literal["mixer", "no_mixer"]
    concern: str | None


@dataclass(frozen=True)
class ToDicom:
    """That a translation is written as a derived DICOM series.

    Attributes:
        series: whose patient, study and places it takes over: of the first input, the folder of a
            series or a multi-frame file.
        folder: where its files go, new or empty.
    """

    series: Path
    folder: Path


def translate(
    inputs: Mapping[str, Path],
    output: Path | None,
    finished: FinishedMixer,
    generator: FrozenGenerator,
    *,
    mask: Path | None,
    site: SiteModel | None = None,
    on_concern: OnConcern,
    dicom: ToDicom | None = None,
    report: Callable[[int, int], None] | None = None,
) -> Translated:
    """Synthesise the plan's target channel of one patient, streamed over depth.

    The output has the first source's grid, orientation and spacing. CT is written in HU
    (int16); MR, which has no unit, as float32 with the plan's `written_maximum`. A sidecar beside
    it (.json) says that it is synthetic, and what made it.

    Args:
        inputs: channel name -> file, exactly the plan's sources.
        output: where to write (.nii or .nii.gz), or None for a DICOM series alone.
        finished: the trained mixer.
        generator: the frozen generator that it was trained around.
        mask: the patient's mask, where the plan's rule is `file`.
        site: its own curves, and what of the mixer it uses; None: the generator's contrast stays.
        on_concern: what to do when the guard has a concern: warn, or leave the mixer out.
        dicom: also, or only, write a derived DICOM series.
        report: called after each chunk with the slices done and their number.

    Raises:
        ConfigError: a source is missing or extra, or the mask is.
        GeneratorError: another generator than the mixer's.
        VolumeError: an input cannot be used, or an output cannot be written there.
        AffineError: the series of `dicom` is not on the grid of the first source.
        ValueError: nothing is to be written.
    """
    if output is None and dicom is None:
        raise ValueError("neither a file nor a series is to be written")
    plan = finished.plan
    check_generator(plan, generator)
    if set(inputs) != set(plan.task.source):
        raise ConfigError(
            "the inputs do not fit the mixer",
            where="inputs",
            seen=f"given: {', '.join(inputs)}; needed: {', '.join(plan.task.source)}",
            remedy="Give one file for each source, as NAME=FILE or in this order.",
        )
    if (plan.preprocessing.mask == "file") != (mask is not None):
        needed = plan.preprocessing.mask == "file"
        raise ConfigError(
            "a mask is needed" if needed else "a mask was given that the plan does not use",
            where="--mask",
            seen=f"the plan's mask rule is '{plan.preprocessing.mask}'",
            remedy="Give the patient's mask." if needed else "Leave --mask out.",
        )
    has_curves = plan.mixer.contrast != "none"
    if site is not None and not has_curves:
        raise ConfigError(
            "this mixer has no use for a site's curves",
            where="--curves",
            seen="its plan says mixer.contrast: none",
            remedy="Nothing was written. Leave --curves out.",
        )
    name, series = "", None
    if dicom is not None:
        check_new_folder(dicom.folder)
        name, series = dicom.folder.name, read_source_series(dicom.series, inputs.values())
    if output is not None:
        check_written_name(output)
        check_sidecar(output)
        name = output.name
    fix_threads(plan.threads)
    patient = Patient(id=name, subject=name, channels=dict(inputs), mask=mask)
    prepared = prepare(patient, plan, root=Path(), with_target=False)
    if series is not None:
        check_on_series(prepared.reference, series, plan.task.source[0])
    concern = concerns(
        finished.sites, prepared.spacing_mm[0], hf_share(prepared.source, prepared.mask)
    )
    if has_curves and site is None:
        reason = "no site's curves were given (--curves), so its contrast is the generator's"
        concern = reason if concern is None else f"{concern}; {reason}"
    use = Use() if site is None else site.use
    mixer = loaded_mixer(finished, generator)
    fell_back = concern is not None and on_concern == "fall_back"
    if fell_back or use.base == "no_mixer":
        result = _generated(prepared, generator)
    else:
        if use.base != "mixer":
            # at its start a mixer is the z-filter; with taps of 0 it is what it is given
            taps = finished.taps if use.base == "z_filter" else torch.zeros_like(finished.taps)
            mixer.load_values(start_values(plan, generator, taps))
        curves = None if site is None else site.curves
        result = mix(mixer, GeneratedStream(prepared, generator, mixer, curves), report=report)
        if use.strength < 1:
            result = blend(_generated(prepared, generator), result, use.strength)
    inside = np.clip(result, 0.0, 1.0) * np.asarray(prepared.mask)
    voxels, dtype = to_output_units(
        restore(prepared, inside, background=0.0), plan, plan.task.target
    )
    method = "no_mixer" if fell_back else "mixer" if site is None else site.name
    made = synthesis_of(finished, site, method=method, concern=concern)
    if output is not None:
        write_sidecar(output, made)
        write_volume(output, voxels, prepared.reference, dtype=dtype)
    if dicom is not None and series is not None:
        write_derived_series(dicom.folder, voxels, series, made)
    return Translated("no_mixer" if fell_back or use.base == "no_mixer" else "mixer", concern)


def synthesis_of(
    finished: FinishedMixer, site: SiteModel | None, *, method: str, concern: str | None
) -> Synthesis:
    """What a volume of this mixer says of itself.

    Args:
        finished: the mixer.
        site: what the site uses of it; its own mixer is named where it has one.
        method: how the volume was made.
        concern: of the guard, or None.
    """
    plan = finished.plan
    return Synthesis(
        target=plan.task.target,
        sources=plan.task.source,
        unit="HU" if is_hounsfield(plan, plan.task.target) else "arbitrary",
        method=method,
        mixer=finished.digest,
        site_mixer=None if site is None or site.own is None else site.own.digest,
        generator=plan.generator_fingerprint or "",
        plan=plan.digest(),
        concern=concern,
        phantom=finished.phantom,
    )


def _generated(prepared: Prepared, generator: FrozenGenerator) -> Floats:
    """The frozen generator's own prediction, (z, 1, h, w)."""
    return torch.cat([block.pred for _, block in generate_blocks(generator, prepared, ())]).numpy()
