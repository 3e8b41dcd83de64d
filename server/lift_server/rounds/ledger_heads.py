"""The last hash of each site's privacy ledger, as the site told it: kept outside the hospital.

A ledger cannot show that an older copy was put in its place, or that it was deleted and begun
again. So the server keeps the last hash that came with an answer, sends it with the next plan, and
the site refuses to compute when its ledger does not hold it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from lift.errors import RecordError
from lift.files import write_json
from lift.protocol.messages import StatisticsReply, TrainReply
from lift.strict_json import parse_json

HEADS_FILE: Final = "ledger-heads.json"


class LedgerHeads:
    """Site -> hash, in one small file, across runs.

    Args:
        path: the file; none yet means that no site has told one.

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
                    "cannot read the hashes of the sites' privacy ledgers",
                    where=str(path),
                    seen="it is damaged",
                    remedy="Put the file back from a backup. Without it an older copy of a site's "
                    "ledger would go unnoticed.",
                ) from None

    def known(self, sites: Iterable[str]) -> dict[str, str]:
        """The hashes that these sites told last."""
        return {site: self._heads[site] for site in sites if site in self._heads}

    def note(self, site: str, body: object) -> None:
        """Keep the hash that came with an answer, on the disk before anything is made of it."""
        if not isinstance(body, StatisticsReply | TrainReply) or body.ledger_head is None:
            return
        if self._heads.get(site) != body.ledger_head:
            self._heads[site] = body.ledger_head
            write_json(self._path, dict(sorted(self._heads.items())))
