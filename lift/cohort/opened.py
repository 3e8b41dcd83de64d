"""A site's cohort, opened under one plan: patients, split, cached features."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, Literal, TypeVar

from lift.cohort.layouts import list_patients
from lift.cohort.patients import Patient, Refusal
from lift.cohort.split import Split, split_patients, write_split
from lift.config.plan import Plan, SplitPlan
from lift.config.site import SiteSettings
from lift.device import feature_precision
from lift.errors import DataError
from lift.features import FeatureCache, Features, compute_features, feature_key, files_name
from lift.files import file_digest
from lift.generator.networks import FrozenGenerator
from lift.mixer.base import Mixer
from lift.preprocessing import Prepared, prepare, preprocessing_digest
from lift.volume import stored_files

logger = logging.getLogger(__name__)
Part = Literal["train", "validation", "test"]
Content = TypeVar("Content")


@dataclass(frozen=True)
class SiteCohort:
    """One site's usable patients with their features, by part of the split.

    Attributes:
        site: the site's name.
        split: ids by part, usable patients only; it never leaves the site.
        patients: id -> files.
        features: id -> cached features.
        refusals: what could not be used, by name, with reason and remedy.
    """

    site: str
    split: Split
    patients: dict[str, Patient]
    features: dict[str, Features]
    refusals: tuple[Refusal, ...]

    def part(self, part: Part) -> list[Features]:
        """Features of one part, in the order of the patients' ids."""
        ids: tuple[str, ...] = getattr(self.split, part)
        return [self.features[patient] for patient in ids]

    def persons(self, *parts: Part) -> dict[str, list[Features]]:
        """The patients of some parts by name, each with all volumes: the unit of privacy."""
        by_subject: dict[str, list[Features]] = {}
        for part in parts:
            ids: tuple[str, ...] = getattr(self.split, part)
            for patient in ids:
                subject = self.patients[patient].subject
                by_subject.setdefault(subject, []).append(self.features[patient])
        return dict(sorted(by_subject.items()))

    def seen_in_training(self, persons: Mapping[str, Sequence[Features]]) -> SiteCohort:
        """The same with other features of the training patients, as `persons` gives them."""
        seen = {name: iter(volumes) for name, volumes in persons.items()}
        training = {
            patient: next(seen[self.patients[patient].subject]) for patient in self.split.train
        }
        return replace(self, features={**self.features, **training})

    @property
    def slice_spacings_mm(self) -> list[float]:
        """Through-plane spacing of each usable patient."""
        return [self.features[patient].slice_spacing_mm for patient in sorted(self.features)]


def open_cohort(
    settings: SiteSettings,
    plan: Plan,
    generator: FrozenGenerator,
    mixer: Mixer,
    *,
    work: Path,
    report: Callable[[int, int], None] | None = None,
) -> SiteCohort:
    """List, check, split and cache a site's patients.

    A patient whose files cannot be used is refused by name and the rest go on, unless
    `data.on_bad_file` says stop. The split is stored in the work folder. Cached features of files
    that are no longer there are removed: a deleted patient's, and those of a changed volume.

    Args:
        settings: the site's settings.
        plan: the run's plan.
        generator: the frozen generator of the plan's fingerprint.
        mixer: any mixer of the plan's kind: it says which taps are cached.
        work: the site's folder for split, log and cache.
        report: called after each patient with the number done and the number of all.

    Raises:
        DataError: no patient can be used, or one cannot and the policy says stop.
    """
    cache = FeatureCache(
        settings.cache.folder or work / "cache", largest_gb=settings.cache.largest_gb
    )

    # a cache that was given a place of its own may be that of several sites
    owner = None if settings.cache.folder is None else settings.name
    present: set[str] = set()

    def read(patient: Patient) -> Features:
        digests = file_digests(patient, plan, settings.data.root)
        present.add(files_name(digests))
        return _features_of(patient, digests, plan, generator, mixer, cache, settings)

    try:
        usable = read_patients(settings, plan, read, report)
    except DataError:
        if _is_empty(settings.data.root):
            cache.forget_all_but((), owner=owner)
        raise
    # whoever was taken out of the data leaves the cache too
    cache.forget_all_but(present, owner=owner)
    split = split_patients(
        list(usable.patients.values()),
        plan.split,
        settings.name,
        one_by_one=plan.protects_patients,
    )
    write_split(work / "split.json", split)
    return SiteCohort(settings.name, split, usable.patients, usable.content, tuple(usable.refusals))


