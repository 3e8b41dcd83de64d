"""`lift-client check` for the privacy budget: whether it exists, is intact, and what is left."""

from __future__ import annotations

from collections.abc import Iterator

from lift.config.site import SiteConfig
from lift.errors import LiftError
from lift_client.check.verdict import Verdict, problem

_NEEDS_BUDGET = {"patient-local", "patient-central", "stats-once"}
_CHECK = "privacy budget"


def check_budget(config: SiteConfig) -> Iterator[Verdict]:
    """Return one verdict, or none for a site without a budget that allows no private plan."""
    private = sorted(_NEEDS_BUDGET & set(config.policy.privacy_modes))
    if config.budget is None:
        if private:
            yield Verdict(
                _CHECK,
                "warning",
                f"none is set; the policy allows {', '.join(private)}",
                "Plans with such a mode will be refused. Set `budget` in the settings of the site, "
                "then run `lift-client ledger --create`.",
            )
        return
    # accounting takes a second to load
    from lift_client.gate.cohort_ledger import check_cohort, ledger_path, mark_path
    from lift_client.gate.ledger import verify

    path = ledger_path(config, config.folder)
    if not path.exists():
        mark = mark_path(config)
        fix = (
            f"The data belong to a cohort that has one: see '{mark}'. Name it in `budget.ledger`, "
            "or take it over with `lift-client ledger --adopt FILE`."
            if mark.exists()
            else "For a new cohort run `lift-client ledger --create`. For one that was in private "
            "runs, find its ledger and run `lift-client ledger --adopt FILE`. Without it, the "
            "spent budget is unknown."
        )
        yield Verdict(
            _CHECK,
            "problem" if private else "warning",
            f"there is no ledger at {path}",
            fix,
            "record" if private else "",
        )
        return
    try:
        book = verify(path)
        check_cohort(config, path, book.cohort)
        spent = book.epsilon()
    except LiftError as error:
        yield problem(_CHECK, error)
        return
    left = "; nothing is left" if spent >= book.cap else ""
    yield Verdict(
        _CHECK,
        "warning" if left else "ok",
        f"epsilon {spent:.3f} of {book.cap:g} spent at delta {book.delta:g}{left}",
        "Private plans will be refused. `lift-client ledger` shows what was spent on."
        if left
        else "",
    )
