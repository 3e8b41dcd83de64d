"""Heads of a privacy ledger, and the proof that one follows another.

A head is a hash over the hashes of all lines so far, in their order. Whoever knows an earlier head
can work out the later one from the hashes of the lines in between. These say nothing of what the
lines hold but how many they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

MOST_LINES: Final = 10_000
"""Lines that one proof may have: what fits the body of a message."""


def head_after(head: str, lines: Iterable[str]) -> str:
    """The head of a ledger that had `head` and has grown by these lines.

    Args:
        head: SHA-256 in hexadecimal, as are the lines.
        lines: the hashes of the lines since, oldest first.
    """
    for line in lines:
        head = hashlib.sha256(bytes.fromhex(head) + bytes.fromhex(line)).hexdigest()
    return head
