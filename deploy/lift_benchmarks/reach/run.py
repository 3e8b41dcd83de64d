"""All trainings of one data set, each measured on held-out patients; what is finished is kept."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import safetensors.torch
from torch import Tensor

from lift.cohort.reading import list_usable
from lift.cohort.split import Part, folds_of
from lift.config.plan import Plan
from lift.config.simulation import SimulationConfig
from lift.config.site import SiteSettings
from lift.device import fix_threads, resolve_devices
from lift.errors import ConfigError
from lift.files import write_atomically, write_json
from lift.generator.bundle import load_bundle
from lift.generator.card import bundle_folder, check_task
from lift.generator.features import Features
from lift.generator.networks import FrozenGenerator
from lift.metrics.table import PatientMetrics, by_person
from lift.mixer.base import Mixer
from lift.mixer.z_filter import fit
from lift.strict_json import parse_json
from lift.tasks.paired.building import plan_mixer, start_values
from lift.tasks.paired.contrast import pooled_arrays
from lift.tasks.paired.methods import (
    Floats,
    HeldOut,
    Method,
    curve_methods,
    measure,
    no_mixer,
    with_mixer,
    z_filter,
)
from lift.tasks.paired.predictions import mixed, patient_psnr_db, site_contrast, sum_of_equations
from lift.tasks.paired.site_cohort import SiteCohort, prepare_patient
from lift_benchmarks.reach.config import (
    RIVAL,
    DataSetSettings,
    Entry,
    ModelSettings,
    ReachConfig,
    list_entries,
    model_plan,
    shared_plan,
)
from lift_client.session import SiteSession
from lift_client.tasks.paired import paired_work, rounded_up
from lift_simulation.plain.curve import Values, rounds_of, train
from lift_simulation.plain.networks import PlainUNet, predict_in_windows
from lift_simulation.progress import Reporter
from lift_simulation.sites import open_sites, phantoms_of

PLAIN_ROWS: Final = "plain-rows"
"""Of the file with the rows that train no network."""
_VERSION: Final = 2
_PARTS: Final[tuple[Part, ...]] = ("train", "validation", "test")
Figures = dict[str, dict[str, PatientMetrics]]
"""SITE -> person -> figures: the mean over the person's examinations."""
Digests = dict[Path, str]
"""File of results -> what it must depend on to be of these settings."""


@dataclass(frozen=True)
class _Division:
    """One way to divide the patients, with all that is trained under it.

    Attributes:
        folder: of its results.
        plan: that all models share.
        sessions: site -> its session.
        cohorts: site -> its cohort; training patients are seen under their own curves.
        shared: the sums of all sites' curves, as a site of a federation gets them.
        roots: site -> folder of its data.
    """

    folder: Path
    plan: Plan
    sessions: Mapping[str, SiteSession]
    cohorts: Mapping[str, SiteCohort]
    shared: Mapping[str, Tensor]
    roots: Mapping[str, Path]

    def curves(self, site: str, *, without: str | None = None) -> Tensor | None:
        """What a site uses, fitted without one of its patients where that is asked."""
        left_out = set() if without is None else {without}
        return paired_work(self.sessions[site], self.plan).site_curves(
            self.shared, without=left_out
        )


def run_data_set(
    config: SimulationConfig,
    reach: ReachConfig,
    out: Path,
    reporter: Reporter,
    *,
    entries: Sequence[Entry] | None = None,
    done: Callable[[Digests], None] = lambda _: None,
) -> None:
    """Train and measure what is not there yet.

    Args:
        config: sites, generator and plan.
        reach: models and how they are trained.
        out: folder of the result.
        reporter: says what is being done.
        entries: trainings; None: all.
        done: called at the start, and when something has been written, with every file that there
            should be in the end.

    Raises:
        ConfigError: the plan is not one of paired mixers without privacy.
        LiftError: see the message.
    """
    chosen = list_entries(reach) if entries is None else list(entries)
    generator, plan = _generator_and_plan(config, reach)
    fix_threads(reach.threads)
    data = reach.data_set(config.name)
    sites = open_sites(
        config,
        out / "cache",
        out / "cohorts",
        reporter,
        phantoms_of(config),
        ledgers=out / "ledgers",
    )
    plans = _plans(sites, plan, data)
    digests: Digests = {}
    for name, divided in plans:
        plain = out / name / f"{PLAIN_ROWS}.json"
        digests[plain] = _digest(config, reach, divided, data)
        for entry in list_entries(reach):
            digests[entry_file(out / name, entry)] = _digest(config, reach, divided, data, entry)
    done(digests)
    for name, divided in plans:
        folder = out / name
        plain = folder / f"{PLAIN_ROWS}.json"
        missing = []
        for entry in chosen:
            path = entry_file(folder, entry)
            if is_finished(path, digests[path]):
                reporter.line(f"{name} {entry.name}: kept")
            else:
                missing.append(entry)
        if not missing and is_finished(plain, digests[plain]):
            continue
        division = _open(sites, divided, generator, folder, reporter)
        if not is_finished(plain, digests[plain]):
            with reporter.stage(f"{name} rows without a network"):
                _write_plain_rows(division, plain, digests[plain])
            done(digests)
        for entry in missing:
            digest = digests[entry_file(folder, entry)]
            with reporter.stage(f"{name} {entry.name}"):
                _run_entry(division, generator, reach, data, entry, digest, reporter)
            done(digests)
        for session in division.sessions.values():
            session.close()
    if config.cache.folder is None and len(chosen) == len(list_entries(reach)):
        # everything that it held can be computed again, and it is large
        shutil.rmtree(out / "cache", ignore_errors=True)


