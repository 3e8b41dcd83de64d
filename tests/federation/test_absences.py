"""Sites that come late, go, and come back: what counts is what the record says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.federation.world import Federation, simulate, until

DEADLINE_S = 12.0


@pytest.mark.slow
def test_with_absences_it_equals_a_simulation_of_the_recorded_participation(
    federation: Federation, tmp_path: Path
) -> None:
    federation.make(
        federation={
            "rounds": 14,
            "deadline_s": DEADLINE_S,
            "quorum_sites": 2,
            "quorum_patients": 0.5,
        }
    )

    def counted() -> list[set[str]]:
        return [set(record["counted"]) for record in federation.records()]

    federation.start_server()
    federation.start_site("east")
    federation.start_site("north")
    # one comes when the statistics are closed, another dies and comes back
    until(lambda: bool(counted()), 120, "the statistics")
    with federation.held("server"):
        # the rounds must not be over before it has begun
        federation.start_site("west")
        until(lambda: "event=connecting" in federation.site_log("west"), 60, "west dials")
    until(lambda: "west" in counted()[-1], 60, "a round with the late site")
    federation.kill("east")
    until(lambda: "east" not in counted()[-1], 60, "a round without the killed site")
    federation.start_site("east")

    assert federation.wait_server(250) == 0, federation.log("server")
    records = federation.records()
    # who stays away is named, and the round closes at the deadline
    assert records[0]["refused"] == {"west": "no_answer"}
    assert records[0]["seconds"] >= DEADLINE_S
    assert "west (no_answer)" in federation.log("server")
    # nobody waits for a site that has never told what it has
    assert records[1]["asked"] == ["east", "north"]
    assert "east" in records[-1]["counted"]
    repeated = simulate(federation, tmp_path, participation=federation.out / "rounds.jsonl")
    expected = (repeated / "mixer.safetensors").read_bytes()
    assert (federation.out / "mixer.safetensors").read_bytes() == expected
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    everyone = simulate(federation, undisturbed)
    assert expected != (everyone / "mixer.safetensors").read_bytes()
