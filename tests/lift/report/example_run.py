"""A small run folder of example data: invented figures, volumes made of blobs, no patient."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

SITES = ("example-north", "example-south")
SPACING_MM = (2.0, 2.0, 4.0)
SHAPE = (36, 44, 20)

# METHOD -> offset in quality, in dB
QUALITY_DB = {
    "no_mixer": 0.0,
    "z_median": 0.6,
    "z_filter": 0.9,
    "z_filter_local": 0.85,
    "curves": 0.7,
    "curves_z_filter": 1.4,
    "control_2d": 0.1,
    "control_2d_z_filter": 0.95,
    "local_only": 1.9,
    "federated": 2.4,
    "centralised": 2.5,
}
REFERENCES = (
    "no_mixer",
    "z_median",
    "z_filter",
    "z_filter_local",
    "curves",
    "curves_z_filter",
    "local_only",
    "centralised",
)


def write_example_run(folder: Path, *, phantom: bool = True, patients: int = 2) -> Path:
    """The folder, filled with everything that a finished simulation of two sites leaves."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "run.json", example_record(phantom=phantom))
    lines = [json.dumps(record) + "\n" for record in example_rounds()]
    (folder / "rounds.jsonl").write_text("".join(lines), encoding="utf-8")
    write_json(folder / "metrics.json", example_metrics())
    for index, site in enumerate(SITES):
        for patient in range(patients):
            write_example_patient(
                folder / "synthesis" / site / f"example-{patient:03d}", seed=10 * index + patient
            )
    return folder


def write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=1), encoding="utf-8")


def example_record(*, phantom: bool = True) -> dict[str, Any]:
    return {
        "name": "example-run",
        "kind": "simulation",
        "phantom": phantom,
        "data_statement": "Example data: invented figures, volumes made of blobs.",
        "started": "2026-01-02T03:04:05+00:00",
        "finished": "2026-01-02T03:09:17+00:00",
        "seconds": {"volumes": 21.34, "features": 40.02, "rounds": 150.5, "evaluation": 61.7},
        "budget_s": {"volumes": 30.0, "features": 60.0, "rounds": 140.0, "evaluation": 90.0},
        "plan": {
            "version": 1,
            "task": {"kind": "paired", "source": ["t1", "t2"], "target": "flair"},
            "preprocessing": {"plane": "axial"},
            "training": {"steps": 40},
            "federation": {"rounds": 6},
            "privacy": {"mode": "none"},
            "seed": 7,
        },
        "plan_digest": "ab" * 32,
        "generator": {
            "fingerprint": "cd" * 32,
            "training_data": "example slices",
            "licence": "CC0-1.0",
            "network": {"kind": "unet", "width": 12},
        },
        "versions": {"lift-federated": "0.1.0", "torch": "2.13.0", "numpy": "2.4.1"},
        "sites": [
            {
                "name": site,
                "patients": {"train": 12 - index, "validation": 3, "test": 4},
                "description": f"example scanner {index + 1}",
                "slice_spacing_mm": [4.0, 4.0 + index],
                "refused": index,
            }
            for index, site in enumerate(SITES)
        ],
        "guard": {
            SITES[0]: {
                "verdict": "helped",
                "n": 3,
                "difference_db": {"value": 1.0417, "low": 0.7219, "high": 1.2581},
                "against_z_filter_db": {"value": 0.3127, "low": 0.1049, "high": 0.5213},
                "against_local_only_db": {"value": 0.0437, "low": -0.0719, "high": 0.1531},
            },
            SITES[1]: {
                "verdict": "harmed",
                "n": 3,
                "difference_db": {"value": -0.4171, "low": -0.6129, "high": -0.2017},
                "against_z_filter_db": {"value": -0.9127, "low": -1.3049, "high": -0.5213},
                "against_local_only_db": {"value": -0.1437, "low": -0.3719, "high": 0.0931},
            },
        },
        "command": "lift-simulate --config configs/example.yaml --output OUT",
        "update_bytes": 18_236,
        "mixer": {"kind": "zrefine", "parameters": 4559},
        "complete": True,
    }


def example_rounds() -> list[dict[str, Any]]:
    north, south = SITES
    records: list[dict[str, Any]] = []
    for index in range(7):
        only_north = index == 4
        records.append(
            {
                "round": index,
                "kind": "train" if index else "statistics",
                "asked": list(SITES),
                "answered": list(SITES),
                "counted": {north: 1.0} if only_north else {north: 0.5217, south: 0.4783},
                "refused": {south: "the update's norm is above the limit"} if only_north else {},
                "bytes": {north: 18_236, south: 18_236} if index else {north: 632, south: 632},
                "seconds": 20.25 + index,
                "loss": {north: 0.31 * 0.8**index, south: 0.42 * 0.75**index} if index else {},
                "validation_psnr_db": {
                    north: 20.9 + 1.2 * (1 - 0.6**index),
                    south: 17.3 + 2.2 * (1 - 0.6**index),
                },
                "epsilon": None,
            }
        )
    return records