@dataclass(frozen=True)
class Usable(Generic[Content]):
    """The patients of a site that can be used, and those that cannot.

    Attributes:
        patients: id -> files, in the order of the ids.
        content: id -> what was read of the patient.
        refusals: what could not be used, by name, with reason and remedy.
    """

    patients: dict[str, Patient]
    content: dict[str, Content]
    refusals: list[Refusal]


def read_patients(
    settings: SiteSettings,
    plan: Plan,
    read: Callable[[Patient], Content],
    report: Callable[[int, int], None] | None = None,
) -> Usable[Content]:
    """Read every patient of a site; one that cannot be used is refused by name.

    Args:
        settings: the site's settings.
        plan: names the channels.
        read: one patient's files -> what is kept of them.
        report: called after each patient with the number done and the number of all.

    Raises:
        DataError: no patient can be used, or one cannot and `data.on_bad_file` says stop, or the
            plan holds out somebody whom the site does not have.
    """
    needs_mask = plan.preprocessing.mask == "file"
    found, refusals = list_patients(settings.data, plan.task.channels, needs_mask=needs_mask)
    known = {patient.id for patient in found} | {refusal.patient for refusal in refusals}
    _check_held_out(plan.split, settings.name, known)
    usable: Usable[Content] = Usable({}, {}, refusals)
    for done, patient in enumerate(found, start=1):
        try:
            usable.content[patient.id] = read(patient)
            usable.patients[patient.id] = patient
        except DataError as error:
            if settings.data.on_bad_file == "stop" or error.where.startswith("cache."):
                raise
            refusals.append(Refusal(patient.id, error))
        if report is not None:
            report(done, len(found))
    for refusal in refusals:
        # the operator's own log, at the site: names of files are its business
        logger.warning("event=patient_refused site=%s reason=%s", settings.name, refusal.reason)
    if not usable.patients:
        first = refusals[0].reason if refusals else None
        raise DataError(
            "no patient can be used",
            where=str(settings.data.root),
            seen=f"{len(refusals)} refused; the first: {first}" if first else "the folder is empty",
            remedy="Mend or remove the named files and run the same command again.",
        )
    return usable


def _check_held_out(rule: SplitPlan, site: str, known: Collection[str]) -> None:
    """Refuse names of this site's patients that nobody has: they would be dropped in silence."""
    prefix = f"{site}/"
    named = [name for name in rule.held_out if name.startswith(prefix)]
    unknown = [name for name in named if name.removeprefix(prefix) not in known]
    if unknown:
        raise DataError(
            "the plan holds out patients that this site does not have",
            where="split.held_out",
            seen=f"{', '.join(unknown)} ({len(unknown)} of {len(named)} names); the site has "
            f"{len(known)} patients",
            remedy="Nothing was read. Correct the names, SITE/PATIENT as the data folder calls "
            "them.",
        )


def prepare_patient(cohort: SiteCohort, patient: str, plan: Plan, root: Path) -> Prepared:
    """One patient read again from its files: what writing on its own grid needs."""
    return prepare(cohort.patients[patient], plan, root=root, with_target=True)


def file_digests(patient: Patient, plan: Plan, root: Path) -> tuple[str, ...]:
    """SHA-256 of every file of a patient that the plan uses.

    Raises:
        DataError: a file cannot be read.
    """
    paths: Sequence[Path] = [patient.channels[channel] for channel in plan.task.channels]
    if patient.mask is not None:
        paths = [*paths, patient.mask]
    try:
        return tuple(file_digest(file) for path in paths for file in stored_files(path, root=root))
    except OSError as error:
        raise DataError(
            f"cannot read the files of patient '{patient.id}'",
            where=str(root),
            seen=error.strerror or type(error).__name__,
            remedy="Check that the files exist and may be read, then run again.",
        ) from None


def _is_empty(root: Path) -> bool:
    """Whether the data folder is there and holds nothing."""
    try:
        return root.is_dir() and not any(root.iterdir())
    except OSError:
        return False


def _features_of(
    patient: Patient,
    digests: tuple[str, ...],
    plan: Plan,
    generator: FrozenGenerator,
    mixer: Mixer,
    cache: FeatureCache,
    settings: SiteSettings,
) -> Features:
    key = feature_key(
        digests,
        generator.fingerprint,
        preprocessing_digest(plan),
        mixer.tap_names,
        mixer.pooled_names,
        precision=feature_precision(generator.device),
    )
    cached = cache.read(key)
    if cached is not None:
        return cached
    prepared = prepare(patient, plan, root=settings.data.root, with_target=True)
    features = compute_features(prepared, generator, mixer.tap_names, mixer.pooled_names)
    return cache.write(key, features, owner=settings.name, files=files_name(digests))
