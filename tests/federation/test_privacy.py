"""Patient-level privacy over real processes and TLS: the budget is the hospital's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lift_client.gate.ledger import verify
from tests.end_to_end.tiny_run import TinyRun
from tests.federation.world import Federation, run

SITES = ("east", "west")
DELTA = 1e-4
PRIVACY = {
    "mode": "patient-local",
    "delta": DELTA,
    "public_patients": 4,
    "clip_norm": 0.05,
    "noise_multiplier": 4.0,
    "sampling_rate": 0.5,
    "gain": {"noise_multiplier": 4.0},
}
POOR = "west"


@pytest.fixture(scope="module")
def ended(volumes: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A run of two rounds in which one site's budget does not cover the plan."""
    made = Federation(tmp_path_factory.mktemp("privacy"), volumes, sites=())
    try:
        made.make(
            privacy=PRIVACY,
            mixer__contrast="none",
            federation__rounds=2,
            federation__quorum_sites=1,
            federation__quorum_patients=0.4,
        )
        for name in SITES:
            made.enrol(
                name,
                budget={
                    "epsilon": 0.5 if name == POOR else 20.0,
                    "delta": DELTA,
                    # the volumes are those of other tests too
                    "mark": "mark.json",
                },
                policy__privacy_modes=["patient-local"],
            )
            run("lift-client", "ledger", "--create", "--site", made.site(name) / "site.yaml")
        made.sites = SITES
        made.start_server()
        made.start_sites()
        assert made.wait_server(120) == 0, made.log("server")
        # the other one stays up; what it left is looked at
        made.kill("east")
        yield made
    finally:
        made.close()


def test_a_spent_budget_stops_the_client_with_its_own_exit_code(ended: Federation) -> None:
    assert ended.processes[POOR].wait(30) == 5, ended.log(POOR)
    assert "privacy budget" in ended.log(POOR)
    # refused before a volume was read
    assert not (ended.site(POOR) / "work" / "split.json").exists()
    assert verify(ended.site(POOR) / "work" / "ledger.jsonl").epsilon() == 0


def test_the_coordinator_learns_one_word(ended: Federation) -> None:
    records = ended.records()
    assert records[0]["refused"] == {POOR: "budget"}
    assert set(records[1]["counted"]) == {"east"}
    seen = ended.log("server") + "".join(
        path.read_text(errors="replace") for path in ended.out.rglob("*.json*")
    )
    assert str(ended.site(POOR)) not in seen


def test_the_server_keeps_the_ledgers_head(ended: Federation) -> None:
    (path,) = ended.server.rglob("ledger-heads.json")
    heads = json.loads(path.read_text())
    book = verify(ended.site("east") / "work" / "ledger.jsonl")
    assert heads == {"east": book.head}
    assert [item.count for item in book.reservations.values()] == [2, 2, 1]


def test_the_noisy_gain_is_journaled_and_stands_in_the_record(ended: Federation) -> None:
    journal = (ended.site("east") / "work" / "journal.jsonl").read_text().splitlines()
    last = [line for line in map(json.loads, journal) if line["kind"] == "guard"]
    assert [[tensor["name"] for tensor in line["tensors"]] for line in last] == [["gain_sums"]]
    assert "Noisy sum of the clipped gains" in last[0]["purpose"]
    record = json.loads((ended.out / "run.json").read_text())
    # whoever has no budget is not asked; so few patients are hidden by the noise
    assert record["gain"]["sites"] == 1
    assert record["gain"]["verdict"] == "undecided"
    assert record["guard"] == {}


def test_the_ledger_can_be_read_and_a_run_asked_for(ended: Federation, tmp_path: Path) -> None:
    site = ended.site("east") / "site.yaml"
    table = run("lift-client", "ledger", "--site", site)
    assert "steps" in table
    assert "gain" in table
    assert "complete: 8 lines" in table
    planned = tmp_path / "dry.json"
    planned.write_text(
        run("lift-server", "--config", ended.server / "server.yaml", "--dry-run"),
        encoding="utf-8",
    )
    asked = run("lift-client", "ledger", "--site", site, "--plan", planned)
    # this very plan was paid already
    spent = json.loads(run("lift-client", "ledger", "--site", site, "--json"))["epsilon"]
    assert f"after this plan: epsilon {spent:.4f} of 20: fits" in asked


def test_a_cap_changes_only_with_a_reason_and_stays_on_record(ended: Federation) -> None:
    site = ended.site(POOR) / "site.yaml"
    told = run(
        "lift-client", "ledger", "--site", site, "--raise", "30", "--reason", "agreed with the DPO"
    )
    assert "cap: 30" in told
    lines = (ended.site(POOR) / "work" / "ledger.jsonl").read_text().splitlines()
    assert "agreed with the DPO" in lines[-1]
