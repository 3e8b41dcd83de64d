"""The public moments of a decoder's bundle: how latents of public volumes run along the body.

A small file beside the weights, as float16; the card names its digest. What is made of it:
:mod:`lift.tasks.unconditional.public_gaussian`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self, cast

import torch
from torch import Tensor

from lift.triplanar.digests import digest_of
from lift.triplanar.public_files import PublicTensors, damaged, read_public

_KIND: Final = "public moments"
_VERSION: Final = 1
_PARTS: Final = ("mean", "within", "next", "tail_within", "tail_next")


@dataclass(frozen=True)
class PublicMoments(PublicTensors):
    """Moments over public patients at M positions along the body; a patient counts once.

    All tensors are float16. Latents are in the decoder's order, and the body's length (in the
    units of `lift.tasks.unconditional.moments.trajectory`) is the last number.

    Attributes:
        patients: public patients behind them.
        joint: places of the latents whose joint covariance is kept, J of L.
        mean: by position, (M, L + 1).
        within: covariance within a position, of the joint latents and the length, the same at
            all positions, (J + 1, J + 1).
        following: covariance with the next position (rows) of a position (columns), likewise.
        tail_within: variance of each other latent, (L - J,).
        tail_following: its covariance with itself at the next position.
    """

    patients: int
    joint: tuple[int, ...]
    mean: Tensor
    within: Tensor
    following: Tensor
    tail_within: Tensor
    tail_following: Tensor

    @property
    def latent(self) -> int:
        """L: latents of the decoder."""
        return self.mean.shape[1] - 1

    @property
    def tail(self) -> tuple[int, ...]:
        """Places of the other latents."""
        return tuple(sorted(set(range(self.latent)) - set(self.joint)))

    @classmethod
    def load(cls, path: Path, *, expected_digest: str | None) -> Self:
        """The moments of a file; None accepts the digest that the file states.

        Raises:
            DataError: missing, damaged, or not such moments.
            ConfigError: another digest than the expected one.
        """
        header, tensors = read_public(path, _KIND, expected_digest)
        try:
            parts = [tensors[name] for name in _PARTS]
            patients = int(cast("int", header["patients"]))
            joint = tuple(int(place) for place in cast("list[int]", header["joint"]))
            result = cls(patients, joint, *parts)
        except (KeyError, TypeError, ValueError):
            raise damaged(path, _KIND, "its description lacks something") from None
        if result.digest != digest_of(header, tensors) or not result._fits():
            raise damaged(path, _KIND, "its tensors do not fit its description")
        return result

    def _fits(self) -> bool:
        parts = self._tensors().values()
        if self.mean.dim() != 2 or len(self.mean) < 2 or self.patients < 1:
            return False
        size, tail = len(self.joint) + 1, self.latent - len(self.joint)
        return (
            list(self.joint) == sorted(set(self.joint) & set(range(self.latent)))
            and [tuple(t.shape) for t in parts][1:] == [(size, size)] * 2 + [(tail,)] * 2
            and all(t.dtype == torch.float16 and bool(t.isfinite().all()) for t in parts)
        )

    def _header(self) -> dict[str, object]:
        return {
            "kind": _KIND,
            "version": _VERSION,
            "patients": self.patients,
            "joint": list(self.joint),
        }

    def _tensors(self) -> dict[str, Tensor]:
        own = (self.mean, self.within, self.following, self.tail_within, self.tail_following)
        return dict(zip(_PARTS, own, strict=True))
