"""`lift-client ledger`: the privacy budget spent and left, and the cost of a run."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lift.config.base import read_yaml
from lift.config.plan import Plan
from lift.config.site import SiteConfig
from lift.errors import ConfigError
from lift.privacy.book import Book, PlannedRun
from lift.privacy.costs import STEPS, most_steps, planned_releases
from lift_client.gate.cohort_ledger import (
    adopt,
    begin,
    budget_of,
    cohort_of,
    ledger_path,
    mark_path,
)
from lift_client.gate.ledger import Ledger, verify
from lift_client.gate.ledger_rows import Row, rows_of

_PIPE_WIDTH: Final = 140
_LONGEST_WAIT_S: Final = 10.0


def create(config: SiteConfig) -> str:
    """Create the ledger of the cohort, mark its data, and return a text that names both files.

    Raises:
        ConfigError: the settings have no budget, or the mark cannot be written.
        RecordError: the cohort has a ledger already.
    """
    budget, path = budget_of(config), begin(config, config.folder)
    return (
        f"created: {path}  (epsilon at most {budget.epsilon:g} at delta {budget.delta:g})\n"
        f"marked: {mark_path(config)}\n"
    )


def take_over(config: SiteConfig, source: Path) -> str:
    """Use an existing ledger for the site's data. Return a text that names its new place.

    Raises:
        ConfigError: the settings have no budget, the data belong to another cohort, or the mark
            cannot be written.
        RecordError: the ledger is missing or damaged, or there is another one in its place.
    """
    path = adopt(config, config.folder, source)
    book = verify(path)
    return (
        f"adopted: {path}  (cohort {book.cohort}; epsilon {book.epsilon():.4f} of {book.cap:g} "
        f"spent at delta {book.delta:g})\nmarked: {mark_path(config)}\n"
    )


def change_cap(config: SiteConfig, cap: float, reason: str, *, upwards: bool) -> str:
    """Raise or lower the cap and record the reason.

    Raises:
        PrivacyError: it is no change in that direction.
        ConfigError: the ledger is held for long, or counts for other data.
    """
    path = ledger_path(config, config.folder)
    with Ledger(path, cohort=cohort_of(config), wait_s=_LONGEST_WAIT_S) as ledger:
        if upwards:
            ledger.raise_cap(cap, reason)
        else:
            ledger.lower_cap(cap, reason)
        return f"cap: {ledger.cap:g}; spent: {ledger.epsilon:.4f} at delta {ledger.delta:g}\n"


def show(config: SiteConfig, *, as_json: bool, only_verify: bool, plan: Path | None) -> None:
    """Print the ledger as a table or JSON, or only verify it. Also print the cost of a plan.

    Raises:
        RecordError: missing or damaged: says which line.
        ConfigError: the plan cannot be read, or spends nothing.
    """
    path = ledger_path(config, config.folder)
    book = verify(path)
    spent = book.epsilon()
    asked = None if plan is None else _asked(plan)
    cost = None if asked is None else book.epsilon(book.still_planned(asked.run))
    most = None if asked is None else _most(book, asked, config)
    if as_json:
        sys.stdout.write(json.dumps(_as_json(book, spent, cost, most), indent=2) + "\n")
        return
    if not only_verify:
        _table(rows_of(book))
    sys.stdout.write(
        f"epsilon {spent:.4f} of {book.cap:g} spent, at delta {book.delta:g} (patient, add or "
        f"remove one)\ncohort {book.cohort}\n"
        f"complete: {len(book.lines)} lines, none changed or missing; head {book.head}\n"
    )
    if cost is not None:
        verdict = "fits" if cost <= book.cap else "DOES NOT FIT"
        sys.stdout.write(f"after this plan: epsilon {cost:.4f} of {book.cap:g}: {verdict}\n")
        sys.stdout.write(f"with all repeats allowed by budget.repeats: epsilon {most:.4f}\n")


def read_plan(path: Path) -> Plan:
    """Read a plan from a plan file, or from the section `plan` of settings or of a dry run.

    Raises:
        ConfigError: the file cannot be read or does not fit.
    """
    data = read_yaml(path)
    inner = data.get("plan") if isinstance(data, dict) else None
    return Plan.from_data(inner if isinstance(inner, dict) else data, str(path))


@dataclass(frozen=True)
class _Asked:
    """The releases of a plan, and the number of steps in one block."""

    run: PlannedRun
    steps_of_a_round: int


def _asked(path: Path) -> _Asked:
    plan = read_plan(path)
    releases = planned_releases(plan)
    if not releases:
        raise ConfigError(
            "this plan spends no privacy budget",
            where="privacy.mode",
            seen=plan.privacy.mode,
            remedy="Give a plan that adds noise.",
        )
    return _Asked(PlannedRun(run=plan.digest(), releases=releases), plan.training.steps)


def _most(book: Book, asked: _Asked, config: SiteConfig) -> float:
    """Return epsilon after all steps that the run may take, repeats included."""
    taken = book.steps()
    more = []
    for release in asked.run.releases:
        block = asked.steps_of_a_round if release.purpose == STEPS else 1
        most = most_steps(release, block=block, repeats=budget_of(config).repeats)
        left = most - taken[asked.run.run, release.purpose]
        if left > 0:
            more.append((asked.run, release.purpose, left))
    return book.epsilon(more)


def _as_json(book: Book, spent: float, cost: float | None, most: float | None) -> dict[str, object]:
    return {
        "cohort": book.cohort,
        "epsilon": spent,
        "cap": book.cap,
        "delta": book.delta,
        "unit": "patient",
        "relation": "add or remove one",
        "epsilon_after_plan": cost,
        "epsilon_after_all_repeats": most,
        "head": book.head,
        "last_hash": book.last_hash,
        "reservations": [vars(row) for row in rows_of(book)],
    }


def _table(rows: Sequence[Row]) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        sys.stdout.write("nothing has been released about the patients of this cohort yet\n")
        return
    table = Table(box=SIMPLE, title="Releases about the patients of this cohort")
    right = {"line", "round", "noise", "q", "steps"}
    for heading in ("line", "when (UTC)", "run", "round", "for", "noise", "q", "steps", "state"):
        table.add_column(heading, justify="right" if heading in right else "left")
    for row in rows:
        cells = (
            str(row.line),
            row.time[:19].replace("T", " "),
            row.run[:12],
            str(row.round),
            row.purpose,
            f"{row.noise_multiplier:g}",
            f"{row.q:g}",
            str(row.steps),
            row.state,
        )
        table.add_row(*map(Text, cells))
    console = Console() if sys.stdout.isatty() else Console(width=_PIPE_WIDTH)
    console.print(table)
