"""The sites' verdicts on what was trained: as they come, and as the run's record keeps them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lift.protocol.messages import GuardReply, Kind, Parcel


def reviewed(answers: Mapping[str, Parcel], plan_digest: str) -> dict[str, GuardReply]:
    """The answers that are verdicts on this plan, by site; all others are left out."""
    return {
        site: parcel.body
        for site, parcel in answers.items()
        if isinstance(parcel.body, GuardReply) and parcel.body.plan_digest == plan_digest
    }


def recorded(
    records: Sequence[Mapping[str, object]], plan_digest: str
) -> tuple[dict[str, GuardReply], int] | None:
    """The verdicts on record and how many sites were asked; None before there are any.

    A verdict on record is one word: what else an answer held was never kept.

    Args:
        records: the lines of `rounds.jsonl`.
        plan_digest: of the run.
    """
    if not records or records[-1]["kind"] != Kind.GUARD.value:
        return None
    said, asked = records[-1]["verdicts"], records[-1]["asked"]
    # our own checkpoint wrote it
    assert isinstance(said, dict)  # noqa: S101
    assert isinstance(asked, list)  # noqa: S101
    replies = {
        site: GuardReply(
            plan_digest=plan_digest, verdict=verdict, judged_on="validation_and_training"
        )
        for site, verdict in sorted(said.items())
    }
    return replies, len(asked)
