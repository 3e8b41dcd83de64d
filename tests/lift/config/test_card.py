"""The data card holds closed words and rounded counts, and refuses anything else."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from lift.config.card import DataCard, vendor_of
from lift.errors import ConfigError
from lift.inspection.card_view import show_card

CARD: dict[str, Any] = {
    "site": "north",
    "made": "2026-11-23",
    "floor": 5,
    "persons": 40,
    "usable": 35,
    "warned": 5,
    "vetoed": 0,
    "train": 25,
    "validation": 5,
    "test": 5,
    "channels": [
        {
            "channel": "t1n",
            "modality": "MR",
            "persons": 35,
            "vendors": [{"vendor": "siemens", "persons": 20}, {"vendor": "ge", "persons": 10}],
            "field_strengths_t": [{"value": 1.5, "persons": 10}, {"value": 3.0, "persons": 20}],
            "slice_spacings_mm": [{"value": 1.0, "persons": 35}],
            "acquired_spacings_mm": [{"value": 5.0, "persons": 15}],
            "slices": [{"value": 160.0, "persons": 30}],
        }
    ],
}


def card(**changes: Any) -> DataCard:
    return DataCard.from_data(CARD | changes, "test")


def test_a_card_shows_everything_that_it_holds() -> None:
    console = Console(width=160, record=True, file=None, quiet=False)
    with console.capture() as capture:
        show_card(card(), console)
    text = capture.get()
    for word in ("north", "2026-11-23", "40 persons", "35 usable", "5 with a warning", "25 to"):
        assert word in text
    for word in ("t1n (MR)", "siemens: 20, ge: 10", "1.5: 10, 3: 20", "5: 15", "160: 30"):
        assert word in text


@pytest.mark.parametrize(
    "changes",
    [
        {"persons": 41},
        {"train": 3},
        {"floor": 1},
        {"site": "Jane Doe, 4th of May"},
        {"made": "yesterday"},
        {"remark": "Jane Doe"},
        {"channels": [CARD["channels"][0] | {"persons": 34}]},
        {"channels": [CARD["channels"][0] | {"vendors": [{"vendor": "Jane", "persons": 5}]}]},
        {"channels": [CARD["channels"][0] | {"slices": [{"value": 1.0, "persons": 1}]}]},
        {"channels": [CARD["channels"][0] | {"slices": [{"value": -1.0, "persons": 5}]}]},
        {"channels": [CARD["channels"][0] | {"slices": [{"value": 1.0, "persons": 5}] * 65}]},
        {"channels": CARD["channels"] * 10},
    ],
)
def test_a_card_with_small_counts_or_free_text_is_refused(changes: dict[str, Any]) -> None:
    card()
    with pytest.raises(ConfigError):
        card(**changes)


@pytest.mark.parametrize(
    ("text", "vendor"),
    [
        ("SIEMENS", "siemens"),
        ("Siemens Healthineers", "siemens"),
        ("GE MEDICAL SYSTEMS", "ge"),
        ("Philips Medical Systems", "philips"),
        ("TOSHIBA_MEC", "canon"),
        ("UIH", "united_imaging"),
        ("Generic, operated by Jane Doe", "other"),
        ("  ", None),
        ("", None),
    ],
)
def test_a_maker_is_one_of_a_closed_list(text: str, vendor: str | None) -> None:
    assert vendor_of(text) == vendor
