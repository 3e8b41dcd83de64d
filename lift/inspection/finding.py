"""The result of one check of a patient's volumes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

Verdict = Literal["use", "warn", "veto"]


@dataclass(frozen=True)
class Finding:
    """The result of one check. Does not name a file or a patient.

    Attributes:
        check: what was looked at.
        verdict: use; warn: a person should look; veto: do not use.
        seen: what was seen, in numbers.
        needed: what is needed.
        remedy: what to do next; empty when `use`.
    """

    check: str
    verdict: Verdict
    seen: str
    needed: str
    remedy: str = ""


def finding(check: str, verdict: Verdict, seen: str, needed: str, remedy: str) -> Finding:
    """A finding whose remedy is left out when there is nothing to do."""
    return Finding(check, verdict, seen, needed, "" if verdict == "use" else remedy)


class Judged(Protocol):
    """Whatever has a verdict."""

    @property
    def verdict(self) -> Verdict:
        """See :class:`Finding`."""
        ...  # pragma: no cover


def worst(findings: Iterable[Judged]) -> Verdict:
    """Return the most severe verdict, or `use` if there is none."""
    order: tuple[Verdict, ...] = ("use", "warn", "veto")
    return max((one.verdict for one in findings), key=order.index, default="use")
