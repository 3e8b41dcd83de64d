"""`lift-client report`: a report with the hospital's own images, which never leaves.

Everything is computed here from this site's volumes and the finished mixer. Nothing is sent, no
line goes to the journal or the ledger, and a running `lift-client` is not disturbed.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from lift.cohort.patients import reasons_of
from lift.cohort.preprocessing import is_hounsfield
from lift.config.plan import Plan
from lift.config.site import SiteConfig
from lift.errors import DataError
from lift.files import file_digest
from lift.generator.features import Person
from lift.generator.networks import FrozenGenerator
from lift.metrics.table import PatientMetrics, summarise
from lift.mixer.finished import FinishedMixer
from lift.mixer.z_filter import fit
from lift.process import files_kept_private
from lift.protocol.messages import GuardRequest
from lift.randomness import derive_seed
from lift.records.run import SITE_REPORT, GuardRecord, RunRecord, SiteRecord
from lift.report.page import write_report
from lift.report.read import SYNTHESIS_FOLDER
from lift.tasks.describe import describe_run
from lift.tasks.paired.building import plan_mixer, start_values
from lift.tasks.paired.choice import Base
from lift.tasks.paired.contrast import CURVES_FILE, read_site_model
from lift.tasks.paired.local import OWN_MIXER_FILE, train_alone, with_own_mixer
from lift.tasks.paired.methods import (
    HeldOut,
    Method,
    blended,
    curve_methods,
    main_row,
    measure,
    no_mixer,
    with_curves,
    with_mixer,
    write_held_out,
    z_filter,
    z_median,
)
from lift.tasks.paired.predictions import sum_of_equations
from lift.tasks.paired.site_cohort import prepare_patient
from lift.tasks.paired.translation import synthesis_of
from lift.wire.names import MIXER, TAPS, grouped
from lift_client.gate.cohort_ledger import ledger_path
from lift_client.gate.journal import JOURNAL_FILE, read_journal
from lift_client.gate.ledger import verify
from lift_client.own.volumes import write_handed_on
from lift_client.own.work import Progress, finished_mixer, mixer_path, open_own_work, shared_sums
from lift_client.tasks.paired import PairedWork

logger = logging.getLogger(__name__)
OUTPUT_FOLDER: Final = "report"
_SHOWN: Final = 8
_TAPS: Final = 6


@files_kept_private()
def write_own_report(
    config: SiteConfig,
    *,
    mixer: Path | None,
    output: Path | None,
    local_only: bool,
    phantom: bool,
    command: str,
    progress: Progress,
) -> Path:
    """Write the report, readable only by its owner, and return its path.

    Args:
        config: the site's settings.
        mixer: file `mixer.safetensors`; None takes the one that this site judged last.
        output: folder; None takes `report` in the work folder.
        local_only: also train a mixer on this site alone, to compare with: takes as long as a run.
        phantom: say that the volumes are phantoms.
        command: how this was asked for.
        progress: what is being done, how much of it, of how much.

    Raises:
        ConfigError: the site has no plan of a run yet, or one that makes new volumes.
        CheckpointError: the mixer's file is missing or damaged.
        GeneratorError: mixer and site have different generators.
        DataError: no patient is held out.
    """
    finished = finished_mixer(config, mixer)
    plan = finished.plan
    out = output or config.folder / OUTPUT_FOLDER
    generator, work = open_own_work(config, plan, out, progress)
    part, patients = _held_out(work)
    methods = _methods(
        config, work, finished, generator, progress, part=part, local_only=local_only
    )
    model = None
    if "chosen" in methods:
        model = read_site_model(config.folder / CURVES_FILE, len(plan.task.source))
    method = "mixer" if model is None else model.name
    made = synthesis_of(finished, model, method=method, concern=None)
    metrics: dict[str, dict[str, PatientMetrics]] = {}
    for done, patient in enumerate(patients, 1):
        prepared = prepare_patient(work.cohort, patient, plan, config.data.root)
        held_out = HeldOut(config.name, patient, work.cohort.features[patient], prepared)
        predictions = {name: method(held_out.features) for name, method in methods.items()}
        for name, prediction in predictions.items():
            metrics.setdefault(name, {})[patient] = measure(held_out, prediction, plan)
        if done <= _SHOWN:
            write_held_out(out / SYNTHESIS_FOLDER, held_out, predictions, plan)
            sources = work.cohort.patients[patient].channels
            write_handed_on(out / SYNTHESIS_FOLDER, held_out, predictions, plan, sources, made)
        progress("held-out patients", done, len(patients))
    is_ct = is_hounsfield(plan, plan.task.target)
    seed = derive_seed(plan.seed, "intervals")
    people = work.cohort.subject_of
    table = summarise(
        {config.name: metrics},
        seed=seed,
        persons={config.name: people},
        protocol="ct" if is_ct else "mr",
    )
    table.write(out)
    found = describe_run(plan, generator)
    record = RunRecord(
        plan=found.plan,
        name=config.name,
        kind=SITE_REPORT,
        phantom=phantom or finished.phantom,
        data_statement=_statement(part, len({people[patient] for patient in patients})),
        started=None,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        complete=True,
        command=command,
        sites=(_site(config, work),),
        guard=_verdict(config, work, finished),
        privacy={"mode": plan.privacy.mode},
        mixer_digest=file_digest(mixer_path(config, mixer)),
        journal=_journal(config.folder / JOURNAL_FILE),
        ledger=_ledger(config),
    )
    record.described(found).write(out)
    path = write_report(out)
    out.chmod(0o700)
    return path


def _held_out(work: PairedWork) -> tuple[str, tuple[str, ...]]:
    """The part of the split that is shown, and its patients."""
    split = work.cohort.split
    for part, patients in (("test", split.test), ("validation", split.validation)):
        if patients:
            return part, patients
    raise DataError(
        "no patient of this site was held out",
        where="split",
        seen=f"{len(work.cohort.subjects('train'))} training patients, no validation and no test "
        "patient",
        remedy="A report of training patients would flatter the mixer: there is none. Add "
        "patients to the next run.",
    )


def _methods(
    config: SiteConfig,
    work: PairedWork,
    finished: FinishedMixer,
    generator: FrozenGenerator,
    progress: Progress,
    *,
    part: str,
    local_only: bool,
) -> dict[str, Method]:
    plan = finished.plan
    mixer = plan_mixer(plan, generator)
    people = work.cohort.by_person("train")
    training = [[features.seen_with(None) for features in person] for person in people]
    own = fit(sum_of_equations(training), plan.mixer.ridge)
    # who is shown must not have been fitted to
    fitted = work.cohort.persons("validation") if part == "test" else {}
    judged = [] if part == "test" else work.cohort.persons("validation")
    curves = work.curves(shared_sums(config, plan), without=judged).curves
    # under privacy no shared filter may exist: then the site's own is what there is
    shared = finished.taps if finished.taps.numel() == _TAPS else own
    methods: dict[str, Method] = {
        "no_mixer": no_mixer,
        "z_median": z_median,
        "z_filter": with_curves(curves, then=shared),
        "z_filter_local": z_filter(own),
        **curve_methods(work.cohort.persons("train"), fitted, plan.mixer.ridge),
        main_row(plan): with_mixer(mixer, finished.values, curves=curves),
    }
    path = config.folder / CURVES_FILE
    if part == "test" and path.is_file():
        # validation patients chose it: only others can say what it is worth
        model = read_site_model(path, len(plan.task.source))
        bases: dict[Base, Method] = {
            "no_mixer": no_mixer,
            "curves": with_curves(curves),
            "z_filter": methods["z_filter"],
            "mixer": methods[main_row(plan)],
        }
        if model.own is not None:
            kept = with_own_mixer(finished, path.with_name(OWN_MIXER_FILE), model.own)
            bases["mixer"] = with_mixer(mixer, kept.values, curves=curves)
        methods["chosen"] = blended(bases[model.use.base], model.use.strength)
    if local_only:
        values = _trained_alone(config, training, plan, generator, own, progress)
        methods["local_only"] = with_mixer(mixer, values)
    return methods


def _trained_alone(
    config: SiteConfig,
    patients: Sequence[Person],
    plan: Plan,
    generator: FrozenGenerator,
    taps: Tensor,
    progress: Progress,
) -> Mapping[str, Tensor]:
    """A mixer of this site alone: the plan's rounds and steps, without noise; it stays here."""
    if not patients:
        raise DataError(
            "this site cannot train a mixer of its own",
            where="--local-only",
            seen="no training patient",
            remedy="Omit --local-only.",
        )
    return train_alone(
        plan_mixer(plan, generator),
        start_values(plan, generator, taps),
        patients,
        plan,
        config.name,
        report=lambda done, total: progress("local only", done, total),
    )


