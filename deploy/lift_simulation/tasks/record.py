"""`run.json` of a simulation: what the run is, what it ran on, and how far it came."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from lift.cohort.patients import reasons_of
from lift.config.plan import Plan
from lift.config.simulation import SimulatedSite, SimulationConfig
from lift.errors import CheckpointError
from lift.files import file_digest
from lift.generator.base import Generator
from lift.metrics.intervals import bootstrap_mean
from lift.privacy.costs import describe_privacy
from lift.randomness import derive_seed
from lift.records.metrics import Measure
from lift.records.run import GuardRecord, RunRecord, SiteRecord, loss_record, read_run_record
from lift.tasks.describe import describe_run
from lift_client.tasks.unconditional import UnconditionalWork
from lift_server.release.privacy_record import epsilon_by_site
from lift_server.release.results import gain_record, most_bytes, shipped_record, verdicts
from lift_server.rounds.finished import FinishedRun
from lift_server.rounds.ledger_heads import HEADS_FILE, LedgerHeads
from lift_simulation.tasks.fold import FoldResult


class RecordFile:
    """`run.json` of a simulation, as it grows.

    Raises:
        CheckpointError: the folder holds the run of other settings, or its record is damaged.
    """

    def __init__(self, out: Path, config: SimulationConfig, command: str) -> None:
        self._folder = out
        self._config = config
        self._command = command
        digest = config.digest()
        if config.participation is not None and config.participation.is_file():
            both = f"{digest} {file_digest(config.participation)}"
            digest = hashlib.sha256(both.encode()).hexdigest()
        self._digest = digest
        self._record = _found(out, digest)

    @property
    def complete(self) -> bool:
        """Whether the run came to its end, report included."""
        # the report is written last: without it a run killed there would never get one
        there = (self._folder / "report.html").is_file()
        return self._record is not None and self._record.complete and there

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by stage, of this start and those before."""
        told = {} if self._record is None else self._record.seconds
        return {stage: value for stage, value in told.items() if value is not None}

    def describe(self, plan: Plan, generator: Generator) -> None:
        """Plan, digests, versions: known before anything is computed."""
        found, config, choice = describe_run(plan, generator), self._config, self._config.generator
        begun = self._record or RunRecord(
            plan=found.plan,
            name=config.name,
            phantom=config.phantom,
            started=_now(),
            finished=None,
            settings_digest=self._digest,
            complete=False,
        )
        begun = begun.updated(
            name=config.name,
            kind="simulation",
            phantom=config.phantom,
            data_statement=config.data_statement,
            runs_tried=list(config.runs_tried),
            command=self._command,
            budget_s=dict(config.budget_s),
        )
        if choice is not None and choice.bundle is not None:
            # so that a translation finds it again
            begun = begun.updated(bundle=str(choice.bundle.resolve()))
        self._write(begun.described(found))

    def keep_seconds(self, seconds: Mapping[str, float]) -> None:
        """Write the seconds so far: a resumed run adds to them."""
        self._write(self._known.updated(seconds=_rounded(seconds)))

    def finish(self, results: list[FoldResult], seconds: Mapping[str, float]) -> None:
        """Sites, guard and seconds; the run is complete once the report is there too."""
        plan, several = self._config.plan, len(results) > 1
        self._write(
            self._known.updated(
                finished=_now(),
                complete=True,
                seconds=_rounded(seconds),
                sites=tuple(self._site(site, results) for site in self._config.sites),
                guard={} if several else _guard(results, plan.seed),
                folds=tuple(_guard([one], plan.seed) for one in results) if several else (),
                epsilon_met=(met := epsilon_by_site(plan, results[0].finished.records)),
                ledger_heads=self._heads(met),
                # of several federations each has its own, and none is the run's
                **({} if several else gain_record(results[0].finished.gain)),
                chosen=tuple(_choices(result) for result in results),
                loss_trend=loss_record([result.finished.records for result in results]),
                update_bytes=_update_bytes(results),
                privacy=self._privacy(),
            )
        )

    def finish_unconditional(
        self,
        works: Mapping[str, UnconditionalWork],
        runs: Mapping[str, FinishedRun],
        seconds: Mapping[str, float],
    ) -> None:
        """As `finish`, of a run that makes new volumes."""
        described = {site.name: site.description for site in self._config.sites}
        records = runs["federated"].records
        self._write(
            self._known.updated(
                finished=_now(),
                complete=True,
                seconds=_rounded(seconds),
                sites=tuple(
                    _new_volumes_site(name, described[name], work)
                    for name, work in sorted(works.items())
                ),
                guard=verdicts(runs["federated"].guard),
                **shipped_record(runs["federated"].shipped),
                epsilon_met=(met := epsilon_by_site(self._config.plan, records)),
                ledger_heads=self._heads(met),
                update_bytes=most_bytes(records, "train"),
                statistics_bytes=most_bytes(records, "statistics"),
                privacy=self._privacy(),
            )
        )

    @property
    def _known(self) -> RunRecord:
        if self._record is None:
            raise ValueError("the run is described before anything else is written of it")
        return self._record

    def _write(self, record: RunRecord) -> None:
        self._record = record
        record.write(self._folder)

    def _heads(self, sites: Iterable[str]) -> dict[str, str]:
        """The last reported head of each site's ledger."""
        return LedgerHeads(self._folder / HEADS_FILE).known(sites)

    def _privacy(self) -> dict[str, object]:
        return describe_privacy(self._config.plan, [site.name for site in self._config.sites])

    def _site(self, site: SimulatedSite, results: list[FoldResult]) -> SiteRecord:
        cohorts = [result.cohorts[site.name] for result in results if site.name in result.cohorts]
        last = cohorts[-1]
        pairs = [r.calibrated_from[site.name] for r in results if site.name in r.calibrated_from]
        return SiteRecord.of(
            site.name,
            description=site.description,
            train=max(len(cohort.subjects("train")) for cohort in cohorts),
            validation=max(len(cohort.subjects("validation")) for cohort in cohorts),
            test=len(set().union(*(cohort.subjects("test") for cohort in cohorts))),
            refused=len(last.refusals),
            spacings_mm=last.slice_spacings_mm,
            calibration_patients=max(pairs, default=None),
            left_out=reasons_of(last.refusals),
        )


