"""Parts of `make bench` in their smallest form: they end, and their figures mean what they say."""

from __future__ import annotations

import math

import pytest

from lift_benchmarks.bench import precision


def test_updates_in_half_precision_cost_nearly_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_SITES", {"north": 4, "valley": 4})
    monkeypatch.setattr(precision, "_ROUNDS", 1)
    monkeypatch.setattr(precision, "_STEPS", 1)
    (loss,) = precision.precision_figures()
    assert loss.name == "half_update_psnr_loss_db"
    assert math.isfinite(loss.value)
    assert abs(loss.value) < 0.05
