"""Names of the rows of the mixer, in a light module for readers of a record."""

from __future__ import annotations

from typing import Final, get_args

from lift.config.simulation import PlainMode, PlainNetworkName

MIXER_ROWS: Final = ("federated", "federated_curves")
"""Rows of the mixer that a run trains: on the prediction as it is, or under a site's curves."""
PRIVATE: Final = "private"
"""The mode of a plain network that is trained federated, under noise."""
PLAIN_ROWS: Final = tuple(
    f"{network}_{mode}"
    for network in get_args(PlainNetworkName)
    for mode in (*get_args(PlainMode), PRIVATE)
)
"""Rows of the plain networks: evidence, which no site is offered."""


def of_one_site(row: str) -> bool:
    """Whether a row, or a difference of rows, is of one site's mixer: `METHOD:SITE`."""
    return ":" in row