def _found(out: Path, digest: str) -> RunRecord | None:
    """The record of the run that is resumed; None for a new one."""
    try:
        record = read_run_record(out)
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        raise CheckpointError(
            "cannot resume: run.json is damaged",
            where=str(out),
            seen="it is not the JSON that a run writes",
            remedy="Choose another output folder, or move this one away.",
        ) from None
    if record.settings_digest != digest:
        raise CheckpointError(
            "the output folder holds a run of other settings",
            where=str(out),
            seen=f"settings {record.settings_digest[:12]}... there, {digest[:12]}... now",
            remedy="Nothing was changed. Choose another --output, or restore the settings.",
        )
    return record


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {stage: round(value, 2) for stage, value in seconds.items()}


def _new_volumes_site(name: str, description: str, work: UnconditionalWork) -> SiteRecord:
    counts = work.counts
    return SiteRecord.of(
        name,
        description=description,
        train=counts.train,
        validation=counts.validation,
        test=counts.test,
        refused=counts.refused,
        spacings_mm=counts.slice_spacings_mm,
        left_out=reasons_of(work.refusals),
    )


def _choices(result: FoldResult) -> dict[str, object]:
    """By site what it uses, and the figures of its validation patients that decided."""
    return {site: asdict(choice) for site, choice in sorted(result.choices.items())}


def _guard(results: list[FoldResult], seed: int) -> dict[str, GuardRecord]:
    (result,) = results
    verdicts: dict[str, GuardRecord] = {}
    for site, reply in sorted(result.finished.guard.items()):
        gains = result.local_gain_db.get(site, [])
        local = None
        if gains:
            mean = bootstrap_mean(gains, seed=derive_seed(seed, "guard", site))
            local = Measure(value=mean.value, low=mean.low, high=mean.high, n=mean.n)
        verdicts[site] = GuardRecord.of(reply, against_local_only=local)
    return verdicts


def _update_bytes(results: list[FoldResult]) -> int | None:
    """The largest message of one site in one training round, as it crossed the wire; None where
    no size is on record.
    """
    sizes = [most_bytes(result.finished.records, "train") for result in results]
    return max((size for size in sizes if size is not None), default=None)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
