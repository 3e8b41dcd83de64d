"""What docs/guides/operations.md says of backup, moving and versions, done with real processes."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.end_to_end.tiny_run import command
from tests.federation.world import PROJECT, Federation, run, until
from tests.ports import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PAGE = PROJECT / "docs" / "guides" / "operations.md"
MIXER = "mixer.safetensors"
OTHER_HOST = "127.0.0.2"
PATIENCE_S = 360.0
NEWER = """
import lift.protocol.messages
lift.protocol.messages.PROTOCOL_VERSION += 1
"""


def back_up(folder: Path, which: str, archive: Path) -> None:
    """Run the page's own `tar` for the server or a site."""
    (line,) = re.findall(rf"(?m)^tar .*/{which}\.tar.*$", PAGE.read_text(encoding="utf-8"))
    words = shlex.split(line, comments=True)
    words[words.index(f"/backup/{which}.tar")] = str(archive)
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    # 1: a file changed while it was read, which the page allows for what is not needed
    assert done.returncode in {0, 1}, done.stderr


def restore(archive: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    with tarfile.open(archive) as content:
        content.extractall(folder, filter="data")


def rounds_kept(archive: Path) -> int:
    """Training rounds in a backup of the server."""
    with tarfile.open(archive) as content:
        return sum("/round-" in name and name.endswith(".json") for name in content.getnames()) - 1


def begun(federation: Federation, rounds: int) -> None:
    """Make and start it, and wait until so many training rounds are done."""
    federation.make()
    federation.start_server()
    federation.start_sites()
    until(lambda: len(federation.records()) > rounds, PATIENCE_S, "some rounds")


def refused(*words: str | Path) -> tuple[int, str]:
    """Exit code and both streams of a command that need not succeed."""
    line = command(str(words[0]), *words[1:])
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stdout + done.stderr


def test_a_server_restored_from_a_backup_of_the_running_one_ends_with_the_same_bits(
    federation: Federation, finished: Federation, tmp_path: Path
) -> None:
    begun(federation, 1)
    back_up(federation.server, "server", tmp_path / "server.tar")
    kept = rounds_kept(tmp_path / "server.tar")
    assert 1 <= kept < 5
    federation.kill("server")
    shutil.rmtree(federation.server)

    restore(tmp_path / "server.tar", federation.server)
    federation.start_server()

    # its sites are left as they were
    assert federation.wait_server(PATIENCE_S) == 0, federation.log("server")
    assert (federation.out / MIXER).read_bytes() == (finished.out / MIXER).read_bytes()
    records = federation.records()
    assert [record["round"] for record in records] == [0, 1, 2, 3, 4, 5]
    assert [record.get("resumed", False) for record in records].index(True) == kept + 1


def test_a_server_that_moved_goes_on_once_certificate_and_kits_name_its_new_address(
    federation: Federation, finished: Federation, tmp_path: Path
) -> None:
    begun(federation, 1)
    federation.kill("server", 15)
    federation.stop_sites()
    back_up(federation.server, "server", tmp_path / "server.tar")
    shutil.rmtree(federation.server)
    federation.folder /= "elsewhere"
    restore(tmp_path / "server.tar", federation.server)
    for name in federation.sites:
        shutil.copytree(tmp_path / "sites" / name, federation.site(name))

    port = free_port()
    address = {"address": f"{OTHER_HOST}:{port}", "listen_host": OTHER_HOST, "listen_port": port}
    federation.write_server(federation.server_settings() | address)
    code, said = refused("lift-server", "check", federation.server)
    assert code == 4
    assert f"sites dial {OTHER_HOST}; the certificate names localhost" in said
    run("lift-server", "renew", federation.server, "--host", OTHER_HOST)
    assert "problem" not in run("lift-server", "check", federation.server)
    federation.start_server()
    until(lambda: "waiting for" in federation.log("server"), 60, "the server")
    site = federation.site("east")
    code, said = refused("lift-client", "check", "--site", site / "site.yaml")
    assert code == 4
    assert re.search(r"(?m)^problem +network", said)

    for name in federation.sites:
        folder = federation.site(name)
        again = run("lift-server", "add-site", federation.server, name, folder / "site.pub")
        assert "already admitted with this key; its kit was written again" in again
        shutil.rmtree(folder / "kit")
        shutil.copytree(federation.server / "kits" / name, folder / "kit")
        federation.start_site(name)
    assert federation.wait_server(PATIENCE_S) == 0, federation.log("server")
    assert (federation.out / MIXER).read_bytes() == (finished.out / MIXER).read_bytes()


def test_a_site_that_lost_its_machine_goes_on_with_its_backup_and_a_new_key(
    federation: Federation, finished: Federation, tmp_path: Path
) -> None:
    begun(federation, 1)
    federation.kill("server", 15)
    federation.stop_sites()
    east = federation.site("east")
    back_up(east, "site", tmp_path / "site.tar")
    lines = len((east / "work" / "journal.jsonl").read_text(encoding="utf-8").splitlines())
    shutil.rmtree(east)

    restore(tmp_path / "site.tar", east)
    assert not (east / "site.key").exists()
    run("lift-client", "enroll", "east", "--folder", east / "new")
    for name in ("site.key", "site.pub"):
        (east / "new" / name).rename(east / name)
    # while the server is down: a round that is open would close without the site
    run("lift-server", "remove-site", federation.server, "east")
    run("lift-server", "add-site", federation.server, "east", east / "site.pub")
    shutil.copytree(federation.server / "kits" / "east", east / "kit", dirs_exist_ok=True)
    federation.start_server()
    federation.start_sites()

    assert federation.wait_server(PATIENCE_S) == 0, federation.log("server")
    assert (federation.out / MIXER).read_bytes() == (finished.out / MIXER).read_bytes()
    # the journal goes on: it still says what left before
    federation.close()
    run("lift-client", "journal", "--verify", "--site", east / "site.yaml")
    after = (east / "work" / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(after) > lines


@pytest.mark.parametrize("newer", ["server", "site"])
def test_another_version_of_the_messages_is_named_on_both_sides(
    federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, newer: str
) -> None:
    federation.sites = ("east",)
    federation.make(federation={"rounds": 1, "deadline_s": 60.0})
    (tmp_path / "sitecustomize.py").write_text(NEWER, encoding="utf-8")
    path = str(tmp_path)
    with monkeypatch.context() as server_side:
        if newer == "server":
            server_side.setenv("PYTHONPATH", path)
        federation.start_server()
    with monkeypatch.context() as site_side:
        if newer == "site":
            site_side.setenv("PYTHONPATH", path)
        until(lambda: "waiting for" in federation.log("server"), 60, "the server")
        code, said = refused(
            "lift-client", "check", "--site", federation.site("east") / "site.yaml"
        )
        assert code == 6
        theirs, ours = ("3", "2") if newer == "server" else ("2", "3")
        assert f"the server speaks version {theirs} of the messages, this site {ours}" in said
        federation.start_site("east")
    assert federation.wait_server(PATIENCE_S) == 8
    assert "east (version): the site runs another version" in federation.log("server")
    assert "event=request_unreadable kind=version" in federation.site_log("east")
    assert not (federation.out / MIXER).exists()
