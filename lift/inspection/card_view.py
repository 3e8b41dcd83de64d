"""Display of a data card, the same for a site's operator and the coordinator."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from lift.config.card import DataCard, histograms


def show_card(card: DataCard, console: Console) -> None:
    """Print the whole card for a reader: everything that it holds, and nothing else."""
    console.print(
        f"Data card of site '{card.site}', {card.made}. Counts are of persons, rounded down to "
        f"multiples of {card.floor}; what fewer have is not in it. Below, `value: persons`.",
        soft_wrap=True,
    )
    console.print(
        f"{card.persons} persons: {card.usable} usable ({card.warned} with a warning), "
        f"{card.vetoed} not; by the default split {card.train} to train with, {card.validation} "
        f"for validation, {card.test} for tests",
        soft_wrap=True,
    )
    table = Table("", *(f"{channel.channel} ({channel.modality})" for channel in card.channels))
    table.add_row("persons", *(str(channel.persons) for channel in card.channels))
    table.add_row(
        "scanners",
        *(
            ", ".join(f"{cell.vendor}: {cell.persons}" for cell in channel.vendors) or "-"
            for channel in card.channels
        ),
    )
    by_channel = [histograms(channel) for channel in card.channels]
    for row in zip(*by_channel, strict=True):
        cells = (
            ", ".join(f"{cell.value:g}: {cell.persons}" for cell in histogram) or "-"
            for _, histogram in row
        )
        table.add_row(row[0][0], *cells)
    console.print(table)
