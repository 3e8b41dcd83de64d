"""Patients whom the image checks veto: left out by name and reason, unless the site accepts them.

Each patient is examined once, and the report is kept where the site keeps such reports, so that
files that did not change are not examined again.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Final

from lift.cohort.examination import (
    VERSION,
    PatientReport,
    Remark,
    examine_patient,
    files_digest,
)
from lift.cohort.patients import Patient, Refusal
from lift.config.plan import GridRule, Plan
from lift.config.site import SiteSettings
from lift.errors import DataError
from lift.files import write_json
from lift.inspection.traces import check_duplicates
from lift.logs import TELL_EVERY_S
from lift.strict_json import parse_model

logger = logging.getLogger(__name__)
MORE_MEMORY: Final = (
    "Free memory and run the check again, resample the volume, or take the patient out."
)
_FAILED: Final = "looking"
_OF_READING: Final = frozenset({"readable", "place", "one grid"})
"""Checks that reading makes itself. Its own refusal names the file, and nobody can accept it."""


def vetoed(
    settings: SiteSettings,
    plan: Plan,
    patients: Sequence[Patient],
) -> list[Refusal]:
    """Return the patients whom the image checks veto, and whom the site does not accept.

    Only the channels of the plan count. Where the plan protects patients, each is judged by its own
    files alone: volumes that are there under another patient's name do not count.

    Args:
        settings: the site's settings: whether images are checked, who is accepted, and where
            reports are kept.
        plan: names the channels and the rule for grids.
        patients: everybody with all files.
    """
    if not settings.checks_images:
        logger.info("event=images_not_checked site=%s patients=%d", settings.name, len(patients))
        return []
    began = told = monotonic()
    grid = plan.preprocessing.grid
    reports: dict[str, PatientReport] = {}
    kept = 0
    for whole in patients:
        if monotonic() - told >= TELL_EVERY_S:
            told = monotonic()
            logger.info(
                "event=checking_images site=%s done=%d of=%d",
                settings.name,
                len(reports),
                len(patients),
            )
        patient = whole.with_channels(plan.task.channels)
        found = stored_report(settings.image_reports, patient, grid)
        kept += found is not None
        if found is None:
            found = examined(patient, settings.data.root, grid)
            keep_report(settings.image_reports, found)
        reports[patient.id] = found
    copies = copied(list(reports.values()), together=not plan.protects_patients)
    refusals = []
    for patient in patients:
        vetoes = _vetoes(reports[patient.id], copies)
        if not vetoes:
            continue
        reason = settings.accept.get(patient.id)
        if reason is None:
            refusals.append(Refusal(patient.id, _why(patient, vetoes, settings), patient.subject))
            continue
        logger.warning(
            "event=patient_accepted site=%s patient=%s reason=%s vetoed_for=%s",
            settings.name,
            patient.id,
            reason,
            _words(vetoes),
        )
    logger.info(
        "event=images_checked site=%s patients=%d examined_now=%d vetoed=%d seconds=%.1f",
        settings.name,
        len(patients),
        len(patients) - kept,
        len(refusals),
        monotonic() - began,
    )
    strangers = sorted(set(settings.accept) - set(reports))
    if strangers:
        logger.warning(
            "event=accepts_nobody site=%s names=%s fix=%r",
            settings.name,
            ",".join(strangers),
            "no usable patient has these names: correct `accept`",
        )
    return refusals


@dataclass(frozen=True)
class Known:
    """What kept reports say of patients, before anybody is examined anew.

    Attributes:
        vetoed: names of those who will be left out.
        unexamined: how many have no report of their present files.
    """

    vetoed: frozenset[str]
    unexamined: int


def known_vetoes(
    settings: SiteSettings, channels: Sequence[str], grid: GridRule, patients: Sequence[Patient]
) -> Known:
    """Whom a run would leave out, as far as it is known. Reads no volume.

    Args:
        settings: as for :func:`vetoed`.
        channels: of the federation's task.
        grid: its rule for grids.
        patients: everybody with all files.
    """
    if not settings.checks_images:
        return Known(frozenset(), 0)
    found = (
        stored_report(settings.image_reports, one.with_channels(channels), grid) for one in patients
    )
    reports = {one.patient: one for one in found if one is not None}
    copies = copied(list(reports.values()), together=True)
    vetoed_names = {name for name, report in reports.items() if _vetoes(report, copies)}
    return Known(frozenset(vetoed_names - set(settings.accept)), len(patients) - len(reports))


def examined(patient: Patient, root: Path, grid: GridRule) -> PatientReport:
    """The patient's report; a fault of this software in one patient does not stop the others."""
    try:
        return examine_patient(patient, root, grid)
    except MemoryError:
        return not_examined(patient, grid, "memory was not enough", MORE_MEMORY)
    except Exception as error:
        logger.exception("event=examination_failed")
        return not_examined(
            patient,
            grid,
            f"this software failed on it ({type(error).__name__})",
            "Take the patient out, and report it: a volume like this should be refused with a "
            "reason.",
        )


