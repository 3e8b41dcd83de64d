"""`kill -9` of every process at every step of a round: the same commands, the same bits."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.end_to_end.tiny_run import TinyRun
from tests.federation.killing import LOSING, SERVER_POINTS, SITE_POINTS
from tests.federation.world import Federation, simulate, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
VICTIMS = ("server", "superlink", "site", "supernode")
ROUND = 2


@pytest.fixture(scope="module")
def expected(volumes: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The undisturbed result, from the simulation."""
    folder = tmp_path_factory.mktemp("expected")
    federation = Federation(folder, volumes, sites=("east", "north"))
    federation.make(federation={"rounds": 3, "deadline_s": 200.0})
    return (simulate(federation, folder) / "mixer.safetensors").read_bytes()


@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize("point", [*SITE_POINTS, *SERVER_POINTS])
def test_a_killed_process_costs_time_and_nothing_else(
    federation: Federation, expected: bytes, victim: str, point: str, tmp_path: Path
) -> None:
    federation.sites = ("east", "north")
    federation.make(federation={"rounds": 3, "deadline_s": 200.0})
    target = tmp_path / "victim"
    striker = "server" if point in SERVER_POINTS else "east"
    arguments = (point, str(ROUND), str(target))
    federation.start_server(killing=arguments if striker == "server" else None)
    federation.start_site("east", killing=arguments if striker == "east" else None)
    federation.start_site("north")
    name = "server" if victim in {"server", "superlink"} else "east"
    child = victim in {"superlink", "supernode"}
    pid = federation.processes[name].pid
    target.write_text(f"{pid}\n{'child' if child else ''}\n", encoding="ascii")

    _until_fired(target, federation)
    if not child:
        assert federation.processes[name].wait(30) == -9
        # the same command again
        if name == "server":
            federation.start_server()
        else:
            federation.start_site("east")

    assert federation.wait_server(250) == 0, federation.log("server")
    assert (federation.out / "mixer.safetensors").read_bytes() == expected
    records = federation.records()
    assert [record["round"] for record in records] == [0, 1, 2, 3]
    assert all(set(record["counted"]) == {"east", "north"} for record in records)
    _check_that_it_shows(federation, victim, point)


def test_an_answer_that_was_lost_on_its_way_to_a_living_child_is_asked_for_again(
    federation: Federation, expected: bytes, tmp_path: Path
) -> None:
    federation.sites = ("east", "north")
    federation.make(federation={"rounds": 3, "deadline_s": 200.0})
    federation.start_server()
    federation.start_site("east", killing=(LOSING, str(ROUND), str(tmp_path / "nobody")))
    federation.start_site("north")
    assert federation.wait_server(150) == 0, federation.log("server")
    assert (federation.out / "mixer.safetensors").read_bytes() == expected
    assert federation.records()[ROUND]["sent_again"] == {"east": 1}
    site_log = (federation.site("east") / "work" / "log.txt").read_text(encoding="utf-8")
    assert site_log.count("event=answer_not_delivered") == 1
    assert site_log.count("event=connection_given_up") == 1


def test_with_absences_it_equals_a_simulation_of_the_recorded_participation(
    federation: Federation, tmp_path: Path
) -> None:
    federation.make(
        federation={"rounds": 25, "deadline_s": 12.0, "quorum_sites": 2, "quorum_patients": 0.5}
    )

    def counted() -> list[set[str]]:
        return [set(record["counted"]) for record in federation.records()]

    federation.start_server()
    federation.start_site("east")
    federation.start_site("north")
    # one comes when the statistics are closed, another dies and comes back
    until(lambda: bool(counted()), 120, "the statistics")
    federation.start_site("west")
    until(lambda: "west" in counted()[-1], 60, "a round with the late site")
    federation.kill("east")
    until(lambda: "east" not in counted()[-1], 60, "a round without the killed site")
    federation.start_site("east")

    assert federation.wait_server(250) == 0, federation.log("server")
    records = federation.records()
    assert records[0]["refused"] == {"west": "no_answer"}
    assert "east" in records[-1]["counted"]
    repeated = simulate(federation, tmp_path, participation=federation.out / "rounds.jsonl")
    expected = (repeated / "mixer.safetensors").read_bytes()
    assert (federation.out / "mixer.safetensors").read_bytes() == expected
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    everyone = simulate(federation, undisturbed)
    assert expected != (everyone / "mixer.safetensors").read_bytes()


def _check_that_it_shows(federation: Federation, victim: str, point: str) -> None:
    """What happened stands in the record or the log of those who had to do with it."""
    records = federation.records()
    log = (federation.server / "state" / "log.txt").read_text(encoding="utf-8")
    if victim == "server":
        # killed inside a round, it begins that round again
        assert [bool(record.get("resumed")) for record in records] == [False, False, True, False]
    elif victim == "superlink":
        assert "event=superlink_restarted" in log
        assert not any(record.get("resumed") for record in records)
    else:
        # whether the server looked between the two connections is chance
        lost = log.find("event=site_lost site=east")
        came_back = lost >= 0 and "event=site_connected site=east" in log[lost:]
        assert came_back or "event=site_reconnected site=east" in log
        site_log = (federation.site("east") / "work" / "log.txt").read_text(encoding="utf-8")
        # the code is the signal's: a child that came before the server ends by itself, with 1
        killed = "event=connection_ended code=-9"
        again = killed if victim == "supernode" else "event=started"
        assert site_log.count(again) == (1 if victim == "supernode" else 2)
    if victim in {"site", "supernode"} and point in {"before_training", "while_training"}:
        # what was in flight to the old connection was lost
        assert records[ROUND]["sent_again"] == {"east": 1}


def _until_fired(target: Path, federation: Federation) -> None:
    end = time.monotonic() + 120
    while not target.with_suffix(".fired").exists():
        assert time.monotonic() < end, federation.log("server") + federation.log("east")
        assert federation.processes["server"].poll() is None, federation.log("server")
        time.sleep(0.05)
