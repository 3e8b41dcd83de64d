"""One data set: read pairs, generate new ones, train what is missing, measure held-out patients."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any, Final

from lift.cohort.opened import read_patients
from lift.cohort.patients import Patient
from lift.cohort.phantom.write import write_truth
from lift.cohort.split import split_patients
from lift.config.plan import Plan
from lift.config.simulation import SimulationConfig
from lift.device import fix_threads, resolve_device
from lift.errors import ConfigError
from lift.files import write_atomically, write_json
from lift.generator.card import check_task
from lift.mixer.gaussian import GaussianTrajectory
from lift.randomness import derive_seed
from lift.unconditional.bundle import with_generator
from lift.unconditional.decoder import FrozenDecoder
from lift.unconditional.learning import settings_of
from lift_simulation.downstream.config import (
    DataSetSettings,
    DownstreamConfig,
    Entry,
    list_entries,
)
from lift_simulation.downstream.likeness import nearest_distances
from lift_simulation.downstream.pairs import (
    Pair,
    PairForm,
    joint_gaussian,
    new_pair,
    pair_form,
    pair_trajectory,
    read_pair,
)
from lift_simulation.downstream.pictures import draw_pairs
from lift_simulation.downstream.segmenter import (
    Source,
    Stack,
    dice,
    predict,
    stack_of,
    train_segmenter,
)
from lift_simulation.progress import Reporter
from lift_simulation.sites import open_sites, phantoms_of
from lift_simulation.unconditional import open_decoder

PAIRS_FILE: Final = "pairs.json"
PAIRS_PICTURE: Final = "pairs.png"
_VERSION: Final = 1
_PICTURED: Final = 8
Digests = dict[Path, str]
"""File of results -> what it must depend on to be of these settings."""


@dataclass(frozen=True)
class Cohort:
    """A site's usable pairs, several of one person together, and its split.

    Attributes:
        pairs: id -> pair.
        subjects: id -> person.
        train: ids.
        test: ids.
    """

    pairs: Mapping[str, Pair]
    subjects: Mapping[str, str]
    train: Sequence[str]
    test: Sequence[str]

    def persons(self) -> list[list[str]]:
        """Ids of the training patients by person."""
        found: dict[str, list[str]] = {}
        for patient in self.train:
            found.setdefault(self.subjects[patient], []).append(patient)
        return [found[person] for person in sorted(found)]


@dataclass(frozen=True)
class Volumes:
    """What the segmenters are trained and tested on.

    Attributes:
        own: training volumes of the hospital that asks, by person.
        everyone: training volumes of all sites.
        generated: of new pairs.
        shuffled: the same images, each with the label of the next one.
        test: site -> patient -> volume.
    """

    own: Sequence[Sequence[Stack]]
    everyone: Sequence[Stack]
    generated: Sequence[Stack]
    shuffled: Sequence[Stack]
    test: Mapping[str, Mapping[str, Stack]]


def run_data_set(
    config: SimulationConfig,
    downstream: DownstreamConfig,
    out: Path,
    reporter: Reporter,
    *,
    entries: Sequence[Entry] | None = None,
    done: Callable[[Digests], None] = lambda _: None,
) -> None:
    """Train and measure what is not there yet.

    Args:
        config: sites, decoder and plan.
        downstream: pairs and segmenters.
        out: folder of the result.
        reporter: says what is being done.
        entries: trainings; None: all.
        done: called at the start, and after each training, with every file that there should be in
            the end.

    Raises:
        ConfigError: the settings do not fit the data set.
        LiftError: see the message.
    """
    data = check_data_set(config, downstream)
    digests = digests_of(config, downstream, out)
    done(digests)
    chosen = list_entries(downstream, data) if entries is None else list(entries)
    missing = []
    for entry in chosen:
        path = entry_file(out, entry)
        if is_finished(path, digests[path]):
            reporter.line(f"{entry.name}: kept")
        else:
            missing.append(entry)
    facts = out / PAIRS_FILE
    if not missing and is_finished(facts, digests[facts]):
        return
    volumes = _prepared(config, downstream, data, out, reporter, digests[facts])
    for entry in missing:
        path = entry_file(out, entry)
        with reporter.stage(entry.name):
            _run_entry(volumes, downstream, entry, path, digests[path], reporter)
        done(digests)


def entry_file(out: Path, entry: Entry) -> Path:
    """Where a training's figures lie."""
    return out / "trainings" / f"{entry.name}.json"


