"""`lift-server export`: the finished mixer and its records, copied with their sums."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from lift.errors import CheckpointError, ConfigError, DataError
from lift.files import file_digest, write_atomically
from lift_server.status_view import is_complete

RELEASED: Final = ("mixer.safetensors", "run.json", "rounds.jsonl", "metrics.json")
SUMS_FILE: Final = "SHA256SUMS"


def export_run(run: Path, output: Path) -> list[str]:
    """Copy a finished run into a new folder; the lines of its SHA256SUMS.

    Args:
        run: the run's folder.
        output: is made; it must not exist, or be empty.

    Raises:
        CheckpointError: the run is not complete; nothing is written.
        ConfigError: the folder is in use; nothing is written.
        DataError: a copy came back with other bytes.
    """
    mixer = run / RELEASED[0]
    if not mixer.is_file() or not is_complete(run):
        raise CheckpointError(
            "the run has no finished mixer",
            where=str(run),
            seen="run.json does not say that the run is complete"
            if mixer.is_file()
            else f"there is no {RELEASED[0]}",
            remedy="Nothing was written. Let `lift-server` run to its end: a partial run is "
            "never shipped.",
        )
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(
            "the folder is in use",
            where=str(output),
            seen="it exists and is not empty",
            remedy="Nothing was changed. Choose another folder.",
        )
    sums = []
    for name in RELEASED:
        if (run / name).is_file():
            content = (run / name).read_bytes()
            write_atomically(output / name, content)
            # of what the disk gives back, against what was read: a bad copy is found here
            digest = file_digest(output / name)
            if digest != hashlib.sha256(content).hexdigest():
                raise DataError(
                    "a copy differs from its source",
                    where=str(output / name),
                    seen="other bytes came back from the disk",
                    remedy="Check the disk, remove the folder and run the same command again.",
                )
            sums.append(f"{digest}  {name}")
    write_atomically(output / SUMS_FILE, "".join(f"{line}\n" for line in sums).encode())
    return sums
