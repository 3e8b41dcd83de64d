"""The last head of each site's privacy ledger, as reported by the site, kept at the server.

A ledger cannot show that an older copy was put in its place, or that it was deleted and begun
again. So the server keeps the last head that came with an answer and names it in every request. A
site refuses to compute when its ledger never had that head. The server, in turn, takes a new head
only with the hashes of the lines in between, and of an answer without them it uses nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from lift.errors import RecordError, UpdateRejectedError
from lift.files import write_json
from lift.protocol.heads import head_after
from lift.protocol.messages import GuardReply, StatisticsReply, TrainReply
from lift.strict_json import parse_json

HEADS_FILE: Final = "ledger-heads.json"


class LedgerHeads:
    """Site -> head, in one small file, across runs.

    Args:
        path: the file; if it is missing, no site has reported a head.

    Raises:
        RecordError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._heads: dict[str, str] = {}
        if path.exists():
            try:
                self._heads = {str(k): str(v) for k, v in parse_json(path.read_bytes()).items()}
            except (OSError, ValueError, AttributeError):
                raise RecordError(
                    "cannot read the heads of the sites' privacy ledgers",
                    where=str(path),
                    seen="it is damaged",
                    remedy="Put the file back from a backup. Without it an older copy of a site's "
                    "ledger would go unnoticed.",
                ) from None

    def known(self, sites: Iterable[str]) -> dict[str, str]:
        """The heads that these sites reported last."""
        return {site: self._heads[site] for site in sites if site in self._heads}

    def note(self, site: str, body: object, *, required: bool) -> None:
        """Store the head that came with an answer, on disk, before the answer is used.

        Args:
            site: who answered.
            body: the answer's body.
            required: whether the answer is one that a site's ledger pays for.

        Raises:
            UpdateRejectedError: there is no head where there must be one, or the lines that came
                with it do not lead to it from the head that the site reported before.
        """
        if not isinstance(body, StatisticsReply | TrainReply | GuardReply):
            return
        if body.ledger_head is None:
            if required:
                raise _refusal(site, "it does not name the head of the site's privacy ledger")
            return
        known = self._heads.get(site)
        if known is not None and head_after(known, body.ledger_proof) != body.ledger_head:
            raise _refusal(
                site, "the site's privacy ledger does not continue from the head reported before"
            )
        if known != body.ledger_head:
            self._heads[site] = body.ledger_head
            write_json(self._path, dict(sorted(self._heads.items())))


def _refusal(site: str, seen: str) -> UpdateRejectedError:
    return UpdateRejectedError(
        f"the answer of '{site}' was refused",
        where="ledger_head",
        seen=seen,
        remedy="Nothing of it was used. An older copy of the ledger may have been put back there: "
        "call the site's operator.",
    )
