"""A federation whose processes die by a schedule, and what must be seen of each death."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.federation.schedule import VICTIMS, Death, Schedule
from tests.federation.world import Federation

SITES = ("east", "north")
_LOST = "event=site_lost site=east"
_CONNECTED = "event=site_connected site=east"
_RECONNECTED = "event=site_reconnected site=east"
_NOT_SENT = ("before_training", "while_training", "while_sending")
"""Points at which the answer of the round has not left the site's own process."""


def schedule_of(
    federation: Federation, point: str, deaths: Sequence[Death], folder: Path
) -> Schedule:
    """Write down who dies when, in `folder`."""
    logs = {
        "server": federation.server / "state" / "log.txt",
        "east": federation.site("east") / "work" / "log.txt",
    }
    schedule = Schedule(folder, point, deaths, logs)
    schedule.write()
    return schedule


def run_to_its_end(federation: Federation, schedule: Schedule) -> None:
    """Start everything; give each command again whose process was killed."""
    for name in ("server", *SITES):
        _start(federation, schedule, name)
    for death in schedule.deaths:
        _until_it_has_been(federation, schedule, death)
        name, is_child = VICTIMS[death.victim]
        if not is_child:
            assert federation.processes[name].wait(30) == -9
            _start(federation, schedule, name)
    assert federation.wait_server(250) == 0, federation.log("server")


def check_that_it_cost_nothing(federation: Federation, rounds: int, expected: bytes) -> None:
    """The undisturbed bits, and every site in every round."""
    assert (federation.out / "mixer.safetensors").read_bytes() == expected
    records = federation.records()
    assert [record["round"] for record in records] == list(range(rounds + 1))
    assert all(set(record["counted"]) == set(SITES) for record in records)


def check_that_it_shows(federation: Federation, schedule: Schedule) -> None:
    """What happened stands in the record or the log of those who had to do with it."""
    of = {death.victim: death for death in schedule.deaths}
    _check_the_servers(federation, schedule, of.get("server"), of.get("superlink"))
    site, supernode = of.get("site"), of.get("supernode")
    site_log = schedule.logs["east"].read_text(encoding="utf-8")
    assert site_log.count("event=started") == (1 if site is None else 2)
    # the code is the signal's: a child that came before the server ends by itself, with 1
    assert site_log.count("event=connection_ended code=-9") == (0 if supernode is None else 1)
    if site is not None:
        _check_that_the_site_came_back(schedule, site, until=supernode)
    if supernode is not None:
        assert "event=connection_ended code=-9" in schedule.log_since("east", supernode)
        _check_that_the_site_came_back(schedule, supernode, until=None)
    if schedule.point in _NOT_SENT:
        _check_that_it_was_sent_again(federation, schedule, site, supernode)


def _check_the_servers(
    federation: Federation, schedule: Schedule, server: Death | None, superlink: Death | None
) -> None:
    # killed inside a round, it begins that round again
    resumed = [record["round"] for record in federation.records() if record.get("resumed")]
    assert resumed == ([] if server is None else [server.round])
    log = schedule.logs["server"].read_text(encoding="utf-8")
    again = 0 if superlink is None else 1
    assert log.count("event=superlink_ended code=-9") == again
    assert log.count("event=superlink_restarted") == again
    if superlink is not None:
        assert "event=superlink_restarted" in schedule.log_since("server", superlink)


def _check_that_the_site_came_back(schedule: Schedule, death: Death, until: Death | None) -> None:
    seen = schedule.log_since("server", death, until)
    # whether the server looked between the two connections is chance
    lost = seen.find(_LOST)
    came_back = lost >= 0 and _CONNECTED in seen[lost:]
    assert came_back or _RECONNECTED in seen, (death, seen)


def _check_that_it_was_sent_again(
    federation: Federation, schedule: Schedule, site: Death | None, supernode: Death | None
) -> None:
    """What was in flight to the old connection was lost."""
    for death in (site, supernode):
        if death is None:
            continue
        again = federation.records()[death.round]["sent_again"]
        assert again == _resent(schedule, death.round), death
        # after the SuperLink's death in an earlier round a site may connect anew in this one
        assert again["east"] >= 1, death
        assert again == {"east": 1} or len(schedule.deaths) > 1, death
    if supernode is not None:
        # the site's own process lives on and has nobody to hand its answer to
        seen = schedule.log_since("east", supernode)
        assert seen.count("event=answer_not_delivered") == 1


def _resent(schedule: Schedule, round_index: int) -> dict[str, int]:
    """How often the server's log says that a request of this round went out again, by site."""
    log = schedule.logs["server"].read_text(encoding="utf-8")
    rounds = log.split("event=round_done round=")
    return dict(Counter(re.findall(r"event=sent_again site=(\w+)", rounds[round_index])))


def _start(federation: Federation, schedule: Schedule, name: str) -> None:
    killing = schedule.folder if name == schedule.striker else None
    if name == "server":
        process = federation.start_server(killing=killing)
    else:
        process = federation.start_site(name, killing=killing)
    schedule.note(name, process.pid)


def _until_it_has_been(federation: Federation, schedule: Schedule, death: Death) -> None:
    end = time.monotonic() + 120
    while not schedule.has_been(death):
        logs = (death, *(federation.log(name) for name in ("server", *SITES)))
        assert time.monotonic() < end, logs
        for name in ("server", *SITES):
            assert federation.processes[name].poll() is None, (name, *logs)
        time.sleep(0.05)
