"""One Hypothesis profile, one thread count, and the folder of real volumes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "lift",
    derandomize=True,
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("lift")
torch.set_num_threads(2)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real volumes; its absence is said plainly, never passed over."""
    folder = Path(os.environ.get("LIFT_TEST_DATA", "../shared/data"))
    if not folder.is_dir():
        pytest.skip(f"REAL DATA ABSENT: '{folder}' is no folder; set LIFT_TEST_DATA to test on it")
    return folder
