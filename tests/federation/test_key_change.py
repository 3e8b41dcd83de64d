"""A site changes its key as SECURITY.md says: the federation goes on, and so does its budget."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lift_client.gate.ledger import LEDGER_FILE, verify
from tests.end_to_end.tiny_run import TinyRun
from tests.federation.test_privacy import DELTA, PRIVACY
from tests.federation.world import Federation, run

SITE = "east"
CAP = 20.0


def _finish(made: Federation, output: str) -> dict[str, object]:
    """A run with the site, to its end; its last round."""
    made.write_server({**made.server_settings(), "output": output})
    made.start_server()
    made.start_site(SITE)
    assert made.wait_server(120) == 0, made.log("server")
    made.kill(SITE)
    lines = (made.server / output / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    return dict(json.loads(lines[-1]))


@pytest.fixture
def made(volumes: TinyRun, tmp_path: Path) -> Federation:
    federation = Federation(tmp_path, volumes, sites=())
    federation.make(
        privacy=PRIVACY,
        mixer__contrast="none",
        federation__rounds=1,
        federation__quorum_sites=1,
    )
    return federation


@pytest.mark.slow
def test_after_a_change_of_the_key_the_budget_goes_on_where_it_was(
    made: Federation, tmp_path: Path
) -> None:
    budget = {"epsilon": CAP, "delta": DELTA, "mark": str(tmp_path / "mark.json")}
    changes = {"budget": budget, "policy__privacy_modes": ["patient-local"]}
    made.enrol(SITE, **changes)
    run("lift-client", "ledger", "--create", "--site", made.site(SITE) / "site.yaml")
    try:
        assert _finish(made, "first")["counted"] == {SITE: 1.0}
        old = made.site(SITE).rename(tmp_path / "old")
        before = verify(old / "work" / LEDGER_FILE)
        run("lift-server", "remove-site", made.server, SITE)
        made.enrol(SITE, **changes)
        adopted = ("ledger", "--adopt", old / "work" / LEDGER_FILE)
        run("lift-client", *adopted, "--site", made.site(SITE) / "site.yaml")
        settings = made.server_settings()
        made.write_server({**settings, "plan": {**settings["plan"], "seed": 4}})
        assert _finish(made, "second")["counted"] == {SITE: 1.0}
        after = verify(made.site(SITE) / "work" / LEDGER_FILE, expected_head=before.head)
        assert len(after.runs) == 2
        assert after.epsilon() > before.epsilon() > 0
        (heads,) = made.server.rglob("ledger-heads.json")
        assert json.loads(heads.read_text()) == {SITE: after.head}
        # whoever goes on with the old folder has no ledger
        assert not (old / "work" / LEDGER_FILE).exists()
    finally:
        made.close()
