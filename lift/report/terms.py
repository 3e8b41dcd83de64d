"""Names, meanings and drawing styles of methods and metrics in the report."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

from lift.metrics.intervals import Better
from lift.metrics.table import BETTER as PAIRED_BETTER
from lift.records.rows import PRIVATE


@dataclass(frozen=True)
class MethodTerm:
    """One row of the tables: short name, meaning, and style in every figure."""

    label: str
    meaning: str
    colour: str
    marker: str


@dataclass(frozen=True)
class MetricTerm:
    """One column of the tables: heading, meaning, decimals and ideal value.

    Columns marked `further` are in a second table below the main table.
    """

    label: str
    meaning: str
    decimals: int
    ideal: float | None
    further: bool = False


_PLAIN_NETWORKS: Final = (
    ("unet_3d", "3D U-Net", "plain 3D U-Net from the sources, without a generator", "#661100"),
    ("unet_3d_half", "3D U-Net, half width", "the 3D U-Net at half its width", "#aa4466"),
    ("unet_25d", "2.5D U-Net", "2D U-Net on seven neighbouring slices, not frozen", "#6699cc"),
)
_PLAIN_MODES: Final = (
    ("centralised", "centralised", "trained on the patients of all sites in one place", "P"),
    ("federated", "federated", "trained by FedAvg of the whole network", "o"),
    ("local", "local", "trained at one site only, tested at that site", ">"),
    (PRIVATE, "private", "trained by FedAvg with noise on gradients of patients", "v"),
)
# Okabe and Ito's palette, with Tol's indigo, wine and teal where it has no dark colour left
METHODS: Final[dict[str, MethodTerm]] = {
    "no_mixer": MethodTerm("no mixer", "the frozen 2D generator alone", "#6e6e6e", "s"),
    "z_median": MethodTerm("z-median", "running median of three slices", "#e69f00", "v"),
    "z_filter": MethodTerm(
        "z-filter",
        "linear 7-tap filter along depth, fitted to the training patients of all sites",
        "#0072b2",
        "D",
    ),
    "z_filter_local": MethodTerm(
        "z-filter, local", "the same filter, fitted at one site only", "#56b4e9", "d"
    ),
    "curves": MethodTerm(
        "curves",
        "contrast of the site, a closed form of each voxel's values: no network, no neighbours",
        "#999933",
        "p",
    ),
    "curves_z_filter": MethodTerm(
        "curves + z-filter",
        "contrast of the site, then a z-filter fitted to the result at that site only",
        "#117733",
        "h",
    ),
    "control_2d": MethodTerm(
        "2D control",
        "network with at least as many weights, but no reach along depth",
        "#cc79a7",
        "^",
    ),
    "control_2d_z_filter": MethodTerm(
        "2D control + z-filter", "the 2D control, then a z-filter fitted to it", "#882255", "<"
    ),
    "local_only": MethodTerm(
        "local only", "mixer trained at one site only, tested at that site", "#009e73", ">"
    ),
    "local_curves": MethodTerm(
        "local + curves",
        "mixer trained at one site only, trained and tested with the contrast of that site",
        "#0b6e4f",
        "X",
    ),
    "local_longer": MethodTerm(
        "local + curves, longer",
        "local + curves with as many extra steps as the local steps, to show their effect alone",
        "#44aa99",
        "x",
    ),
    "local_steps": MethodTerm(
        "federated + local steps",
        "mixer of this run after extra steps at each site, on the patients of that site only",
        "#e69f00",
        "P",
    ),
    "chosen": MethodTerm(
        "chosen",
        "what each site uses: the run's mixer, unless another method is better on its patients",
        "#aa3377",
        "*",
    ),
    "federated": MethodTerm("federated", "the mixer that this run trained", "#d55e00", "o"),
    "federated_curves": MethodTerm(
        "federated + curves",
        "the mixer that this run trained, with the contrast of each site",
        "#d55e00",
        "o",
    ),
    "centralised": MethodTerm(
        "centralised",
        "mixer trained on the patients of all sites in one place (simulation only)",
        "#332288",
        "P",
    ),
    "real": MethodTerm(
        "real", "control: the real target, for figures of one volume", "#000000", "s"
    ),
    "real_smoothed": MethodTerm(
        "real, smoothed",
        "control: the real target after a Gaussian of one voxel; no figure of detail may like it",
        "#bbbbbb",
        "v",
    ),
    "other_patient": MethodTerm(
        "another patient",
        "control: the real target of another held-out patient, laid over this one",
        "#bbbbbb",
        "x",
    ),
    "three_planes": MethodTerm(
        "three planes",
        "the frozen 2D generator applied in three planes, mean of the three",
        "#bbbbbb",
        "s",
    ),
    **{
        f"{network}_{mode}": MethodTerm(f"{label}, {how}", f"{meaning}, {means}", colour, marker)
        for network, label, meaning, colour in _PLAIN_NETWORKS
        for mode, how, means, marker in _PLAIN_MODES
    },
}
GENERATED_METHODS: Final[dict[str, MethodTerm]] = {
    "real_train": MethodTerm(
        "real (floor)",
        "real training volumes of the sites: no set can be closer",
        "#000000",
        "s",
    ),
    "held_out": MethodTerm(
        "real (held out)",
        "the held-out volumes, with which every row is compared. Shown only for their distance to "
        "the training volumes",
        "#000000",
        "x",
    ),
    "reconstruction": MethodTerm(
        "reconstruction",
        "closest slices that the frozen decoder can make of real training volumes: its limit",
        "#6e6e6e",
        "D",
    ),
    "shuffled_subjects": MethodTerm(
        "shuffled subjects",
        "real slices in the right order, each from another patient",
        "#cc79a7",
        "^",
    ),
    "gaussian": MethodTerm(
        "Gaussian of trajectories",
        "samples from the moments of all sites' latents along the body, without training",
        "#117733",
        "X",
    ),
    "public_gaussian": MethodTerm(
        "public Gaussian",
        "the same from the public volumes of the decoder, without any hospital",
        "#44aa99",
        "X",
    ),
    "independent_slices": MethodTerm(
        "independent slices",
        "each slice from its own latent vector, without a mapper",
        "#e69f00",
        "v",
    ),
    "untrained": MethodTerm("untrained", "the mapper before any training", "#882255", "<"),
    "local_only": MethodTerm(
        "local only", "mapper trained on the statistics of one site only", "#009e73", ">"
    ),
    "federated_samples": MethodTerm(
        "federated, samples",
        "mapper trained at each site against its own samples, which stay there, then averaged",
        "#56b4e9",
        "d",
    ),
    "federated": MethodTerm(
        "federated, statistics",
        "the mapper that this run trained against the sums of all sites, released or not",
        "#d55e00",
        "o",
    ),
    "centralised": MethodTerm(
        "centralised",
        "mapper trained on the sums of all sites in one place (simulation only)",
        "#332288",
        "P",
    ),
}
"""Rows of a run that makes new volumes. There is one `local_only:SITE` for each site."""
REAL_ROWS: Final = ("real_train", "held_out", "reconstruction", "shuffled_subjects")
"""Rows made from real volumes. The frozen decoder draws all others from new latents."""
SHIPPED_ROWS: Final = ("gaussian", "federated")
"""Rows of what a run makes for use. The aims apply to these rows."""
TARGET_COLOUR: Final = "#000000"

METRICS: Final[dict[str, MetricTerm]] = {
    "psnr_db": MetricTerm("PSNR", "peak signal-to-noise ratio inside the mask", 2, None),
    "psnr_invariant_db": MetricTerm(
        "PSNR, best contrast",
        "PSNR after the best gain and offset for each volume, since MR has no units",
        2,
        None,
    ),
    "ssim": MetricTerm("SSIM", "structural similarity in 3D inside the mask", 3, None),
    "mae": MetricTerm("MAE", "mean absolute error inside the mask", 4, None),
    "mae_bone": MetricTerm(
        "MAE, bone", "mean absolute error where the real CT is above 200 HU", 1, None
    ),
    "mae_soft": MetricTerm(
        "MAE, soft",
        "mean absolute error where the real CT is soft tissue or fat: -200 to 200 HU",
        1,
        None,
    ),
    "bone_dice": MetricTerm(
        "bone Dice",
        "overlap of what is above 200 HU with that of the real CT; 1: all of it",
        3,
        None,
    ),
    "dz_mae": MetricTerm(
        "dz MAE",
        "mean absolute error of the differences between neighbouring slices",
        4,
        None,
        further=True,
    ),
    "dz_corr": MetricTerm(
        "dz corr", "correlation of slice-to-slice differences with those of the target", 3, None
    ),
    "hf_error": MetricTerm(
        "HF error",
        "power of the error above 0.25 cycles per slice, divided by the power of the target there; "
        "an empty band scores 1",
        3,
        0.0,
    ),
    "hf_coherence": MetricTerm(
        "HF coherence",
        "share of the power above 0.25 cycles per slice that is in phase with the target",
        3,
        1.0,
    ),
    "perceptual": MetricTerm(
        "perceptual",
        "distance of local texture in three planes, in features of a fixed random network: blur "
        "and flicker raise it; 0 is the target, 1 an empty volume",
        3,
        0.0,
    ),
    "dice": MetricTerm(
        "Dice",
        "Dice coefficient of a segmenter that was trained on real targets, on this volume; the row "
        "`real` is what it finds in the target itself",
        3,
        None,
    ),
    "hf_ratio": MetricTerm(
        "HF ratio",
        "power above 0.25 cycles per slice, divided by that of the target: above 1 flicker, below "
        "1 smoothing. Flicker can hide lost detail, so read it with the other columns",
        3,
        1.0,
        further=True,
    ),
    "slice_gain": MetricTerm(
        "slice gain",
        "flicker of the mean slice brightness, divided by that of the target",
        2,
        1.0,
        further=True,
    ),
    "tpr": MetricTerm(
        "TPR",
        "through-plane roughness divided by in-plane roughness, relative to the target",
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
    "ms_ssim_ct": MetricTerm(
        "MS-SSIM, CT",
        "multi-scale structural similarity inside the mask, as SynthRAD2025 computes it",
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
    "frechet_coronal": MetricTerm("Fréchet co", "the same for coronal slices", 3, None),
    "frechet_sagittal": MetricTerm("Fréchet sa", "the same for sagittal slices", 3, None),
    "mmd_axial": MetricTerm(
        "MMD ax",
        "squared maximum mean discrepancy of the same features, unbiased: below 0 only by chance",
        3,
        None,
    ),
    "mmd_coronal": MetricTerm("MMD co", "the same for coronal slices", 3, None),
    "mmd_sagittal": MetricTerm("MMD sa", "the same for sagittal slices", 3, None),
    "auc_content": MetricTerm(
        "AUC content",
        "how well a trained classifier separates these volumes from held-out real ones by coarse "
        "content (12 x 10 x 8): .5 not at all, 1 without error; below .5 by chance",
        2,
        0.5,
    ),
    "auc_texture": MetricTerm(
        "AUC texture",
        "the same by texture: power spectra and differences of neighbours along the three axes, at "
        "equal gain",
        2,
        0.5,
    ),
    "precision": MetricTerm(
        "precision",
        "share of volumes that lie among the held-out real ones, by the same features; compare "
        "with the real rows",
        2,
        None,
    ),
    "recall": MetricTerm(
        "recall",
        "share of held-out real volumes that lie among these: low if some kinds are missing",
        2,
        None,
    ),
    "nearest_distance": MetricTerm(
        "nearest",
        "mean difference (RMS at 12 x 10 x 8) from the nearest training volume. A set that is "
        "closer than the held-out volumes repeats training data",
        3,
        None,
    ),
    "near_copies": MetricTerm(
        "near copies",
        "share of volumes closer to a training volume than half its distance to any other",
        2,
        0.0,
    ),
    "spectrum_z": MetricTerm(
        "spectrum z",
        "distance of the mean power spectrum along depth from that of the held-out volumes, at "
        "equal gain: root mean square over 12 bands",
        2,
        0.0,
    ),
    "tpr": MetricTerm(
        "TPR", "through-plane roughness over in-plane roughness, relative to real volumes", 3, 1.0
    ),
    "diversity": MetricTerm(
        "diversity", "mean distance between volumes, divided by that between real ones", 3, 1.0
    ),
    "ms_ssim": MetricTerm(
        "MS-SSIM",
        "similarity between pairs of volumes; should not exceed that of real volumes",
        3,
        None,
    ),
    "nearest_ratio": MetricTerm(
        "nearest ratio",
        "distance to the nearest training volume, divided by that to the nearest held-out one: "
        "copies are well below 1",
        3,
        1.0,
    ),
    "order_correlation": MetricTerm(
        "order", "correlation of the slice order with that of the most similar real slices", 3, 1.0
    ),
    "reversed_volumes": MetricTerm("reversed", "volumes whose slices run backwards", 0, 0.0),
    "flat_volumes": MetricTerm("flat", "empty or constant volumes", 0, 0.0),
}

GUARD_METRICS: Final[dict[str, MetricTerm]] = {
    "psnr_over_no_mixer_db": MetricTerm(
        "PSNR over no mixer", "difference on the patients that a site evaluated", 2, None
    ),
    "psnr_over_z_filter_db": MetricTerm(
        "PSNR over z-filter", "the same, against the z-filter", 2, None
    ),
}
"""The whole `metrics.json` of a real server: the figures behind the sites' verdicts."""

