"""What the segmenters see: pairs of all sites, new ones, and the same with broken labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from lift.cohort.patients import Patient
from lift.cohort.reading import read_patients
from lift.cohort.split import split_patients
from lift.config.plan import Plan
from lift.config.simulation import SimulationConfig
from lift.device import fix_threads, resolve_devices
from lift.errors import ConfigError
from lift.files import write_atomically, write_json
from lift.generator.card import check_task
from lift.mixer.gaussian import GaussianTrajectory
from lift.randomness import derive_seed
from lift.tasks.registry import with_generator
from lift.tasks.unconditional.decoder import FrozenDecoder
from lift.tasks.unconditional.learning import settings_of
from lift_benchmarks.downstream.config import DataSetSettings, DownstreamConfig
from lift_benchmarks.downstream.likeness import nearest_distances
from lift_benchmarks.downstream.pairs import (
    Pair,
    PairForm,
    joint_gaussian,
    new_pair,
    pair_form,
    pair_trajectory,
    read_pair,
)
from lift_benchmarks.downstream.pictures import draw_pairs
from lift_simulation.labels import write_tissue_labels
from lift_simulation.progress import Reporter
from lift_simulation.segmenter import Stack, stack_of
from lift_simulation.sites import open_sites, phantoms_of
from lift_simulation.tasks.unconditional import open_decoder

PAIRS_FILE: Final = "pairs.json"
PAIRS_PICTURE: Final = "pairs.png"
_PICTURED: Final = 8


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
        return [ids for _, ids in sorted(self._by_person(self.train).items())]

    def held_out(self) -> dict[str, list[str]]:
        """Person -> ids of the person's volumes that no training sees."""
        return self._by_person(self.test)

    def _by_person(self, ids: Sequence[str]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for one in ids:
            found.setdefault(self.subjects[one], []).append(one)
        return found


@dataclass(frozen=True)
class Volumes:
    """What the segmenters are trained and tested on.

    Attributes:
        own: training volumes of the hospital that asks, by person.
        everyone: training volumes of all sites.
        generated: of new pairs.
        shuffled: the same images, each with the label of the next one.
        test: site -> person -> volumes.
    """

    own: Sequence[Sequence[Stack]]
    everyone: Sequence[Stack]
    generated: Sequence[Stack]
    shuffled: Sequence[Stack]
    test: Mapping[str, Mapping[str, Sequence[Stack]]]


def prepare_volumes(
    config: SimulationConfig,
    downstream: DownstreamConfig,
    data: DataSetSettings,
    out: Path,
    reporter: Reporter,
    digest: str,
) -> Volumes:
    """All pairs, read, and new ones from their Gaussian; what these are like is written.

    Args:
        config: sites, decoder and plan.
        downstream: threads and number of pairs.
        data: of the simulation.
        out: folder of the result; gets `pairs.json` and `pairs.png`.
        reporter: says what is being done.
        digest: what `pairs.json` must depend on.

    Raises:
        ConfigError: the settings do not fit the data set.
        LiftError: see the message.
    """
    decoder = open_decoder(config, out, resolve_devices(config.device)[0], reporter)
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
        test={
            site: {
                person: [_stack(cohort.pairs[one]) for one in ids]
                for person, ids in cohort.held_out().items()
            }
            for site, cohort in sorted(cohorts.items())
        },
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
            folder = write_tissue_labels(phantoms[name], out / "labels" / name, data.tissue)
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
            "training": {site: len(c.persons()) for site, c in sorted(cohorts.items())},
            "held_out": {site: len(c.held_out()) for site, c in sorted(cohorts.items())},
            "pairs": len(made),
            "label_share": sizes,
            "nearest_distance": {"generated": near, "held_out": held_out},
        },
    )