def entry_file(folder: Path, entry: Entry) -> Path:
    """Where a training's figures lie; its numbers lie beside them."""
    return folder / "models" / f"{entry.name}.json"


def is_finished(path: Path, digest: str) -> bool:
    """Whether a file is whole and of these settings."""
    try:
        return bool(parse_json(path.read_bytes())["digest"] == digest)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _generator_and_plan(
    config: SimulationConfig, reach: ReachConfig
) -> tuple[FrozenGenerator, Plan]:
    task, privacy = config.plan.task.kind, config.plan.privacy.mode
    if task != "paired" or privacy != "none" or config.generator is None:
        raise ConfigError(
            "these settings cannot be compared by size",
            where="plan",
            seen=f"task {task}, privacy {privacy}",
            remedy="Nothing was started. Give a paired task with `privacy: {mode: none}`.",
        )
    generator = load_bundle(
        bundle_folder(config.generator),
        expected_fingerprint=config.plan.generator_fingerprint,
        device=resolve_devices(config.device)[0],
    )
    check_task(generator.card, config.plan.task, config.plan.preprocessing)
    plan = config.plan.model_copy(update={"generator_fingerprint": generator.fingerprint})
    return generator, shared_plan(plan, reach, reach.data_set(config.name))


def _plans(
    sites: Mapping[str, SiteSettings], plan: Plan, data: DataSetSettings
) -> list[tuple[str, Plan]]:
    """Folder and plan of each way to divide the patients."""
    if data.folds == 1:
        return [("fold-0", plan)]
    patients = {name: list_usable(site, plan)[0] for name, site in sorted(sites.items())}
    tested = folds_of(patients, plan.split.key, data.folds)
    return [
        (
            f"fold-{index}",
            plan.model_copy(update={"split": plan.split.model_copy(update={"held_out": names})}),
        )
        for index, names in enumerate(tested)
        if names
    ]


def _digest(
    config: SimulationConfig,
    reach: ReachConfig,
    plan: Plan,
    data: DataSetSettings,
    entry: Entry | None = None,
) -> str:
    """Of all that one file of results depends on: other models' settings are no part of it."""
    loop = reach.model_dump(mode="json", exclude={"models", "data_sets"})
    sites = [site.model_dump(mode="json") for site in config.sites]
    own = None if entry is None else [entry.model.model_dump(mode="json"), entry.mode]
    parts = [_VERSION, plan.digest(), loop, data.model_dump(mode="json"), sites, own]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _open(
    sites: Mapping[str, SiteSettings],
    plan: Plan,
    generator: FrozenGenerator,
    folder: Path,
    reporter: Reporter,
) -> _Division:
    sessions = {
        name: SiteSession(site, generator, folder / "sites" / name, report=reporter.step)
        for name, site in sorted(sites.items())
    }
    with reporter.stage(f"{folder.name} features"):
        cohorts = {name: paired_work(session, plan).cohort for name, session in sessions.items()}
    shared = [
        site_contrast(cohort).shared(rounded_up(len(cohort.subjects("train")), plan))
        for cohort in cohorts.values()
    ]
    sums = pooled_arrays([sum_ for sum_ in shared if sum_ is not None])
    roots = {name: site.data.root for name, site in sites.items()}
    return _Division(folder, plan, sessions, cohorts, sums, roots)


