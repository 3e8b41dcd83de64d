"""One measured figure of the benchmark."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """A name, its value, the bound it is held to (as text, or empty) and what it means."""

    name: str
    value: float
    bound: str
    meaning: str
