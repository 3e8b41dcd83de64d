"""A site's cohort, opened under one plan: patients, split, cached features."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lift.cohort.patients import Patient, Refusal, subjects_of
from lift.cohort.preprocessing import Prepared, prepare, preprocessing_digest
from lift.cohort.reading import file_digests, read_patients
from lift.cohort.split import SPLIT_FILE, Part, Split, write_split
from lift.config.plan import Plan
from lift.config.site import MARK_FILE, SiteSettings
from lift.device import feature_precision
from lift.errors import DataError
from lift.generator.features import (
    FeatureCache,
    Features,
    compute_features,
    feature_key,
    files_name,
)
from lift.generator.networks import FrozenGenerator
from lift.mixer.base import Mixer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SiteCohort:
    """One site's usable patients with their features, by part of the split.

    An id is that of an examination; several of one person share the person's `subject`.

    Attributes:
        site: the site's name.
        split: ids by part, usable ones only; it never leaves the site.
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

    def by_person(self, part: Part) -> list[list[Features]]:
        """The persons of one part, each with all volumes, in the order of the first one's id."""
        by_subject: dict[str, list[Features]] = {}
        ids: tuple[str, ...] = getattr(self.split, part)
        for patient in ids:
            subject = self.patients[patient].subject
            by_subject.setdefault(subject, []).append(self.features[patient])
        return list(by_subject.values())

    def subjects(self, part: Part) -> set[str]:
        """The persons of one part: what a number of patients counts."""
        return subjects_of(getattr(self.split, part), self.patients)

    @property
    def subject_of(self) -> dict[str, str]:
        """Examination -> person."""
        return {patient: files.subject for patient, files in self.patients.items()}

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
    begun: Split | None = None,
) -> SiteCohort:
    """List, check, split and cache a site's patients.

    A patient whose files cannot be used is refused by name and the rest go on, unless
    `data.on_bad_file` says stop. Under noise they always go on, also where nobody is left: that a
    site answers must not depend on one patient. The split is stored in the work folder. Cached
    features of files that are no longer there are removed: a deleted patient's, and those of a
    changed volume.

    Args:
        settings: the site's settings.
        plan: the run's plan.
        generator: the frozen generator of the plan's fingerprint.
        mixer: any mixer of the plan's kind: it says which taps are cached.
        work: the site's folder for split, log and cache.
        report: called after each patient with the number done and the number of all.
        begun: the split with which the run began here: its patients are read, and keep their
            parts. None: it begins now.

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
        usable = read_patients(settings, plan, read, report, begun=begun)
    except DataError:
        if _is_empty(settings.data.root):
            cache.forget_all_but((), owner=owner)
        raise
    # whoever was taken out of the data leaves the cache too
    cache.forget_all_but(present, owner=owner)
    split = usable.split(plan, settings.name, begun)
    if begun is None:
        # whoever is missing now may be back at the next start
        write_split(work / SPLIT_FILE, split)
    return SiteCohort(settings.name, split, usable.patients, usable.content, tuple(usable.refusals))


def prepare_patient(cohort: SiteCohort, patient: str, plan: Plan, root: Path) -> Prepared:
    """One patient read again from its files: what writing on its own grid needs."""
    return prepare(cohort.patients[patient], plan, root=root, with_target=True)


def _is_empty(root: Path) -> bool:
    """Whether the data folder is there and holds nothing but its mark."""
    try:
        return root.is_dir() and all(path.name == MARK_FILE for path in root.iterdir())
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
    try:
        return cache.write(key, features, owner=settings.name, files=files_name(digests))
    except DataError as error:
        if not plan.protects_patients:
            raise
        # one patient more fills a cache: that must not be what keeps the site from answering
        logger.warning("event=kept_in_memory site=%s reason=%s", settings.name, error)
        return features
