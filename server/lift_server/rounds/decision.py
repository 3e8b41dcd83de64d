"""What a coordinator decides while a server waits, because a round missed its quorum.

Two files of the state folder. `decision.json` is the coordinator's word, which the waiting server
takes away. `left-out.json` holds the sites that this run goes on without: whoever resumes the run
goes on without them too.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Final, Literal, TypeVar

from pydantic import Field

from lift.config.base import VERSION, Settings
from lift.config.plan import Digest, Name
from lift.errors import RecordError
from lift.files import write_atomically
from lift.strict_json import read_model

DECISION_FILE: Final = "decision.json"
LEFT_OUT_FILE: Final = "left-out.json"
Content = TypeVar("Content", bound=Settings)


class Decision(Settings):
    """The content of `decision.json`."""

    format_version: Annotated[Literal[1], VERSION] = 1
    without: tuple[Name, ...] = ()
    """Sites that the run goes on without; none: the same sites are asked again."""


class LeftOut(Settings):
    """The content of `left-out.json`."""

    format_version: Annotated[Literal[1], VERSION] = 1
    runs: dict[Digest, tuple[Name, ...]] = Field(default_factory=dict)
    """Digest of a plan -> sites that its run goes on without."""


def decide(state: Path, without: Collection[str]) -> None:
    """Leave a decision for the waiting server."""
    decision = Decision(without=tuple(sorted(set(without))))
    write_atomically(state / DECISION_FILE, decision.model_dump_json().encode())


def take_decision(state: Path, plan_digest: str) -> Decision | None:
    """The decision that lies there, carried out and taken away; None without one.

    Raises:
        RecordError: it, or the list of those who are left out, cannot be read.
    """
    path = state / DECISION_FILE
    decision = _read(path, Decision)
    if decision is None:
        return None
    if decision.without:
        known = _read(state / LEFT_OUT_FILE, LeftOut) or LeftOut()
        before = known.runs.get(plan_digest, ())
        runs = known.runs | {plan_digest: tuple(sorted({*before, *decision.without}))}
        content = LeftOut(runs=runs).model_dump_json(indent=2).encode() + b"\n"
        write_atomically(state / LEFT_OUT_FILE, content)
    path.unlink(missing_ok=True)
    return decision


def forget_decision(state: Path) -> None:
    """Remove a decision that nobody waited for."""
    (state / DECISION_FILE).unlink(missing_ok=True)


def sites_left_out(state: Path, plan_digest: str) -> tuple[str, ...]:
    """The sites that a run goes on without, by a coordinator's decision.

    Raises:
        RecordError: the list cannot be read.
    """
    known = _read(state / LEFT_OUT_FILE, LeftOut)
    return () if known is None else known.runs.get(plan_digest, ())


def _read(path: Path, kind: type[Content]) -> Content | None:
    def refuse(seen: str) -> RecordError:
        return RecordError(
            "cannot read what was decided",
            where=str(path),
            seen=seen,
            remedy="Nothing was aggregated. Remove the file and decide again: lift-server go-on.",
        )

    return read_model(kind, path, refuse, damaged="it is damaged")
