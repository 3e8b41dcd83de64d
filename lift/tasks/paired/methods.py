"""The rows of the tables: volume and figures of a held-out patient by each method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lift.cohort.preprocessing import Prepared, on_plan_grid, restore, to_output_units
from lift.config.plan import Plan, WindowRule
from lift.generator.features import Features
from lift.metrics.synthrad import CT_RANGE, MR_RANGE
from lift.metrics.table import PatientMetrics, patient_metrics
from lift.mixer.base import Mixer
from lift.mixer.curves import choose_curves, mean_equations
from lift.mixer.z_filter import fit
from lift.records.rows import MIXER_ROWS
from lift.tasks.paired.choice import blend
from lift.tasks.paired.predictions import (
    filtered,
    median_filtered,
    mixed,
    patient_curves,
    sum_of_equations,
)
from lift.volumes.slices import to_slices
from lift.volumes.volume import write_volume

Floats = NDArray[np.float32]
Method = Callable[[Features], Floats]


def main_row(plan: Plan) -> str:
    """The row of the mixer that a run trains, on what its plan gives it to see."""
    return MIXER_ROWS[plan.mixer.contrast != "none"]


def no_mixer(features: Features) -> Floats:
    """The frozen generator alone."""
    return np.asarray(features.pred)


def z_median(features: Features) -> Floats:
    """The running median of three slices."""
    return median_filtered(features)


def z_filter(taps: Tensor) -> Method:
    """A fitted linear filter along depth."""
    return lambda features: filtered(features, taps)


def with_curves(curves: Tensor | None, *, then: Tensor | None = None) -> Method:
    """A site's contrast (None: as it is), with a z-filter on top where `then` gives its taps."""

    def method(features: Features) -> Floats:
        seen = features.seen_with(curves)
        return seen.prediction() if then is None else filtered(seen, then)

    return method


def curve_methods(
    train: Mapping[str, Sequence[Features]],
    validation: Mapping[str, Sequence[Features]],
    ridge: float,
) -> dict[str, Method]:
    """The rows of a site that stays out and trains no network; empty without a patient.

    Args:
        train: the site's training patients, each with all its volumes.
        validation: likewise. They choose and fit the curves too, which have few numbers; the
            z-filter is fitted on training patients alone, as everywhere.
        ridge: of the z-filter.
    """
    people = [*train.values(), *validation.values()]
    equations = [mean_equations([patient_curves(f) for f in volumes]) for volumes in people]
    if not equations:
        return {}
    curves = choose_curves(equations, None).curves
    methods = {"curves": with_curves(curves)}
    total = sum_of_equations([f.seen_with(curves) for f in volumes] for volumes in train.values())
    if total.patients:
        methods["curves_z_filter"] = with_curves(curves, then=fit(total, ridge))
    return methods


def with_mixer(
    mixer: Mixer,
    values: Mapping[str, Tensor],
    *,
    curves: Tensor | None = None,
    then: Tensor | None = None,
) -> Method:
    """A trained mixer on the prediction under a site's curves (None: as it is).

    Where `then` gives the taps of a z-filter, that filter is on top.
    """

    def method(features: Features) -> Floats:
        mixer.load_values(values)
        result = mixed(mixer, features.seen_with(curves))
        return result if then is None else filtered(features, then, result)

    return method


def blended(method: Method, strength: float) -> Method:
    """A part (0 to 1) of what a method changes of the generator's prediction."""
    if strength == 1:
        return method
    return lambda features: blend(np.asarray(features.pred), method(features), strength)


@dataclass(frozen=True)
class HeldOut:
    """One held-out patient: where it belongs, its features, how to invert its slicing."""

    site: str
    patient: str
    features: Features
    prepared: Prepared


def measure(
    held_out: HeldOut, prediction: Floats, plan: Plan, *, brief: bool = False
) -> PatientMetrics:
    """All metrics (`brief`: two) of one prediction, on the whole grid that the plan works on.

    Outside the mask both volumes hold the background (0 normalised), as cWDM's sampling sets
    it; CT is measured in HU.
    """
    prepared = held_out.prepared
    if prepared.target is None:
        raise ValueError("a held-out patient needs a target")
    mask = np.asarray(prepared.mask)
    volumes = [
        to_slices(on_plan_grid(prepared, volume, background=0.0), plan.preprocessing.plane)
        for volume in (np.asarray(prediction) * mask, prepared.target * mask, mask)
    ]
    rule = plan.preprocessing.rule(plan.task.target)
    window = rule if isinstance(rule, WindowRule) else None
    if window is not None:
        volumes[:2] = [window.low + volume * (window.high - window.low) for volume in volumes[:2]]
    return patient_metrics(
        volumes[0],
        volumes[1],
        volumes[2] > 0,
        range=MR_RANGE if window is None else CT_RANGE,
        spacing_mm=prepared.spacing_mm,
        protocol="mr" if window is None else "ct",
        brief=brief,
    )


def write_held_out(
    folder: Path, held_out: HeldOut, predictions: Mapping[str, Floats], plan: Plan
) -> None:
    """Inputs, target, mask and predictions on the patient's own grid, in output units.

    Files go to `folder`/SITE/PATIENT, where a report finds them.
    """
    prepared = held_out.prepared
    place = folder / held_out.site / held_out.patient
    mask = np.asarray(prepared.mask)
    volumes: dict[str, tuple[Floats, str]] = {
        f"source-{name}": (prepared.source[:, i : i + 1], name)
        for i, name in enumerate(plan.task.source)
    }
    if prepared.target is not None:
        volumes["target"] = (prepared.target, plan.task.target)
    for method, prediction in predictions.items():
        volumes[method] = (np.clip(np.asarray(prediction), 0.0, 1.0) * mask, plan.task.target)
    for name, (slices, channel) in volumes.items():
        voxels, dtype = to_output_units(restore(prepared, slices, background=0.0), plan, channel)
        write_volume(place / f"{name}.nii.gz", voxels, prepared.reference, dtype=dtype)
    write_volume(
        place / "mask.nii.gz",
        restore(prepared, mask, background=0.0, labels=True),
        prepared.reference,
        dtype=np.dtype(np.uint8),
    )
