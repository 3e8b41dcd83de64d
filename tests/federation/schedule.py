"""Who dies in which round: a folder that outlives every process of the federation.

A process that is started again with the same command finds the same folder, and in it which
deaths have been: what is left of the schedule is its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lift.files import write_atomically

SITE_POINTS = ("before_training", "while_training", "while_sending", "after_sending")
SERVER_POINTS = ("while_handing_out", "while_aggregating", "in_checkpoint")
LOSING = "losing_an_answer"
"""Nobody is killed: the way to the site's own SuperNode breaks while the answer is handed over."""
VICTIMS = {
    "server": ("server", False),
    "superlink": ("server", True),
    "site": ("east", False),
    "supernode": ("east", True),
}
"""By victim: the process of the federation, and whether it is that process's child."""
_FILE = "schedule.json"


@dataclass(frozen=True)
class Death:
    """One kill.

    Attributes:
        round: in which training round.
        victim: a name of `VICTIMS`.
    """

    round: int
    victim: str


@dataclass(frozen=True)
class Schedule:
    """One point of a round, and the deaths at it, at most one a round.

    Args:
        folder: where it lies.
        point: when in a round.
        deaths: in the order of their rounds.
        logs: by process, the log that is marked when somebody dies.
    """

    folder: Path
    point: str
    deaths: Sequence[Death]
    logs: Mapping[str, Path]

    @classmethod
    def read(cls, folder: Path) -> Schedule:
        """The schedule that lies in a folder."""
        data = json.loads((folder / _FILE).read_text(encoding="utf-8"))
        logs = {name: Path(path) for name, path in data["logs"].items()}
        return cls(folder, data["point"], [Death(**death) for death in data["deaths"]], logs)

    def write(self) -> None:
        """Lay it down for the processes to come."""
        data = {
            "point": self.point,
            "deaths": [vars(death) for death in self.deaths],
            "logs": {name: str(path) for name, path in self.logs.items()},
        }
        self.folder.mkdir()
        (self.folder / _FILE).write_text(json.dumps(data), encoding="utf-8")

    @property
    def striker(self) -> str:
        """The process that comes to the point, and kills there."""
        return "server" if self.point in SERVER_POINTS else "east"

    def note(self, name: str, pid: int) -> None:
        """A process was started, perhaps again."""
        write_atomically(self.folder / f"{name}.pid", str(pid).encode())

    def pid(self, name: str) -> int:
        """The process that was started last under this name."""
        return int((self.folder / f"{name}.pid").read_text(encoding="ascii"))

    def take(self, round_index: int) -> Death | None:
        """The death of this round unless it has been; from now on it has been."""
        for death in self.deaths:
            if death.round == round_index and not self.has_been(death):
                self._mark(death)
                return death
        return None

    def has_been(self, death: Death) -> bool:
        """Whether the kill was done, or is being done at this moment."""
        return self._path(death).exists()

    def log_since(self, name: str, death: Death, until: Death | None = None) -> str:
        """What a process wrote into its log after one death, and before a later one."""
        content = self.logs[name].read_bytes()
        end = len(content) if until is None else self._marked(until)[name]
        return content[self._marked(death)[name] : end].decode()

    def _mark(self, death: Death) -> None:
        lengths = {
            name: path.stat().st_size if path.exists() else 0 for name, path in self.logs.items()
        }
        write_atomically(self._path(death), json.dumps(lengths).encode())

    def _marked(self, death: Death) -> dict[str, int]:
        return dict(json.loads(self._path(death).read_text(encoding="ascii")))

    def _path(self, death: Death) -> Path:
        return self.folder / f"been-{death.round}-{death.victim}.json"
