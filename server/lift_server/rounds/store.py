"""The run's folder. Checkpoints are written first, then the record of rounds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from lift.errors import CheckpointError
from lift.files import write_json_lines
from lift.records.rounds import ROUNDS_FILE, RoundRecord
from lift.wire.names import SERVER_STATE, grouped
from lift_server.rounds.aggregation import ServerState
from lift_server.rounds.checkpoint import (
    Checkpoint,
    read_checkpoint,
    read_checkpoints,
    write_checkpoint,
)


class RunStore:
    """Reads and writes `checkpoints/` and `rounds.jsonl` of one run.

    The line of a round travels inside its checkpoint, so the record never misses a round that
    counted, whenever the process dies; the file is rebuilt from the checkpoints on resume.
    """

    def __init__(self, folder: Path, plan_digest: str) -> None:
        self.folder = folder
        self._checkpoints = folder / "checkpoints"
        self._rounds = folder / ROUNDS_FILE
        self._plan_digest = plan_digest
        self.records: list[RoundRecord] = []
        # a line that another version wrote is kept as it is
        self._lines: list[dict[str, object]] = []

    def resume(self) -> tuple[int, ServerState, dict[str, Tensor]] | None:
        """Last finished round, the state after it and what the sites share; None at the start.

        Raises:
            CheckpointError: the folder belongs to another plan.
        """
        found = read_checkpoints(self._checkpoints, self._plan_digest)
        if not found:
            return None
        self._lines = [dict(checkpoint.record) for checkpoint in found]
        self.records = [RoundRecord.model_validate(line) for line in self._lines]
        write_json_lines(self._rounds, self._lines)
        last = found[-1]
        shared = {
            name: tensor
            for name, tensor in last.tensors.items()
            if name.partition("/")[0] not in SERVER_STATE
        }
        return last.round, _state(last), shared

    def state_before(self, round_index: int) -> ServerState:
        """The state that a finished round began with.

        Raises:
            CheckpointError: its checkpoint is damaged.
        """
        found = read_checkpoint(self._checkpoints, round_index - 1, self._plan_digest)
        if found is None:
            raise CheckpointError(
                "cannot go back to the best mixer",
                where=str(self._checkpoints),
                seen=f"the checkpoint of round {round_index - 1} is damaged",
                remedy="Restore the folder from a backup and run the same command again.",
            )
        return _state(found)

    def save(
        self,
        round_index: int,
        state: ServerState,
        shared: Mapping[str, Tensor],
        record: RoundRecord,
    ) -> None:
        """Write the checkpoint of one round, then its line in the record."""
        tensors = dict(shared)
        for group in SERVER_STATE:
            values: dict[str, Tensor] = getattr(state, group)
            tensors |= grouped(values, f"{group}/")
        line = record.line()
        write_checkpoint(
            self._checkpoints, Checkpoint(round_index, self._plan_digest, tensors, line)
        )
        # read back once, so that a resumed record equals an uninterrupted one
        self.records.append(RoundRecord.model_validate(line))
        self._lines.append(line)
        write_json_lines(self._rounds, self._lines)


def _state(checkpoint: Checkpoint) -> ServerState:
    return ServerState(*(checkpoint.group(group) for group in SERVER_STATE))
