"""How a privacy cost is rounded wherever it is shown."""

from __future__ import annotations


def rounded_up(value: float) -> float:
    """Four decimals, never below the value."""
    return value if value in {0.0, float("inf")} else round(value + 5e-5, 4)