def example_metrics() -> dict[str, Any]:
    rng = np.random.default_rng(20260102)
    sites = {
        site: {"patients": 4, "methods": _methods(rng, base_db=base, n=4)}
        for site, base in zip(SITES, (20.9, 17.3), strict=True)
    }
    return {
        "sites": sites,
        "pooled": _methods(rng, base_db=19.1, n=8),
        "comparisons": {
            "pooled": _differences(rng, n=8),
            "sites": {site: _differences(rng, n=4) for site in SITES},
        },
        "cross_site": {
            trained: {
                tested: {"psnr_db": _entry(rng, 21.0 - (trained != tested), 0.4, 4, "dB")}
                for tested in SITES
            }
            for trained in SITES
        },
        "second_phantom": _methods(rng, base_db=24.0, n=6),
    }


def write_example_patient(
    folder: Path,
    *,
    seed: int,
    sources: tuple[str, ...] = ("t1", "t2"),
    shape: tuple[int, int, int] = SHAPE,
) -> None:
    """Blobs in an ellipsoid; without a mixer each slice has a gain of its own."""
    rng = np.random.default_rng(seed)
    grids = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij")
    mask = np.sum(np.square(grids), axis=0) < 0.8
    target = np.full(shape, 0.45)
    for _ in range(12):
        centre, width = rng.uniform(-0.7, 0.7, 3), rng.uniform(0.1, 0.4)
        distance = sum((grid - at) ** 2 for grid, at in zip(grids, centre, strict=True))
        target += rng.uniform(-0.3, 0.4) * np.exp(-distance / width**2)
    target = np.clip(target, 0, 1) * mask
    gain = 1 + 0.12 * rng.standard_normal(shape[2])
    no_mixer = target * gain + 0.03 * rng.standard_normal(shape) * mask
    median = np.median([np.roll(no_mixer, shift, axis=2) for shift in (-1, 0, 1)], axis=0) * mask
    folder.mkdir(parents=True)
    volumes = {
        "target": target,
        "mask": mask.astype(float),
        "no_mixer": no_mixer,
        "z_median": median,
        "z_filter": (no_mixer + median) / 2,
        "federated": target * (1 + (gain - 1) * 0.2) + 0.02 * rng.standard_normal(shape) * mask,
    }
    volumes |= {f"source-{name}": (0.9 - 0.5 * target) * mask for name in sources}
    for name, voxels in volumes.items():
        write_volume(folder / f"{name}.nii.gz", voxels)


def write_volume(path: Path, voxels: NDArray[np.floating[Any]]) -> None:
    image = nib.Nifti1Image(voxels.astype(np.float32), np.diag([*SPACING_MM, 1.0]))
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


def _methods(rng: np.random.Generator, *, base_db: float, n: int) -> dict[str, Any]:
    table = {}
    for method, gain in QUALITY_DB.items():
        share = gain / 2.5
        table[method] = {
            "psnr_db": _entry(rng, base_db + gain, 0.25, n, "dB"),
            "psnr_invariant_db": _entry(rng, base_db + 0.5 + gain, 0.25, n, "dB"),
            "ssim": _entry(rng, 0.74 + 0.09 * share, 0.008, n, ""),
            "mae": _entry(rng, 0.062 - 0.02 * share, 0.002, n, "normalised"),
            "dz_mae": _entry(rng, 0.058 - 0.02 * share, 0.002, n, "normalised"),
            "dz_corr": _entry(rng, 0.42 + 0.3 * share, 0.02, n, ""),
            "hf_error": _entry(rng, 1.9 - 1.1 * share, 0.05, n, ""),
            "hf_coherence": _entry(rng, 0.1 + 0.3 * share, 0.02, n, ""),
            "hf_ratio": _entry(rng, 1.2 - 0.7 * share, 0.05, n, ""),
            "slice_gain": _entry(rng, 5.1 - 3.8 * share, 0.3, n, ""),
            "tpr": _entry(rng, 1.8 - 0.7 * share, 0.05, n, ""),
            "psnr_crop_db": _entry(rng, base_db + 6 + gain, 0.25, n, "dB"),
            "ssim_crop": _entry(rng, 0.91 + 0.03 * share, 0.004, n, ""),
        }
    return table


def _differences(rng: np.random.Generator, *, n: int) -> dict[str, Any]:
    table = {}
    for reference in REFERENCES:
        gain = QUALITY_DB["federated"] - QUALITY_DB[reference]
        table[f"federated - {reference}"] = {
            metric: {
                **_entry(rng, gain * scale, 0.12 * abs(scale), n, unit),
                "wins": n - (gain < 1),
            }
            for metric, scale, unit in (
                ("psnr_db", 1.0, "dB"),
                ("ssim", 0.03, ""),
                ("mae", -0.008, "normalised"),
                ("dz_corr", 0.1, ""),
                ("hf_error", -0.3, ""),
                ("hf_coherence", 0.1, ""),
            )
        }
    return table


def _entry(
    rng: np.random.Generator, value: float, half: float, n: int, unit: str
) -> dict[str, Any]:
    middle = value + half * rng.uniform(-0.2, 0.2)
    return {
        "value": middle,
        "n": n,
        "low": middle - half * rng.uniform(0.8, 1.2),
        "high": middle + half * rng.uniform(0.8, 1.2),
        "unit": unit,
    }
