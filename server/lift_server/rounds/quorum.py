"""The quorum: the number of sites and patients that a round needs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from lift.config.plan import FederationPlan
from lift.errors import QuorumError
from lift.records.rounds import NO_ANSWER, reason_words
from lift_server.rounds.exchange import Tally


class _Found(NamedTuple):
    """What is present of what is needed."""

    sites: int
    of: int
    needed: int
    share: float
    enough: bool


def _found(
    plan: FederationPlan,
    round_index: int,
    present: Collection[str],
    roster: Sequence[str],
    patients: Mapping[str, int],
) -> _Found:
    trained = [site for site in present if patients.get(site, 0) > 0]
    known = [site for site in roster if patients.get(site, 0) > 0]
    everyone = roster if round_index == 0 else known
    needed = plan.quorum_sites or len(everyone)
    # do not wait for the patients of a removed site
    total = sum(patients[site] for site in known)
    share = sum(patients[site] for site in trained) / total if total else 0.0
    enough = len(present) >= needed and bool(trained) and share >= plan.quorum_patients - 1e-9
    return _Found(len(present), len(everyone), needed, share, enough)


def quorum_is_met(
    plan: FederationPlan,
    round_index: int,
    present: Collection[str],
    *,
    roster: Sequence[str],
    patients: Mapping[str, int],
) -> bool:
    """Whether these sites are enough; see `check_quorum`."""
    return _found(plan, round_index, present, roster, patients).enough


def check_quorum(
    plan: FederationPlan,
    round_index: int,
    present: Sequence[str],
    tally: Tally,
    *,
    roster: Sequence[str],
    patients: Mapping[str, int],
    gone: Collection[str],
    site_logs: str,
) -> None:
    """Raise unless enough sites, with a sufficient share of all patients, answered.

    Args:
        plan: what is needed.
        round_index: 0 for the statistics.
        present: sites whose answer is fit to count.
        tally: who was asked and refused.
        roster: admitted sites.
        patients: by site, 0 where it trains on none: those that it declared, or training patients.
        gone: sites that were left out.
        site_logs: where a reader finds what a site does not tell.

    Raises:
        QuorumError: too few; nothing of the round may be aggregated.
    """
    found = _found(plan, round_index, present, roster, patients)
    if found.enough:
        return
    missing = [site for site in tally.asked if site not in present]
    reasons = {site: tally.refused.get(site, NO_ANSWER) for site in missing}
    reported = "\n".join(f"{site} ({why}): {reason_words(why)}" for site, why in reasons.items())
    raise QuorumError(
        f"the quorum of round {round_index} was missed"
        if present
        else f"round {round_index} failed at every site",
        where="federation.quorum_sites, federation.quorum_patients",
        seen=f"{found.sites} of {found.of} sites with {found.share:.0%} of the "
        f"patients counted; needed: {found.needed} sites and {plan.quorum_patients:.0%}"
        + (f"\nleft out: {', '.join(sorted(gone))}" if gone else "")
        + (f"\nmissing:\n{reported}" if reported else ""),
        remedy=f"A site tells the class of its reason alone; the text is in {site_logs}. "
        "Nothing of this round was aggregated. Fix the sites, or go on without one (`lift-server "
        "remove-site DIR SITE`: its patients are not waited for), and run the same command again: "
        "it goes on from the round before.",
    )
