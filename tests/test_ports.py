"""Ports of tests that run side by side."""

from __future__ import annotations

import pytest

from tests.ports import port_range


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_no_two_workers_draw_from_the_same_ports(workers: int) -> None:
    ranges = [
        port_range({"PYTEST_XDIST_WORKER": f"gw{place}", "PYTEST_XDIST_WORKER_COUNT": str(workers)})
        for place in range(workers)
    ]
    drawn = [port for ports in ranges for port in ports]
    assert len(set(drawn)) == len(drawn) > 10_000
    # Linux gives the ports above to outgoing connections
    assert min(drawn) > 1024
    assert max(drawn) < 32_768


def test_one_process_alone_draws_from_all_of_them() -> None:
    assert len(port_range({})) > 10_000
