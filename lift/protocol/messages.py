"""The messages between server and sites: schema-checked bodies beside named tensors.

Three exchanges, each a request of the server and a reply of a site:

=============  ==========================================  =====================================
kind           request                                     reply
=============  ==========================================  =====================================
`statistics`   the plan (round 0)                          z-filter or drifting sums, counts
`train`        the mixer of this round, shared sums        the update (new - old), mean loss
`guard`        the finished mixer, and what it is on top   helped, harmed or undecided
               of: the z-filter's taps, or the Gaussian
=============  ==========================================  =====================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import Field

from lift.config.base import Settings
from lift.config.card import DataCard
from lift.config.plan import MOST_ROUNDS, Digest, Plan
from lift.guard import JudgedOn, Verdict
from lift.protocol.heads import MOST_LINES

if TYPE_CHECKING:
    # the short commands read records, and load no numpy
    import numpy as np

PROTOCOL_VERSION: Final = 2
VERSION_HEADER: Final = "x-lift-messages"
"""HTTP header of every answer of the server: its version of the messages."""
Count = Annotated[int, Field(ge=0, le=10**6)]


class Kind(StrEnum):
    """The three exchanges."""

    STATISTICS = "statistics"
    TRAIN = "train"
    GUARD = "guard"


class FailureKind(StrEnum):
    """Why a site did not answer: the only information that a failing site sends."""

    CONFIG = "config"
    DATA = "data"
    DISK = "disk"
    POLICY = "policy"
    PRIVACY = "privacy"
    BUDGET = "budget"
    VERSION = "version"
    NOT_FINITE = "not_finite"
    PROTOCOL = "protocol"
    INTERNAL = "internal"
    NO_ANSWER = "no_answer"


class _Request(Settings):
    """What every request holds."""

    known_head: Digest | None = None
    """The last head of this site's privacy ledger that the server was told. A site whose ledger
    never had it refuses: an older copy was put in its place."""


class _PaidReply(Settings):
    """What an answer that a privacy ledger pays for holds."""

    ledger_head: Digest | None = None
    """Head of the site's privacy ledger; it tells nothing but that it grew."""
    ledger_proof: tuple[Digest, ...] = Field(default=(), max_length=MOST_LINES)
    """Hashes of the ledger's lines since the head that the request named: they lead from that one
    to the new one. Empty where it named none."""


class StatisticsRequest(_Request):
    """Round 0: the plan that the site checks against its policy and stores."""

    plan: Plan


class StatisticsReply(_PaidReply):
    """Counts of the site's cohort. The sums are sent with it as tensors."""

    plan_digest: Digest
    train_patients: Count
    validation_patients: Count
    test_patients: Count
    refused_volumes: Count
    lowest_slice_spacing_mm: float | None = Field(ge=0, le=100)
    highest_slice_spacing_mm: float | None = Field(ge=0, le=100)
    """Of the site's volumes; None under differential privacy, where counts are public numbers."""
    round_estimate_s: float = Field(default=0.0, ge=0, le=86_400)
    """What a round should take here, from a timed dry run; 0 where the deadline is fixed."""
    data_version: Count = 0
    """How often the training data of the site changed: statistics of older data are refused."""
    data_card: DataCard | None = None
    """What the site's operator has looked at and shared; None under differential privacy."""


class TrainRequest(_Request):
    """One round of training from the mixer that is sent with it."""

    plan_digest: Digest
    round: int = Field(ge=1, le=MOST_ROUNDS)
    exchange: Digest | None = None
    """Where the server adds the noise (`patient-central`): drawn anew each time that it asks for a
    round. A site sends one exact sum in one exchange, and computes and pays anew in another."""


class TrainReply(_PaidReply):
    """Result of the local training. The update is sent with it."""

    plan_digest: Digest
    round: int = Field(ge=1, le=MOST_ROUNDS)
    loss: float | None
    """Mean over the round's steps; None under differential privacy, as is the next one."""
    validation_psnr_db: float | None
    """Of the *received* mixer, over windows of the site's validation patients (the same in every
    round); None below two of them, so that no patient's own figure leaves."""


class GuardRequest(_Request):
    """The finished mixer, to be evaluated on the site's own patients."""

    plan_digest: Digest


class DifferenceDb(Settings):
    """Mean paired difference of the PSNR over patients, with its 95% interval."""

    value: float
    low: float | None
    high: float | None
    n: Count
    """Rounded up to a multiple of the plan's `patient_count_step`."""


class GuardReply(_PaidReply):
    """The site's verdict on the finished mixer.

    Where the plan pays for a noisy gain its sums travel beside this; the verdict is then
    `undecided`, and nothing else is said but the head of the ledger.
    """

    plan_digest: Digest
    verdict: Verdict
    judged_on: JudgedOn = "validation"
    against_no_mixer: DifferenceDb | None = None
    against_z_filter: DifferenceDb | None = None
    """Over those patients; None with fewer than two, so that no patient's own figure leaves, and
    always where the task makes new volumes."""
    lowest_hf_share: float | None = None
    highest_hf_share: float | None = None
    """Slice profile of the site's validation sources (see `lift.guard`); None below two of them."""


Body = StatisticsRequest | StatisticsReply | TrainRequest | TrainReply | GuardRequest | GuardReply
REQUESTS: Final[dict[Kind, type[Settings]]] = {
    Kind.STATISTICS: StatisticsRequest,
    Kind.TRAIN: TrainRequest,
    Kind.GUARD: GuardRequest,
}
REPLIES: Final[dict[Kind, type[Settings]]] = {
    Kind.STATISTICS: StatisticsReply,
    Kind.TRAIN: TrainReply,
    Kind.GUARD: GuardReply,
}


@dataclass(frozen=True)
class Parcel:
    """One message: its kind, its schema-checked body and its named tensors.

    Attributes:
        kind: of the exchange.
        body: of the kind's request or reply.
        tensors: by name.
        room_bytes: of an answer: what its tensors take when each of them is there. It takes as much
            on the wire without some of them. It is no part of what is read.
    """

    kind: Kind
    body: Body
    tensors: Mapping[str, np.ndarray] = field(default_factory=dict)
    room_bytes: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Failure:
    """A site's failure as the server sees it: only the class of the reason."""

    kind: FailureKind


@dataclass(frozen=True)
class Answer:
    """The answer of one site in one exchange.

    Attributes:
        content: the reply, or why there is none.
        size_bytes: bytes of the reply as they crossed the wire.
        sent: how often the request was sent: again to each new connection of the site.
    """

    content: Parcel | Failure
    size_bytes: int
    sent: int = 1
