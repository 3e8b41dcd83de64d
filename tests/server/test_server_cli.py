"""`lift-server` as an operator sees it: what it says, its exit codes, and how soon it answers."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from lift.config.server import ServerConfig
from lift.records.extract import PublicRound
from lift.records.rounds import RoundRecord
from lift.records.run import RunRecord
from lift.release.certificate import read_authority
from lift.release.check import check_release
from lift.report.page import write_report
from lift_server import cli
from lift_server.sites import provisioning, roster
from lift_server.sites.certificates import ca_fingerprint
from tests import wording
from tests.ports import free_ports

BOTH = ["north", "valley"]
COMMANDS: tuple[str, ...] = (
    "init",
    "add-site",
    "remove-site",
    "renew",
    "check",
    "status",
    "page",
    "export",
    "release-key",
    "sign-release",
)
# a port that is nobody's for as long as a test runs is asked of the system, never guessed
READERS = ["nibabel", "pydicom", "skimage"]
PORT_KEYS = ("listen_port", "control_port", "health_port", "page_port")


@dataclass(frozen=True)
class Outcome:
    """What a command left on the screen, and its exit code."""

    code: int
    stdout: str
    stderr: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The real entry point in this process."""

    def call(*words: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", [cli.PROGRAM, *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        screen = capsys.readouterr()
        return Outcome(int(ended.value.code or 0), screen.out, screen.err)

    return call


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A coordinator's folder with two admitted sites, whose checks are all well."""
    made = tmp_path / "federation"
    provisioning.init_folder(made, ["lift.example.org"], "trial")
    settings = made / "server.yaml"
    text = settings.read_text(encoding="utf-8")
    for key, port in zip(PORT_KEYS, free_ports(len(PORT_KEYS)), strict=True):
        text = re.sub(rf"^{key}: \d+", f"{key}: {port}", text, flags=re.MULTILINE)
    settings.write_text(text, encoding="utf-8")
    for name in ("north", "valley"):
        roster.add_site(load(made), name, site_key(tmp_path / f"{name}.pub"))
    return made


def load(folder: Path) -> ServerConfig:
    return ServerConfig.from_yaml(folder / "server.yaml").under(folder)


def site_key(path: Path) -> Path:
    public = ec.generate_private_key(ec.SECP384R1()).public_key()
    form = serialization.PublicFormat.OpenSSH
    path.write_bytes(public.public_bytes(serialization.Encoding.OpenSSH, form))
    return path


def change_setting(folder: Path, old: str, new: str) -> None:
    path = folder / "server.yaml"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def write_status(folder: Path, **changes: object) -> None:
    now = datetime.now(UTC)
    data: dict[str, object] = {
        "pid": os.getpid(),
        "started": now.isoformat(),
        "phase": "round",
        "round": 3,
        "rounds": 20,
        "round_started": (now - timedelta(seconds=50)).isoformat(),
        "deadline_s": 3600.0,
        "sites": {
            "north": {
                "online": True,
                "last_contact": (now - timedelta(seconds=4)).isoformat(),
                "state": "answered",
            },
            "valley": {"online": False, "last_contact": None, "state": "missing"},
        },
        "updated": now.isoformat(),
    }
    (folder / "state").mkdir(exist_ok=True)
    (folder / "state" / "status.json").write_text(json.dumps(data | changes))


def write_rounds(folder: Path) -> None:
    records: list[Mapping[str, object]] = [
        {
            "round": 0,
            "kind": "statistics",
            "asked": BOTH,
            "counted": {"north": 12.0, "valley": 6.0},
            "refused": {},
        },
        {
            "round": 1,
            "kind": "train",
            "asked": BOTH,
            "counted": {"north": 0.6, "valley": 0.4},
            "refused": {},
        },
        {
            "round": 2,
            "kind": "train",
            "asked": BOTH,
            "counted": {"north": 1.0},
            "refused": {"valley": "no_answer"},
        },
    ]
    (folder / "run").mkdir(exist_ok=True)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "run" / "rounds.jsonl").write_text(lines)


def dead_pid() -> int:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


def status(run: Run, folder: Path) -> dict[str, Any]:
    done = run("status", folder, "--json")
    assert done.code == 0, done.stderr
    data = json.loads(done.stdout)
    assert isinstance(data, dict)
    return data


