"""A patient withdraws, by the real commands: at the site, at the coordinator, at a receiver."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import lift_client.cli
import lift_server.cli
from lift.cohort.withdrawn import WITHDRAWN_FILE
from lift.files import file_digest
from lift.release.manifest import MANIFEST_FILE
from tests.end_to_end.test_audit import SITES, Federation, make_federation
from tests.end_to_end.tiny_run import (
    ENTRY_POINTS,
    SOURCES,
    TARGET,
    Outcome,
    TinyRun,
    run_here,
    run_outside,
)

SITE = "east"


@pytest.fixture(scope="module")
def made(tiny: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Federation:
    ENTRY_POINTS["lift-client"] = lift_client.cli.main
    ENTRY_POINTS["lift-server"] = lift_server.cli.main
    found = make_federation(tiny, tmp_path_factory.mktemp("withdrawn"), {"mode": "none"})
    for name in SITES:
        kit = shutil.copytree(found.server / "kits" / name, found.site(name) / "kit") / "kit.json"
        # the coordinator's settings are not those of the simulated run
        told = json.loads(kit.read_text()) | {"task": {"source": SOURCES, "target": TARGET}}
        kit.write_text(json.dumps(told))
    return found


def holding(folder: Path, name: str) -> list[str]:
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if name in path.name or (path.is_file() and name.encode() in path.read_bytes())
    )


def done(program: str, *words: str | Path) -> Outcome:
    outcome = run_here(program, *words)
    assert outcome.code == 0, outcome
    return outcome


def use_everything(made: Federation) -> None:
    """Every command of the site that opens its data."""
    site, mixer = made.site(SITE) / "site.yaml", made.run / "mixer.safetensors"
    assert made.audit(SITE).code == 0
    done("lift-client", "report", "--site", site, "--mixer", mixer)
    done("lift-client", "choose", "--site", site, "--mixer", mixer, "--local-steps", "0")
    # without admission and the rest, which need a server
    run_here("lift-client", "check", "--site", site, "--quick", "--images")


def test_after_a_withdrawal_no_command_of_the_site_uses_the_patient(made: Federation) -> None:
    work, site = made.site(SITE) / "work", made.site(SITE) / "site.yaml"
    use_everything(made)
    test = json.loads((work / "audit" / "split.json").read_text())["test"]
    who, other = test[0], test[1]
    person = who.rpartition("-")[0]
    held = holding(work, person)
    assert "audit/split.json" in held
    assert any(name.startswith("report/synthesis/") for name in held)
    assert any(name.startswith("check/") for name in held)
    cached = len(list(work.glob("cache/*/entry.json")))

    dry = done("lift-client", "withdraw", person, "--site", site, "--dry-run")
    assert holding(work, person) == held
    told = done("lift-client", "withdraw", person, "--site", site, "--reason", "asked for it")
    removed = [line for line in told.stdout.splitlines() if line.startswith("removed: ")]
    assert len(removed) >= 4
    assert [line.removeprefix("would be ") for line in dry.stdout.splitlines()][2:] == (
        told.stdout.splitlines()[2:]
    )
    assert "site-curves" not in "".join(removed)
    assert holding(work, person) == []
    listed = done("lift-client", "withdraw", "--list", "--site", site).stdout
    assert listed.split(" ", 1)[1].strip().endswith("asked for it")
    journal = done("lift-client", "journal", "--site", site, "--json").stdout
    assert json.loads(journal)["lines"][-1]["sha256"] == listed.split()[0]

    assert (made.site(SITE) / "data" / who).is_dir()
    use_everything(made)
    assert holding(work, person) == []
    assert len(list(work.glob("cache/*/entry.json"))) == cached - 1
    assert any(name.startswith("report/") for name in holding(work, other))

    # a site that has lost its list uses the patient again
    (work / WITHDRAWN_FILE).rename(made.site(SITE) / "lost.json")
    use_everything(made)
    assert "audit/split.json" in holding(work, person)
    # and sends nothing: the journal knows of the withdrawal
    client = run_outside("lift-client", "--site", site)
    assert (client.code, "older one, or is gone" in client.stderr) == (9, True), client
    (made.site(SITE) / "lost.json").rename(work / WITHDRAWN_FILE)
    done("lift-client", "withdraw", person, "--site", site)
    assert holding(work, person) == []


def test_a_refused_withdrawal_says_what_to_do(made: Federation) -> None:
    site = made.site(SITE) / "site.yaml"
    unknown = run_here("lift-client", "withdraw", "BraTS-TST-77777", "--site", site)
    assert (unknown.code, "--gone" in unknown.stderr) == (3, True)
    assert run_here("lift-client", "withdraw", "--site", site).code == 2
    assert run_here("lift-client", "withdraw", "a", "--list", "--site", site).code == 2


def test_who_has_the_release_sees_the_notice(made: Federation, tmp_path: Path) -> None:
    keys, ca = tmp_path / "keys", made.server / "certificates" / "ca.pem"
    done("lift-server", "release-key", made.server, "--output", keys)
    audits: list[str | Path] = []
    for name in SITES:
        assert made.audit(name).code == 0
        audits += ["--audit", made.site(name) / "audit.json"]
    release = made.server / "release"
    done("lift-server", "export", made.server, release, *audits, "--release-key", keys)
    for name in SITES:
        done("lift-client", "approve-release", release, "--site", made.site(name) / "site.yaml")
    # the site's list of approved releases: of a run that this folder has no record of
    dry: list[str | Path] = ["--dry-run", "--site", made.site("west") / "site.yaml"]
    told = done("lift-client", "withdraw", "BraTS-TST-00003", *dry).stdout
    digest = file_digest(release / MANIFEST_FILE)
    assert f"release, not known whether: {digest[:16]}" in told

    notice = tmp_path / "notices" / "east.json"
    words: list[str | Path] = ["--release-key", keys, "--reason", "A patient has withdrawn."]
    named = done("lift-server", "withdraw", made.server, SITE, "--output", notice, *words)
    assert digest in named.stdout
    given: list[str | Path] = ["--ca", ca, "--notices", notice.parent]
    seen = done("lift", "verify-release", release, *given).stdout.splitlines()
    assert seen[-1].startswith("WARNING, withdrawn: site 'east'")
    assert seen[-2].endswith("all as signed; approved by 2 sites")
    # the release can be used as before
    assert run_here("lift", "verify-release", release, "--ca", ca).code == 0
    notice.write_text(notice.read_text().replace('"east"', '"west"'))
    refused = run_here("lift", "verify-release", release, *given)
    assert (refused.code, "wrong notice: east.json" in refused.stdout) == (9, True)
