"""One privacy ledger for each cohort, regardless of the names of the sites that read it.

A ledger has the id of its cohort in its first line. The same id stands in a small file with the
cohort's data, the *mark*. A site works with no other ledger than the one that its data's mark
names, and no second ledger is begun for data that have a mark. So a site that is renamed, or
enrolled again, goes on with what was spent, and sites that share patients share one ledger.

Whoever deletes the mark, or copies volumes to a folder without it, makes a cohort that nobody
knows.
"""

from __future__ import annotations

import json
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Final, Literal

from lift.config.base import VERSION, Settings
from lift.config.plan import Name
from lift.config.site import MARK_FILE, BudgetSettings, SiteSettings
from lift.errors import ConfigError, RecordError
from lift.files import write_atomically
from lift.strict_json import parse_model
from lift_client.gate.ledger import LEDGER_FILE, Ledger, create_ledger, verify
from lift_client.gate.ledger_file import head_path

_STATEMENT: Final = (
    "A privacy ledger counts all releases about these patients. Keep this file with their data: "
    "without it no private run starts. See `lift-client ledger`."
)


class Mark(Settings):
    """Names the ledger that counts for the data in the same folder."""

    format_version: Annotated[Literal[1], VERSION] = 1
    cohort: Name
    """Id of the cohort, as in the first line of its ledger."""
    statement: str = _STATEMENT


def budget_of(settings: SiteSettings) -> BudgetSettings:
    """The site's privacy budget.

    Raises:
        ConfigError: it has none.
    """
    if settings.budget is None:
        raise ConfigError(
            "the site has no privacy budget",
            where="budget",
            seen="no such section in the site's settings",
            remedy="Decide with the data protection officer, write `budget: {epsilon: ..., "
            "delta: ...}`, and make the ledger with `lift-client ledger --create`.",
        )
    return settings.budget


def ledger_path(settings: SiteSettings, folder: Path) -> Path:
    """Return the path of the site's ledger: in its work folder, unless the settings name it."""
    budget = settings.budget
    if budget is None or budget.ledger is None:
        return folder / LEDGER_FILE
    return budget.ledger


def mark_path(settings: SiteSettings) -> Path:
    """Return the path of the mark: in the data folder, unless the settings name it."""
    budget = settings.budget
    if budget is None or budget.mark is None:
        return settings.data.root / MARK_FILE
    return budget.mark


def cohort_of(settings: SiteSettings) -> str:
    """Id of the cohort that the site's data belong to.

    Raises:
        ConfigError: the data have no mark, or it cannot be read.
    """
    path = mark_path(settings)
    mark = _read(path)
    if mark is None:
        raise ConfigError(
            "the site's data do not say which privacy ledger counts for them",
            where=str(path),
            seen="there is no such file",
            remedy="Nothing was computed. For patients that have a ledger: `lift-client ledger "
            "--adopt FILE`, with the ledger's file. For those that were in no private run "
            "yet: `lift-client ledger --create`.",
        )
    return mark.cohort


def check_cohort(settings: SiteSettings, ledger: Path, cohort: str) -> None:
    """Raise unless the site's data belong to `cohort`.

    Raises:
        ConfigError: it is not, or the data have no mark.
    """
    marked = cohort_of(settings)
    if marked != cohort:
        raise _another(ledger, cohort, marked, mark_path(settings))


def begin(settings: SiteSettings, folder: Path) -> Path:
    """Begin the ledger of the site's cohort, and mark its data; returns the ledger's file.

    Raises:
        ConfigError: the site has no budget, or the mark cannot be written.
        RecordError: the data have a mark, or there is a ledger; nothing was changed.
    """
    budget, path, place = budget_of(settings), ledger_path(settings, folder), mark_path(settings)
    before = _read(place)
    if before is not None:
        raise _second(place, before.cohort)
    cohort = secrets.token_hex(16)
    prepared = _prepare(place, Mark(cohort=cohort))
    try:
        create_ledger(path, cohort=cohort, delta=budget.delta, cap=budget.epsilon)
        try:
            # fails when the name is taken, which a rename would not
            os.link(prepared, place)
        except OSError as error:
            # it is of this moment, and nothing was counted in it
            path.unlink()
            head_path(path).unlink()
            if isinstance(error, FileExistsError):
                raise _second(place, "of another start") from None
            raise _not_written(place, error) from None
    finally:
        prepared.unlink()
    return path


