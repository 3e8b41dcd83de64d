"""The sites' verdicts on the trained mixer, as received and as recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lift.config.plan import Plan
from lift.protocol.messages import GuardReply, Kind, Parcel
from lift.records.rounds import ROUNDS_FILE, RoundRecord
from lift.wire.gain import verdict_form
from lift.wire.names import GAIN_SUMS


def reviewed(answers: Mapping[str, Parcel], plan_digest: str) -> dict[str, GuardReply]:
    """The answers that are verdicts on this plan, by site; all others are left out."""
    return {
        site: parcel.body
        for site, parcel in answers.items()
        if isinstance(parcel.body, GuardReply) and parcel.body.plan_digest == plan_digest
    }


def reviewed_gains(answers: Mapping[str, Parcel], plan: Plan) -> list[NDArray[np.float32]]:
    """The noisy sums of the answers that have their form; all others are left out.

    No number is refused for its size: noise has none.
    """
    form, digest = verdict_form(plan), plan.digest()
    return [
        parcel.tensors[GAIN_SUMS]
        for _, parcel in sorted(answers.items())
        if isinstance(parcel.body, GuardReply)
        and parcel.body.plan_digest == digest
        and form.offence(parcel.tensors) is None
        and bool(np.isfinite(parcel.tensors[GAIN_SUMS]).all())
    ]


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