def is_finished(path: Path, digest: str) -> bool:
    """Whether a file is whole and of these settings."""
    try:
        return bool(json.loads(path.read_text(encoding="utf-8"))["digest"] == digest)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def check_data_set(config: SimulationConfig, downstream: DownstreamConfig) -> DataSetSettings:
    """The settings for a simulation.

    Raises:
        ConfigError: there are none, or they do not fit it.
    """
    data = downstream.data_sets.get(config.name)
    known = ", ".join(sorted(downstream.data_sets))
    task, privacy = config.plan.task.kind, config.plan.privacy.mode
    names = [site.name for site in config.sites]
    problem = None
    if data is None:
        problem = ("data_sets", f"{config.name}; there are settings for {known}")
    elif task != "unconditional" or privacy != "none":
        problem = ("plan", f"task {task}, privacy {privacy}; needed: unconditional and none")
    elif data.site not in names:
        problem = ("site", f"{data.site}; the sites are {', '.join(names)}")
    elif data.tissue and not config.phantom:
        problem = ("tissue", f"{data.tissue}; these volumes are no phantoms, give labels")
    if problem is not None or data is None:
        where, seen = problem or ("data_sets", config.name)
        raise ConfigError(
            "these settings cannot be used for the experiment",
            where=where,
            seen=seen,
            remedy="Correct one of the two files; nothing was started.",
        )
    return data


def digests_of(config: SimulationConfig, downstream: DownstreamConfig, out: Path) -> Digests:
    """Every file that there should be in the end, and its digest."""
    data = check_data_set(config, downstream)
    sites = [site.model_dump(mode="json") for site in config.sites]
    decoder = [
        None if part is None else part.model_dump(mode="json")
        for part in (config.generator, config.pretrain)
    ]
    # how many trainings there are changes none of them
    kept = data.model_dump(mode="json", exclude={"few"})
    common = [_VERSION, config.plan.digest(), sites, decoder, kept, downstream.pairs]
    common += [downstream.threads]
    found = {out / PAIRS_FILE: _digest([*common, "pairs"])}
    trained = [*common, downstream.segmenter.model_dump(mode="json")]
    for entry in list_entries(downstream, data):
        found[entry_file(out, entry)] = _digest([*trained, entry.name])
    return found


