"""The transport of the round loop: ask sites, and wait for a bounded time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from lift.protocol.messages import Answer, Failure, FailureKind, Parcel

SiteHandler = Callable[[Parcel], Parcel | Failure]
"""What a site does with a request. It never raises: a failure is an answer."""


@runtime_checkable
class NotesRefusals(Protocol):
    """A handler that keeps a record of what leaves, the refusal of unreadable requests too."""

    def unreadable(self, kind: FailureKind) -> None:
        """Called before the refusal leaves."""
        ...


@dataclass(frozen=True)
class Grace:
    """How an exchange treats sites that have not answered.

    Attributes:
        seconds: when all of them have been off-line for so long, and the others are enough, the
            exchange ends. At the deadline, those that are connected have so long more.
        enough: whether replies of these sites are enough.
    """

    seconds: float
    enough: Callable[[Collection[str]], bool]


class Transport(Protocol):
    """The server's way to the sites."""

    def sites(self) -> list[str]:
        """Names of the sites that are connected now, sorted."""
        ...

    def exchange(
        self, requests: Mapping[str, Parcel], *, deadline_s: float, grace: Grace | None = None
    ) -> dict[str, Answer]:
        """One answer by site that was asked; `no_answer` for those that missed the deadline."""
        ...
