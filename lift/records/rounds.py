"""A line of `rounds.jsonl`, and the outcome of each site in it.

Imports neither torch nor an image library: a page about a run must not weigh on the run.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, JsonValue

ROUNDS_FILE: Final = "rounds.jsonl"


class SiteStatistics(BaseModel):
    """Counts that a site reported in round 0. Other keys of its answer are kept."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    train_patients: int = 0
    validation_patients: int = 0
    test_patients: int = 0
    refused_volumes: int = 0
    lowest_slice_spacing_mm: float | None = None
    highest_slice_spacing_mm: float | None = None
    round_estimate_s: float = 0.0
    data_card: JsonValue = None


class Fall(BaseModel):
    """A round whose validation PSNR showed that the mixer had become worse."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    by_db: float
    """Below the best round, median over the sites."""
    best_round: int
    """The round that began with the best mixer so far."""
    action: Literal["go-back", "stop", "go-on"]
    """What the plan says (`aggregation.on_fall`)."""
    farthest: str | None = None
    """The site whose updates since then were farthest from the others' mean, if one stands out."""
    left_out: str | None = None
    """The site that takes no part from then on."""

    @property
    def went_back(self) -> bool:
        """Whether the best mixer became the current one again: this round counted nobody."""
        return self.action != "go-on"

    @property
    def sentence(self) -> str:
        """What happened, for a person."""
        told = f"validation fell by {self.by_db:.2f} dB below round {self.best_round}"
        if not self.went_back:
            return f"{told}; went on, as the plan says"
        out = f"; left out from now on: {self.left_out}" if self.left_out else ""
        return f"{told}; back to the mixer that round {self.best_round} began with{out}"


class RoundRecord(BaseModel):
    """One line of `rounds.jsonl`; keys that are not known here are passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    round: int
    kind: str = "train"
    asked: tuple[str, ...] = ()
    answered: tuple[str, ...] = ()
    counted: dict[str, float] = {}
    refused: dict[str, str] = {}
    joined: dict[str, int] = {}
    bytes: dict[str, int] = {}
    seconds: float | None = None
    loss: dict[str, float | None] = {}
    validation_psnr_db: dict[str, float | None] = {}
    norm_ratios: dict[str, float] = {}
    """Norm of each update, as a multiple of the round's median norm."""
    clipped: dict[str, float] = {}
    """Factor by which each update was scaled down, of those that were."""
    distances: dict[str, float] = {}
    """Distance of each update to the others' mean, as a multiple of the median norm."""
    fall: Fall | None = None
    epsilon: float | None = None
    sent_again: dict[str, int] = {}
    resumed: bool = False
    statistics: dict[str, SiteStatistics] = {}
    """Of round 0, by site."""
    verdicts: dict[str, str] = {}
    """Of the line after the last round, where something hangs on what the sites say."""
    shipped: str | None = None
    """Likewise: what is released."""

    def line(self) -> dict[str, object]:
        """The line as JSON data: the keys that were set."""
        return self.model_dump(mode="json", exclude_unset=True)


def clips_told(record: RoundRecord) -> str:
    """The sites whose update was clipped, each with its norm beside the median."""
    return ", ".join(
        f"{site} ({record.norm_ratios[site]:.3g} x the median norm)"
        for site in sorted(record.clipped)
    )


class Outcome(StrEnum):
    """The outcome of one site in one round."""

    COUNTED = "counted"
    REFUSED = "refused"
    LATE = "late"
    UNCOUNTED = "uncounted"
    NOT_ASKED = "not asked"


NO_ANSWER: Final = "no_answer"
WORDS: Final = {
    Outcome.COUNTED: "counted",
    Outcome.REFUSED: "refused",
    Outcome.LATE: "no answer in time",
    Outcome.UNCOUNTED: "answered, not counted",
    Outcome.NOT_ASKED: "not asked",
}
"""Each outcome as a reader meets it."""
_REASONS: Final = {
    "config": "the site's settings do not allow it",
    "data": "the site's volumes cannot be used",
    "disk": "the site's disk is full or cannot be written",
    "policy": "the site's policy forbids it",
    "privacy": "privacy cannot be kept at the site",
    "budget": "the site's privacy budget is spent",
    "version": "the site runs another version",
    "not_finite": "training at the site gave no finite numbers",
    "protocol": "the site could not read the request, or its answer was not readable",
    "internal": "a fault at the site; its own log says more",
    NO_ANSWER: "no answer before the deadline",
}


def outcome(record: RoundRecord, site: str) -> Outcome:
    """Return the outcome of the site in this round."""
    if site in record.refused:
        return Outcome.LATE if record.refused[site] == NO_ANSWER else Outcome.REFUSED
    if site in record.counted:
        return Outcome.COUNTED
    if site in record.answered:
        return Outcome.UNCOUNTED
    return Outcome.LATE if site in record.asked else Outcome.NOT_ASKED


def reason(record: RoundRecord, site: str) -> str:
    """Return why the site did not count, in words, or an empty text."""
    told = record.refused.get(site)
    if told is None and record.fall is not None and outcome(record, site) is Outcome.UNCOUNTED:
        return "the run went back to an earlier mixer"
    if told is None:
        return _REASONS[NO_ANSWER] if outcome(record, site) is Outcome.LATE else ""
    return reason_words(told)


def reason_words(told: str) -> str:
    """What a site's class of reason means; a class that is not known here as it came."""
    return _REASONS.get(told, told)


def mean_of(values: dict[str, float | None]) -> float | None:
    """Return the mean over the sites that reported a value, or None."""
    told = [value for value in values.values() if value is not None]
    return sum(told) / len(told) if told else None
