"""What half-precision updates cost in quality, on a small phantom federation."""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import fmean

from rich.console import Console

from lift.cohort.phantom.write import write_phantom_cohort
from lift.config.cohort import BratsData
from lift.config.phantom import PhantomCohortConfig
from lift.config.plan import FederationPlan, Plan, TaskPlan, TrainingPlan
from lift.config.privacy import NoPrivacy
from lift.config.site import CacheSettings, SiteSettings
from lift.device import resolve_device
from lift.generator.bundle import load_bundle
from lift.generator.card import builtin_bundle
from lift.generator.networks import FrozenGenerator
from lift.tasks.paired.methods import main_row
from lift_benchmarks.bench.example import SOURCES
from lift_benchmarks.bench.figure import Figure
from lift_simulation.progress import Reporter
from lift_simulation.tasks.fold import Fold

_BUNDLE = "phantom-t1n-t1c-t2w-t2f"
_SITES = {"north": 6, "valley": 6}
_ROUNDS, _STEPS = 3, 20


def precision_figures() -> list[Figure]:
    """PSNR with float32 updates minus PSNR with float16 updates, everything else the same."""
    generator = load_bundle(
        builtin_bundle(_BUNDLE), expected_fingerprint=None, device=resolve_device("cpu")
    )
    with tempfile.TemporaryDirectory() as folder:
        sites = {name: _site(name, n, Path(folder)) for name, n in _SITES.items()}
        full, plain = _psnr_db(generator, sites, Path(folder) / "full", "float32")
        half, _ = _psnr_db(generator, sites, Path(folder) / "half", "float16")
    return [
        Figure(
            "half_update_psnr_loss_db",
            full - half,
            "",
            f"PSNR lost by sending updates in half precision: {full:.4f} against {half:.4f} dB "
            f"(no mixer {plain:.4f}) on held-out PHANTOM patients of two small sites",
        )
    ]


def _site(name: str, patients: int, folder: Path) -> SiteSettings:
    cohort = PhantomCohortConfig.from_data(
        {"patients": patients, "scanner": name, "seed": 77, "in_plane_mm": 3.0}, "bench"
    )
    write_phantom_cohort(cohort, folder / name)
    cache = CacheSettings(folder=folder / "cache")
    return SiteSettings(name=name, data=BratsData(root=folder / name), cache=cache)


def _psnr_db(
    generator: FrozenGenerator, sites: dict[str, SiteSettings], folder: Path, dtype: str
) -> tuple[float, float]:
    """Mean PSNR of held-out patients with the federated mixer, and without one."""
    plan = Plan(
        task=TaskPlan(source=SOURCES, target="t2f"),
        generator_fingerprint=generator.fingerprint,
        training=TrainingPlan(steps=_STEPS),
        federation=FederationPlan.from_data({"rounds": _ROUNDS, "update_dtype": dtype}, "bench"),
        privacy=NoPrivacy(mode="none"),
    )
    result = Fold(
        sites,
        plan,
        generator,
        folder,
        compare=(),
        reporter=Reporter(Console(stderr=True), {}, quiet=True),
    ).run(synthesis_patients=0)

    def mean(method: str) -> float:
        return fmean(
            figures["psnr_db"]
            for methods in result.metrics.values()
            for figures in methods[method].values()
        )

    return mean(main_row(plan)), mean("no_mixer")
