"""What a run of new volumes releases: the mapper if it was shown to be better, or the Gaussian.

A mapper is trained on top of a federated Gaussian. It can please the distance that taught it with
volumes that nobody would take for real, so the hospitals judge it before it is released, each on
its own patients (`lift.metrics.closer`). A verdict is a release of the patients that it rests on:
where the plan protects patients by noise, nobody is asked, and the Gaussian ships.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from lift.guard import Verdict

Source = Literal["gaussian", "mapper"]
_GAUSSIAN: Final = "The Gaussian ships, without the mapper that was trained on top of it"
_MAPPER: Final = "The mapper ships, on top of the Gaussian"


@dataclass(frozen=True)
class Number:
    """A number of a sentence, and which one of `Said` it is."""

    key: str
    value: int

    def __str__(self) -> str:
        return str(self.value)


@dataclass(frozen=True)
class Said:
    """Counts of the sites' verdicts on the mapper against the Gaussian.

    Attributes:
        helped: harder to tell from the site's own volumes.
        harmed: easier.
        undecided: neither was shown, or the site has too few patients.
        silent: sites that were asked and gave no verdict.
    """

    helped: int
    harmed: int
    undecided: int
    silent: int

    @property
    def number(self) -> int:
        """How many sites were asked."""
        return self.helped + self.harmed + self.undecided + self.silent

    @property
    def source(self) -> Source:
        """What ships: the mapper if at least one site said helped and none said harmed."""
        return "mapper" if self.helped and not self.harmed else "gaussian"


@dataclass(frozen=True)
class Shipped:
    """What a run releases.

    Attributes:
        source: the Gaussian alone, or with the mapper's residual.
        said: what the sites said; None where none was asked, because of noise.
        withheld: whether they were asked, and what they said is not told here.
    """

    source: Source
    said: Said | None
    withheld: bool = False

    @property
    def sentence(self) -> str:
        """One sentence for a reader."""
        return "".join(str(part) for part in self.parts)

    @property
    def parts(self) -> tuple[str | Number, ...]:
        """The same in pieces: text, and numbers with where they are from."""
        opening = _MAPPER if self.source == "mapper" else _GAUSSIAN
        if self.withheld:
            return (f"{opening}, as the sites' verdicts decided. What they said stays with them.",)
        if self.said is None:
            return (
                f"{_GAUSSIAN}: this plan protects patients by noise, and a site's verdict on the "
                "mapper would be a release without noise, so none was asked for.",
            )
        said = self.said
        silent = (", ", Number("silent", said.silent), " gave no verdict") if said.silent else ()
        return (
            f"{opening}: ",
            Number("helped", said.helped),
            " of the sites found the mapper's volumes harder to tell from their own than the "
            "Gaussian's, ",
            Number("harmed", said.harmed),
            " easier, ",
            Number("undecided", said.undecided),
            " could not decide",
            *silent,
            ".",
        )


def count(verdicts: Iterable[Verdict], *, asked: int) -> Said:
    """Count the verdicts of the sites.

    Args:
        verdicts: of those that gave one.
        asked: how many were asked.
    """
    found = Counter(verdicts)
    return Said(
        helped=found["helped"],
        harmed=found["harmed"],
        undecided=found["undecided"],
        silent=asked - found.total(),
    )
