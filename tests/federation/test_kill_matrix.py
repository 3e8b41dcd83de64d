"""`kill -9` of every process at every step of a round: the same commands, the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.end_to_end.tiny_run import TinyRun
from tests.federation.deaths import (
    SITES,
    check_that_it_cost_nothing,
    check_that_it_shows,
    run_to_its_end,
    schedule_of,
)
from tests.federation.schedule import LOSING, SERVER_POINTS, SITE_POINTS, VICTIMS, Death
from tests.federation.world import Federation, simulate

POINTS = (*SITE_POINTS, *SERVER_POINTS)
# from here on: what a resume restores is more than the start
FIRST = 2
# a round for each victim, and one before and one after that nobody disturbs
ROUNDS = FIRST + len(VICTIMS)
PLAN = {"rounds": ROUNDS, "deadline_s": 200.0}


@pytest.fixture(scope="module")
def expected(volumes: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The undisturbed result, from the simulation."""
    folder = tmp_path_factory.mktemp("expected")
    federation = Federation(folder, volumes, sites=SITES)
    federation.make(federation=PLAN)
    return (simulate(federation, folder) / "mixer.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_four_killed_processes_cost_time_and_nothing_else(
    federation: Federation, expected: bytes, point: str, tmp_path: Path
) -> None:
    deaths = [Death(place, victim) for place, victim in enumerate(VICTIMS, start=FIRST)]
    _kill(federation, expected, point, deaths, tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize("point", POINTS)
def test_a_killed_process_costs_time_and_nothing_else(
    federation: Federation, expected: bytes, victim: str, point: str, tmp_path: Path
) -> None:
    _kill(federation, expected, point, [Death(FIRST, victim)], tmp_path)


@pytest.mark.slow
def test_an_answer_that_was_lost_on_its_way_to_a_living_child_is_asked_for_again(
    federation: Federation, expected: bytes, tmp_path: Path
) -> None:
    federation.sites = SITES
    federation.make(federation=PLAN)
    lost = Death(FIRST, "answer")
    schedule = schedule_of(federation, LOSING, [lost], tmp_path / "schedule")
    federation.start_server()
    federation.start_site("east", killing=schedule.folder)
    federation.start_site("north")
    assert federation.wait_server(150) == 0, federation.log("server")
    check_that_it_cost_nothing(federation, ROUNDS, expected)
    assert federation.records()[lost.round]["sent_again"] == {"east": 1}
    site_log = schedule.logs["east"].read_text(encoding="utf-8")
    assert site_log.count("event=answer_not_delivered") == 1
    assert site_log.count("event=connection_given_up") == 1


def _kill(
    federation: Federation, expected: bytes, point: str, deaths: list[Death], folder: Path
) -> None:
    federation.sites = SITES
    federation.make(federation=PLAN)
    schedule = schedule_of(federation, point, deaths, folder / "schedule")
    run_to_its_end(federation, schedule)
    check_that_it_cost_nothing(federation, ROUNDS, expected)
    check_that_it_shows(federation, schedule)
