"""What a real federation costs beyond training: three sites on 127.0.0.1, TLS on.

`python -m tests.federation.measure` provisions and runs it with the real commands and prints
one table. Seconds of a shared machine are noisy: the sites' own time is taken from their own
logs in the same run, and every figure comes with its bound.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from lift.process import prepare_process

# as every process of ours, before torch is imported
prepare_process()

from tests.end_to_end.tiny_run import command, make_tiny_run  # noqa: E402
from tests.federation.browsers import BROWSERS, cpu_share, running_page  # noqa: E402
from tests.federation.overhead import SITES, measured, overhead_table  # noqa: E402
from tests.federation.world import Federation, add_north, children, until  # noqa: E402

ROUNDS = 200
EARLY_ROUND = 20
BROWSE_S = 30.0
_TIME = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) ")
Row = tuple[str, str, str, str]


def main() -> None:
    """Measure everything and print the table."""
    console = Console(stderr=True)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        console.print("making volumes and a generator")
        tiny = make_tiny_run(Path(folder) / "volumes")
        add_north(tiny)
        federation = Federation(Path(folder) / "federation", tiny)
        federation.folder.mkdir()
        try:
            federation.make(federation={"rounds": ROUNDS, "deadline_s": 120.0})
            console.print("commands that need no torch")
            rows += _commands(federation)
            console.print(f"{ROUNDS} rounds of three sites")
            rows += _rounds(federation, console)
        finally:
            federation.close()
        console.print("sites that answer at once")
        overhead = overhead_table([measured(number, console) for number in SITES])
        console.print("a hundred browsers on the live page")
        rows += _browsers(Path(folder) / "live")
    table = Table(title="a real federation on 127.0.0.1")
    for heading in ("figure", "value", "bound", "what it is"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*row)
    terminal = Console(file=sys.stdout, width=110)
    terminal.print(table)
    terminal.print(overhead)


def _commands(federation: Federation) -> list[Row]:
    """Seconds of each command that needs no torch, best of three."""
    site = federation.site("east")
    settings = site / "site.yaml"
    config = federation.server / "server.yaml"
    scratch = federation.folder / "scratch"
    cases: dict[str, Callable[[int], tuple[str | Path, ...]]] = {
        "lift-server --help": lambda _: ("lift-server", "--help"),
        "lift-server init": lambda i: ("lift-server", "init", scratch / f"s{i}", "--host", "a.b"),
        "lift-server add-site": lambda i: (
            "lift-server", "add-site", scratch / f"s{i}", "x", scratch / f"c{i}" / "site.pub"
        ),
        "lift-server remove-site": lambda i: ("lift-server", "remove-site", scratch / f"s{i}", "x"),
        "lift-server status": lambda _: ("lift-server", "status", federation.server),
        "lift-server check": lambda _: ("lift-server", "check", "--config", config),
        "lift-client --help": lambda _: ("lift-client", "--help"),
        "lift-client enroll": lambda i: (
            "lift-client", "enroll", "x", "--folder", scratch / f"c{i}"
        ),
        "lift-client journal": lambda _: ("lift-client", "journal", "--site", settings),
        "lift-client check": lambda _: ("lift-client", "check", "--site", settings),
    }  # fmt: skip
    order = sorted(cases, key=lambda name: ("init" not in name, "enroll" not in name))
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for repeat in range(3):
        for name in order:
            words = command(*map(str, cases[name](repeat)))
            began = time.perf_counter()
            subprocess.run(words, capture_output=True, check=False, timeout=60)
            seconds[name].append(time.perf_counter() - began)
    rows = []
    for name in cases:
        # it loads the generator and asks torch for the device
        bound, what = ("", "; with torch") if name == "lift-client check" else ("<= 1.5 s", "")
        value = f"{min(seconds[name]):.2f} s"
        rows.append((name, value, bound, f"from the shell and back, best of three{what}"))
    return rows


def _rounds(federation: Federation, console: Console) -> list[Row]:
    server = federation.start_server()
    federation.start_sites()
    memory: dict[int, tuple[int, int]] = {}
    for number in (EARLY_ROUND, ROUNDS - 1):
        _until_round(federation, number)
        superlink = next(c for c in children(server.pid) if "superlink" in _command_line(c))
        memory[number] = (_resident_kb(server.pid), _resident_kb(superlink))
        console.print(f"round {number}")
    assert federation.wait_server(120) == 0, federation.log("server")
    log = (federation.server / "state" / "log.txt").read_text(encoding="utf-8")
    ends = [_at(line) for line in log.splitlines() if "event=round_done" in line]
    joined = max(_at(line) for line in log.splitlines() if "event=site_connected" in line)
    own = [
        max(times)
        for times in zip(*(_own_seconds(federation, s) for s in federation.sites), strict=True)
    ]
    waits = [
        (later - earlier).total_seconds() - seconds
        for earlier, later, seconds in zip(ends[1:], ends[2:], own[1:], strict=False)
    ]
    rows: list[Row] = [
        (
            "overhead of a round",
            f"{median(waits):.2f} s",
            "<= 1.5 s",
            "from a round's end to the next one's, less the slowest site's own seconds; "
            f"median of {len(waits)} (95%: {sorted(waits)[int(0.95 * len(waits))]:.2f} s; "
            f"the slowest site's own: {median(own):.2f} s)",
        ),
        (
            "first round",
            f"{(ends[1] - joined).total_seconds():.2f} s",
            "<= 8 s",
            "from the last site's joining to the end of the first training round",
        ),
    ]
    for place, name in enumerate(("server", "SuperLink")):
        early, late = (memory[number][place] for number in sorted(memory))
        rows.append(
            (
                f"memory of the {name}",
                f"{late / early - 1:+.1%}",
                "<= 5%" if place == 0 else "",
                f"resident after round {ROUNDS - 1} ({late / 1024:.0f} MB) against after round "
                f"{EARLY_ROUND} ({early / 1024:.0f} MB)",
            )
        )
    return rows


def _browsers(folder: Path) -> list[Row]:
    with running_page(folder) as (pid, address):
        share, answered = cpu_share(pid, address, BROWSE_S)
    what = f"of one core, for {answered} answers to {BROWSERS} browsers in {BROWSE_S:.0f} s"
    return [("live page", f"{share:.1%}", "<= 5%", what)]


def _own_seconds(federation: Federation, site: str) -> list[float]:
    """Of each training request, in order, from the site's own log."""
    log = (federation.site(site) / "work" / "log.txt").read_text(encoding="utf-8")
    return [float(s) for s in re.findall(r"event=answered .*kind=train .*seconds=([\d.]+)", log)]


def _until_round(federation: Federation, number: int) -> None:
    until(lambda: len(federation.records()) > number, 600, f"round {number}")


def _at(line: str) -> datetime:
    found = _TIME.match(line)
    assert found is not None, line
    return datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S,%f")


def _resident_kb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0])


def _command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8")


if __name__ == "__main__":
    main()
