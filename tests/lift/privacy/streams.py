"""A stream of known numbers, which only a test can make."""

from __future__ import annotations

from lift.privacy.noise import SecureStream


class KnownStream(SecureStream):
    """The same numbers in every run: keys are counted up."""

    __slots__ = ("_used",)

    def __init__(self, first: int = 1) -> None:
        self._used = first

    def new_key(self) -> bytes:
        self._used += 1
        return self._used.to_bytes(32, "big")
