"""What methods and metrics are called in the report, and how each is drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

from lift.metrics.intervals import Better
from lift.metrics.table import BETTER as PAIRED_BETTER


@dataclass(frozen=True)
class MethodTerm:
    """One row of the tables: its short name, what it is, and its look in every figure."""

    label: str
    meaning: str
    colour: str
    marker: str


@dataclass(frozen=True)
class MetricTerm:
    """One column of the tables: its heading, what it measures, its decimals, its ideal value.

    Further ones stand below the main table, where there is room for them.
    """

    label: str
    meaning: str
    decimals: int
    ideal: float | None
    further: bool = False


# Okabe and Ito's palette, with Tol's indigo, wine and teal where it has no dark colour left
METHODS: Final[dict[str, MethodTerm]] = {
    "no_mixer": MethodTerm("no mixer", "the frozen 2D generator alone", "#6e6e6e", "s"),
    "z_median": MethodTerm("z-median", "running median of three slices", "#e69f00", "v"),
    "z_filter": MethodTerm(
        "z-filter",
        "linear 7-tap filter along depth, fitted on all sites' training patients",
        "#0072b2",
        "D",
    ),
    "z_filter_local": MethodTerm(
        "z-filter, local", "the same filter, fitted at the site alone", "#56b4e9", "d"
    ),
    "curves": MethodTerm(
        "curves",
        "the site's own contrast, a closed form of each voxel's values: no network, no neighbour",
        "#999933",
        "p",
    ),
    "curves_z_filter": MethodTerm(
        "curves + z-filter",
        "the site's own contrast, then a z-filter fitted on it at the site alone",
        "#117733",
        "h",
    ),
    "control_2d": MethodTerm(
        "2D control", "as many weights or more, but no reach along depth", "#cc79a7", "^"
    ),
    "control_2d_z_filter": MethodTerm(
        "2D control + z-filter", "the 2D control, then a z-filter fitted to it", "#882255", "<"
    ),
    "local_only": MethodTerm(
        "local only", "each site's own mixer, tested at that site", "#009e73", ">"
    ),
    "local_curves": MethodTerm(
        "local + curves",
        "each site's own mixer, trained and tested under the site's own contrast",
        "#0b6e4f",
        "X",
    ),
    "local_longer": MethodTerm(
        "local + curves, longer",
        "local + curves after as many steps more as the local steps: what they alone are worth",
        "#44aa99",
        "x",
    ),
    "local_steps": MethodTerm(
        "federated + local steps",
        "this run's mixer after some more steps at each site, on that site's patients alone",
        "#e69f00",
        "P",
    ),
    "chosen": MethodTerm(
        "chosen",
        "what each site uses: the run's mixer, unless its own patients speak for something else",
        "#aa3377",
        "*",
    ),
    "federated": MethodTerm("federated", "the mixer that this run trained", "#d55e00", "o"),
    "federated_curves": MethodTerm(
        "federated + curves",
        "the mixer that this run trained, under each site's own contrast",
        "#d55e00",
        "o",
    ),
    "centralised": MethodTerm(
        "centralised",
        "the mixer trained on all sites' patients in one place (simulation only)",
        "#332288",
        "P",
    ),
}
GENERATED_METHODS: Final[dict[str, MethodTerm]] = {
    "real_train": MethodTerm(
        "real (floor)",
        "the sites' real training volumes: as near as any set can be",
        "#000000",
        "s",
    ),
    "held_out": MethodTerm(
        "real (held out)",
        "the held-out volumes themselves, with which every row is compared: only how near they are "
        "to the training volumes",
        "#000000",
        "x",
    ),
    "reconstruction": MethodTerm(
        "reconstruction",
        "the nearest slices that the frozen decoder can make of real training volumes: its ceiling",
        "#6e6e6e",
        "D",
    ),
    "shuffled_subjects": MethodTerm(
        "shuffled subjects", "real slices at their places, each of another patient", "#cc79a7", "^"
    ),
    "gaussian": MethodTerm(
        "Gaussian of trajectories",
        "drawn from the moments of all sites' latents along the body; nothing is trained",
        "#117733",
        "X",
    ),
    "public_gaussian": MethodTerm(
        "public Gaussian",
        "the same from the decoder's own public volumes: what there is without any hospital",
        "#44aa99",
        "X",
    ),
    "independent_slices": MethodTerm(
        "independent slices",
        "every slice from a latent vector of its own: no mapper",
        "#e69f00",
        "v",
    ),
    "untrained": MethodTerm("untrained", "the mapper before any training", "#882255", "<"),
    "local_only": MethodTerm(
        "local only", "a mapper trained on one site's own statistics alone", "#009e73", ">"
    ),
    "federated_samples": MethodTerm(
        "federated, samples",
        "every site against its own samples, which stay there; mappers averaged",
        "#56b4e9",
        "d",
    ),
    "federated": MethodTerm(
        "federated, statistics",
        "the mapper that this run trained, against all sites' sums, whether it ships or not",
        "#d55e00",
        "o",
    ),
    "centralised": MethodTerm(
        "centralised",
        "the mapper trained on all sites' sums in one place (simulation only)",
        "#332288",
        "P",
    ),
}
"""Rows of a run that makes new volumes; `local_only:SITE` stands for each site."""
REAL_ROWS: Final = ("real_train", "held_out", "reconstruction", "shuffled_subjects")
"""Rows made of real volumes; all others are drawn by the frozen decoder from new latents."""
SHIPPED_ROWS: Final = ("gaussian", "federated")
"""Rows of what a run makes for use: the aims are theirs."""
TARGET_COLOUR: Final = "#000000"

METRICS: Final[dict[str, MetricTerm]] = {
    "psnr_db": MetricTerm("PSNR", "peak signal to noise inside the mask", 2, None),
    "psnr_invariant_db": MetricTerm(
        "PSNR, best contrast",
        "PSNR after the gain and the offset that suit each volume best: MR has no units",
        2,
        None,
    ),
    "ssim": MetricTerm("SSIM", "structural similarity in 3D inside the mask", 3, None),
    "mae": MetricTerm("MAE", "mean absolute error inside the mask", 4, None),
    "dz_mae": MetricTerm(
        "dz MAE", "mean absolute error of the step from one slice to the next", 4, None
    ),
    "dz_corr": MetricTerm(
        "dz corr", "correlation of the slice-to-slice steps with the target's", 3, None
    ),
    "hf_error": MetricTerm(
        "HF error",
        "power of the error above 0.25 cycles per slice over the target's power there; "
        "an empty band scores 1",
        3,
        0.0,
    ),
    "hf_coherence": MetricTerm(
        "HF coherence",
        "share of the power above 0.25 cycles per slice that follows the target in phase",
        3,
        1.0,
    ),
    "hf_ratio": MetricTerm(
        "HF ratio",
        "power above 0.25 cycles per slice over the target's: above 1 jumpy, below 1 smoothed; "
        "flicker can make up for lost detail, so never read it alone",
        3,
        1.0,
    ),
    "slice_gain": MetricTerm(
        "slice gain", "flicker of the slices' mean brightness over the target's", 2, 1.0
    ),
    "tpr": MetricTerm(
        "TPR",
        "through-plane over in-plane roughness, relative to the target's",
        3,
        1.0,
        further=True,
    ),
    "psnr_crop_db": MetricTerm(
        "PSNR, crop",
        "PSNR of the whole BraTS crop, background included",
        2,
        None,
        further=True,
    ),
    "ssim_crop": MetricTerm(
        "SSIM, crop",
        "SSIM of the whole BraTS crop, background included",
        3,
        None,
        further=True,
    ),
}

MAIN_METRICS: Final = tuple(name for name, term in METRICS.items() if not term.further)
"""Columns of the main table of a paired task."""

GENERATED_METRICS: Final[dict[str, MetricTerm]] = {
    "frechet_axial": MetricTerm(
        "Fréchet ax", "squared Fréchet distance of features of axial pairs of slices", 3, None
    ),
    "frechet_coronal": MetricTerm("Fréchet co", "the same of coronal slices", 3, None),
    "frechet_sagittal": MetricTerm("Fréchet sa", "the same of sagittal slices", 3, None),
    "mmd_axial": MetricTerm(
        "MMD ax",
        "squared maximum mean discrepancy of the same features, unbiased: below 0 by chance alone",
        3,
        None,
    ),
    "mmd_coronal": MetricTerm("MMD co", "the same of coronal slices", 3, None),
    "mmd_sagittal": MetricTerm("MMD sa", "the same of sagittal slices", 3, None),
    "auc_content": MetricTerm(
        "AUC content",
        "how well a trained classifier tells a volume from a held-out real one by what is where, "
        "at 12 x 10 x 8: .5 not at all, 1 without error; below .5 by chance",
        2,
        0.5,
    ),
    "auc_texture": MetricTerm(
        "AUC texture",
        "the same by texture: power spectra and differences of neighbours along the three axes, at "
        "one gain",
        2,
        0.5,
    ),
    "precision": MetricTerm(
        "precision",
        "share of volumes that lie among the held-out real ones by the same features; compare with "
        "real ones",
        2,
        None,
    ),
    "recall": MetricTerm(
        "recall",
        "share of held-out real volumes that lie among these: low where kinds are missing",
        2,
        None,
    ),
    "nearest_distance": MetricTerm(
        "nearest",
        "mean difference (RMS at 12 x 10 x 8) from the nearest training volume; a set nearer than "
        "the held-out volumes are repeats what training saw",
        3,
        None,
    ),
    "near_copies": MetricTerm(
        "near copies",
        "share of volumes nearer to a training volume than half its distance to any other",
        2,
        0.0,
    ),
    "spectrum_z": MetricTerm(
        "spectrum z",
        "distance of the mean power spectrum along depth from the held-out volumes', each at one "
        "gain: root mean square over 12 bands",
        2,
        0.0,
    ),
    "tpr": MetricTerm(
        "TPR", "through-plane over in-plane roughness, relative to real volumes", 3, 1.0
    ),
    "diversity": MetricTerm(
        "diversity", "mean distance between volumes over that between real ones", 3, 1.0
    ),
    "ms_ssim": MetricTerm(
        "MS-SSIM",
        "similarity between pairs of volumes: as alike as real ones, not more",
        3,
        None,
    ),
    "nearest_ratio": MetricTerm(
        "nearest ratio",
        "distance to the nearest training volume over that to the nearest held-out one: well "
        "below 1 are copies",
        3,
        1.0,
    ),
    "order_correlation": MetricTerm(
        "order", "correlation of slices' order with the real mean slices that they resemble", 3, 1.0
    ),
    "reversed_volumes": MetricTerm("reversed", "volumes whose slices run backwards", 0, 0.0),
    "flat_volumes": MetricTerm("flat", "empty or constant volumes", 0, 0.0),
}

GUARD_METRICS: Final[dict[str, MetricTerm]] = {
    "psnr_over_no_mixer_db": MetricTerm(
        "PSNR over no mixer", "difference on the patients a site judged by", 2, None
    ),
    "psnr_over_z_filter_db": MetricTerm("PSNR over z-filter", "the same, to the z-filter", 2, None),
}
"""All that a real server's `metrics.json` holds: what the sites' verdicts rest on."""

Side = Better | Literal["nearer_half", "as_real"]
"""Where a figure is better; `as_real`: where real volumes' is, which is no one value."""

