"""The folder that `make demo` leaves, as far as its report reads it: the demo's own settings,
sites and plan; invented figures; tiny volumes made of blobs. Written in seconds.

`tests/end_to_end/test_recorded_run.py` holds its structure against a folder that the real command
leaves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from lift.config.generator import UNetConfig
from lift.config.simulation import SimulationConfig
from lift.metrics.table import entries, metric_table, summarise
from lift.privacy.costs import describe_privacy
from lift.records.metrics import as_json
from lift.volumes.volume import read_volume, write_volume
from tests.lift.report.example_run import QUALITY_DB, SHAPE, write_example_patient, write_json

DEMO: Final = Path(__file__).parents[2] / "configs" / "presets" / "demo-artefacts.yaml"
"""It has all that a report shows, a second phantom too."""
PATIENTS_SHOWN: Final = 2
TEST_PATIENTS: Final = 4
FINGERPRINT: Final = "cd" * 32
PARAMETERS: Final = 4559
UPDATE_BYTES: Final = 18_236
STATISTICS_BYTES: Final = 981
# METRIC -> (value without a mixer, what the best method adds, spread over patients)
METRICS: Final = {
    "psnr_db": (21.0, 2.5, 0.5),
    "psnr_invariant_db": (21.6, 2.4, 0.5),
    "ssim": (0.74, 0.09, 0.016),
    "mae": (0.062, -0.02, 0.004),
    "dz_mae": (0.058, -0.02, 0.004),
    "dz_corr": (0.42, 0.3, 0.04),
    "hf_error": (1.9, -1.1, 0.1),
    "hf_coherence": (0.1, 0.3, 0.04),
    "hf_ratio": (1.2, -0.7, 0.1),
    "slice_gain": (5.1, -3.8, 0.6),
    "tpr": (1.8, -0.7, 0.1),
    "perceptual": (0.3, -0.08, 0.02),
    "psnr_crop_db": (27.0, 2.5, 0.5),
    "ssim_crop": (0.91, 0.03, 0.008),
}
CROSSED: Final = ("psnr_db", "dz_corr")
OWN_ROW: Final = "federated_curves"
# METHOD -> what it gains; as the example run's, under curves
QUALITY: dict[str, float] = {
    OWN_ROW if name == "federated" else name: db for name, db in QUALITY_DB.items()
}
QUALITY |= {"local_curves": 2.0, "local_longer": 2.1, "local_steps": 2.2, "chosen": 2.3}
CLEAN_METHODS: Final = ("no_mixer", "z_median", "z_filter", OWN_ROW, "chosen")
PACKAGES: Final = (
    "python",
    "lift-federated",
    "torch",
    "flwr",
    "numpy",
    "scipy",
    "scikit-image",
    "nibabel",
)
SECTIONS: Final = (
    "trained",
    "pooled",
    "sites",
    "guard",
    "curves",
    "rounds",
    "privacy",
    "flicker",
    "mosaics",
    "volumes",
    "smoothing",
    "seconds",
    "reproducibility",
)
"""Of the demo's report, in order."""
Figures = dict[str, dict[str, float]]
"""PATIENT -> METRIC -> value."""


def write_recorded_run(folder: Path, *, shape: tuple[int, int, int] = SHAPE) -> Path:
    """The folder, without its report; `shape` is that of its volumes."""
    config = _demo()
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "run.json", _record(config))
    lines = [json.dumps(line) + "\n" for line in _rounds(config)]
    (folder / "rounds.jsonl").write_text("".join(lines), encoding="utf-8")
    write_json(folder / "metrics.json", _metrics(config))
    sources = config.plan.task.source
    for place, site in enumerate(_sites(config)):
        for index in range(PATIENTS_SHOWN):
            patient = folder / "synthesis" / site / _patient(index)
            write_example_patient(patient, seed=10 * place + index, sources=sources, shape=shape)
            _in_output_units(patient)
            (patient / "federated.nii.gz").rename(patient / f"{OWN_ROW}.nii.gz")
    return folder


def _in_output_units(patient: Path) -> None:
    """Volumes as a run writes them: 1000 is the normalised 1, and a mask is of whole numbers."""
    for file in patient.glob("*.nii.gz"):
        volume = read_volume(file)
        scale, dtype = (1, np.uint8) if file.name == "mask.nii.gz" else (1000, np.float32)
        write_volume(file, volume.voxels * scale, volume, dtype=np.dtype(dtype))


def _demo() -> SimulationConfig:
    """The demo's settings; as in a run, the plan names its generator."""
    config = SimulationConfig.from_yaml(DEMO)
    plan = config.plan.model_copy(update={"generator_fingerprint": FINGERPRINT})
    return config.model_copy(update={"plan": plan})


def _sites(config: SimulationConfig) -> list[str]:
    return [site.name for site in config.sites]


def _patient(index: int) -> str:
    return f"BraTS-PHA-{index:05d}-000"