def adopt(settings: SiteSettings, folder: Path, source: Path) -> Path:
    """Use an existing ledger for the site's data. Return the ledger's file.

    A ledger that lies elsewhere than the settings say moves there: its old place keeps copies
    under names that no program takes for a ledger. Data without a mark get it.

    Args:
        settings: the site's settings, with its budget.
        folder: the site's work folder.
        source: the ledger's file.

    Raises:
        ConfigError: the data belong to another cohort; or the ledger is held, or the mark cannot
            be written.
        RecordError: the ledger is missing or damaged, or there is another one in its new place.
    """
    budget_of(settings)
    path, place = ledger_path(settings, folder), mark_path(settings)
    cohort = verify(source).cohort
    mark = _read(place)
    if mark is not None and mark.cohort != cohort:
        raise _another(source, cohort, mark.cohort, place)
    if mark is None:
        prepared = _prepare(place, Mark(cohort=cohort))
        try:
            prepared.rename(place)
        except OSError as error:
            prepared.unlink()
            raise _not_written(place, error) from None
    if source.resolve() != path.resolve():
        _move(source, path, cohort, settings.name)
    return path


def _move(source: Path, target: Path, cohort: str, site: str) -> None:
    """After any crash on the way the same call goes on."""
    with Ledger(source, cohort=cohort) as ledger:
        if not _goes_on(target, ledger.head):
            if target.exists() and not source.read_bytes().startswith(target.read_bytes()):
                raise RecordError(
                    "there is another privacy ledger already",
                    where=str(target),
                    seen="it holds lines that the one to adopt does not",
                    remedy="Nothing was changed. Both count, and cannot be made one: show them to "
                    "the security officer.",
                )
            ledger.remark(f"taken over by site '{site}'; it goes on in another place")
            for old, new in ((source, target), (head_path(source), head_path(target))):
                write_atomically(new, old.read_bytes(), mode=0o600)
        for old in (source, head_path(source)):
            old.rename(old.with_name(f"{old.name}.moved"))


def _goes_on(path: Path, head: str) -> bool:
    """Whether there is a whole ledger that once had `head`."""
    try:
        return head in verify(path).heads
    except RecordError:
        return False


def _read(path: Path) -> Mark | None:
    try:
        return parse_model(Mark, path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it was edited"
        raise ConfigError(
            "cannot read which privacy ledger counts for the site's data",
            where=str(path),
            seen=str(reason),
            remedy="Nothing was computed. Fix the file's permissions, or restore it from a "
            "backup; `lift-client ledger` shows the cohort that has to stand in it.",
        ) from None


def _prepare(place: Path, mark: Mark) -> Path:
    """The mark beside its place, under another name."""
    prepared = place.with_name(f".{place.name}.{secrets.token_hex(4)}.new")
    text = json.dumps(mark.model_dump(mode="json"), indent=2) + "\n"
    try:
        write_atomically(prepared, text.encode())
    except OSError as error:
        with suppress(OSError):
            prepared.unlink(missing_ok=True)
        raise _not_written(place, error) from None
    return prepared


def _not_written(place: Path, error: OSError) -> ConfigError:
    return ConfigError(
        "cannot mark the site's data with their privacy ledger",
        where=str(place),
        seen=error.strerror or type(error).__name__,
        remedy="Nothing was changed. Where the data folder must stay read-only, name another place "
        "for the mark: `budget.mark: FILE` in the settings, the same for all sites that read "
        "these data.",
    )


def _another(ledger: Path, cohort: str, marked: str, place: Path) -> ConfigError:
    return ConfigError(
        "this privacy ledger counts for other patients",
        where=str(ledger),
        seen=f"it belongs to cohort '{cohort}'; the data are marked as '{marked}', by {place}",
        remedy="Nothing was changed. Find the ledger of these data: `lift-client ledger` shows the "
        "cohort of each.",
    )


def _second(place: Path, cohort: str) -> RecordError:
    return RecordError(
        "these patients have a privacy ledger already",
        where=str(place),
        seen=f"their data are marked as cohort '{cohort}'; a second ledger would not count earlier "
        "releases",
        remedy="Nothing was changed. Use that ledger: name it in `budget.ledger` if another site "
        "of this host still uses it, else take it over with `lift-client ledger --adopt "
        "FILE`. Only if no patient is in both cohorts, name another place for the mark of this "
        "one in `budget.mark`.",
    )
