"""A simulated run of a paired task: cohorts, federation, baselines, tables, report."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lift.cohort.reading import list_usable
from lift.cohort.split import folds_of
from lift.config.generator import GeneratorChoice
from lift.config.plan import Plan, WindowRule
from lift.config.simulation import SimulationConfig
from lift.config.site import SiteSettings
from lift.errors import ConfigError
from lift.generator.bundle import load_bundle
from lift.generator.card import bundle_folder
from lift.generator.networks import FrozenGenerator
from lift.metrics.table import Protocol, metric_table, summarise
from lift.randomness import derive_seed
from lift.records.metrics import Metrics
from lift.records.rounds import ROUNDS_FILE
from lift.report.page import write_report
from lift.tasks.paired.methods import write_held_out
from lift.tracking.base import About
from lift.tracking.run import Tracking
from lift_server.release.results import write_finished_mixer
from lift_simulation.progress import Reporter
from lift_simulation.sites import copies_for_sites, open_sites, phantoms_of, site_devices
from lift_simulation.tasks.fold import Afterwards, Beside, Fold, FoldResult
from lift_simulation.tasks.opening import begin_run
from lift_simulation.tasks.participation import Participation
from lift_simulation.tasks.record import RecordFile
from lift_simulation.tasks.segmentation import SegmentationJudge


def simulate_paired(
    config: SimulationConfig, out: Path, reporter: Reporter, tracking: Tracking, *, command: str
) -> Path:
    """Run it, or finish it, and return the path of its report.

    Raises:
        CheckpointError: the folder holds the run of other settings.
        LiftError: see the message.
    """
    record = RecordFile(out, config, command)
    if record.complete:
        reporter.line(f"this run is already complete: {out}")
        return out / "report.html"
    reporter.seconds.update(record.seconds)
    bundle = bundle_folder(_generator_of(config))
    devices = site_devices(config)
    load = partial(load_bundle, bundle, expected_fingerprint=config.plan.generator_fingerprint)
    generator = load(device=devices[config.sites[0].name])
    generators = copies_for_sites(generator, devices, lambda device: load(device=device))
    plan = config.plan.model_copy(update={"generator_fingerprint": generator.fingerprint})
    sites = begin_run(config, plan, generator, out, record, reporter)
    record.keep_seconds(reporter.seconds)

    participation = (
        Participation(config.participation, sorted(config.joined), plan.federation.rounds)
        if config.participation is not None
        else None
    )
    results: list[FoldResult] = []
    for part in _parts(config, plan, sites):
        folder, fold_plan = part.folder, part.plan
        if config.several_runs:
            reporter.line(f"{folder}, {part.description}")
        tracking.begin(
            About(config.name, fold_plan.digest(), config.phantom),
            out / folder / ROUNDS_FILE,
            part=f"fold-{Path(folder).name}" if config.several_runs else "",
        )
        fold = Fold(
            sites,
            fold_plan,
            generator,
            out / folder,
            compare=config.compare,
            reporter=reporter,
            generators=generators,
            afterwards=Afterwards(part.late, config.calibration_pairs, config.leave_one_site_out),
            participation=participation,
            on_round=tracking.round_done,
            judge=_judge(config, fold_plan, sites, out, folder, reporter, generator.device),
            beside=Beside(config.plain_networks, config.rivals, bundle),
        )
        count = 10**9 if config.leave_one_out else config.synthesis_patients
        result = fold.run(synthesis_patients=count)
        write_finished_mixer(
            out / folder / "mixer.safetensors", fold_plan, result.finished, phantom=config.phantom
        )
        with reporter.stage("synthesis"):
            for held_out, predictions in result.synthesis:
                write_held_out(out / "synthesis", held_out, predictions, fold_plan)
        # volumes are on disk now; a run of many folds must not keep them in memory
        result.synthesis = []
        results.append(result)
        record.keep_seconds(reporter.seconds)
    table = _tables(results, plan, apart=config.late)
    if results[0].costs is not None:
        table = table.updated(costs=results[0].costs)
    if config.clean_phantom is not None:
        with reporter.stage("clean_phantom"):
            second = _clean_phantom(config, plan, generators, out / "clean_phantom", reporter)
            table = table.updated(
                second_phantom=second.pooled, second_phantom_comparisons=second.comparisons
            )
    table.write(out)
    if config.several_runs:
        # the tables are of all folds together
        tracking.begin(About(config.name, plan.digest(), config.phantom))
    tracking.finished(table)
    record.finish(results, reporter.seconds)
    with reporter.stage("report"):
        report = write_report(out)
    record.finish(results, reporter.seconds)
    if config.cache.folder is None:
        # everything that it held can be computed again, and it is large
        shutil.rmtree(out / "cache", ignore_errors=True)
        shutil.rmtree(out / "clean_phantom" / "cache", ignore_errors=True)
    return report


def _generator_of(config: SimulationConfig) -> GeneratorChoice:
    if config.generator is None:
        raise ValueError("a paired task has a generator")
    return config.generator


def _judge(
    config: SimulationConfig,
    plan: Plan,
    sites: Mapping[str, SiteSettings],
    out: Path,
    folder: str,
    reporter: Reporter,
    device: torch.device,
) -> SegmentationJudge | None:
    if config.segmentation is None:
        return None
    return SegmentationJudge(
        config.segmentation,
        sites,
        plan,
        phantoms_of(config),
        folder=out / folder / "baselines",
        labels=out / "labels",
        reporter=reporter,
        device=device,
    )


@dataclass(frozen=True)
class _Part:
    """One federation of the run.

    Attributes:
        folder: below the run's.
        plan: of this federation.
        late: sites that join after it.
    """

    folder: str
    plan: Plan
    late: tuple[str, ...]

    @property
    def description(self) -> str:
        """Who is left out, for the screen."""
        names = ", ".join(self.plan.split.held_out)
        left = f"left out: {', '.join(self.late)}" if self.late else ""
        return "; ".join(text for text in (left, f"held out: {names}" if names else "") if text)


def _parts(config: SimulationConfig, plan: Plan, sites: Mapping[str, SiteSettings]) -> list[_Part]:
    """The run's federations: one, or one for every set of patients or site that is left out."""
    plans = _plans(config, plan, sites) if config.in_folds else [plan]
    if not config.leave_one_site_out:
        runs = [(own, config.late) for own in plans]
    else:
        # a fold in which a site has no patient says nothing of it
        runs = [
            (own, (site,))
            for site in sorted(sites)
            for own in plans
            if not config.in_folds or any(n.startswith(f"{site}/") for n in own.split.held_out)
        ]
    if not config.several_runs:
        return [_Part(".", *runs[0])]
    return [_Part(f"folds/{index:03d}", own, late) for index, (own, late) in enumerate(runs)]


