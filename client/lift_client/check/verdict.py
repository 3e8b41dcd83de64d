"""One line of `lift-client check`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lift.errors import LiftError

Status = Literal["ok", "warning", "problem", "skipped"]


@dataclass(frozen=True)
class Verdict:
    """One line of the check.

    Attributes:
        check: what was looked at.
        status: ok; warning: works today; problem: keeps the site out; skipped: not looked at.
        detail: what was seen.
        fix: what to do about it; empty when ok.
        label: kind of the problem in the table of exit codes; empty without one.
    """

    check: str
    status: Status
    detail: str
    fix: str = ""
    label: str = ""


def problem(check: str, error: LiftError) -> Verdict:
    """Return the verdict for a refusal that would stop the site."""
    seen = ": ".join(part for part in (error.what, error.where, error.seen) if part)
    return Verdict(check, "problem", seen.replace("\n", "; "), error.remedy, error.label)
