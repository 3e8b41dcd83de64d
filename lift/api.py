"""The Python interface for researchers: train, apply and evaluate a mixer in ten lines.

On phantom brains that this package makes itself:

>>> import tempfile, lift
>>> from pathlib import Path
>>> folder = Path(tempfile.mkdtemp())
>>> lift.make_phantom(folder / "scans", patients=6, scanner="north", seed=1)
>>> generator = lift.load_generator("phantom-t1n-t1c-t2w-t2f")
>>> plan = lift.make_plan(generator, training={"steps": 4}, federation={"rounds": 1})
>>> cohort = lift.open_cohort(folder / "scans", plan, generator, folder=folder / "work")
>>> trained = lift.train(cohort)
>>> figures = lift.evaluate(trained, cohort)
>>> sorted(figures)
['curves', 'curves_z_filter', 'no_mixer', 'trained', 'z_filter', 'z_median']
>>> written = lift.translate(cohort.sources(cohort.test[0]), folder / "t2f.nii.gz", trained)

A federation of several such sites is one call more: :func:`simulate`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final

from lift.cohort.phantom.write import write_phantom_cohort
from lift.cohort.preprocessing import is_hounsfield
from lift.config.generator import GeneratorChoice
from lift.config.phantom import PhantomCohortConfig
from lift.config.plan import Plan
from lift.config.site import SiteSettings
from lift.device import fix_threads, resolve_device
from lift.errors import ConfigError, DataError, GeneratorError
from lift.generator.bundle import load_bundle
from lift.generator.card import bundle_folder, check_task
from lift.generator.networks import FrozenGenerator
from lift.metrics.table import Entry, PatientMetrics, Protocol, entries, metric_table
from lift.mixer.finished import FinishedMixer, write_mixer
from lift.mixer.z_filter import fit
from lift.randomness import derive_seed
from lift.tasks.paired import monai_bundle
from lift.tasks.paired.building import plan_mixer, start_values
from lift.tasks.paired.contrast import SiteContrast, SiteModel, own_curves_view
from lift.tasks.paired.local import train_alone
from lift.tasks.paired.methods import (
    HeldOut,
    Method,
    curve_methods,
    measure,
    no_mixer,
    with_mixer,
    z_filter,
    z_median,
)
from lift.tasks.paired.predictions import site_contrast, sum_of_equations
from lift.tasks.paired.site_cohort import SiteCohort, prepare_patient
from lift.tasks.paired.site_cohort import open_cohort as _open_site
from lift.tasks.paired.translation import Translated
from lift.tasks.paired.translation import translate as _translate

Progress = Callable[[str, int, int], None]
"""Called with what is being done, the steps done and their number."""
_SIMULATION: Final = "lift.simulation"
Translator = monai_bundle.Translator


@dataclass(frozen=True)
class Cohort:
    """One site's patients, opened under a plan around its generator.

    Attributes:
        plan: what is trained, and how volumes are prepared.
        generator: the frozen slice generator.
        site: the usable patients with their features, by part of the split.
        contrast: curve equations by patient; None where the plan's contrast is `none`.
        root: folder of the scans.
    """

    plan: Plan
    generator: FrozenGenerator
    site: SiteCohort
    contrast: SiteContrast | None
    root: Path

    @property
    def test(self) -> tuple[str, ...]:
        """Ids of the held-out volumes."""
        return self.site.split.test

    def sources(self, patient: str) -> dict[str, Path]:
        """The source files of one volume, channel name -> path."""
        channels = self.site.patients[patient].channels
        return {name: channels[name] for name in self.plan.task.source}


@dataclass(frozen=True)
class Trained:
    """A trained mixer, and the curves of the site that it was trained at.

    Attributes:
        finished: the mixer with its plan; what `mixer.safetensors` holds.
        generator: the frozen slice generator that it belongs to.
        model: the site's curves; None where the plan's contrast is `none`.
    """

    finished: FinishedMixer
    generator: FrozenGenerator
    model: SiteModel | None

    def save(self, path: Path) -> None:
        """Write `mixer.safetensors`, for `lift translate --mixer`; curves stay in memory."""
        write_mixer(path, self.finished)


def load_generator(bundle: str | Path, *, device: str = "auto") -> FrozenGenerator:
    """The frozen slice generator of a bundle.

    Args:
        bundle: folder of a bundle, or the name of one that this package holds.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        GeneratorError: there is no such bundle, or it is damaged or of another kind.
        ConfigError: the device is not there.
    """
    folder = Path(bundle)
    if not folder.is_dir():
        folder = bundle_folder(GeneratorChoice(builtin=str(bundle)))
    return load_bundle(folder, expected_fingerprint=None, device=resolve_device(device))


def make_plan(generator: FrozenGenerator, **sections: Any) -> Plan:
    """Return a plan around a generator. Sections and keys that are not given have defaults.

    Args:
        generator: gives the task and how its volumes were prepared.
        sections: of a plan's YAML file, as keyword arguments: `seed=3`, `training={"steps": 40}`.

    Raises:
        ConfigError: a key is unknown, or a value is not allowed.
    """
    card = generator.card
    rules = {name: rule.model_dump(mode="json") for name, rule in card.normalisation.items()}
    data: dict[str, Any] = {
        "task": {"source": list(card.source), "target": card.target},
        "privacy": {"mode": "none"},
        **sections,
        "preprocessing": {"normalisation": rules, **sections.get("preprocessing", {})},
        "generator_fingerprint": generator.fingerprint,
    }
    plan = Plan.from_data(data, "make_plan")
    check_task(card, plan.task, plan.preprocessing)
    return plan


def make_phantom(folder: Path, *, patients: int, scanner: str, seed: int) -> None:
    """Write a cohort of phantom brains in the BraTS layout. An existing one is kept.

    Args:
        folder: for the volumes.
        patients: how many.
        scanner: north, harbour, valley or public.
        seed: patient k depends on the seed and k alone.

    Raises:
        ConfigError: a value is not allowed.
    """
    data = {"patients": patients, "scanner": scanner, "seed": seed}
    write_phantom_cohort(PhantomCohortConfig.from_data(data, "make_phantom"), folder, workers=1)


def open_cohort(
    scans: Path | Mapping[str, Any],
    plan: Plan,
    generator: FrozenGenerator,
    *,
    folder: Path,
    name: str = "site",
    progress: Progress | None = None,
) -> Cohort:
    """List, check, split and prepare a site's patients. Prepared data are reused.

    Args:
        scans: a folder in the BraTS layout, or the `data` section of a site's file.
        plan: of :func:`make_plan`.
        generator: of the plan.
        folder: for the split, the cache of features and the log.
        name: of the site; the split depends on it.
        progress: see `Progress`.

    Raises:
        DataError: no patient can be used. Files that cannot be used are refused by name.
        GeneratorError: the plan belongs to another generator.
    """
    _check_generator(plan, generator)
    fix_threads(plan.threads)
    data = {"layout": "brats", "root": str(scans)} if isinstance(scans, Path) else dict(scans)
    settings = SiteSettings.from_data({"name": name, "data": data}, "open_cohort")
    site = _open_site(
        settings,
        plan,
        generator,
        plan_mixer(plan, generator),
        work=folder,
        report=None if progress is None else lambda i, n: progress("volumes", i, n),
    )
    contrast = None
    if plan.mixer.contrast != "none":
        contrast = site_contrast(site, affine=plan.mixer.contrast == "affine")
        site = site.seen_in_training(own_curves_view(site.persons("train"), contrast))
    return Cohort(plan, generator, site, contrast, settings.data.root)


def train(cohort: Cohort, *, progress: Progress | None = None) -> Trained:
    """Train a mixer on the cohort's training patients: the plan's rounds, without other sites.

    Each patient is seen under its own curves. The result is the same bits on every run on a CPU.

    Args:
        cohort: of :func:`open_cohort`.
        progress: see `Progress`.

    Raises:
        DataError: there is no training patient.
    """
    plan, generator = cohort.plan, cohort.generator
    fix_threads(plan.threads)
    patients = cohort.site.by_person("train")
    if not patients:
        raise DataError(
            "cannot train a mixer",
            where="split",
            seen=f"no training patient among {len(cohort.site.patients)}",
            remedy="Add patients, or change the plan's split.",
        )
    taps = fit(sum_of_equations(patients), plan.mixer.ridge)
    values = train_alone(
        plan_mixer(plan, generator),
        start_values(plan, generator, taps),
        patients,
        plan,
        cohort.site.site,
        report=None if progress is None else lambda i, n: progress("rounds", i, n),
    )
    curves = None if cohort.contrast is None else cohort.contrast.chosen(None).curves
    model = None if curves is None else SiteModel(curves)
    return Trained(FinishedMixer(values, taps, plan, (), phantom=False), generator, model)


def translate(
    inputs: Mapping[str, Path],
    output: Path,
    trained: Trained,
    *,
    mask: Path | None = None,
    progress: Progress | None = None,
) -> Translated:
    """Write the target channel of one examination, on the grid of its first source.

    A sidecar beside it (.json) says that it is synthetic, and what made it.

    Args:
        inputs: channel name -> file, exactly the plan's sources.
        output: ends in .nii.gz or .nii.
        trained: of :func:`train`.
        mask: the examination's mask, where the plan's rule is `file`.
        progress: see `Progress`.

    Raises:
        ConfigError: a source or the mask is missing or extra.
        VolumeError: an input cannot be used.
    """
    return _translate(
        inputs,
        output,
        trained.finished,
        trained.generator,
        mask=mask,
        site=trained.model,
        on_concern="warn",
        report=None if progress is None else lambda i, n: progress("slices", i, n),
    )


def evaluate(
    trained: Trained, cohort: Cohort, *, progress: Progress | None = None
) -> dict[str, dict[str, Entry]]:
    """Return figures of the held-out patients for the mixer and for methods without a network.

    Args:
        trained: of :func:`train`, for the cohort's plan.
        cohort: its test patients are measured.
        progress: see `Progress`.

    Returns:
        ROW -> METRIC -> mean over persons with its 95% interval, number and unit.

    Raises:
        DataError: no patient was held out.
        GeneratorError: the mixer belongs to another generator.
    """
    plan, generator, site = trained.finished.plan, trained.generator, cohort.site
    _check_generator(plan, cohort.generator)
    if not cohort.test:
        raise DataError(
            "cannot evaluate a mixer",
            where="split",
            seen="no test patient",
            remedy="Add patients, or raise the test share of the plan's split.",
        )
    plain = [[one.seen_with(None) for one in person] for person in site.by_person("train")]
    curves = None if trained.model is None else trained.model.curves
    methods: dict[str, Method] = {
        "no_mixer": no_mixer,
        "z_median": z_median,
        "z_filter": z_filter(fit(sum_of_equations(plain), plan.mixer.ridge)),
        "trained": with_mixer(plan_mixer(plan, generator), trained.finished.values, curves=curves),
    }
    if cohort.contrast is not None:
        own = curve_methods(site.persons("train"), site.persons("validation"), plan.mixer.ridge)
        methods |= own
    found: dict[str, dict[str, PatientMetrics]] = {name: {} for name in methods}
    for done, patient in enumerate(cohort.test, 1):
        prepared = prepare_patient(site, patient, plan, cohort.root)
        held_out = HeldOut(site.site, patient, site.features[patient], prepared)
        for name, method in methods.items():
            found[name][patient] = measure(held_out, method(held_out.features), plan)
        if progress is not None:
            progress("held-out patients", done, len(cohort.test))
    is_ct = is_hounsfield(plan, plan.task.target)
    protocol: Protocol = "ct" if is_ct else "mr"
    return {
        name: entries(
            metric_table(
                rows,
                seed=derive_seed(plan.seed, name),
                persons=site.subject_of,
                protocol=protocol,
            )
        )
        for name, rows in found.items()
    }


def simulate(config: Path, output: Path) -> Path:
    """Run a federation of simulated sites, as `lift-simulate` does, and return its report.

    A run that was broken off goes on; a finished one is left as it is.

    Args:
        config: settings of a simulation (YAML).
        output: folder of the result.

    Raises:
        ConfigError: the settings do not fit, or the simulation is not installed.
        CheckpointError: the folder holds the run of other settings.
    """
    found = entry_points(group=_SIMULATION)
    if not found:
        raise ConfigError(
            "cannot run a simulation",
            seen=f"no installed package offers '{_SIMULATION}'",
            remedy="Install lift-federated whole: pip install lift-federated.",
        )
    report: Path = next(iter(found)).load()(config, output)
    return report


def _check_generator(plan: Plan, generator: FrozenGenerator) -> None:
    if plan.generator_fingerprint != generator.fingerprint:
        raise GeneratorError(
            "the plan names another generator",
            where="generator_fingerprint",
            seen=f"plan {str(plan.generator_fingerprint)[:12]}..., "
            f"given {generator.fingerprint[:12]}...",
            remedy="Make the plan with lift.make_plan(generator, ...).",
        )
