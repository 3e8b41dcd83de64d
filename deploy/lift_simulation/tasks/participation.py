"""Who took part in another run's rounds, repeated: the same sites answer, the others stay away."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Final

from lift.errors import ConfigError
from lift.protocol.messages import Answer, Failure, FailureKind, Kind, Parcel
from lift.protocol.transport import Grace, Transport
from lift.records.rounds import RoundRecord
from lift.report.read import read_rounds

_WHERE: Final = "participation"


class Participation:
    """By round: the sites that were asked, that joined late, and that counted.

    Args:
        path: `rounds.jsonl` of the run that is repeated.
        sites: the simulation's sites.
        rounds: training rounds of the simulation's plan.

    Raises:
        ConfigError: the record has not got these rounds, or names a site that is not there.
        DataError: a line is not what a run writes.
    """

    def __init__(self, path: Path, sites: Collection[str], rounds: int) -> None:
        records, _ = read_rounds(path)
        seen = [record.round for record in records]
        if seen != list(range(rounds + 1)):
            raise ConfigError(
                "cannot repeat the participation",
                where=f"{_WHERE}: {path}",
                seen=f"the record holds {len(seen)} rounds"
                f"{f' up to {seen[-1]}' if seen else ''}; needed: 0 to {rounds}",
                remedy="Give rounds.jsonl of a finished run, and a plan with as many rounds.",
            )
        unknown = sorted({site for record in records for site in record.asked} - set(sites))
        if unknown:
            raise ConfigError(
                "cannot repeat the participation",
                where=f"{_WHERE}: {path}",
                seen=f"sites that are not simulated: {', '.join(unknown)}",
                remedy="Add these sites to the simulation.",
            )
        self._records = records

    def asked(self, round_index: int) -> list[str]:
        """Sites that a round asked; after the last round, those of the last."""
        return sorted(self._at(round_index).asked)

    def replayed(self, inner: Transport, next_round: Callable[[], int]) -> Transport:
        """A transport over which only those answer that counted in the recorded run.

        Args:
            inner: the way to the simulated sites.
            next_round: the round that is under way.
        """
        return _Replayed(inner, self, next_round)

    def away(self, kind: Kind, round_index: int) -> Mapping[str, FailureKind]:
        """Recorded failure of each site whose answer to this request did not count."""
        if kind is Kind.GUARD:
            return {}
        record = self._at(round_index)
        if kind is Kind.STATISTICS and round_index > 0:
            present: Collection[str] = record.asked
        elif record.fall is not None:
            # nobody counted where the run went back; what they answered showed it
            present = record.answered
        else:
            present = record.counted
        return {
            site: _failure(record.refused.get(site)) for site in record.asked if site not in present
        }

    def _at(self, round_index: int) -> RoundRecord:
        return self._records[min(round_index, len(self._records) - 1)]


class _Replayed:
    def __init__(
        self, inner: Transport, participation: Participation, next_round: Callable[[], int]
    ) -> None:
        self._inner = inner
        self._participation = participation
        self._next_round = next_round

    def sites(self) -> list[str]:
        return self._participation.asked(self._next_round())

    def exchange(
        self, requests: Mapping[str, Parcel], *, deadline_s: float, grace: Grace | None = None
    ) -> dict[str, Answer]:
        round_index = self._next_round()
        away: dict[str, Answer] = {}
        for site, request in requests.items():
            failure = self._participation.away(request.kind, round_index).get(site)
            if failure is not None:
                away[site] = Answer(Failure(failure), 0)
        present = {site: parcel for site, parcel in requests.items() if site not in away}
        return away | self._inner.exchange(present, deadline_s=deadline_s, grace=grace)


def _failure(reason: str | None) -> FailureKind:
    if reason is None:
        return FailureKind.NO_ANSWER
    try:
        return FailureKind(reason)
    except ValueError:
        # refused by the server's review: its text is not a site's answer
        return FailureKind.PROTOCOL
