"""Names of the rows of the mixer, in a light module for readers of a record."""

from __future__ import annotations

from typing import Final

MIXER_ROWS: Final = ("federated", "federated_curves")
"""Rows of the mixer that a run trains: on the prediction as it is, or under a site's curves."""


def of_one_site(row: str) -> bool:
    """Whether a row, or a difference of rows, is of one site's mixer: `METHOD:SITE`."""
    return ":" in row