def _record(config: SimulationConfig) -> dict[str, Any]:
    sites = _sites(config)
    return {
        "started": "2026-01-02T03:04:05+00:00",
        "finished": "2026-01-02T03:09:17+00:00",
        "settings_digest": config.digest(),
        "complete": True,
        "name": config.name,
        "kind": "simulation",
        "phantom": config.phantom,
        "data_statement": config.data_statement,
        "runs_tried": list(config.runs_tried),
        "command": "lift-simulate --config demo-artefacts.yaml --output out/demo-artefacts",
        "budget_s": dict(config.budget_s),
        # two stages took more than their budget
        "seconds": {
            stage: round(budget * (0.6 + 0.15 * (place % 4)), 2)
            for place, (stage, budget) in enumerate(config.budget_s.items())
        },
        "plan": config.plan.model_dump(mode="json"),
        "plan_digest": config.plan.digest(),
        "generator": {
            "fingerprint": FINGERPRINT,
            "training_data": "120 PHANTOM subjects from the MNI152 atlas; no patient was scanned.",
            "licence": "Apache-2.0",
            "network": UNetConfig(n_source=3).model_dump(mode="json"),
        },
        "mixer": {"kind": config.plan.mixer.kind, "parameters": PARAMETERS},
        "versions": dict.fromkeys(PACKAGES, "1.2.3"),
        "sites": [
            {
                "name": site.name,
                "description": site.description,
                "patients": {"train": 12 - 3 * place, "validation": 3, "test": TEST_PATIENTS},
                "refused": 0,
                "left_out": {},
                "slice_spacing_mm": [3.0 + place, 3.0 + place],
                "calibration_patients": None,
            }
            for place, site in enumerate(config.sites)
        ],
        "guard": {
            site: {
                "verdict": ("helped", "undecided", "harmed")[place % 3],
                "judged_on": "validation",
                "n": 3,
                "difference_db": _verdict(1.0 - 0.9 * place, 0.3),
                "against_z_filter_db": _verdict(0.3 - 0.4 * place, 0.2),
                "against_local_only_db": _verdict(0.1 - 0.1 * place, 0.15),
            }
            for place, site in enumerate(sites)
        },
        "folds": [],
        "epsilon_met": {},
        "ledger_heads": {},
        # figures by method: none where nothing could be compared
        "chosen": [{site: {"method": "no_mixer", "psnr_db": {}, "patients": 1} for site in sites}],
        # of a run too short to tell
        "loss_trend": None,
        "update_bytes": UPDATE_BYTES,
        "privacy": describe_privacy(config.plan, sites),
    }


def _verdict(value: float, half: float) -> dict[str, float | int]:
    return {"value": value, "low": value - half, "high": value + half, "n": 3}


def _rounds(config: SimulationConfig) -> list[dict[str, Any]]:
    trained = [_round(config, index) for index in range(1, config.plan.federation.rounds + 1)]
    return [_statistics(config), *trained]


def _exchange(config: SimulationConfig, index: int, kind: str, size: int) -> dict[str, Any]:
    sites = sorted(_sites(config))
    return {
        "round": index,
        "kind": kind,
        "asked": sites,
        "answered": sites,
        "counted": dict.fromkeys(sites, round(1 / len(sites), 4)),
        "refused": {},
        "bytes": dict.fromkeys(sites, size),
        "sent_again": {},
        "seconds": 6.25 + 0.5 * index,
        "epsilon": None,
    }


def _statistics(config: SimulationConfig) -> dict[str, Any]:
    told = {
        site: {
            "plan_digest": config.plan.digest(),
            "train_patients": 12 - 3 * place,
            "validation_patients": 3,
            "test_patients": TEST_PATIENTS,
            "refused_volumes": 0,
            "lowest_slice_spacing_mm": 3.0 + place,
            "highest_slice_spacing_mm": 3.0 + place,
            "round_estimate_s": 2.5,
            "data_version": 0,
            "ledger_head": None,
            "data_card": None,
        }
        for place, site in enumerate(_sites(config))
    }
    return _exchange(config, 0, "statistics", STATISTICS_BYTES) | {"statistics": told}


def _round(config: SimulationConfig, index: int) -> dict[str, Any]:
    sites = _sites(config)
    return _exchange(config, index, "train", UPDATE_BYTES) | {
        "loss": {site: (0.31 + 0.05 * k) * 0.8**index for k, site in enumerate(sites)},
        "validation_psnr_db": {
            site: 20.9 - 1.5 * k + 2.0 * (1 - 0.6**index) for k, site in enumerate(sites)
        },
        "joined": {},
        "resumed": False,
        "norm_ratios": dict.fromkeys(sites, 1.0),
        "clipped": {},
        "distances": {},
    }


def _metrics(config: SimulationConfig) -> dict[str, Any]:
    rng = np.random.default_rng(20260102)
    sites = _sites(config)
    measured = {site: {name: _figures(rng, name) for name in QUALITY} for site in sites}
    clean = {site: {name: _figures(rng, name) for name in CLEAN_METHODS} for site in sites}
    second = as_json(summarise(clean, seed=1))
    return {
        **as_json(summarise(measured, seed=0)),
        "patients": measured,
        "cross_site": {
            trained: {tested: _crossed(rng, apart=trained != tested) for tested in sites}
            for trained in sites
        },
        "second_phantom": second["pooled"],
        "second_phantom_comparisons": second["comparisons"],
    }


def _figures(rng: np.random.Generator, method: str) -> Figures:
    """A patient's own offset is the same for all metrics, as an easy patient's is."""
    share = QUALITY[method] / max(QUALITY.values())
    return {
        _patient(index): {
            metric: start + share * gain + spread * (0.5 * index + 0.4 * rng.standard_normal())
            for metric, (start, gain, spread) in METRICS.items()
        }
        for index in range(TEST_PATIENTS)
    }


def _crossed(rng: np.random.Generator, *, apart: bool) -> Mapping[str, object]:
    figures = _figures(rng, "z_filter" if apart else "local_only")
    kept = {
        patient: {metric: values[metric] for metric in CROSSED}
        for patient, values in figures.items()
    }
    return entries(metric_table(kept, seed=2))