def verdicts(outcome: Outcome) -> dict[str, str]:
    """Check -> its worst verdict."""
    rank = ("ok", "warning", "problem")
    found: dict[str, str] = {}
    for name, verdict in re.findall(r"^(\S[\w ]*?) +(ok|warning|problem) ", outcome.stdout, re.M):
        found[name] = max(found.get(name, "ok"), verdict, key=rank.index)
    return found


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_explains_itself(run: Run, command: str) -> None:
    done = run(*command.split(), "--help")
    assert done.code == 0
    assert "Usage: lift-server" in done.stdout
    if not command:
        assert all(name in done.stdout for name in COMMANDS)


def test_the_short_commands_load_neither_torch_nor_flwr(folder: Path, tmp_path: Path) -> None:
    site_key(tmp_path / "harbour.pub")
    write_status(folder)
    commands = [
        ["init", str(tmp_path / "new"), "--host", "a.org", "--name", "new"],
        ["add-site", str(folder), "harbour", str(tmp_path / "harbour.pub")],
        ["remove-site", str(folder), "harbour"],
        ["renew", str(folder)],
        ["check", str(folder)],
        ["status", str(folder)],
        ["status", str(folder), "--json"],
        ["--config", str(folder / "nothing.yaml")],
    ]
    script = (
        "import json, sys\n"
        "import lift_server.cli as cli\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    sys.argv = ['lift-server', *words]\n"
        "    try:\n"
        "        cli.main()\n"
        "    except SystemExit as ended:\n"
        "        print('exit', ended.code)\n"
        "heavy = {'torch', 'flwr', 'grpc', 'scipy', 'sklearn', 'monai', 'numpy'}\n"
        "print('loaded', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(commands)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    codes = re.findall(r"^exit (\d+)$", done.stdout, re.MULTILINE)
    assert codes == ["0"] * (len(commands) - 1) + ["2"], done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "loaded []"


@pytest.mark.parametrize(
    ("module", "loads"), [("lift_server.app", []), ("lift_client.app", READERS)]
)
def test_a_running_server_loads_no_reader_of_volumes(module: str, loads: list[str]) -> None:
    script = f"import sys, {module}; print(*sorted({set(READERS)} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    )
    # a site does: the names are those of the readers
    assert done.stdout.split() == loads


def test_from_an_empty_folder_to_an_admitted_site_each_command_names_the_next(
    run: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "fed"
    made = run("init", folder, "--host", "lift.example.org", "--host", "192.0.2.7", "--name", "f")
    assert made.code == 0
    assert "next: edit" in made.stderr
    assert ca_fingerprint(folder / "certificates") in made.stdout
    again = run("init", folder, "--host", "lift.example.org", "--name", "f")
    assert again.code == 2
    assert "the folder is in use" in again.stderr
    added = run("add-site", folder, "north", site_key(tmp_path / "site.pub"))
    assert added.code == 0
    assert f"kit: {folder / 'kits' / 'north'}" in added.stdout
    assert "SHA256:" in added.stdout
    assert "next: send the folder" in added.stderr
    removed = run("remove-site", folder, "north")
    assert removed.stdout == "removed: north\n"
    assert removed.stderr.startswith("next: lift-server check")
    assert "already removed" in run("remove-site", folder, "north").stdout
    assert run("remove-site", folder, "south").code == 2


def test_a_site_is_admitted_with_the_patients_that_it_declares(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    key = site_key(tmp_path / "harbour.pub")
    added = run("add-site", folder, "harbour", key)
    assert "declared patients: none: what it claims is taken\n" in added.stdout
    added = run("add-site", folder, "harbour", key, "--patients", 40)
    assert "declared patients: 40\n" in added.stdout
    assert roster.Roster.read(load(folder).sites).declared_patients == {"harbour": 40}
    assert run("add-site", folder, "harbour", key, "--patients", 0).code == 2


def test_check_warns_of_a_page_that_others_can_reach(run: Run, folder: Path) -> None:
    assert "page" not in verdicts(run("check", folder))
    change_setting(folder, "page_host: 127.0.0.1", "page_host: 0.0.0.0")
    done = run("check", folder)
    assert verdicts(done)["page"] == "warning"
    assert done.code == 0


def test_a_private_key_is_refused_with_words_that_an_operator_understands(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    key = tmp_path / "site.key"
    form = serialization.PrivateFormat.OpenSSH
    key.write_bytes(
        ec.generate_private_key(ec.SECP384R1()).private_bytes(
            serialization.Encoding.PEM, form, serialization.NoEncryption()
        )
    )
    done = run("add-site", folder, "harbour", key)
    assert done.code == 2
    assert f"must {wording.NEVER_LEAVES}" in done.stderr
    assert "next:" not in done.stderr


def test_check_finds_a_whole_folder_well_and_changes_nothing(run: Run, folder: Path) -> None:
    def stamps() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}

    before = stamps()
    done = run("check", folder)
    assert done.code == 0, done.stdout
    assert set(verdicts(done)) == {
        "settings",
        "certificates",
        "server key",
        "chain",
        "host",
        "expiry",
        "key mode",
        "sites",
        "port",
        "disk",
        "generator",
    }
    assert "problem" not in verdicts(done).values()
    assert done.stderr.splitlines()[-1].startswith("next: lift-server --config ")
    assert stamps() == before


def _foreign(name: str) -> Callable[[Path], None]:
    def put(folder: Path) -> None:
        other = folder.parent / "other"
        provisioning.init_folder(other, ["lift.example.org"], "other")
        target = folder / "certificates" / name
        target.write_bytes((other / "certificates" / name).read_bytes())

    return put


def _renewed(days_ago: int) -> Callable[[Path], None]:
    def put(folder: Path) -> None:
        for name in ("ca.pem", "ca.key", "server.pem", "server.key"):
            (folder / "certificates" / name).unlink()
        other = folder.parent / "other"
        made = datetime.now(UTC) - timedelta(days=days_ago)
        provisioning.init_folder(other, ["lift.example.org"], "trial", now=made)
        for path in (other / "certificates").iterdir():
            path.rename(folder / "certificates" / path.name)

    return put


def _remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _setting(old: str, new: str) -> Callable[[Path], None]:
    return lambda folder: change_setting(folder, old, new)


def _open_secret(folder: Path) -> None:
    (folder / "state").mkdir()
    (folder / "state" / "executor.secret").touch(0o644)


BUNDLE = "builtin: phantom-t1n-t1c-t2w-t2f"
DAMAGE: Mapping[str, tuple[Callable[[Path], object], str, str, int, str]] = {
    "a typo": (_setting("output:", "outputt:"), "settings", "problem", 2, "outputt"),
    "no certificate": (_remove("certificates/server.pem"), "certificates", "problem", 2, "No such"),
    "no server key": (_remove("certificates/server.key"), "certificates", "problem", 2, "No such"),
    "the CA's key elsewhere": (_remove("certificates/ca.key"), "certificates", "ok", 0, "kept"),
    "another key": (_foreign("server.key"), "server key", "problem", 4, "is not the key of"),
    "another CA": (_foreign("ca.pem"), "chain", "problem", 4, "was not issued by"),
    "another host": (
        _setting("lift.example.org:", "other.example.org:"),
        "host",
        "problem",
        4,
        "sites dial other.example.org",
    ),
    "nearly ended": (_renewed(800), "expiry", "warning", 0, "ends in 24 days"),
    "ended": (_renewed(900), "expiry", "problem", 4, "no site can connect"),
    "an open key": (
        lambda folder: (folder / "certificates" / "server.key").chmod(0o640),
        "key mode",
        "problem",
        2,
        "its mode is 0640",
    ),
    "an open secret": (_open_secret, "key mode", "problem", 2, "executor.secret: its mode is 0644"),
    "no such builtin": (_setting(BUNDLE, "builtin: x"), "generator", "problem", 3, "built in: "),
    "no roster": (_remove("sites.json"), "sites", "problem", 2, "cannot read the roster"),
    "too few sites": (
        _setting("quorum_sites: 0", "quorum_sites: 3"),
        "sites",
        "problem",
        8,
        "2 admitted; the quorum is 3",
    ),
    "no such bundle": (_setting(BUNDLE, "bundle: nowhere"), "generator", "problem", 3, "No such"),
    "another task": (
        _setting(BUNDLE, "builtin: phantom-t1c-t2w-t2f"),
        "generator",
        "problem",
        2,
        "the bundle makes t2f from t1c, t2w; the plan wants t2f from t1n, t1c, t2w",
    ),
    "another normalisation": (
        _setting("  mixer:", "  preprocessing: {normalisation: {t1n: {rule: window}}}\n  mixer:"),
        "generator",
        "problem",
        2,
        "t1n: the bundle was trained with",
    ),
    "a folder that is a file": (
        lambda folder: (folder / "state").write_text(""),
        "disk",
        "problem",
        3,
        "cannot be written",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_check_names_each_fault_how_to_mend_it_and_exits_with_its_code(
    run: Run, folder: Path, damage: str
) -> None:
    spoil, name, verdict, code, words = DAMAGE[damage]
    spoil(folder)
    done = run("check", folder)
    assert verdicts(done)[name] == verdict, done.stdout
    assert words in done.stdout
    assert done.code == code
    faults = [found for found in verdicts(done).values() if found == "problem"]
    assert len(faults) == (verdict == "problem")
    if verdict != "ok":
        lines = done.stdout.splitlines()
        at = next(i for i, line in enumerate(lines) if re.match(rf"{name} +{verdict} ", line))
        assert lines[at + 1].startswith(" "), "no line says how to mend it"


@pytest.mark.parametrize(
    ("free", "verdict", "code"),
    [(3 << 30, "ok", 0), (1 << 30, "warning", 0), (1 << 20, "problem", 3)],
)
def test_check_warns_of_a_disk_that_fills_up_and_stops_at_a_full_one(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, free: int, verdict: str, code: int
) -> None:
    total = 1 << 40
    usage = SimpleNamespace(total=total, used=total - free, free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    done = run("check", folder)
    assert (verdicts(done)["disk"], done.code) == (verdict, code)


def test_of_several_problems_the_one_to_mend_first_decides_the_exit_code(
    run: Run, folder: Path
) -> None:
    change_setting(folder, "quorum_sites: 0", "quorum_sites: 3")
    assert run("check", folder).code == 8
    change_setting(folder, "lift.example.org:", "other.example.org:")
    assert run("check", folder).code == 4
    (folder / "certificates" / "ca.key").chmod(0o644)
    assert run("check", folder).code == 2


def test_a_port_of_another_program_is_a_problem_and_of_our_own_server_is_not(
    run: Run, folder: Path
) -> None:
    with socket.create_server(("127.0.0.1", load(folder).control_port)):
        foreign = run("check", folder)
        write_status(folder, pid=dead_pid())
        after_a_crash = run("check", folder)
        write_status(folder)
        ours = run("check", folder)
    assert foreign.code == after_a_crash.code == 4
    assert f"{load(folder).control_port}: Address already in use" in foreign.stdout
    assert ours.code == 0
    assert f"held by the running server (pid {os.getpid()})" in ours.stdout


def test_a_renewal_keeps_the_hosts_and_adds_the_one_that_sites_dial(run: Run, folder: Path) -> None:
    change_setting(folder, "lift.example.org:", "other.example.org:")
    done = run("renew", folder)
    assert "hosts: other.example.org, lift.example.org, localhost, 127.0.0.1\n" in done.stdout
    assert run("check", folder).code == 0
    alone = run("renew", folder, "--host", "a.org")
    assert "hosts: a.org, localhost, 127.0.0.1\n" in alone.stdout


def test_status_without_a_server_says_not_running(run: Run, folder: Path) -> None:
    data = status(run, folder)
    assert (data["phase"], data["running"], data["rounds_done"]) == ("not running", False, 0)
    assert set(data["sites"]) == {"north", "valley"}
    assert all(site["online"] is None for site in data["sites"].values())
    shown = run("status", folder)
    assert shown.stdout.startswith("trial: not running\n")
    assert "next: lift-server check" in shown.stderr


def test_status_of_a_waiting_server_counts_who_is_there(run: Run, folder: Path) -> None:
    write_status(folder, phase="waiting", round=0, round_started=None)
    shown = run("status", folder)
    assert shown.stdout.startswith("trial: waiting for sites, 1 of 2 online\n")
    assert status(run, folder)["phase"] == "waiting"


def test_status_of_a_round_shows_every_site_with_its_last_contact(run: Run, folder: Path) -> None:
    write_status(folder)
    write_rounds(folder)
    shown = run("status", folder).stdout
    assert re.match(r"trial: round 3 of 20, for 5\d s, closes in 59 min\n", shown)
    north = next(line for line in shown.splitlines() if "north" in line)
    valley = next(line for line in shown.splitlines() if "valley" in line)
    assert re.search(r"online .*answered, waiting .*\d s ago .*2 of 2", north)
    assert re.search(r"offline .*missed the round .*1 of 2 .*round 2: no answer before the", valley)
    data = status(run, folder)
    assert (data["round"], data["rounds"], data["rounds_done"]) == (3, 20, 2)
    assert data["last_round"]["round"] == 2
    assert data["sites"]["north"]["counted"] == 2


def test_status_of_a_server_that_hangs_says_that_there_is_no_news(run: Run, folder: Path) -> None:
    ago = datetime.now(UTC) - timedelta(minutes=10)
    write_status(folder, updated=ago.isoformat())
    assert "no news for 10 min" in run("status", folder).stdout


def test_status_of_a_late_round_says_so(run: Run, folder: Path) -> None:
    write_status(folder, deadline_s=10.0)
    assert "past its deadline" in run("status", folder).stdout


@pytest.mark.parametrize(
    ("phase", "said"),
    [("round", "stopped (was in round 3)"), ("waiting", "stopped (was waiting for sites)")],
)
def test_a_dead_server_is_never_shown_as_running(
    run: Run, folder: Path, phase: str, said: str
) -> None:
    write_status(folder, phase=phase, pid=dead_pid())
    data = status(run, folder)
    assert (data["phase"], data["running"], data["summary"]) == ("stopped", False, said)
    # what the dead server last saw is no news
    assert {site["online"] for site in data["sites"].values()} == {None}
    assert data["next"].startswith("lift-server check")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not tell")
def test_another_process_with_the_number_of_the_dead_server_is_not_taken_for_it(
    run: Run, folder: Path
) -> None:
    write_status(folder, started="2020-01-01T00:00:00+00:00")
    assert status(run, folder)["summary"] == "stopped (was in round 3)"


def test_status_of_a_server_that_stopped_or_ended_by_itself(run: Run, folder: Path) -> None:
    write_status(folder, phase="stopped")
    assert status(run, folder)["summary"] == "stopped (after round 3)"
    write_status(folder, phase="done", round=20, pid=dead_pid())
    (folder / "run").mkdir()
    (folder / "run" / "run.json").write_text(
        json.dumps({"name": "t", "phantom": True, "plan": {}, "complete": True})
    )
    data = status(run, folder)
    assert (data["phase"], data["summary"], data["complete"]) == ("done", "done, 20 rounds", True)
    assert data["next"].startswith("lift-server export")


def test_status_shows_a_removed_site_and_one_that_was_never_seen(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    write_status(folder)
    config = load(folder)
    roster.remove_site(config, "valley")
    roster.add_site(config, "harbour", site_key(tmp_path / "harbour.pub"))
    sites = status(run, folder)["sites"]
    assert {name: site["state"] for name, site in sites.items()} == {
        "harbour": "idle",
        "north": "answered",
        "valley": "removed",
    }


def test_status_announces_certificates_that_end_soon(run: Run, folder: Path) -> None:
    _renewed(800)(folder)
    (notice,) = status(run, folder)["certificates"]
    assert (notice["level"], notice["days_left"]) == ("warning", 24)
    assert "warning: server certificate ends in 24 days" in run("status", folder).stdout


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}'])
def test_a_damaged_status_is_said_and_no_fault_of_ours(
    run: Run, folder: Path, content: str
) -> None:
    (folder / "state").mkdir()
    (folder / "state" / "status.json").write_text(content)
    done = run("status", folder)
    assert done.code == 3
    assert "cannot read the server's status" in done.stderr


def test_a_newer_server_s_status_can_be_read(run: Run, folder: Path) -> None:
    write_status(folder, epsilon=1.5)
    assert status(run, folder)["phase"] == "round"


def finished(folder: Path, *, complete: bool = True) -> Path:
    run_folder = folder / "run"
    write_rounds(folder)
    (run_folder / "mixer.safetensors").write_bytes(b"\x00\x01mixer")
    record = {
        "name": "trial",
        "kind": "federation",
        "phantom": False,
        "complete": complete,
        "plan": load(folder).plan.model_dump(mode="json"),
        "plan_digest": load(folder).plan.digest(),
        "generator": {"fingerprint": "f" * 64},
        "mixer": {"kind": "zrefine", "parameters": 4629},
        "privacy": {"mode": "none", "statement": "no noise is added"},
        "versions": {},
    }
    (run_folder / "run.json").write_text(json.dumps(record))
    (run_folder / "checkpoints").mkdir()
    return run_folder


def test_export_copies_what_is_released_and_sums_that_others_can_check(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    source = finished(folder)
    out = tmp_path / "release"
    done = run("export", folder, out, "--without-audit")
    assert done.code == 0, done.stderr
    names = {"mixer.safetensors", "run.json"}
    made = {"release.json", "RELEASE.txt", "SHA256SUMS", "report.html", "manifest.json"}
    made |= {"rounds-public.jsonl"}
    assert {path.name for path in out.iterdir()} == names | made
    mixer = "mixer.safetensors"
    assert (out / mixer).read_bytes() == (source / mixer).read_bytes()
    checked = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"],
        cwd=out,
        capture_output=True,
        text=True,
        check=True,
    )
    assert checked.stdout.count(": OK") == 6
    bundle = json.loads((out / "release.json").read_text(encoding="utf-8"))
    assert bundle["rounds"] == {
        "trained": 2,
        "learned_from": ["north", "valley"],
        "made_with": ["north", "valley"],
    }
    assert "2: north, valley\n" in (out / "RELEASE.txt").read_text()
    report = (out / "report.html").read_text(encoding="utf-8")
    assert f"{wording.UNAUDITED}: " in report
    assert wording.NO_PATIENTS_AT_A_SERVER in report
    listed = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert set(listed["files"]) == (names | made) - {"manifest.json"}
    assert listed["sites"] == roster.Roster.read(load(folder).sites).admitted_keys
    again = run("export", folder, out, "--without-audit")
    assert again.code == 2
    assert "not empty" in again.stderr


SECRETS = (
    *("not_finite", "0.1234567", "0.7654321", "siemens", "17.25", "31337", "9.8125"),
    "tampered",
)
"""A refusal, losses, a card, a site's figure, its bytes, its norm, its fall: the coordinator's."""
OF_ONE_SITE: dict[str, Any] = {
    "sites": [
        {
            "name": "north",
            "patients": {"train": 15, "validation": 5, "test": 0},
            "refused": 10_007,
            "slice_spacing_mm": [3.14159, 6.28318],
            "description": "scanner of the cellar",
        },
        {"name": "valley", "patients": {"train": 20, "validation": 5, "test": 5}},
    ],
    "guard": {
        "north": {
            "verdict": "harmed",
            "n": 4,
            "difference_db": {"value": -1.2345678, "low": -2.3456789, "high": -0.3456789},
        },
        "valley": {"verdict": "helped", "n": 5},
    },
    "folds": [{"north": {"verdict": "harmed"}}],
    "chosen": [{"north": {"method": "local_longer"}}],
    "loss_trend": {"fall_percent": 7.7654321, "still_falling": True},
    "update_bytes": 90_210,
    "bundle": "/home/coordinator/bundle",
    "command": "lift-server --secretly",
    "started": "2026-02-03T04:05:06+00:00",
    "seconds": {"rounds": 1234.5678},
    "runs_tried": ["an earlier failure"],
    # keys of a later version, at every level that has no model
    "refusals": {"north": "no patient with a lesion"},
    "generator": {"fingerprint": "f" * 64, "made_by": "a resident"},
    "privacy": {"mode": "none", "statement": "no noise is added", "told": "valley was late"},
    "mixer": {"kind": "zrefine", "parameters": 4629, "best_at": "north alone"},
}
OF_ONE_SITE_METRICS: dict[str, Any] = {
    "sites": {
        "north": {
            "patients": 4,
            "verdict": "harmed",
            "methods": {
                "federated": {
                    "psnr_over_no_mixer_db": {"value": -1.2345678, "low": -2, "high": 1, "n": 4}
                }
            },
        },
    },
    "pooled": {},
    "patients": {"north": {"federated": {"BraTS-00099": {"psnr_db": 21.987654}}}},
    "cross_site": {"north": {"valley": {"psnr_db": {"value": 22.876543}}}},
    "late": "a figure of a later version",
}
PLANTED = (
    *("10007", "3.14", "6.28", "cellar", "-1.23", "2.34", "0.345", "local_longer"),
    *("7.76", "90210", "/home/coordinator", "--secretly", "2026-02-03", "1234.5", "failure"),
    *("lesion", "resident", "valley was late", "north alone", "BraTS-00099", "21.98", "22.87"),
    "later version",
)


def with_records_of_one_site(source: Path) -> None:
    """A coordinator's records with everything that a release must not tell."""
    record = json.loads((source / "run.json").read_text())
    (source / "run.json").write_text(json.dumps(record | OF_ONE_SITE))
    (source / "metrics.json").write_text(json.dumps(OF_ONE_SITE_METRICS))


def test_a_release_holds_nothing_of_one_site_but_what_is_declared_public(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    source = finished(folder)
    with_records_of_one_site(source)
    out = tmp_path / "release"
    assert run("export", folder, out, "--without-audit").code == 0
    released = {path.name: path.read_text("utf-8", "replace") for path in out.iterdir()}
    seen = {name: re.sub("data:[^'\"]*", "", text) for name, text in released.items()}
    # of a plain page, its words alone: styles and policies are no record
    seen["report.html"] = re.sub("(?s)<style>.*?</style>", "", seen["report.html"])
    found = {(name, word) for name, text in seen.items() for word in PLANTED if word in text}
    assert found == set()
    for name in ("run.json", "metrics.json", "release.json"):
        assert "harmed" not in released[name]
    # the negative control: the coordinator's own records have them all
    own = "".join((source / name).read_text() for name in ("run.json", "metrics.json"))
    assert [word for word in PLANTED if word not in own] == []
    record = json.loads(released["run.json"])
    assert record["all_sites"] == {
        "number": 2,
        "patients": {"train": 35, "validation": 10, "test": 5},
        "verdicts": None,
    }
    assert set(record) <= set(RunRecord.publications())
    assert {"plan", "plan_digest", "complete", "privacy", "phantom"} <= set(record)
    assert json.loads(released["metrics.json"])["pooled"] == {}
    assert json.loads(released["release.json"])["sites"] == record["all_sites"]
    assert "35 training patients in all" in released["RELEASE.txt"]
    # and the coordinator's own report is as it was
    own_page = write_report(source).read_text("utf-8")
    for word in ("cellar", "harmed", "10,007", "3.14"):
        assert word in own_page


def test_verdicts_and_means_are_public_of_three_sites_or_more(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    source = finished(folder)
    names = ("east", "north", "valley")
    record = json.loads((source / "run.json").read_text())
    record["sites"] = [{"name": name, "patients": {"train": 10}} for name in names]
    record["guard"] = {name: {"verdict": "helped"} for name in names[:2]}
    record["guard"]["valley"] = {"verdict": "undecided"}
    (source / "run.json").write_text(json.dumps(record))
    row = "psnr_over_no_mixer_db"
    sites = {
        name: {"patients": n, "methods": {"federated": {row: {"value": value, "n": n}}}}
        for name, n, value in zip(names, (2, 3, 5), (1.0, 2.0, 0.4), strict=True)
    }
    (source / "metrics.json").write_text(json.dumps({"sites": sites, "pooled": {}}))
    out = tmp_path / "release"
    assert run("export", folder, out, "--without-audit").code == 0
    released = json.loads((out / "run.json").read_text())
    assert released["all_sites"]["verdicts"] == {"helped": 2, "undecided": 1}
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics == {"pooled": {"federated": {row: {"value": 1.0, "n": 10, "unit": ""}}}}
    text = (out / "RELEASE.txt").read_text()
    assert f"{row} +1, n = 10" in text
    assert "verdicts: helped at 2, undecided at 1" in text
    page = re.sub("<[^>]*>", "", (out / "report.html").read_text("utf-8"))
    assert "helped at 2, undecided at 1" in page
    assert "No site has given a verdict" not in page


def test_a_release_tells_neither_refusals_nor_a_site_s_figures_nor_cards(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    source = finished(folder)
    lines = [json.loads(line) for line in (source / "rounds.jsonl").read_text().splitlines()]
    lines[0] |= {"statistics": {"north": {"train_patients": 5, "data_card": {"made": "siemens"}}}}
    lines[1] |= {
        "loss": {"north": 0.1234567, "valley": 0.7654321},
        "validation_psnr_db": {"north": 17.25},
        "bytes": {"north": 31337},
        "norm_ratios": {"north": 9.8125, "valley": 1.0},
        "clipped": {"north": 0.25},
        "fall": {"by_db": 3.0, "best_round": 1, "action": "go-back", "left_out": "tampered"},
    }
    lines[2] |= {"refused": {"valley": "not_finite"}}
    (source / "rounds.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    out = tmp_path / "release"
    assert run("export", folder, out, "--without-audit").code == 0
    released = {path.name: path.read_text("utf-8", "replace") for path in out.iterdir()}
    found = {(name, word) for name, text in released.items() for word in SECRETS if word in text}
    assert found == set()
    # the coordinator's own record has them all
    own = (source / "rounds.jsonl").read_text()
    assert [word for word in SECRETS if word in own] == list(SECRETS)
    extract = [json.loads(line) for line in released["rounds-public.jsonl"].splitlines()]
    assert [(line["round"], line["asked"], line["counted"]) for line in extract] == [
        (0, 2, 2),
        (1, 2, 2),
        (2, 2, 1),
    ]
    assert "1 of 2 sites" in re.sub("<[^>]*>", "", released["report.html"])


@pytest.mark.parametrize(("sites", "told"), [(2, None), (3, 0.5), (4, 0.5)])
def test_a_mean_loss_is_public_of_three_sites_or_more(sites: int, told: float | None) -> None:
    losses = {f"site-{number}": 0.25 + 0.5 * number / (sites - 1) for number in range(sites)}
    line = RoundRecord(round=1, loss=losses | {"silent": None})
    assert PublicRound.of(line).loss == told


def whole(release: Path, folder: Path) -> bool:
    authority = read_authority(folder / "certificates" / "ca.pem")
    return not check_release(release, authority=authority, now=datetime.now(UTC)).findings


def test_a_release_is_signed_at_the_export_or_later_by_a_key_of_its_own(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    finished(folder)
    keys = tmp_path / "offline" / "keys"
    made = run("release-key", folder, "--output", keys)
    assert made.code == 0, made.stderr
    assert {path.name: path.stat().st_mode & 0o777 for path in keys.iterdir()} == {
        "release.key": 0o600,
        "release.pem": 0o600,
    }
    tls = (folder / "certificates" / "server.key").read_bytes()
    assert (keys / "release.key").read_bytes() != tls
    later, at_once = tmp_path / "later", tmp_path / "at-once"
    done = run("export", folder, later, "--without-audit")
    assert "sign-release" in done.stderr
    assert not whole(later, folder)
    # on another machine, which has neither the server's folder nor the authority
    signed = run("sign-release", later, "--release-key", keys)
    assert signed.code == 0, signed.stderr
    assert whole(later, folder)
    done = run("export", folder, at_once, "--without-audit", "--release-key", keys)
    assert done.code == 0, done.stderr
    assert whole(at_once, folder)
    fingerprint = re.findall(r"(?m)^release key: ([0-9a-f]{64})$", made.stdout)
    assert fingerprint == re.findall(r"(?m)^release key: ([0-9a-f]{64})$", signed.stdout)
    again = run("release-key", folder, "--output", keys)
    assert again.code == 2
    assert "release.key" in again.stderr


def test_a_release_key_that_does_not_fit_signs_nothing(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    finished(folder)
    keys, others = tmp_path / "keys", tmp_path / "others"
    run("release-key", folder, "--output", keys)
    run("init", tmp_path / "second", "--host", "127.0.0.1", "--name", "second")
    run("release-key", tmp_path / "second", "--output", others)

    def refusal(key: Path) -> str:
        words = ("export", folder, tmp_path / "out", "--without-audit", "--release-key", key)
        done = run(*words)
        assert done.code == 2, done
        assert not (tmp_path / "out").exists()
        return done.stderr

    assert "not under the CA" in refusal(others)
    tls = folder / "certificates"
    shutil.copy(tls / "server.key", tmp_path / "release.key")
    shutil.copy(tls / "server.pem", tmp_path / "release.pem")
    assert "not a release certificate" in refusal(tmp_path)
    shutil.copy(keys / "release.pem", tmp_path / "release.pem")
    assert "do not match" in refusal(tmp_path)
    (keys / "release.key").chmod(0o640)
    assert "0600" in refusal(keys)
    (folder / "certificates" / "ca.key").unlink()
    done = run("release-key", folder, "--output", tmp_path / "new")
    assert done.code == 2
    assert "ca.key" in done.stderr
    assert not (tmp_path / "new").exists()


def test_export_refuses_a_mixer_that_no_site_has_audited(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    finished(folder)
    done = run("export", folder, tmp_path / "release")
    assert done.code == 7
    assert "no audit of: north, valley" in done.stderr
    assert not (tmp_path / "release").exists()


def test_export_refuses_a_damaged_record_of_rounds(run: Run, folder: Path, tmp_path: Path) -> None:
    (finished(folder) / "rounds.jsonl").write_text("{")
    done = run("export", folder, tmp_path / "release", "--without-audit")
    assert done.code == 3
    assert "record of rounds" in done.stderr
    assert not (tmp_path / "release").exists()


@pytest.mark.parametrize("lacking", ["mixer.safetensors", "run.json", "complete"])
def test_export_refuses_a_run_that_is_not_finished(
    run: Run, folder: Path, tmp_path: Path, lacking: str
) -> None:
    source = finished(folder, complete=lacking != "complete")
    if lacking != "complete":
        (source / lacking).unlink()
    done = run("export", folder, tmp_path / "release")
    assert done.code == 3
    assert wording.NO_FINISHED_MIXER in done.stderr
    assert not (tmp_path / "release").exists()


def test_dry_run_prints_the_resolved_plan_and_writes_nothing(run: Run, folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    done = run("--config", folder / "server.yaml", "--dry-run")
    assert done.code == 0, done.stderr
    data = json.loads(done.stdout)
    fingerprint = roster.plan_fingerprint(load(folder))
    assert data["plan"]["generator_fingerprint"] == fingerprint
    assert data["sites"] == ["north", "valley"]
    assert data["update_bytes_by_round_and_site"] == 4 * data["mixer_parameters"] > 0
    assert sorted(folder.rglob("*")) == before


def test_a_start_option_before_a_subcommand_is_refused(run: Run, folder: Path) -> None:
    done = run("--dry-run", "status", folder)
    assert done.code == 2
    assert "start the server" in done.stderr


def test_a_start_without_settings_names_the_missing_file(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run()
    assert done.code == 2
    assert "server.yaml" in done.stderr
