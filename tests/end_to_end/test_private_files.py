"""Whatever a command leaves is its user's alone, though the machine's users may read all else."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import lift.commands
import lift_client.cli
import lift_server.cli
from lift.files import close_folder
from tests.end_to_end.test_audit import make_federation
from tests.end_to_end.tiny_run import ENTRY_POINTS, TinyRun, run_here
from tests.opened_modes import open_to_others

ROOT = Path(__file__).parents[2]
SITE = "east"


@pytest.fixture(autouse=True)
def _as_most_machines_are() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_a_run_a_report_and_an_audit_are_for_their_user_alone(
    tiny: TinyRun, tmp_path: Path
) -> None:
    left = leave_everything(tiny, tmp_path)
    for folder in left:
        assert any(folder.iterdir()), folder
        assert open_to_others(folder) == []
    names = {path.name for folder in left for path in folder.rglob("*")}
    # a volume's voxels, who is in which part, a page with images, figures of patients
    assert {"entry.json", "split.json", "log.txt", "report.html", "metrics.json"} <= names
    assert {"server.key", "sites.json", "audit.json"} <= names
    # the process goes on as it was
    assert os.umask(0o022) == 0o022


def test_without_the_mask_the_walk_finds_them(
    tiny: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lift.commands, "files_kept_private", contextlib.nullcontext)
    out = tmp_path / "run"
    assert run_here("lift-simulate", "--config", tiny.settings("open"), "--output", out).code == 0
    found = open_to_others(out)
    assert "run/run.json" in found
    assert any(name.endswith("/split.json") for name in found)


def test_what_an_earlier_version_left_open_is_closed(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir(mode=0o755)
    (work / "split.json").write_text("{}")
    assert open_to_others(work)
    close_folder(work)
    assert open_to_others(work) == ["work/split.json"]
    assert work.stat().st_mode & 0o777 == 0o700
    close_folder(tmp_path / "new")
    assert open_to_others(tmp_path / "new") == []


def test_every_entry_point_keeps_what_it_writes_private() -> None:
    sources = [*ROOT.glob("lift/**/*.py"), *ROOT.glob("*/lift_*/**/*.py")]
    entries = [
        path
        for path in sources
        if re.search(r"^def main\(|^if __name__ == ", path.read_text("utf-8"), re.MULTILINE)
    ]
    assert len(entries) >= 10
    for path in entries:
        text = path.read_text("utf-8")
        if "os.execv(" in text:
            # it becomes another program, and writes nothing
            assert "write" not in text, path
            continue
        assert "    run_command(app" in text or "    keep_files_private()\n" in text, path


def leave_everything(tiny: TinyRun, folder: Path) -> list[Path]:
    """The folders that a coordinator, a simulation, a site's report and its audit leave."""
    ENTRY_POINTS["lift-client"] = lift_client.cli.main
    ENTRY_POINTS["lift-server"] = lift_server.cli.main

    def command(program: str, *arguments: str | Path) -> None:
        done = run_here(program, *arguments)
        assert done.code == 0, done

    made = make_federation(tiny, folder / "made", {"mode": "none"})
    shutil.copytree(made.site(SITE), folder / "site")
    site, run, server = folder / "site" / "site.yaml", made.simulated, folder / "server"
    mixer = made.run / "mixer.safetensors"
    command("lift-server", "init", server, "--host", "localhost", "--name", "trial")
    command("lift-client", "report", "--site", site, "--mixer", mixer, "-o", folder / "report")
    (folder / "audited").mkdir(mode=0o700)
    audit = folder / "audited" / "audit.json"
    command("lift", "audit", "patients", mixer, "--site", site, "-o", audit)
    return [server, run, folder / "report", folder / "audited", folder / "site" / "work"]
