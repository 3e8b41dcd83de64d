"""One site's audit of a released mixer on its own patients: from its settings to a document."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from lift.audit.copies import Patients, Volume, copy_figures
from lift.audit.documents import AttackRow, CopyRow, SiteAudit
from lift.audit.membership import REFERENCES, membership
from lift.audit.scores import CAVEAT
from lift.cohort.patients import Patient
from lift.cohort.preprocessing import prepare
from lift.cohort.reading import read_patients
from lift.cohort.split import SPLIT_FILE, Part, Split, read_split
from lift.config.plan import Plan
from lift.config.site import SiteConfig
from lift.device import fix_threads, resolve_device
from lift.errors import ConfigError, DataError
from lift.files import file_digest
from lift.generator.card import bundle_folder
from lift.mixer.finished import FINAL_MIXER_FILE, FinishedMixer, read_mixer
from lift.randomness import derive_seed
from lift.tasks.paired.building import plan_mixer, start_values
from lift.tasks.paired.predictions import under_own_curves
from lift.tasks.paired.site_cohort import open_cohort
from lift.tasks.paired.task import slice_generator
from lift.tasks.registry import load_generator
from lift.tasks.unconditional.decoder import FrozenDecoder
from lift.tasks.unconditional.grid import body_volume
from lift.tasks.unconditional.learning import settings_of
from lift.tasks.unconditional.sampling import generate_volume, latent_mapper
from lift.tasks.unconditional.task import decoder_of

Report = Callable[[str, int, int], None]
GENERATED: Final = 96
"""Generated volumes that are compared with patients."""


@dataclass(frozen=True)
class AuditedSite:
    """A site's audit, with notes for its operator.

    Attributes:
        audit: the figures.
        may_leave: whether they may be handed over: not where a plan's noise protects patients, of
            whom they are exact figures that no epsilon counts.
        concern: stays at the site; empty without one.
    """

    audit: SiteAudit
    may_leave: bool
    concern: str


def audit_patients(
    site: SiteConfig,
    mixer: Path | None,
    *,
    generated: int = GENERATED,
    references: int = REFERENCES,
    report: Report | None = None,
) -> AuditedSite:
    """Attack a released mixer with a site's own training and held-out patients.

    A paired mixer meets membership inference; the mapper of an unconditional task generates
    volumes, which are searched for copies. Patients are split as the mixer's plan says.

    Args:
        site: the site's settings.
        mixer: `mixer.safetensors` of the run. None: the site's own copy of the mixer that it judged
            last; `lift-server export` knows it for the same.
        generated: how many volumes an unconditional mixer makes.
        references: how many reference mixers a paired one is compared with, an even number.
        report: called with what is being done, the number done and the number of all.

    Raises:
        ConfigError: the site has no finished mixer yet.
        CheckpointError: the file is no finished mixer.
        GeneratorError: the site's generator is not the mixer's.
        DataError: no patient can be used, or fewer than five training or held-out ones.
    """
    mixer = mixer or _own_copy(site)
    finished = read_mixer(mixer)
    plan = finished.plan
    fix_threads(plan.threads)
    generator = load_generator(
        bundle_folder(site.generator),
        expected_fingerprint=plan.generator_fingerprint,
        device=resolve_device(site.device),
    )
    seed = derive_seed(plan.seed, "audit")
    if plan.task.kind == "unconditional":
        decoder = decoder_of(plan, generator)
        searched = _Searched(site, plan, decoder, report)
        figures = copy_figures(
            _volumes(finished, decoder, generated, seed, report),
            searched.persons("train"),
            searched.persons("validation", "test"),
            seed=seed,
        )
        split, copies = searched.split, CopyRow.of(figures)
        attacks = {"nearest_generated": AttackRow.of(figures.attack)}
    else:
        frozen = slice_generator(plan, generator)
        instance = plan_mixer(plan, frozen)
        cached = site.cache.model_copy(
            update={"folder": site.cache.folder or site.folder / "cache"}
        )
        cohort = open_cohort(
            site.model_copy(update={"cache": cached}),
            plan,
            frozen,
            instance,
            work=site.folder / "audit",
            report=_named(report, "patients"),
        )
        split, copies = cohort.split, None
        members, others = cohort.persons("train"), cohort.persons("validation", "test")
        if plan.mixer.contrast != "none":
            # as training saw the members, and as it would have seen the others
            affine = plan.mixer.contrast == "affine"
            members = under_own_curves(members, affine=affine)
            others = under_own_curves(others, affine=affine)
        found = membership(
            members,
            others,
            instance,
            finished.values,
            start_values(plan, frozen, finished.taps),
            plan,
            seed=seed,
            references=references,
            report=report,
        )
        attacks = {attack: AttackRow.of(figures) for attack, figures in found.items()}
    audit = SiteAudit(
        kind="membership" if copies is None else "copies",
        site=site.name,
        mixer_digest=file_digest(mixer),
        plan_digest=plan.digest(),
        attacks=attacks,
        copies=copies,
        caveat=CAVEAT,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    concern = _split_concern(site.folder / SPLIT_FILE, split)
    return AuditedSite(audit, not plan.protects_patients, concern)


def _own_copy(site: SiteConfig) -> Path:
    path = site.folder / FINAL_MIXER_FILE
    if not path.is_file():
        raise ConfigError(
            "this site has no finished mixer yet",
            where=str(path),
            seen="no server has asked it for a verdict on a mixer that translates",
            remedy="Wait for the run's end, or give the coordinator's file: lift audit patients "
            "mixer.safetensors",
        )
    return path


class _Searched:
    """A site's patients, whose volumes are read again when they are asked for."""

    def __init__(
        self, site: SiteConfig, plan: Plan, decoder: FrozenDecoder, report: Report | None
    ) -> None:
        self._report = report
        self._done = 0
        self._root = site.data.root
        self._plan = plan
        self._decoder = decoder
        # read once to know who can be used, and not kept
        self._usable = read_patients(
            site, plan, lambda patient: self._read(patient).shape, _named(report, "patients")
        )
        self.split = self._usable.split(plan, site.name, None)

    def persons(self, *parts: Part) -> Patients:
        """Patient -> volumes on the decoder's grid, (z, h, w) in [0, 1]."""
        by_subject: dict[str, list[Patient]] = {}
        for part in parts:
            ids: tuple[str, ...] = getattr(self.split, part)
            for name in ids:
                patient = self._usable.patients[name]
                by_subject.setdefault(patient.subject, []).append(patient)
        return {subject: map(self._compared, patients) for subject, patients in by_subject.items()}

    def _compared(self, patient: Patient) -> Volume:
        volume = self._read(patient)
        self._done += 1
        if self._report is not None:
            self._report("volumes compared", self._done, len(self.split.everybody))
        return volume

    def _read(self, patient: Patient) -> Volume:
        prepared = prepare(patient, self._plan, root=self._root, with_target=False)
        layout = self._decoder.public.projection.layout
        body = body_volume(prepared, self._decoder.card.network, layout, patient.id)
        voxels: Volume = body.voxels[0, 0].numpy()
        return voxels


def _volumes(
    finished: FinishedMixer,
    decoder: FrozenDecoder,
    count: int,
    seed: int,
    report: Report | None,
) -> Iterator[Volume]:
    mapper = latent_mapper(finished.plan, decoder, finished.values)
    settings = settings_of(finished.plan)
    for index in range(count):
        yield generate_volume(
            mapper,
            decoder,
            seed=seed,
            index=index,
            slices=settings.slices,
            slice_spacing_mm=settings.slice_spacing_mm,
        )
        if report is not None:
            report("generated volumes", index + 1, count)


def _split_concern(stored: Path, split: Split) -> str:
    """Whether the site's last run split its patients in another way; empty where it did not."""
    try:
        before = read_split(stored)
    except DataError:
        return ""
    if before == split:
        return ""
    return (
        "the patients are not those of this site's last run, or that was of another plan: who came "
        "since then counts as trained on or held out, and was neither"
    )


def _named(report: Report | None, what: str) -> Callable[[int, int], None] | None:
    if report is None:
        return None
    return lambda done, total: report(what, done, total)
