"""Rounds to which the server added its noise. No round is noised twice.

A second noise on the same sums is a second release, which no site has paid for: the mean of both
has less noise than either. So the noisy update is on the disk before anything is made of it, and a
round that is done anew, in this folder or in a new one, takes it from there and asks no site.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import safetensors
import safetensors.torch
from torch import Tensor

from lift.errors import RecordError
from lift.files import write_atomically
from lift.records.rounds import RoundRecord
from lift.strict_json import parse_json, parse_model

NOISED_FOLDER: Final = "noised"
_DIGEST_BYTES: Final = 32
_LENGTH_BYTES: Final = 8


@dataclass(frozen=True)
class NoisedRound:
    """One round after the noise.

    Attributes:
        update: mixer parameter -> noisy update, float32.
        record: the round's line, with the sites whose answers are in it.
    """

    update: dict[str, Tensor]
    record: RoundRecord


class NoisedRounds:
    """The rounds of all plans that this server has added noise to; one file each, mode 0600.

    Args:
        folder: is made when missing.
        plan_digest: of the run.
    """

    def __init__(self, folder: Path, plan_digest: str) -> None:
        self._folder = folder
        self._plan_digest = plan_digest

    def find(self, round_index: int, asked: Mapping[str, np.ndarray]) -> NoisedRound | None:
        """Return the stored noisy round, or None.

        Args:
            round_index: of the round.
            asked: the tensors of its request: answers to another mixer are other answers.

        Raises:
            RecordError: it was, and its file is damaged.
        """
        path = self._path(round_index, asked)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        block = content[_DIGEST_BYTES:]
        if hashlib.sha256(block).digest() != content[:_DIGEST_BYTES]:
            raise _damaged(path)
        try:
            # the record stands in the block's own header, under the digest
            size = int.from_bytes(block[:_LENGTH_BYTES], "little")
            header = parse_json(block[_LENGTH_BYTES : _LENGTH_BYTES + size])
            record = parse_model(RoundRecord, header["__metadata__"]["record"])
            update = safetensors.torch.load(block)
        except (safetensors.SafetensorError, ValueError, KeyError, TypeError):
            raise _damaged(path) from None
        return NoisedRound(dict(update), record)

    def keep(self, noised: NoisedRound, asked: Mapping[str, np.ndarray]) -> None:
        """Store one round. It is on disk when this returns."""
        path = self._path(noised.record.round, asked)
        line = json.dumps(noised.record.line(), allow_nan=False)
        tensors = {name: noised.update[name].contiguous() for name in sorted(noised.update)}
        block = safetensors.torch.save(tensors, metadata={"record": line})
        write_atomically(path, hashlib.sha256(block).digest() + block, mode=0o600)
        # a new name is on the disk only when its folder is
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _path(self, round_index: int, asked: Mapping[str, np.ndarray]) -> Path:
        digest = hashlib.sha256(f"{self._plan_digest} {round_index} ".encode())
        for name in sorted(asked):
            digest.update(f"{name} {asked[name].dtype} {asked[name].shape} ".encode())
            digest.update(np.ascontiguousarray(asked[name]).tobytes())
        return self._folder / f"round-{round_index:04d}-{digest.hexdigest()}.noised"


def _damaged(path: Path) -> RecordError:
    return RecordError(
        "cannot read a round that noise was added to",
        where=str(path),
        seen="the file is damaged",
        remedy="Nothing was asked or computed. Put the file back from a backup. If there is none, "
        "move it away and start again: the sites compute the round again, and pay for it again.",
    )