def not_examined(patient: Patient, grid: GridRule, why: str, remedy: str) -> PatientReport:
    """The report of a patient whose examination did not end. It is no verdict for good."""
    remark = Remark(
        check=_FAILED, verdict="veto", seen=f"could not be examined: {why}", remedy=remedy
    )
    return PatientReport(
        patient=patient.id,
        subject=patient.subject,
        files=files_digest(patient.channels, grid),
        remarks=(remark,),
    )


def copied(
    reports: Sequence[PatientReport],
    *,
    together: bool,
    parts: Mapping[str, str] | None = None,
) -> dict[str, list[Remark]]:
    """Patient -> vetoes for voxels that are there under two names.

    Args:
        reports: of the patients.
        together: also under the names of two patients; if not, of two channels of one.
        parts: patient -> its part of the split, for the words.
    """
    digests = {
        (report.patient, channel): digest
        for report in reports
        for channel, digest in report.digests.items()
    }
    if together:
        found = check_duplicates(digests, parts)
    else:
        found = {}
        for report in reports:
            own = {(report.patient, name): digest for name, digest in report.digests.items()}
            found |= check_duplicates(own)
    remarks: dict[str, list[Remark]] = {}
    for (patient, channel), one in sorted(found.items()):
        remarks.setdefault(patient, []).append(
            Remark(
                check=one.check,
                channel=channel,
                verdict=one.verdict,
                seen=one.seen,
                remedy=one.remedy,
            )
        )
    return remarks


def stored_report(folder: Path | None, patient: Patient, grid: GridRule) -> PatientReport | None:
    """The patient's report, if one of these checks and these files is kept."""
    if folder is None:
        return None
    try:
        report = parse_model(PatientReport, _path(folder, patient.id).read_bytes())
    except (OSError, ValueError):
        return None
    same = report.version == VERSION and report.files == files_digest(patient.channels, grid)
    # a failure may have been the machine's: it is no verdict for good
    failed = any(remark.check == _FAILED for remark in report.remarks)
    return report if same and report.patient == patient.id and not failed else None


def keep_report(folder: Path | None, report: PatientReport) -> None:
    """Keep a patient's report, where there is a place for it.

    Raises:
        OSError: it cannot be written.
    """
    if folder is not None:
        write_json(_path(folder, report.patient), report.model_dump(mode="json"))


def _vetoes(report: PatientReport, copies: Mapping[str, Sequence[Remark]]) -> list[Remark]:
    remarks = [*report.remarks, *copies.get(report.patient, ())]
    return [one for one in remarks if one.verdict == "veto" and one.check not in _OF_READING]


def _path(folder: Path, patient: str) -> Path:
    # a patient's name may hold anything
    return folder / f"{hashlib.sha256(patient.encode()).hexdigest()[:32]}.json"


def _why(patient: Patient, vetoes: Sequence[Remark], settings: SiteSettings) -> DataError:
    remedies = " ".join(dict.fromkeys(one.remedy for one in vetoes))
    return DataError(
        f"the image checks veto patient '{patient.id}'",
        where=str(settings.data.root),
        seen=_words(vetoes),
        remedy=f"{remedies} If the patient is to take part as it is, say so with the reason in the "
        "site's settings: `accept: {ID: reason}`.",
    )


def _words(vetoes: Sequence[Remark]) -> str:
    return "; ".join(f"{one.check} {one.channel}".strip() + f": {one.seen}" for one in vetoes)
