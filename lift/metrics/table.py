"""From volumes to the figures of `metrics.json`: per patient, per site, pooled and compared.

A patient is a person. Figures are measured on examinations; means, intervals and counts are over
persons, each of whom counts once.

No patient's name is in what :func:`summarise` returns: means, intervals and counts. Over a
single patient the mean is that patient's own figure, and `n` says so.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, TypeVar

import numpy.typing as npt

from lift.guard import Verdict
from lift.metrics.brats import psnr_crop_db, ssim_crop
from lift.metrics.contrast import psnr_invariant_db
from lift.metrics.hounsfield import tissue_figures
from lift.metrics.intervals import Better, bootstrap_mean, paired_difference
from lift.metrics.synthrad import Numbers, ValueRange, mae_hu, psnr_db, ssim
from lift.metrics.synthrad_2025 import ms_ssim_ct
from lift.metrics.through_plane import band_figures, dz_corr, dz_mae, slice_gain, tpr
from lift.randomness import derive_seed
from lift.records.metrics import Comparisons, Measure, Metrics, SiteFigures, Table
from lift.records.rows import MIXER_ROWS, PLAIN_ROWS

Key = TypeVar("Key", bound=Hashable)
Protocol = Literal["mr", "ct"]

PatientMetrics = Mapping[str, float]
"""METRIC -> figure of one examination; a figure that does not exist is left out."""

Entry = dict[str, float | int | str | None]
"""A measure as JSON: value, interval, number of persons, unit."""

Methods = Mapping[str, Mapping[str, PatientMetrics]]
"""METHOD -> examination -> figures, of one site."""

Persons = Mapping[Key, Hashable]
"""Examination -> person; one that is not named is a person of its own."""

UNITS: Final[Mapping[str, str]] = {
    "psnr_db": "dB",
    "psnr_invariant_db": "dB",
    "ssim": "",
    "mae": "normalised",
    "dz_mae": "normalised",
    "dz_corr": "",
    "hf_error": "",
    "hf_coherence": "",
    "hf_ratio": "",
    "slice_gain": "",
    "tpr": "",
    "perceptual": "",
    "dice": "",
    "psnr_crop_db": "dB",
    "ssim_crop": "",
    "mae_bone": "HU",
    "mae_soft": "HU",
    "bone_dice": "",
    "ms_ssim_ct": "",
}
"""METRIC -> unit ("" for a pure number) under the `mr` protocol; see :func:`unit_of`."""

BETTER: Final[Mapping[str, Better]] = {
    "psnr_db": "higher",
    "psnr_invariant_db": "higher",
    "ssim": "higher",
    "mae": "lower",
    "dz_mae": "lower",
    "dz_corr": "higher",
    "hf_error": "lower",
    "hf_coherence": "higher",
    "hf_ratio": "nearer_one",
    "slice_gain": "nearer_one",
    "tpr": "nearer_one",
    "perceptual": "lower",
    "dice": "higher",
    "psnr_crop_db": "higher",
    "ssim_crop": "higher",
    "mae_bone": "lower",
    "mae_soft": "lower",
    "bone_dice": "higher",
    "ms_ssim_ct": "higher",
}
"""METRIC -> which of two figures wins."""

_REFERENCES: Final = (
    "no_mixer",
    "z_filter",
    "z_filter_local",
    "z_median",
    "curves",
    "curves_z_filter",
    "control_2d",
    "control_2d_z_filter",
    "local_only",
    "local_curves",
    "local_longer",
    "centralised",
    "three_planes",
    *PLAIN_ROWS,
)
_ALONE: Final = ("no_mixer", "curves_z_filter", "local_only", "local_curves", "local_longer")
COMPARISONS: Final[tuple[tuple[str, str], ...]] = (
    *((row, reference) for row in MIXER_ROWS for reference in _REFERENCES),
    ("z_filter", "no_mixer"),
    ("curves", "no_mixer"),
    ("curves_z_filter", "no_mixer"),
    ("control_2d", "no_mixer"),
    ("control_2d_z_filter", "z_filter"),
    ("local_curves", "local_only"),
    ("local_steps", "local_longer"),
    *(("chosen", reference) for reference in (*_ALONE, *MIXER_ROWS, *PLAIN_ROWS)),
)
"""(method, reference) pairs of :func:`summarise`; one that did not run is passed over."""


def unit_of(metric: str, protocol: Protocol) -> str:
    """The unit of one metric; "" for a pure number.

    Raises:
        ValueError: there is no such metric.
    """
    if metric not in UNITS:
        raise ValueError(f"unknown metric '{metric}'")
    unit = UNITS[metric]
    return "HU" if protocol == "ct" and unit == "normalised" else unit


@dataclass(frozen=True)
class MetricValue:
    """Mean over `n` persons with its 95% interval; no interval for a single one."""

    value: float
    n: int
    low: float | None
    high: float | None
    unit: str


def patient_metrics(
    prediction: Numbers,
    target: Numbers,
    mask: npt.ArrayLike,
    *,
    range: ValueRange,  # noqa: A002  (the name that callers know)
    spacing_mm: tuple[float, float, float],
    protocol: Protocol,
    brief: bool = False,
) -> dict[str, float]:
    """All figures of one patient that exist, each finite.

    `mr` adds the two of the BraTS crop, and the PSNR after the best contrast; `ct` adds errors in
    bone and soft tissue, the overlap of bone, and the MS-SSIM of SynthRAD2025.

    Left out are figures that a volume has not got: SSIM of a volume thinner than 7 voxels, band
    figures without columns of 8 slices, a correlation with a constant (see each metric).

    Args:
        prediction: (depth, height, width), in HU (`ct`) or normalised to [0, 1] (`mr`).
        target: the same for the real volume.
        mask: the same; the voxels that count are above 0.
        range: the values to which PSNR and SSIM clip: `CT_RANGE` or `MR_RANGE`.
        spacing_mm: (depth, height, width) spacing; checked but of no influence, because
            through-plane figures are per slice or quotients in which the spacing cancels.
        protocol: whether the volumes are MR or CT.
        brief: PSNR and the Delta-z correlation alone: the others take most of the time.

    Raises:
        ValueError: shapes differ, are not 3D, the mask is empty, a voxel is not finite, or a
            spacing is not a positive number.
    """
    if len(spacing_mm) != 3 or not all(0 < side < math.inf for side in spacing_mm):
        raise ValueError(f"a spacing is three positive numbers, not {spacing_mm}")
    wanted = ("psnr_db", "dz_corr") if brief else tuple(UNITS)
    pair = (prediction, target, mask)
    figures: dict[str, float | None] = {
        "psnr_db": psnr_db(*pair, range),
        "dz_corr": dz_corr(*pair),
    }
    if not brief:
        # here: it imports torch, which readers of a table need not wait for
        from lift.metrics.perceptual import perceptual_distance

        band = band_figures(*pair)
        figures |= {
            "ssim": ssim(*pair, range),
            "mae": mae_hu(*pair),
            "dz_mae": dz_mae(*pair),
            "hf_error": band.error,
            "hf_coherence": band.coherence,
            "hf_ratio": band.ratio,
            "slice_gain": slice_gain(*pair),
            "tpr": tpr(*pair),
            "perceptual": perceptual_distance(*pair, range),
        }
        if protocol == "mr":
            figures |= {
                # CT has units: there an offset is an error
                "psnr_invariant_db": psnr_invariant_db(*pair, range),
                "psnr_crop_db": psnr_crop_db(*pair),
                "ssim_crop": ssim_crop(*pair),
            }
        else:
            tissues = tissue_figures(*pair)
            figures |= {
                "mae_bone": tissues.bone_mae,
                "mae_soft": tissues.soft_mae,
                "bone_dice": tissues.bone_dice,
                "ms_ssim_ct": ms_ssim_ct(*pair),
            }
    found = {metric: figures[metric] for metric in wanted if metric in figures}
    return {metric: figure for metric, figure in found.items() if figure is not None}


def summarise(
    per_site: Mapping[str, Methods],
    *,
    seed: int,
    persons: Mapping[str, Persons[str]] = MappingProxyType({}),
    comparisons: Sequence[tuple[str, str]] = COMPARISONS,
    protocol: Protocol = "mr",
    apart: Collection[str] = (),
) -> Metrics:
    """The content of `metrics.json`: means with intervals by site and pooled, and comparisons.

    Pooled means are over all persons but those of the sites `apart`, each counting once. A
    comparison is over the examinations that have the figure under both methods, and its value is
    method minus reference. The result depends on neither the order of sites or patients nor the
    patients' names.

    Args:
        per_site: site -> figures of its examinations.
        seed: of the intervals.
        persons: site -> whose examinations they are.
        comparisons: (method, reference) pairs.
        protocol: `mr` or `ct`.
        apart: sites that are not pooled.

    Raises:
        ValueError: a metric is unknown or a figure is not finite.
    """
    pooled: dict[str, dict[tuple[str, str], PatientMetrics]] = {}
    for site, methods in per_site.items():
        if site in apart:
            continue
        for method, patients in methods.items():
            pooled.setdefault(method, {}).update(
                {(site, patient): figures for patient, figures in patients.items()}
            )
    people = {
        (site, patient): (site, person)
        for site, own in persons.items()
        for patient, person in own.items()
    }
    return Metrics(
        sites={
            site: _site_figures(site, methods, seed, persons.get(site, {}), protocol)
            for site, methods in sorted(per_site.items())
        },
        pooled={
            method: metric_table(
                patients,
                seed=derive_seed(seed, "pooled", method),
                persons=people,
                protocol=protocol,
            )
            for method, patients in pooled.items()
        },
        comparisons=Comparisons(
            pooled=_compare(pooled, comparisons, derive_seed(seed, "pooled"), people, protocol),
            sites={
                site: _compare(
                    methods,
                    comparisons,
                    derive_seed(seed, "site", site),
                    persons.get(site, {}),
                    protocol,
                )
                for site, methods in sorted(per_site.items())
            },
        ),
    )


def _site_figures(
    site: str, methods: Methods, seed: int, persons: Persons[str], protocol: Protocol
) -> SiteFigures:
    everyone = set().union(*methods.values())
    return SiteFigures(
        patients=len({_person(one, persons) for one in everyone}),
        examinations=len(everyone),
        methods={
            method: metric_table(
                patients,
                seed=derive_seed(seed, "site", site, method),
                persons=persons,
                protocol=protocol,
            )
            for method, patients in methods.items()
        },
    )


def by_person(
    patients: Mapping[Key, PatientMetrics], persons: Mapping[Key, str]
) -> dict[str, PatientMetrics]:
    """PERSON -> METRIC -> mean over the person's examinations that have the figure.

    Args:
        patients: examination -> figures.
        persons: examination -> person, of every one.
    """
    found: dict[str, PatientMetrics] = {}
    for person in dict.fromkeys(persons[one] for one in patients):
        own = [figures for one, figures in patients.items() if persons[one] == person]
        values = {m: [one[m] for one in own if m in one] for m in _metrics_in(own)}
        found[person] = {m: math.fsum(each) / len(each) for m, each in values.items()}
    return found


def metric_table(
    patients: Mapping[Key, PatientMetrics],
    *,
    seed: int,
    persons: Persons[Key] = MappingProxyType({}),
    protocol: Protocol = "mr",
) -> Table:
    """METRIC -> mean over the persons that have the figure, with its interval.

    A figure that nobody has is left out.

    Args:
        patients: examination -> figures.
        seed: of the intervals.
        persons: whose examinations they are; `n` and the intervals are of persons.
        protocol: `mr` or `ct`.

    Raises:
        ValueError: a metric is unknown or a figure is not finite.
    """
    everyone = list(patients.values())
    table: Table = {}
    for metric in _metrics_in(everyone):
        unit = unit_of(metric, protocol)
        having = {one: figures[metric] for one, figures in patients.items() if metric in figures}
        mean = bootstrap_mean(
            list(having.values()),
            seed=derive_seed(seed, metric),
            persons=[_person(one, persons) for one in having],
        )
        table[metric] = Measure(value=mean.value, n=mean.n, low=mean.low, high=mean.high, unit=unit)
    return table


def guard_verdict(differences_db: Sequence[float], *, seed: int, margin_db: float = 0.0) -> Verdict:
    """Whether a mixer helps a site, from its patients' PSNR differences to no mixer.

    `helped` if the 95% bootstrap interval of the mean difference lies above `margin_db`, `harmed`
    if below 0; `undecided` otherwise, and always with fewer than 2 patients.

    Args:
        differences_db: of each patient.
        seed: of the bootstrap.
        margin_db: what the patients' gain may owe to their having been trained on.

    Raises:
        ValueError: a difference is not finite.
    """
    if not differences_db:
        return "undecided"
    interval = bootstrap_mean(differences_db, seed=seed)
    if interval.low is None or interval.high is None:
        return "undecided"
    if interval.low > margin_db:
        return "helped"
    return "harmed" if interval.high < 0 else "undecided"


def _compare(
    methods: Mapping[str, Mapping[Key, PatientMetrics]],
    comparisons: Sequence[tuple[str, str]],
    seed: int,
    persons: Persons[Key],
    protocol: Protocol,
) -> dict[str, Table]:
    tables: dict[str, Table] = {}
    for method, reference in comparisons:
        if method not in methods or reference not in methods:
            continue
        own, other = methods[method], methods[reference]
        pairs = [
            (own[patient], other[patient], _person(patient, persons))
            for patient in own
            if patient in other
        ]
        name = f"{method} - {reference}"
        if table := _paired_table(pairs, derive_seed(seed, name), protocol):
            tables[name] = table
    return tables


def _paired_table(
    pairs: Sequence[tuple[PatientMetrics, PatientMetrics, Hashable]], seed: int, protocol: Protocol
) -> Table:
    table: Table = {}
    for metric in _metrics_in([figures for figures, *_ in pairs]):
        unit = unit_of(metric, protocol)
        both = [
            (own[metric], ref[metric], person)
            for own, ref, person in pairs
            if metric in own and metric in ref
        ]
        if not both:
            continue
        a, b, people = zip(*both, strict=True)
        paired = paired_difference(
            a, b, seed=derive_seed(seed, metric), persons=people, better=BETTER[metric]
        )
        mean = paired.interval
        table[metric] = Measure(
            value=mean.value,
            low=mean.low,
            high=mean.high,
            n=mean.n,
            wins=paired.wins,
            unit=unit,
        )
    return table


def _person(examination: Key, persons: Persons[Key]) -> Hashable:
    """Whose an examination is; an unnamed one is never taken for a named person's."""
    return ("person", persons[examination]) if examination in persons else ("alone", examination)


def _metrics_in(everyone: Sequence[PatientMetrics]) -> list[str]:
    """The metrics that anybody has, known ones first and in the order of `UNITS`."""
    present = {metric for figures in everyone for metric in figures}
    return [metric for metric in UNITS if metric in present] + sorted(present - set(UNITS))


def entries(table: Table) -> dict[str, Entry]:
    """METRIC -> measure as JSON."""
    return {metric: measure.model_dump(exclude_unset=True) for metric, measure in table.items()}