def _write_plain_rows(division: _Division, path: Path, digest: str) -> None:
    """No mixer, one z-filter for all sites, and each site's own curves, without and with one."""
    plan = division.plan
    everyone = [
        [features.seen_with(None) for features in person]
        for cohort in division.cohorts.values()
        for person in cohort.by_person("train")
    ]
    taps = fit(sum_of_equations(everyone), plan.mixer.ridge)
    rows: dict[str, Figures] = {}
    for site, cohort in division.cohorts.items():
        own = curve_methods(cohort.persons("train"), cohort.persons("validation"), plan.mixer.ridge)
        # a site without a patient of its own has no contrast to bring
        methods: dict[str, Method] = {
            "no_mixer": no_mixer,
            "z_filter": z_filter(taps),
            "curves": own.get("curves", no_mixer),
            "curves_z_filter": own.get("curves_z_filter", z_filter(taps)),
        }
        for name, method in methods.items():
            rows.setdefault(name, {})[site] = _measured(division, site, method)
    people = {
        part: sum(len(cohort.subjects(part)) for cohort in division.cohorts.values())
        for part in _PARTS
    }
    write_json(path, {"digest": digest, "patients": people, "rows": rows})


def _measured(division: _Division, site: str, method: Method) -> dict[str, PatientMetrics]:
    cohort = division.cohorts[site]
    figures: dict[str, PatientMetrics] = {}
    subjects = {patient: cohort.patients[patient].subject for patient in cohort.split.test}
    for patient in cohort.split.test:
        held_out = HeldOut(
            site,
            patient,
            cohort.features[patient],
            prepare_patient(cohort, patient, division.plan, division.roots[site]),
        )
        figures[patient] = measure(held_out, method(held_out.features), division.plan)
    return by_person(figures, subjects)


def _run_entry(
    division: _Division,
    generator: FrozenGenerator,
    reach: ReachConfig,
    data: DataSetSettings,
    entry: Entry,
    digest: str,
    reporter: Reporter,
) -> None:
    """Train one model, measure it, and write both."""
    plan = model_plan(division.plan, reach, entry.model)
    network, start, predict = _network(division, generator, plan, entry.model)
    patients = {site: cohort.by_person("train") for site, cohort in division.cohorts.items()}
    watched, kind = _watched(division)
    most_steps = max(1, round(entry.model.most_steps * data.budget))

    def curve(values: Values) -> float:
        network.load_values(values)
        found = [patient_psnr_db(features, predict(features)) for features in watched]
        return sum(found) / len(found)

    trained = train(
        rounds_of(entry.mode, network, patients, plan, reach),
        start,
        curve,
        reach,
        most_steps=most_steps,
        keep_best=kind == "validation",
        report=lambda steps: reporter.step(entry.name, min(steps, most_steps), most_steps),
    )
    network.load_values(trained.values)
    metrics = {
        site: _measured(division, site, _at_site(division, site, network, predict))
        for site in division.cohorts
    }
    path = entry_file(division.folder, entry)
    write_atomically(path.with_suffix(".safetensors"), safetensors.torch.save(trained.values))
    record: dict[str, Any] = {
        "digest": digest,
        "parameters": network.parameter_count(),
        "steps": trained.curve[-1].steps,
        "kept": trained.kept,
        "core_s": round(trained.core_s, 1),
        "stopped": trained.stopped,
        "curve_of": kind,
        "curve": [asdict(point) for point in trained.curve],
        "metrics": metrics,
    }
    write_json(path, record)
    last = trained.curve[-1]
    reporter.line(
        f"  {network.parameter_count()} parameters, {last.steps} steps, {trained.stopped}, "
        f"{kind} {last.psnr_db:.2f} dB, kept {trained.kept}"
    )


def _network(
    division: _Division, generator: FrozenGenerator, plan: Plan, model: ModelSettings
) -> tuple[Mixer, Values, Method]:
    """A network, its numbers at first, and how it predicts a volume with what is loaded."""
    if model.kind == RIVAL:
        rival = PlainUNet(model.width, generator.n_source, seed=plan.seed).to(generator.device)
        window = plan.training.window

        def predict(features: Features) -> Floats:
            return predict_in_windows(rival, features, window)

        return rival, rival.values(), predict
    everyone = [f for cohort in division.cohorts.values() for f in cohort.by_person("train")]
    taps = fit(sum_of_equations(everyone), plan.mixer.ridge)
    mixer = plan_mixer(plan, generator)
    return mixer, start_values(plan, generator, taps), lambda features: mixed(mixer, features)


def _watched(division: _Division) -> tuple[list[Features], str]:
    """Patients of a training's curve: validation patients, else training patients as trained on.

    A validation patient is seen under the site's curves, in which it had no part.
    """
    found = [
        cohort.features[patient].seen_with(
            division.curves(site, without=cohort.patients[patient].subject)
        )
        for site, cohort in division.cohorts.items()
        for patient in cohort.split.validation
    ]
    if found:
        return found, "validation"
    everyone = [f for cohort in division.cohorts.values() for f in cohort.part("train")]
    return everyone, "training"


def _at_site(division: _Division, site: str, network: Mixer, predict: Method) -> Method:
    if isinstance(network, PlainUNet):
        return predict
    return with_mixer(network, network.values(), curves=division.curves(site))
