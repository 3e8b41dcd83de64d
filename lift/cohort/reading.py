"""Read every patient of a site once. Unusable patients are refused by name."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from lift.cohort.layouts import list_patients
from lift.cohort.patients import Patient, Refusal, some
from lift.cohort.split import Split, split_patients
from lift.cohort.vetoes import vetoed
from lift.cohort.withdrawn import left_out
from lift.config.plan import Plan, SplitPlan
from lift.config.site import SiteSettings
from lift.errors import ConfigError, DataError, DeviceMemoryError
from lift.files import file_digest
from lift.volumes.volume import stored_files

logger = logging.getLogger(__name__)


Content = TypeVar("Content")


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

    def split(self, plan: Plan, site: str, begun: Split | None) -> Split:
        """The split of these patients: by the plan's rule, or as the run began."""
        if begun is not None:
            return begun.among(self.patients)
        everybody = list(self.patients.values())
        return split_patients(everybody, plan.split, site, one_by_one=plan.protects_patients)


def read_patients(
    settings: SiteSettings,
    plan: Plan,
    read: Callable[[Patient], Content],
    report: Callable[[int, int], None] | None = None,
    *,
    begun: Split | None = None,
) -> Usable[Content]:
    """Read every patient of a site. Unusable patients are refused by name.

    Patients who were withdrawn are left out, as if their files were not there. Those whom the
    image checks veto are refused before anything is computed of them. Under noise, a patient is
    refused if anything fails with it, and no patient may be left.

    Args:
        settings: the site's settings.
        plan: names the channels.
        read: one patient's files -> what is kept of them.
        report: called after each patient with the number done and the number of all.
        begun: the split with which the run began here: nobody else is read. None: it begins now.

    Raises:
        DataError: no patient can be used, or one cannot and `data.on_bad_file` says stop, or the
            plan holds out a patient that the site does not have.
        RecordError: who was withdrawn cannot be told.
    """
    private = plan.protects_patients
    found, refusals = list_usable(settings, plan, begun=begun)
    if begun is None:
        known = {patient.id for patient in found} | {refusal.patient for refusal in refusals}
        _check_held_out(plan.split, settings.name, known)
    usable: Usable[Content] = Usable({}, {}, refusals)
    for done, patient in enumerate(found, start=1):
        try:
            usable.content[patient.id] = read(patient)
            usable.patients[patient.id] = patient
        except DataError as error:
            stops = settings.data.on_bad_file == "stop" or error.where.startswith("cache.")
            if stops and not private:
                raise
            refusals.append(Refusal(patient.id, error, patient.subject))
        except Exception as error:
            for_everybody = isinstance(error, ConfigError)
            if not private or (for_everybody and not isinstance(error, DeviceMemoryError)):
                raise
            logger.exception("event=patient_failed site=%s", settings.name)
            refusals.append(Refusal(patient.id, _fault(patient), patient.subject))
        if report is not None:
            report(done, len(found))
    for refusal in refusals:
        # the operator's own log, at the site: names of files are its business
        logger.warning("event=patient_refused site=%s reason=%s", settings.name, refusal.reason)
    if begun is not None and not private and not begun.among(usable.patients).train:
        raise DataError(
            "no training patient of this run is left",
            where=str(settings.data.root),
            seen=f"none of {len(begun.train)} can be used",
            remedy="Bring the files back and start the client again. Patients who came later take "
            "part from the next run on.",
        )
    if not usable.patients and private:
        logger.error("event=no_patient_can_be_used site=%s sent=noise_alone", settings.name)
    elif not usable.patients:
        first = refusals[0].reason if refusals else None
        raise DataError(
            "no patient can be used",
            where=str(settings.data.root),
            seen=f"{len(refusals)} refused; the first: {first}"
            if first
            else "the folder is empty, or all its patients were withdrawn",
            remedy="Fix or remove the named files and run the same command again.",
        )
    return usable


def list_usable(
    settings: SiteSettings, plan: Plan, *, begun: Split | None = None
) -> tuple[list[Patient], list[Refusal]]:
    """Return the patients with all files whom the image checks do not veto, and the others.

    Patients who were withdrawn are in neither list. With `begun`, the split with which a run began,
    nobody else is in the lists, and the log names who came or went.

    Raises:
        DataError: the folder or the table cannot be listed, or a patient is refused and
            `data.on_bad_file` says stop.
        RecordError: who was withdrawn cannot be told.
    """
    found, refusals = list_patients(
        settings.data,
        plan.task.channels,
        needs_mask=plan.preprocessing.mask == "file",
        one_by_one=plan.protects_patients,
        without=left_out(settings),
    )
    if begun is not None:
        _tell_changes(settings.name, begun, [patient.id for patient in found])
        found = [patient for patient in found if patient.id in begun.everybody]
        refusals = [refusal for refusal in refusals if refusal.patient in begun.everybody]
    vetoes = vetoed(settings, plan, found)
    if vetoes and settings.data.on_bad_file == "stop" and not plan.protects_patients:
        raise vetoes[0].reason
    names = {refusal.patient for refusal in vetoes}
    return [one for one in found if one.id not in names], [*refusals, *vetoes]


def _tell_changes(site: str, begun: Split, found: Sequence[str]) -> None:
    others = sorted(set(found) - begun.everybody)
    if others:
        logger.warning(
            'event=patients_not_in_run site=%s patients=%d names="%s" seen="they came after the '
            'run began here, or could not be used then" fix="Nothing to do: they take part from '
            'the next run on."',
            site,
            len(others),
            some(others),
        )
    gone = sorted(begun.everybody - set(found))
    if gone:
        logger.warning(
            'event=patients_gone site=%s patients=%d names="%s" seen="files that were there when '
            'the run began are missing" fix="If that was not meant, bring them back and start the '
            "client again. To take a patient out for good: lift-client withdraw. The run goes on "
            'with the others."',
            site,
            len(gone),
            some(gone),
        )


def _fault(patient: Patient) -> DataError:
    return DataError(
        f"cannot use patient '{patient.id}'",
        seen="a fault while it was read; the log has it",
        remedy="Look at the patient's files; report the fault if they are whole.",
    )


def _check_held_out(rule: SplitPlan, site: str, known: Collection[str]) -> None:
    """Refuse held-out names that match no patient of this site. They would have no effect."""
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