BETTER: Final[dict[str, Side]] = {
    **PAIRED_BETTER,
    **dict.fromkeys(GUARD_METRICS, "higher"),
    **{
        f"{name}_{plane}": "lower"
        for name in ("frechet", "mmd")
        for plane in ("axial", "coronal", "sagittal")
    },
    "auc_content": "nearer_half",
    "auc_texture": "nearer_half",
    "precision": "as_real",
    "recall": "as_real",
    "nearest_distance": "as_real",
    "near_copies": "lower",
    "spectrum_z": "lower",
    "diversity": "nearer_one",
    "ms_ssim": "lower",
    "nearest_ratio": "nearer_one",
    "order_correlation": "higher",
    "reversed_volumes": "lower",
    "flat_volumes": "lower",
}
"""METRIC -> which of two figures wins."""
ALL_METRICS: Final = GENERATED_METRICS | METRICS | GUARD_METRICS


def method_term(method: str) -> MethodTerm:
    """The term of a method; a method of another version gets its own name in plain black."""
    known = METHODS.get(method) or GENERATED_METHODS.get(method)
    if known is None and method.startswith("local_only:"):
        local = GENERATED_METHODS["local_only"]
        label = f"local only, {method.removeprefix('local_only:')}"
        return MethodTerm(label, local.meaning, local.colour, local.marker)
    return known or MethodTerm(method, "", "#000000", "x")


