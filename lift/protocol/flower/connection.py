"""What a site's child process knows of its connection, in a file that its parent reads."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final, Literal

from lift.config.base import Settings
from lift.files import write_json
from lift.strict_json import parse_model

State = Literal["connecting", "connected", "away", "refused"]
SESSION_HEADER: Final = "x-lift-session"
"""In each request of a site: a random number, new with each start of its child."""
PREVIOUS_HEADER: Final = "x-lift-previous-session"
"""When a child begins: the number of the child before it."""
ADMISSION_CHECK: Final = "check"
"""Session of a question that Flower must refuse; see `admission`."""
KEY_IN_USE: Final = 409
"""HTTP status for a key whose site is connected already."""
SECOND_HEADER: Final = "x-lift-second-session"
"""In an answer to the connected site: its key was used for a second connection since."""


class Connection(Settings):
    """The state of a connection.

    Attributes:
        state: connecting: not tried yet; connected: the last request was answered; away: the
            server cannot be reached, the child goes on trying; refused: it answered with `status`.
        status: HTTP status of a refusal, else 0.
        second_sessions: how often the server has said that somebody else came with this key.
    """

    state: State
    status: int = 0
    second_sessions: int = 0


def read_connection(path: Path) -> Connection | None:
    """The state in the file, or None where there is none yet."""
    try:
        return parse_model(Connection, path.read_bytes())
    except (OSError, ValueError):
        return None


class ConnectionFile:
    """The child's side: writes the file when something changes.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._now = Connection(state="connecting")
        self._write()

    def note(self, state: State, status: int = 0) -> None:
        """The result of a request."""
        self._become(self._now.model_copy(update={"state": state, "status": status}))

    def note_second_session(self) -> None:
        """The server said that somebody else came with this key."""
        told = self._now.second_sessions + 1
        self._become(self._now.model_copy(update={"second_sessions": told}))

    def _become(self, new: Connection) -> None:
        if new != self._now:
            self._now = new
            self._write()

    def _write(self) -> None:
        # a full disk must not end the connection
        with contextlib.suppress(OSError):
            write_json(self._path, self._now.model_dump(mode="json"))
