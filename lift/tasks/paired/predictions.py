"""Predictions of each method for one patient, and the figures for guard and tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lift.cohort.split import Part
from lift.generator.features import Features, Person, examinations
from lift.metrics.synthrad import ValueRange, psnr_db
from lift.mixer.base import Mixer
from lift.mixer.curves import CurveEquations, curve_equations
from lift.mixer.z_filter import (
    NormalEquations,
    apply_z_filter,
    normal_equations,
    person_equations,
    z_median,
)
from lift.one_patient import of_one_patient
from lift.tasks.paired.choice import USES, Base, blend
from lift.tasks.paired.contrast import SiteContrast, own_curves_view
from lift.tasks.paired.site_cohort import SiteCohort
from lift.tasks.paired.synthesis import CachedStream, mix

Floats = NDArray[np.float32]
_FITTED: Final[tuple[Part, Part]] = ("train", "validation")


def patient_equations(features: Features, prediction: Floats | None = None) -> NormalEquations:
    """One patient's normal equations of the z-filter on a prediction (default: what mixers get)."""
    return normal_equations(
        _tensor(features.prediction() if prediction is None else prediction),
        _tensor(_target(features)),
        _mask(features),
    )


def sum_of_equations(patients: Iterable[Person]) -> NormalEquations:
    """The z-filter's normal equations over some persons, on what mixers get.

    A person counts once: the mean over the person's volumes.
    """
    people = (
        person_equations([patient_equations(volume) for volume in examinations(person)])
        for person in patients
    )
    return sum(people, start=NormalEquations.zero())


def patient_curves(features: Features) -> CurveEquations:
    """One volume's equations of the curves."""
    return curve_equations(
        _tensor(features.pred),
        _tensor(features.source),
        _tensor(_target(features)),
        _mask(features),
    )


def under_own_curves(
    patients: Mapping[str, Sequence[Features]], *, affine: bool = False
) -> dict[str, list[Features]]:
    """Patients as training would see them: each under its own curves."""
    equations = {name: [patient_curves(f) for f in volumes] for name, volumes in patients.items()}
    return own_curves_view(patients, SiteContrast.of(equations, {}, affine=affine))


def site_contrast(
    cohort: SiteCohort, *, affine: bool = False, one_by_one: bool = False
) -> SiteContrast:
    """The curve equations of a site's training and validation patients.

    Args:
        cohort: of the site.
        affine: fit a gain and an offset in place of curves.
        one_by_one: under noise: a patient whose equations cannot be computed is left out.

    Raises:
        VolumeError: of such a patient, without noise.
    """
    train, validation = (
        _curves_of(cohort.persons(part), one_by_one=one_by_one) for part in _FITTED
    )
    return SiteContrast.of(train, validation, affine=affine)


def _curves_of(
    persons: Mapping[str, Sequence[Features]], *, one_by_one: bool
) -> dict[str, list[CurveEquations]]:
    found = {}
    for subject, volumes in persons.items():
        compute = partial(_curves_of_one, volumes)
        equations = of_one_patient(compute) if one_by_one else compute()
        if equations is not None:
            found[subject] = equations
    return found


def _curves_of_one(volumes: Sequence[Features]) -> list[CurveEquations]:
    return [patient_curves(features) for features in volumes]


def mixed(mixer: Mixer, features: Features) -> Floats:
    """The mixer's volume, (z, 1, h, w)."""
    return mix(mixer, CachedStream(features, mixer))


def filtered(features: Features, taps: Tensor, prediction: Floats | None = None) -> Floats:
    """The z-filter on a prediction (default: what mixers get), (z, 1, h, w)."""
    pred = _tensor(features.prediction() if prediction is None else prediction)
    return apply_z_filter(pred, _mask(features), taps).numpy()


def median_filtered(features: Features) -> Floats:
    """The median of three slices, (z, 1, h, w)."""
    return z_median(_tensor(features.pred), _mask(features)).numpy()


def volumes_of_uses(features: Features, mixer: Mixer, taps: Tensor | None) -> dict[str, Floats]:
    """What a site would get of one patient, by the name of each use, simplest first.

    Args:
        features: the patient under curves that it had no part in.
        mixer: with the numbers of the finished one.
        taps: of the shared z-filter, (6,); None where there is none, as under privacy.
    """
    bases: dict[Base, Floats] = {
        "no_mixer": features.pred,
        "curves": features.prediction(),
        "mixer": mixed(mixer, features),
    }
    if taps is not None:
        bases["z_filter"] = filtered(features, taps)
    return {
        use.name: blend(features.pred, bases[use.base], use.strength)
        for use in USES
        if use.base in bases
    }


def patient_psnr_db(features: Features, prediction: NDArray[np.float32]) -> float:
    """PSNR inside the mask, in the normalised range."""
    return psnr_db(
        np.asarray(prediction)[:, 0],
        np.asarray(_target(features))[:, 0],
        np.asarray(features.mask)[:, 0] > 0,
        ValueRange(0.0, 1.0),
    )


def _target(features: Features) -> Floats:
    if features.target is None:
        raise ValueError("this needs a patient with a target")
    return features.target


def _tensor(array: Floats) -> Tensor:
    # a copy: torch must never hold a read-only memory map
    return torch.from_numpy(np.array(array, dtype=np.float32))


def _mask(features: Features) -> Tensor:
    return torch.from_numpy(np.array(features.mask, dtype=np.float32))
