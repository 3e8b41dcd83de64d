"""`lift-client` as a hospital types it: answers, exit codes, next steps, and no slow imports."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import pytest

from lift.protocol.messages import Kind
from lift.wire.groups import PURPOSES
from lift_client.cli import _KINDS, PROGRAM, main
from lift_client.gate.journal import Entry, Journal, TensorNote, verify
from tests import wording
from tests.enrolled import enrolled


@dataclass(frozen=True)
class Said:
    """What one command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


Run = Callable[..., Said]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def command(*words: str | Path) -> Said:
        monkeypatch.setattr(sys, "argv", [PROGRAM, *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Said(ended.value.code, out, err)

    return command


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """The settings of a site with three journal lines, the last of them a repetition."""
    settings = enrolled(tmp_path, "north").settings
    journal = Journal(
        tmp_path / "work" / "journal.jsonl",
        clock=lambda: datetime(2026, 11, 22, 12, 30, 15, tzinfo=UTC),
    )
    for kind, round_index, digest in (("statistics", 0, "a"), ("train", 1, "b"), ("train", 1, "b")):
        journal.append(
            Entry.from_data(
                {
                    "run": "0123456789ab" + "c" * 52,
                    "round": round_index,
                    "kind": kind,
                    "tensors": [{"name": "body[0].weight", "dtype": "float32", "shape": [20, 100]}],
                    "bytes": 8000,
                    "sha256": digest * 64,
                    "receiver": "lift.example.org:8443",
                    "purpose": PURPOSES[Kind(kind)],
                },
                "test",
            )
        )
    return settings


@pytest.mark.parametrize("words", [[], ["enroll"], ["check"], ["journal"]])
def test_every_command_has_help(run: Run, words: list[str]) -> None:
    said = run(*words, "--help")
    assert said.code == 0
    assert f"Usage: {PROGRAM}" in said.out


def test_enrolling_says_what_to_do_next(run: Run, tmp_path: Path) -> None:
    said = run("enroll", "north", "--folder", tmp_path / "site")
    assert said.code == 0
    assert "SHA256:" in said.out
    assert "PRIVATE KEY" not in said.out + said.err
    assert said.err.startswith("next: ")
    assert f"{wording.SEND_PUBLIC_KEY} to the coordinator" in said.err
    again = run("enroll", "north", "--folder", tmp_path / "site")
    assert again.code == 2
    assert wording.FILE_EXISTS in again.err
    assert run("enroll", "no/name", "--folder", tmp_path / "other").code == 2


def test_a_start_with_settings_that_do_not_fit_is_refused_at_once(run: Run, tmp_path: Path) -> None:
    said = run()
    assert said.code == 2
    assert "enroll NAME" in said.err
    assert run("--site", tmp_path / "absent.yaml").code == 2
    wrong = tmp_path / "site.yaml"
    wrong.write_text("name: north\npolicy: {privacy_modes: []}\n")
    said = run("--site", wrong)
    assert said.code == 2
    assert "policy.privacy_modes" in said.err


def test_the_journal_is_a_table_for_a_non_programmer(run: Run, site: Path) -> None:
    said = run("journal", "--site", site)
    assert said.code == 0
    rows = [line.split() for line in said.out.splitlines() if line.strip().startswith("2 ")]
    assert rows[0][:10] == [
        *("2", "2026-11-22", "12:30:15", "mixer", "update", "0123456789ab", "1"),
        *("2,000", "8.0", "lift.example.org:8443"),
    ]
    assert "24.0 kB in total" in said.out
    assert "complete: 3 lines" in said.out
    assert "Repetition" in said.out
    assert said.err.startswith("next: ")


def test_every_kind_of_line_has_a_plain_name() -> None:
    assert set(_KINDS) == set(get_args(Entry.model_fields["kind"].annotation))


def test_an_option_before_the_command_is_meant_well(run: Run, site: Path) -> None:
    assert run("--site", site, "journal").out == run("journal", "--site", site).out
    assert run("journal").code == 2


def test_an_empty_journal_says_that_nothing_left(run: Run, tmp_path: Path) -> None:
    settings = enrolled(tmp_path, "north").settings
    said = run("journal", "--site", settings)
    assert said.code == 0
    assert "nothing has left this site yet" in said.out
    assert not (tmp_path / "work").exists()
    assert json.loads(run("journal", "--site", settings, "--json").out)["count"] == 0


def test_the_journal_as_json_is_one_object(run: Run, site: Path) -> None:
    found = json.loads(run("journal", "--site", site, "--json").out)
    assert (found["whole"], found["problem"], found["count"]) == (True, None, 3)
    assert [line["kind"] for line in found["lines"]] == ["statistics", "train", "train"]
    assert found["last_hash"] == found["lines"][-1]["hash"]


def test_a_hash_written_down_is_found_again_later(run: Run, site: Path) -> None:
    count, last_hash = run("journal", "--site", site, "--head").out.split()
    assert (int(count), last_hash) == (3, verify(site.parent / "work" / "journal.jsonl").last_hash)
    first = verify(site.parent / "work" / "journal.jsonl").lines[0].hash
    for expected, line in ((last_hash, 3), (first[:16].upper(), 1)):
        said = run("journal", "--site", site, "--expect", expected)
        assert said.code == 0
        assert f"line {line} has the expected hash" in said.out
    for wrong, code in (("f" * 64, 9), ("0" * 64, 9), (last_hash[:15], 2), ("x" * 16, 2), ("", 2)):
        assert run("journal", "--site", site, "--expect", wrong).code == code


def test_an_older_journal_put_back_whole_passes_but_for_the_hash_that_was_written_down(
    run: Run, site: Path, tmp_path: Path
) -> None:
    work, copy = site.parent / "work", tmp_path / "copy"
    shutil.copytree(work, copy)
    Journal(work / "journal.jsonl").append(
        Entry(run="", round=0, kind="note", tensors=(), bytes=0, sha256="d" * 64,
              receiver="nobody", purpose="A line after the backup.")
    )  # fmt: skip
    written_down = run("journal", "--site", site, "--head").out.split()[1]
    shutil.copy(copy / "journal.jsonl", work)
    assert run("journal", "--site", site, "--verify").code == 9
    shutil.copy(copy / "journal.head", work)
    assert run("journal", "--site", site, "--verify").code == 0
    assert run("journal", "--site", site, "--expect", written_down).code == 9


@pytest.mark.parametrize("option", ["", "--verify", "--head", "--json"])
def test_a_damaged_journal_shows_what_still_stands_and_ends_with_its_code(
    run: Run, site: Path, option: str
) -> None:
    path = site.parent / "work" / "journal.jsonl"
    path.write_text(path.read_text().replace('"round":1', '"round":2', 1))
    said = run("journal", "--site", site, *([option] if option else []))
    assert said.code == 9
    assert "damaged at line 2" in said.err
    assert "security officer" in said.err
    assert "complete:" not in said.out
    if not option:
        assert "statistics" in said.out
        assert "mixer update" not in said.out
    if option == "--head":
        assert not said.out, "no hash of a damaged journal is ever given"
    if option == "--json":
        found = json.loads(said.out)
        assert found["whole"] is False
        assert found["problem"]["line"] == 2


def test_a_line_that_a_crash_cut_off_is_told(run: Run, site: Path) -> None:
    with (site.parent / "work" / "journal.jsonl").open("a") as stream:
        stream.write('{"number":4')
    said = run("journal", "--site", site, "--verify")
    assert said.code == 0
    assert "a crash cut off the last line (11 bytes)" in said.err


def test_the_check_prints_one_verdict_each_and_ends_with_the_worst(run: Run, site: Path) -> None:
    said = run("check", "--site", site, "--quick")
    assert said.code == 2
    lines = said.out.splitlines()
    assert lines[0].split() == ["ok", "settings", "site", "'north'"]
    assert lines[1].startswith("problem  kit")
    assert lines[2].strip().startswith("fix: ")
    assert said.err.startswith("next: fix")
    found = json.loads(run("check", "--site", site, "--quick", "--json").out)
    assert found["exit_code"] == 2
    assert found["checks"][1] | {"detail": "", "fix": ""} == {
        "check": "kit",
        "status": "problem",
        "detail": "",
        "fix": "",
        "label": "config",
    }


@pytest.mark.parametrize(
    "words",
    [["enroll", "south", "--folder", "FOLDER"], ["journal", "--site", "SITE"], ["--help"]],
    ids=lambda words: str(words[0]),
)
def test_a_command_that_needs_no_torch_imports_none(
    site: Path, tmp_path: Path, words: list[str]
) -> None:
    script = (
        "import sys, lift_client.cli as cli\n"
        "try:\n    cli.main()\n"
        "except SystemExit as ended:\n    code = ended.code\n"
        "slow = {'torch', 'flwr', 'grpc', 'sklearn', 'scipy', 'httpx'} & set(sys.modules)\n"
        "sys.exit(f'imported: {slow}' if slow else code)\n"
    )
    filled = [{"FOLDER": str(tmp_path / "new"), "SITE": str(site)}.get(w, w) for w in words]
    done = subprocess.run(
        [sys.executable, "-c", script, *filled], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_quick_check_imports_no_torch(site: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from lift_client.check.preflight import run_checks\n"
        "list(run_checks(Path(sys.argv[1]), quick=True))\n"
        "sys.exit(str({'torch', 'flwr', 'scipy'} & set(sys.modules) or '') or 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(site)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_text_in_brackets_is_shown_as_it_is(run: Run, tmp_path: Path) -> None:
    settings = enrolled(tmp_path, "north").settings
    Journal(tmp_path / "work" / "journal.jsonl").append(
        Entry(
            run="a" * 64,
            round=1,
            kind="guard",
            tensors=(TensorNote(name="x", dtype="float32", shape=()),),
            bytes=4,
            sha256="b" * 64,
            receiver="[::1]:8443",
            purpose="A verdict [bold]in brackets[/bold].",
        )
    )
    said = run("journal", "--site", settings)
    assert "[::1]:8443" in said.out
    assert "[bold]in" in said.out
