"""The interface of every tracker, and the description of a run for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

PHANTOM: Final = "PHANTOM"


@dataclass(frozen=True)
class About:
    """Description of a run for a tracker, besides its figures.

    Attributes:
        federation: its name.
        plan_digest: SHA-256 of the plan, in hexadecimal.
        phantom: whether every volume is a phantom.
        part: which federation of a run with several (`fold-003`); empty for the whole run.
    """

    federation: str
    plan_digest: str
    phantom: bool
    part: str = ""

    @property
    def title(self) -> str:
        """One line for a list of runs: it says when the volumes are phantoms."""
        name = f"{self.federation} {self.part}" if self.part else self.federation
        return f"{name} ({PHANTOM})" if self.phantom else name

    @property
    def texts(self) -> dict[str, str]:
        """Key -> text, the hyperparameters of the run."""
        found = {"federation": self.federation, "plan_digest": self.plan_digest}
        if self.phantom:
            found["data"] = PHANTOM
        if self.part:
            found["part"] = self.part
        return found


class Tracker(Protocol):
    """Takes the figures of one federation. It may raise anything: the caller drops it then."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Take the figures of one step: tag -> finite number.

        Steps never go back. A resumed run tells all of its steps again.
        """

    def close(self, *, complete: bool) -> None:
        """Write what is left; `complete` says whether the run came to its end."""
