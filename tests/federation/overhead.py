"""What the exchange itself costs: a real server, and sites that answer at once.

`python -m tests.federation.overhead [SITES...]` prints one table; without numbers, 3, 12 and 50.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Final

from rich.console import Console
from rich.table import Table

from lift.process import prepare_process

prepare_process()

from tests.end_to_end.tiny_run import make_tiny_run  # noqa: E402
from tests.federation.world import PROJECT, Federation, children, run, until  # noqa: E402

SITES: Final = (3, 12, 50)
ROUNDS: Final = 20
SETTLED: Final = 5
"""Rounds that are not counted: the sites' processes are warm after them."""
_TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Overhead:
    """One federation.

    Attributes:
        sites: how many.
        round_s: median seconds of a round.
        slowest_s: of the slowest of twenty rounds.
        first_s: from the last site's joining to the end of the first training round.
        server_cpu_s: CPU seconds of the server's processes by site and round.
        site_cpu_s: of a site's network process, by round.
        superlink_mb: resident memory of the server's network process.
        site_mb: of one site's network process.
    """

    sites: int
    round_s: float
    slowest_s: float
    first_s: float
    server_cpu_s: float
    site_cpu_s: float
    superlink_mb: float
    site_mb: float


def main() -> None:
    """Measure and print."""
    numbers = [int(word) for word in sys.argv[1:]] or list(SITES)
    console = Console(stderr=True)
    table = overhead_table([measured(number, console) for number in numbers])
    Console(file=sys.stdout, width=110).print(table)


def overhead_table(rows: list[Overhead]) -> Table:
    """One row by number of sites."""
    table = Table(title=f"overhead of a round without any training, {ROUNDS} rounds on 127.0.0.1")
    headings = (
        "sites", "a round", "slowest", "first round", "server's CPU\nby site and round",
        "site's CPU\nby round", "server's network\nprocess", "site's network\nprocess",
    )  # fmt: skip
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            str(row.sites),
            f"{row.round_s:.2f} s",
            f"{row.slowest_s:.2f} s",
            f"{row.first_s:.2f} s",
            f"{row.server_cpu_s:.3f} s",
            f"{row.site_cpu_s:.3f} s",
            f"{row.superlink_mb:.0f} MB",
            f"{row.site_mb:.0f} MB",
        )
    return table


def measured(number: int, console: Console) -> Overhead:
    """A federation of so many sites, from provisioning to its end.

    Args:
        number: how many.
        console: is told how far it is.
    """
    names = tuple(f"site-{i:02d}" for i in range(number))
    with tempfile.TemporaryDirectory() as folder:
        federation = Federation(Path(folder), make_tiny_run(Path(folder) / "volumes"), names[:1])
        federation.make(federation={"rounds": ROUNDS, "deadline_s": 120.0})
        for name in names[1:]:
            _enrol(federation, name)
        words = [sys.executable, "-m", "tests.federation.fake_sites", folder, *names]
        sites = subprocess.Popen(words, cwd=PROJECT, stdin=subprocess.DEVNULL)
        try:
            until(lambda: len(children(sites.pid)) == number, 300, "the sites' processes")
            # they import Flower, and the server is not measured beside that
            time.sleep(2.0 * number + 5)
            server = federation.start_server()
            return _rounds(federation, server.pid, sites.pid, number, console)
        finally:
            sites.terminate()
            sites.wait(120)
            federation.close()


def _rounds(
    federation: Federation, server: int, sites: int, number: int, console: Console
) -> Overhead:
    until(lambda: len(federation.records()) > SETTLED, 300, "the first rounds")
    before = _cpu_s(server), _sum(_cpu_s, children(server)), _sum(_cpu_s, children(sites))
    first = len(federation.records())
    until(lambda: len(federation.records()) > ROUNDS - 1, 600, "the last rounds")
    after = _cpu_s(server), _sum(_cpu_s, children(server)), _sum(_cpu_s, children(sites))
    rounds = len(federation.records()) - first
    memory = _sum(_resident_mb, children(server)), _sum(_resident_mb, children(sites)) / number
    console.print(f"{number} sites: {rounds} rounds")
    assert federation.wait_server(120) == 0, federation.log("server")
    log = (federation.server / "state" / "log.txt").read_text(encoding="utf-8")
    ends = [_at(line) for line in log.splitlines() if "event=round_done" in line]
    joined = max(_at(line) for line in log.splitlines() if "event=site_connected" in line)
    seconds = [
        (later - earlier).total_seconds()
        for earlier, later in zip(ends[SETTLED:], ends[SETTLED + 1 :], strict=False)
    ]
    return Overhead(
        sites=number,
        round_s=median(seconds),
        slowest_s=max(seconds),
        first_s=(ends[1] - joined).total_seconds(),
        server_cpu_s=(after[0] + after[1] - before[0] - before[1]) / rounds / number,
        site_cpu_s=(after[2] - before[2]) / rounds / number,
        superlink_mb=memory[0],
        site_mb=memory[1],
    )


def _enrol(federation: Federation, name: str) -> None:
    folder = federation.site(name)
    run("lift-client", "enroll", name, "--folder", folder)
    run("lift-server", "add-site", federation.server, name, folder / "site.pub")
    shutil.copytree(federation.server / "kits" / name, folder / "kit")


def _sum(figure: Callable[[int], float], processes: list[int]) -> float:
    return sum(figure(pid) for pid in processes)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _resident_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _at(line: str) -> datetime:
    return datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f")


if __name__ == "__main__":
    main()
