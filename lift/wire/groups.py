"""What may leave a site, in plain words: the journal and SECURITY.md quote these sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from lift.protocol.messages import Kind
from lift.wire.names import CURVE_SUMS, DRIFTING, GAIN_SUMS, TRAJECTORY, Z_FILTER_SUMS

PURPOSES: Final[Mapping[Kind, str]] = {
    Kind.STATISTICS: "Counts and sums over the training patients, so that all sites start alike.",
    Kind.TRAIN: "Result of local training, to be combined with that of the other sites.",
    Kind.GUARD: "Verdict on the finished mixer: whether it helps on this site's patients, or makes "
    "new volumes that are harder to tell from theirs.",
}
"""Why each kind of answer leaves."""


@dataclass(frozen=True)
class Group:
    """Tensors that leave together or not at all.

    Attributes:
        tensors: their names, or one prefix and `*`, as SECURITY.md lists them.
        purpose: what they hold, one plain sentence.
    """

    tensors: tuple[str, ...]
    purpose: str


Z_FILTER: Final = Group(
    Z_FILTER_SUMS,
    "Sums for the shared z-filter: products of differences between slices and of errors.",
)
CURVES: Final = Group(
    CURVE_SUMS,
    "Joint histogram of grey values over the training patients, for the site curves.",
)
MOMENTS: Final = Group(
    (f"{TRAJECTORY}*",),
    "Sums of latents along the body, of its length, and of their products.",
)
MOMENTS_WITH_STYLE: Final = Group(
    MOMENTS.tensors,
    "Sums of latents along the body, of its length, and of their products; the mean grey scale "
    "among them becomes known under this site's name to everyone who has the mixer.",
)
STATISTICS: Final = Group(
    (f"{DRIFTING}*",),
    "Sums of image features by plane and place along the body.",
)
UPDATE: Final = Group(
    ("the mixer's parameters",),
    "Change of the mixer's parameters after local training.",
)
CLIPPED_SUM: Final = Group(
    ("the mixer's parameters",),
    "Sum of the patients' clipped gradients of the mixer's parameters.",
)
GAIN: Final = Group(
    (GAIN_SUMS,),
    "Noisy sum of the clipped gains of validation patients over no mixer, and their noisy number.",
)
GROUPS: Final = (
    Z_FILTER,
    CURVES,
    MOMENTS,
    MOMENTS_WITH_STYLE,
    STATISTICS,
    UPDATE,
    CLIPPED_SUM,
    GAIN,
)
"""All that is ever sent as tensors."""
