"""Checkpoints of a run: safetensors and JSON, written atomically.

`round-0007.safetensors` is written first; `round-0007.json` names its SHA-256 and is what
makes the checkpoint exist. A crash between the two, or a file cut short, leaves the
checkpoint of the round before as the latest.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from lift.errors import CheckpointError, VersionMismatchError
from lift.files import file_digest, write_atomically, write_json
from lift.strict_json import is_version, parse_json

CHECKPOINT_VERSION = 1
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """State after one round, sufficient to resume bit for bit.

    Attributes:
        round: the round that ended with this state; 0 is the statistics round.
        plan_digest: SHA-256 of the plan; another plan's checkpoint is never used.
        tensors: name -> tensor; groups are distinguished by a prefix such as `mixer/`.
        record: the round's line of `rounds.jsonl`.
    """

    round: int
    plan_digest: str
    tensors: Mapping[str, Tensor]
    record: Mapping[str, object] = field(default_factory=dict)

    def group(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose name starts with `prefix/`, under the rest of their name."""
        start = f"{prefix}/"
        return {k.removeprefix(start): v for k, v in self.tensors.items() if k.startswith(start)}


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write one checkpoint atomically; an existing one of the same round is replaced."""
    stem = f"round-{checkpoint.round:04d}"
    content = safetensors.torch.save({k: v.contiguous() for k, v in checkpoint.tensors.items()})
    write_atomically(folder / f"{stem}.safetensors", content)
    write_json(
        folder / f"{stem}.json",
        {
            "version": CHECKPOINT_VERSION,
            "round": checkpoint.round,
            "plan_digest": checkpoint.plan_digest,
            "sha256": hashlib.sha256(content).hexdigest(),
            "record": dict(checkpoint.record),
        },
    )


def read_checkpoints(folder: Path, plan_digest: str) -> list[Checkpoint]:
    """Return all complete checkpoints from round 0 to the latest, without a gap.

    A damaged one ends the list, with a warning in the log: the run goes on from the one before.
    Those after it are set aside under names that end in `.stale`: they follow a round that will
    be repeated, perhaps with other sites.

    Raises:
        CheckpointError: the folder holds the checkpoints of another plan.
        VersionMismatchError: they come from another version of the format.
    """
    found: list[Checkpoint] = []
    while True:
        stem = f"round-{len(found):04d}"
        if not (folder / f"{stem}.json").is_file():
            break
        checkpoint = _read(folder, stem, plan_digest)
        if checkpoint is None:
            logger.warning("event=checkpoint_damaged file=%s.safetensors", stem)
            break
        found.append(checkpoint)
    _set_aside(folder, after=len(found))
    return found


def read_checkpoint(folder: Path, round_index: int, plan_digest: str) -> Checkpoint | None:
    """Return the checkpoint of one round; None where it is missing or damaged.

    Raises:
        CheckpointError: it belongs to another plan.
        VersionMismatchError: it comes from another version of the format.
    """
    return _read(folder, f"round-{round_index:04d}", plan_digest)


def _set_aside(folder: Path, *, after: int) -> None:
    for path in sorted(folder.glob("round-*.json")):
        number = path.stem.removeprefix("round-")
        if number.isdigit() and int(number) > after:
            logger.warning("event=checkpoint_set_aside file=%s", path.name)
            path.replace(path.with_suffix(".json.stale"))


def _read(folder: Path, stem: str, plan_digest: str) -> Checkpoint | None:
    path = folder / f"{stem}.safetensors"
    try:
        card = parse_json((folder / f"{stem}.json").read_text(encoding="utf-8"))
        version = card["version"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    # before any other key is asked for: another version may have other keys
    if not is_version(version, CHECKPOINT_VERSION):
        raise VersionMismatchError(
            "cannot resume: the checkpoints come from another version",
            where=str(folder),
            seen=f"format {version}; this version reads format {CHECKPOINT_VERSION}",
            remedy="Finish the run with the version that began it, or choose another folder.",
        )
    try:
        digest, number = card["sha256"], card["round"]
        owner, record = card["plan_digest"], card["record"]
    except KeyError:
        return None
    if owner != plan_digest:
        raise CheckpointError(
            "cannot resume: the output folder belongs to another plan",
            where=str(folder),
            seen=f"plan {str(owner)[:12]}...; the settings now give plan {plan_digest[:12]}...",
            remedy="Nothing was changed. Restore the settings, or choose another output folder.",
        )
    if not path.is_file() or file_digest(path) != digest:
        return None
    try:
        tensors = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError):
        return None
    return Checkpoint(number, owner, tensors, record)