Side = Better | Literal["nearer_half", "as_real"]
"""The better side of a figure. `as_real`: like real volumes, which is not one fixed value."""

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
"""METRIC -> which of two figures is better."""
ALL_METRICS: Final = GENERATED_METRICS | METRICS | GUARD_METRICS


def method_term(method: str) -> MethodTerm:
    """Return the term of a method. A method of another version keeps its name, in black."""
    known = METHODS.get(method) or GENERATED_METHODS.get(method)
    if known is None and method.startswith("local_only:"):
        local = GENERATED_METHODS["local_only"]
        label = f"local only, {method.removeprefix('local_only:')}"
        return MethodTerm(label, local.meaning, local.colour, local.marker)
    return known or MethodTerm(method, "", "#000000", "x")


def metric_decimals(metric: str, unit: str) -> int:
    """Return the decimals to show. A figure in HU has one."""
    return 1 if unit == "HU" else ALL_METRICS[metric].decimals


def better_side(metric: str) -> str:
    """Return an arrow to the better side: up, down, to a value, or to the real volumes."""
    arrows: dict[Side, str] = {
        "higher": "↑",
        "lower": "↓",
        "nearer_one": "→ 1",
        "nearer_half": "→ .5",
        "as_real": "→ real",
    }
    return arrows[BETTER[metric]]


def distance_to_ideal(metric: str, value: float) -> float:
    """Return how bad a figure is. Smaller is better, for every metric.

    Raises:
        ValueError: the metric has no fixed best value (`as_real`).
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
    """Return the names: those of `known` first, in its order, then the others by name."""
    return [name for name in known if name in names] + sorted(names - set(known))