def metric_decimals(metric: str, unit: str) -> int:
    """Decimals to show; a figure in HU has one."""
    return 1 if unit == "HU" else ALL_METRICS[metric].decimals


def better_side(metric: str) -> str:
    """An arrow to where a figure is better: up, down, to a value, or to real volumes'."""
    arrows: dict[Side, str] = {
        "higher": "↑",
        "lower": "↓",
        "nearer_one": "→ 1",
        "nearer_half": "→ .5",
        "as_real": "→ real",
    }
    return arrows[BETTER[metric]]


def distance_to_ideal(metric: str, value: float) -> float:
    """How bad a figure is: smaller is better, whichever way the metric runs.

    Raises:
        ValueError: the metric has no value that is better by itself (`as_real`).
    """
    better = BETTER[metric]
    if better == "as_real":
        raise ValueError(f"{metric} is to be as that of real volumes")
    if better == "nearer_half":
        return abs(value - 0.5)
    if better == "nearer_one":
        # twice is as far from 1 as half, as where patients are counted as better
        return abs(math.log(value)) if value > 0 else math.inf
    return value if better == "lower" else -value


def in_known_order(
    names: set[str], known: dict[str, MethodTerm] | dict[str, MetricTerm]
) -> list[str]:
    """The names, those of `known` first and in its order, the others by name."""
    return [name for name in known if name in names] + sorted(names - set(known))
