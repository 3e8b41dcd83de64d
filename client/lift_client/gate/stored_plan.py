"""The plan of the last run: kept in the work folder, so that a restarted site knows it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from lift.config.plan import Plan
from lift.files import write_atomically
from lift.strict_json import parse_model

PLAN_FILE: Final = "plan.json"
"""In the work folder."""


def store_plan(work: Path, plan: Plan) -> None:
    """Keep the plan in place of the one before."""
    write_atomically(work / PLAN_FILE, plan.canonical_json().encode())


def stored_plan(work: Path) -> Plan | None:
    """The plan that was kept; None where there was no run.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        return parse_model(Plan, (work / PLAN_FILE).read_bytes())
    except FileNotFoundError:
        return None