def _plans(config: SimulationConfig, plan: Plan, sites: Mapping[str, SiteSettings]) -> list[Plan]:
    """The plan with every set of patients held out in turn."""
    patients = {name: list_usable(one, plan)[0] for name, one in sorted(sites.items())}
    if config.leave_one_out:
        # a person's examinations are held out together, once
        tested: list[tuple[str, ...]] = [
            tuple(f"{name}/{one.id}" for one in found if one.subject == person)
            for name, found in patients.items()
            for person in dict.fromkeys(one.subject for one in found)
        ]
        asked, needed = "leave_one_out", 2
    else:
        tested = [names for names in folds_of(patients, plan.split.key, config.folds) if names]
        asked, needed = "folds", config.folds
    if len(tested) < needed:
        raise ConfigError(
            f"{asked} needs at least {needed} patients",
            where=asked,
            seen=f"{len(tested)} patients in all sites",
            remedy=f"Add patients, or leave {asked} out.",
        )
    return [
        plan.model_copy(update={"split": plan.split.model_copy(update={"held_out": names})})
        for names in tested
    ]


def _tables(results: list[FoldResult], plan: Plan, *, apart: Collection[str] = ()) -> Metrics:
    """metrics.json of all folds together; each held-out person counts once.

    The patients of sites `apart` have tables of their own and are not pooled.
    """
    merged: dict[str, dict[str, dict[str, Any]]] = {}
    crossed: dict[str, dict[str, dict[str, Any]]] = {}
    persons: dict[str, dict[str, str]] = {}
    for result in results:
        for site, cohort in result.cohorts.items():
            persons.setdefault(site, {}).update(cohort.subject_of)
        for target, source in ((merged, result.metrics), (crossed, result.cross_site)):
            for first, inner in source.items():
                for second, patients in inner.items():
                    target.setdefault(first, {}).setdefault(second, {}).update(patients)
    rule = plan.preprocessing.rule(plan.task.target)
    protocol: Protocol = "ct" if isinstance(rule, WindowRule) else "mr"
    seed = derive_seed(plan.seed, "intervals")
    table = summarise(merged, seed=seed, persons=persons, protocol=protocol, apart=apart)
    table = table.updated(
        patients={
            site: {method: dict(sorted(rows.items())) for method, rows in methods.items()}
            for site, methods in sorted(merged.items())
        }
    )
    if crossed:
        table = table.updated(
            cross_site={
                trained_at: {
                    tested_at: metric_table(
                        patients,
                        seed=derive_seed(seed, trained_at, tested_at),
                        persons=persons.get(tested_at, {}),
                        protocol=protocol,
                    )
                    for tested_at, patients in row.items()
                }
                for trained_at, row in sorted(crossed.items())
            }
        )
    return table


def _clean_phantom(
    config: SimulationConfig,
    plan: Plan,
    generators: Mapping[str, FrozenGenerator],
    out: Path,
    reporter: Reporter,
) -> Metrics:
    """The same sites without slice corruption, fewer patients and rounds: all methods pooled."""
    clean = config.clean_phantom
    if clean is None:
        raise ValueError("clean_phantom is not set")
    phantoms = {
        name: phantom.model_copy(update={"corruption": False, "patients": clean.patients})
        for name, phantom in phantoms_of(config).items()
        if name in config.joined
    }
    joined = tuple(site for site in config.sites if site.name in config.joined)
    own = config.model_copy(
        update={"cache": config.cache.model_copy(update={"folder": None}), "sites": joined}
    )
    sites = open_sites(
        own, out / "cache", out / "cohorts", reporter, phantoms, ledgers=out / "ledgers"
    )
    federation = plan.federation.model_copy(update={"rounds": clean.rounds})
    quiet = Reporter(reporter.console, {}, quiet=True)
    result = Fold(
        sites,
        plan.model_copy(update={"federation": federation}),
        generators[joined[0].name],
        out,
        compare=(),
        reporter=quiet,
        generators=generators,
    ).run(synthesis_patients=0)
    return _tables([result], plan)
