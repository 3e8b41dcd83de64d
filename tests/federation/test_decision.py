"""A round that misses its quorum waits for the coordinator instead of ending the run."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.end_to_end.tiny_run import command
from tests.federation.world import Federation, run, until


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_server_waits_for_a_decision_and_goes_on_without_a_site(federation: Federation) -> None:
    federation.make(federation={"rounds": 3, "deadline_s": 60.0})
    federation.write_server(federation.server_settings() | {"decision_within_s": 300.0})
    federation.break_site("west", "patient-12345")
    refused = subprocess.run(
        command("lift-server", "go-on", federation.server),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert refused.returncode == 2
    assert "no server waits for a decision" in refused.stderr
    federation.start_server()
    federation.start_sites()
    waits = "waiting for a decision"
    until(lambda: waits in federation.log("server"), 120, waits)
    assert "west (data)" in federation.log("server")
    status = json.loads(run("lift-server", "status", federation.server, "--json"))
    assert status["phase"] == "decision"
    assert "go-on" in status["summary"]
    # the same sites are asked again, and the same one fails
    run("lift-server", "go-on", federation.server)
    until(lambda: federation.log("server").count(waits) == 2, 90, "the second wait")
    run("lift-server", "go-on", federation.server, "--without", "west")
    assert federation.wait_server(120) == 0, federation.log("server")
    records = federation.records()
    assert [record["round"] for record in records[:4]] == [0, 1, 2, 3]
    assert all(sorted(record["counted"]) == ["east", "north"] for record in records[:4])