def _verdict(
    config: SiteConfig, work: PairedWork, finished: FinishedMixer
) -> dict[str, GuardRecord]:
    """The verdict of this site on the mixer, on its own patients, as sent to a server."""
    taps = finished.taps
    if taps.numel() != _TAPS:
        taps = fit(work.z_filter_sums, finished.plan.mixer.ridge)
    tensors = grouped({n: value.numpy() for n, value in finished.values.items()}, MIXER)
    tensors |= shared_sums(config, finished.plan)
    request = GuardRequest(plan_digest=finished.plan.digest())
    reply = work.guard(request, {**tensors, TAPS: taps.numpy()})
    return {config.name: GuardRecord.of(reply)}


def _statement(part: str, count: int) -> str:
    kept = f"{count} {part} patients of this hospital, not used in any training"
    return f"{kept}." if part == "test" else f"{kept}; the site's verdict rests on the same ones."


def _site(config: SiteConfig, work: PairedWork) -> SiteRecord:
    counts = work.counts
    return SiteRecord.of(
        config.name,
        train=counts.train,
        validation=counts.validation,
        test=counts.test,
        refused=counts.refused,
        spacings_mm=counts.slice_spacings_mm,
        left_out=reasons_of(work.cohort.refusals),
    )


def _journal(path: Path) -> dict[str, Any] | None:
    """What left this site so far, counted by kind."""
    if not path.is_file():
        return None
    reading = read_journal(path)
    lines = Counter(line.kind for line in reading.lines)
    sizes: Counter[str] = Counter()
    for line in reading.lines:
        sizes[line.kind] += line.bytes
    return {
        "whole": reading.problem is None,
        "head": reading.last_hash,
        "kinds": {kind: {"lines": n, "bytes": sizes[kind]} for kind, n in sorted(lines.items())},
    }


def _ledger(config: SiteConfig) -> dict[str, Any] | None:
    """What of this site's privacy budget is spent, all runs together."""
    if config.budget is None:
        return None
    path = ledger_path(config, config.folder)
    if not path.is_file():
        return None
    book = verify(path)
    return {"epsilon": book.epsilon(), "cap": book.cap, "delta": book.delta, "head": book.head}
