"""Epsilon spent by each site, from the record of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lift.config.plan import Plan
from lift.privacy.costs import epsilon_after
from lift.privacy.rounding import rounded_up
from lift.records.rounds import RoundRecord


def epsilon_by_site(plan: Plan, rounds: Sequence[RoundRecord]) -> dict[str, float]:
    """Epsilon that each site's patients have met in this run by the server's record, rounded up.

    A site counts for every round on record that it was asked in, whether or not its answer
    arrived: it may have left the hospital. Its own ledger decides: it also knows of other runs,
    and of rounds that were begun and never finished.

    Args:
        plan: the run's plan.
        rounds: lines of `rounds.jsonl`, round 0 first.
    """
    asked = Counter({site: 0 for line in rounds for site in line.asked})
    for line in rounds[1:]:
        asked.update(line.asked)
    spent = {site: epsilon_after(plan, count) for site, count in sorted(asked.items())}
    return {site: rounded_up(value) for site, value in spent.items() if value is not None}
