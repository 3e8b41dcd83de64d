"""The sites' verdicts on what was trained: as they come, and as the run's record keeps them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lift.protocol.messages import GuardReply, Kind, Parcel
from lift.records.rounds import ROUNDS_FILE, RoundRecord


def reviewed(answers: Mapping[str, Parcel], plan_digest: str) -> dict[str, GuardReply]:
    """The answers that are verdicts on this plan, by site; all others are left out."""
    return {
        site: parcel.body
        for site, parcel in answers.items()
        if isinstance(parcel.body, GuardReply) and parcel.body.plan_digest == plan_digest
    }


def recorded(
    records: Sequence[RoundRecord], plan_digest: str
) -> tuple[dict[str, GuardReply], int] | None:
    """The verdicts on record and how many sites were asked; None before there are any.

    A verdict on record is one word: what else an answer held was never kept.

    Args:
        records: the lines of `rounds.jsonl`.
        plan_digest: of the run.
    """
    if not records or records[-1].kind != Kind.GUARD.value:
        return None
    replies = {
        site: GuardReply.from_data(
            {
                "plan_digest": plan_digest,
                "verdict": verdict,
                "judged_on": "validation_and_training",
            },
            ROUNDS_FILE,
        )
        for site, verdict in sorted(records[-1].verdicts.items())
    }
    return replies, len(records[-1].asked)
