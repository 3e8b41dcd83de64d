"""Faults while rounds go on: the log of the site, or of the server, says the cause and the fix.

One federation runs all the time. Each test leaves its sites as it found them.
"""

from __future__ import annotations

import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lift.cohort.split import read_split
from tests.end_to_end.tiny_run import TinyRun, command, patient_name
from tests.federation.lying import CLAIMED
from tests.federation.test_site_log import START_S, WITHIN_S, await_line, change
from tests.federation.world import Federation, run, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
DECLARED = 12
DEADLINE_S = 240.0
NEWER = """
import lift.protocol.messages as messages
messages.PROTOCOL_VERSION += 1
"""
LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
os.execv(sys.argv[1], sys.argv[1:])
"""


def counted(federation: Federation) -> set[str]:
    records = federation.records()
    return set(records[-1]["counted"]) if records else set()


def await_counted(federation: Federation, *sites: str) -> None:
    """A round in which exactly these sites count."""
    until(lambda: counted(federation) == set(sites), START_S, f"a round of {sites}")


def start(federation: Federation, name: str, *, lying: bool = False, first: str = "") -> None:
    """Start a site, and wait for its connection: no test times how long a program takes to start.

    Args:
        federation: of the site.
        name: of the site.
        lying: see `tests.federation.lying`.
        first: a folder whose `sitecustomize.py` runs before everything else.
    """
    times = federation.site_log(name).count("event=connected")
    federation.start_site(name, lying=lying, PYTHONPATH=first)
    until(
        lambda: federation.site_log(name).count("event=connected") > times,
        START_S,
        f"{name} connects",
    )


def await_server_line(federation: Federation, *texts: str) -> str:
    """A line of the server's log with these texts, which has to come in time."""

    def find() -> list[str]:
        lines = federation.log("server").splitlines()
        return [line for line in lines if all(text in line for text in texts)]

    until(lambda: bool(find()), WITHIN_S, " ".join(texts))
    return find()[-1]


@pytest.fixture(scope="module")
def rounds(volumes: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A federation with a thousand rounds before it, and data of its own; `west` is a liar."""
    made = Federation(tmp_path_factory.mktemp("rounds"), volumes)
    try:
        made.make(
            federation={
                "rounds": 900,
                "deadline_s": DEADLINE_S,
                "grace_s": 1.0,
                "quorum_sites": 2,
                "quorum_patients": 0.5,
            }
        )
        for name in made.sites:
            root = made.folder / "data" / name
            shutil.copytree(volumes.site(name), root)
            change(made, name, data={"layout": "brats", "root": str(root)})
            public = made.site(name) / "site.pub"
            run("lift-server", "add-site", made.server, name, public, "--patients", str(DECLARED))
        made.start_server()
        # the server waits for two of them
        start(made, "west", lying=True)
        made.start_site("east")
        made.start_site("north")
        yield made
    finally:
        made.close()


def data_of(federation: Federation, name: str) -> Path:
    return federation.folder / "data" / name


def test_a_false_claim_is_refused_by_name_and_its_silence_costs_nothing(
    rounds: Federation,
) -> None:
    until(lambda: bool(rounds.records()), START_S, "the statistics")
    line = await_server_line(rounds, "round 0", "not counted: west")
    # with its other patients
    claimed = re.search(r"it claims (\d+) patients", line)
    assert claimed is not None
    assert int(claimed[1]) >= CLAIMED
    assert f"{DECLARED} are declared" in line
    await_counted(rounds, "east", "north")
    rounds.kill("west")
    start(rounds, "west")
    await_counted(rounds, "east", "north", "west")


def test_a_site_that_is_away_is_named_and_costs_seconds(rounds: Federation) -> None:
    await_counted(rounds, "east", "north", "west")
    known = len(rounds.records())
    rounds.kill("west")
    await_server_line(rounds, "lost: west")
    told = "not counted: west (no_answer)"
    until(lambda: told in rounds.log("server"), START_S, told)
    without = next(line for line in rounds.records()[known:] if "west" in line["refused"])
    assert without["refused"]["west"] == "no_answer"
    # by the record's own clock: far below the deadline
    assert without["seconds"] < DEADLINE_S / 2


def test_another_protocol_version_is_told_on_both_sides(rounds: Federation, tmp_path: Path) -> None:
    rounds.kill("west")
    (tmp_path / "sitecustomize.py").write_text(NEWER, encoding="utf-8")
    start(rounds, "west", first=str(tmp_path))
    line = await_line(rounds, "west", "event=request_unreadable kind=version")
    assert "Ask the coordinator which one the federation uses" in line
    await_server_line(rounds, "not counted: west (version)")
    rounds.kill("west")
    start(rounds, "west")
    await_counted(rounds, "east", "north", "west")


def test_a_data_folder_that_is_gone_is_told_and_the_run_goes_on(rounds: Federation) -> None:
    root = data_of(rounds, "east")
    away = root.rename(root.with_name("unmounted"))
    line = await_line(rounds, "east", "event=data_gone site=east cause=data")
    assert "Mount the folder again" in line
    assert str(root) in line
    known = len(rounds.records())
    until(lambda: len(rounds.records()) > known + 1, START_S, "more rounds")
    assert "east" in counted(rounds)
    away.rename(root)
    await_line(rounds, "east", "event=data_back")
    # told once, and as what it is
    assert rounds.site_log("east").count("event=data_gone") == 1
    assert "event=data_changed" not in rounds.site_log("east")


def test_a_new_patient_is_told_and_takes_part_from_the_next_run_on(rounds: Federation) -> None:
    split = rounds.site("north") / "work" / "split.json"
    before = read_split(split)
    added = data_of(rounds, "north") / patient_name(77)
    added.mkdir()
    for file in (data_of(rounds, "north") / patient_name(0)).iterdir():
        shutil.copy(file, added / file.name.replace(patient_name(0), patient_name(77)))
    line = await_line(rounds, "north", "event=data_changed site=north added=[1-9]")
    assert patient_name(77) in line
    assert "from the next run on" in line
    # a client that is started again goes on with the run's patients
    rounds.kill("north")
    start(rounds, "north")
    line = await_line(rounds, "north", "event=patients_not_in_run site=north patients=1")
    assert patient_name(77) in line
    await_counted(rounds, "east", "north", "west")
    assert read_split(split) == before


def test_a_full_disk_is_told_as_that_and_the_site_answers_when_there_is_room(
    rounds: Federation,
) -> None:
    """A limit on the size of files in the place of a disk of that size."""
    rounds.kill("west")
    work = rounds.site("west") / "work"
    shutil.rmtree(work / "cache")
    # room for lines, none for features: whatever the rounds before have written
    for name in ("journal.jsonl", "journal.head", "log.txt"):
        (work / name).unlink()
    pid = rounds.start_site("west").pid
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    until(lambda: "event=asked" in rounds.site_log("west"), START_S, "a request")
    line = await_line(rounds, "west", "event=request_refused site=west .*cache")
    assert "no room" in line or "File too large" in line
    assert "Free disk space" in line
    await_server_line(rounds, "not counted: west (disk)")
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await_counted(rounds, "east", "north", "west")
    assert "Traceback" not in rounds.site_log("west")


def test_a_client_that_can_write_no_file_ends_with_the_code_of_a_full_disk(
    rounds: Federation,
) -> None:
    rounds.kill("west")
    words = command("lift-client", "--site", rounds.site("west") / "site.yaml")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 10, done.stderr
    assert "Traceback" not in done.stderr
    assert "[disk, exit 10]" in done.stderr
    assert "free disk space" in done.stderr
