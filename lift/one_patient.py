"""Computations on one patient under noise. A failure affects only that patient.

An error that ended the round would come from one patient, and the answer that does not come would
tell whoever waits for it that this patient is in the cohort. Noise hides what a patient adds; it
does not hide that nothing is sent. So a patient of whom something cannot be computed adds nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

logger = logging.getLogger(__name__)
Part = TypeVar("Part")


class NotOfAPatientError(ValueError):
    """A fault that does not depend on any patient, and is therefore raised."""


def of_one_patient(
    compute: Callable[[], Part], *, raised: tuple[type[Exception], ...] = (NotOfAPatientError,)
) -> Part | None:
    """Return the result of `compute` for one patient, or None if it fails. Failures are logged.

    Args:
        compute: looks at this patient alone.
        raised: errors that do not depend on a patient, and go on.
    """
    try:
        return compute()
    except raised:
        raise
    except Exception:
        # the log stays at the site: without it nobody would mend the patient's files
        logger.exception("event=patient_adds_nothing")
        return None