def _digest(parts: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _prepared(
    config: SimulationConfig,
    downstream: DownstreamConfig,
    data: DataSetSettings,
    out: Path,
    reporter: Reporter,
    digest: str,
) -> Volumes:
    """Read all pairs, draw new ones from their Gaussian, and say what they are like."""
    decoder = open_decoder(config, out, resolve_device("cpu"), reporter)
    plan = with_generator(config.plan, decoder)
    check_task(decoder.card, plan.task, plan.preprocessing)
    fix_threads(downstream.threads)
    form = pair_form(plan, decoder, data.waves, data.reach_mm)
    with reporter.stage("patients"):
        cohorts = _cohorts(config, plan, decoder, data, out, reporter)
    _check_few(cohorts[data.site], data)
    with reporter.stage("new pairs"):
        gaussian, counted = joint_gaussian(
            {
                site: [
                    [pair_trajectory(cohort.pairs[p], decoder, form) for p in person]
                    for person in cohort.persons()
                ]
                for site, cohort in cohorts.items()
            },
            form,
        )
        made = _generated(gaussian, decoder, form, plan, cohorts[data.site], count=downstream.pairs)
    _describe(cohorts, counted, made, plan, data, out, digest)
    following = [*made[1:], made[0]]
    return Volumes(
        own=[
            [_stack(cohorts[data.site].pairs[p]) for p in person]
            for person in cohorts[data.site].persons()
        ],
        everyone=[_stack(c.pairs[p]) for _, c in sorted(cohorts.items()) for p in c.train],
        generated=[_stack(pair) for pair in made],
        shuffled=[
            stack_of(pair.voxels, other.label) for pair, other in zip(made, following, strict=True)
        ],
        test={s: {p: _stack(c.pairs[p]) for p in c.test} for s, c in sorted(cohorts.items())},
    )


def _stack(pair: Pair) -> Stack:
    return stack_of(pair.voxels, pair.label)


def _cohorts(
    config: SimulationConfig,
    plan: Plan,
    decoder: FrozenDecoder,
    data: DataSetSettings,
    out: Path,
    reporter: Reporter,
) -> dict[str, Cohort]:
    phantoms = phantoms_of(config)
    sites = open_sites(
        config, out / "cache", out / "cohorts", reporter, phantoms, ledgers=out / "ledgers"
    )
    cohorts = {}
    for name, site in sorted(sites.items()):
        pattern = data.labels
        if data.tissue:
            folder = out / "labels" / name / phantoms[name].digest()[:12]
            write_truth(phantoms[name], folder, data.tissue)
            pattern = f"{folder}/{{patient}}.nii.gz"

        def read(patient: Patient, root: Path = site.data.root, labels: str = pattern) -> Pair:
            label = Path(labels.replace("{patient}", patient.id))
            return read_pair(patient, plan, decoder, root=root, label=label)

        usable = read_patients(site, plan, read)
        for refusal in usable.refusals:
            reporter.line(refusal.reason.render(f"site {name}"))
        split = split_patients(list(usable.patients.values()), plan.split, name)
        subjects = {patient: files.subject for patient, files in usable.patients.items()}
        cohorts[name] = Cohort(usable.content, subjects, split.train, split.test)
    return cohorts


def _check_few(cohort: Cohort, data: DataSetSettings) -> None:
    persons = len(cohort.persons())
    if max(data.few) > persons:
        raise ConfigError(
            "the hospital has fewer training patients than asked for",
            where="few",
            seen=f"{max(data.few)} of {data.site}, which has {persons}",
            remedy="Lower the numbers; nothing was trained.",
        )


def _generated(
    gaussian: GaussianTrajectory,
    decoder: FrozenDecoder,
    form: PairForm,
    plan: Plan,
    cohort: Cohort,
    *,
    count: int,
) -> list[Pair]:
    """New pairs in the plan's field of view, with the slice spacing of the hospital that asks."""
    settings = settings_of(plan)
    spacing_mm = median(cohort.pairs[p].body.spacing_mm[0] for p in cohort.train)
    slices = max(1, round(settings.slices * settings.slice_spacing_mm / spacing_mm))
    return [
        new_pair(
            gaussian,
            decoder,
            form,
            seed=derive_seed(plan.seed, "downstream"),
            index=index,
            slices=slices,
            slice_spacing_mm=spacing_mm,
        )
        for index in range(count)
    ]


def _describe(
    cohorts: Mapping[str, Cohort],
    counted: Mapping[str, int],
    made: Sequence[Pair],
    plan: Plan,
    data: DataSetSettings,
    out: Path,
    digest: str,
) -> None:
    """Write who is in the Gaussian, how near new pairs are to training, and a picture."""
    train = [c.pairs[p] for _, c in sorted(cohorts.items()) for p in c.train]
    test = [c.pairs[p] for _, c in sorted(cohorts.items()) for p in c.test]
    near, held_out = nearest_distances(made, test, train, settings_of(plan))
    sizes = {
        name: sum(float(pair.label.double().mean()) for pair in pairs) / len(pairs)
        for name, pairs in (("generated", made), ("training", train))
    }
    own = cohorts[data.site]
    shown = [own.pairs[p] for p in own.train[:_PICTURED]]
    write_atomically(out / PAIRS_PICTURE, draw_pairs(shown, made[:_PICTURED]))
    write_json(
        out / PAIRS_FILE,
        {
            "digest": digest,
            "in_gaussian": dict(counted),
            "training": {site: len(c.train) for site, c in sorted(cohorts.items())},
            "held_out": {site: len(c.test) for site, c in sorted(cohorts.items())},
            "pairs": len(made),
            "label_share": sizes,
            "nearest_distance": {"generated": near, "held_out": held_out},
        },
    )


def _run_entry(
    volumes: Volumes,
    downstream: DownstreamConfig,
    entry: Entry,
    path: Path,
    digest: str,
    reporter: Reporter,
) -> None:
    settings = downstream.segmenter
    began = process_time()
    network = train_segmenter(
        sources_of(volumes, entry, settings.synthetic_share),
        settings,
        # rows of one seed start alike
        seed=derive_seed(entry.seed, "segmenter"),
        augmented=entry.augmented,
        report=lambda step: reporter.step(entry.name, step, settings.steps),
    )
    figures = {
        site: {
            patient: dice(predict(network, stack), stack.label)
            for patient, stack in patients.items()
        }
        for site, patients in volumes.test.items()
    }
    record: dict[str, Any] = {
        "digest": digest,
        "core_s": round(process_time() - began, 1),
        "dice": figures,
    }
    write_json(path, record)


def sources_of(volumes: Volumes, entry: Entry, share: float) -> list[Source]:
    """What an entry is trained on.

    The labelled patients of one seed are the first of one random order: more of them are the same
    ones and others.
    """
    if entry.row.startswith("all_real"):
        return [Source(volumes.everyone, 1.0)]
    if entry.row == "shuffled":
        return [Source(volumes.shuffled, 1.0)]
    if entry.row.startswith("synthetic"):
        return [Source(volumes.generated, 1.0)]
    order = list(range(len(volumes.own)))
    random.Random(derive_seed(entry.seed, "labelled")).shuffle(order)  # noqa: S311  # no secret
    real = [stack for person in order[: entry.few] for stack in volumes.own[person]]
    if entry.row.startswith("real"):
        return [Source(real, 1.0)]
    return [Source(real, 1.0 - share), Source(volumes.generated, share)]
