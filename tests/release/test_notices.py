"""Notices of withdrawal: shown where the release key signed them, and refused by name elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

import lift_server.cli
from lift.errors import LiftError
from lift.files import file_digest
from lift.keys import read_key, sign_text
from lift.release.manifest import MANIFEST_FILE
from lift.release.notices import Notice
from lift_server.release.key import read_release_key, sign_release
from lift_server.sites import roster
from lift_server.sites.provisioning import load_settings
from tests.end_to_end.tiny_run import Outcome, run_here
from tests.release.made import World, list_files, make_world, sum_up

Release = Callable[..., Path]
REASON = "The hospital left the study."


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("other"), sites=("east",))


@pytest.fixture
def release(world: World, tmp_path: Path) -> Release:
    """Makes a signed release of a run that counted these sites so many times."""

    def make(name: str = "release", statistics: tuple[str, ...] = (), **counted: int) -> Path:
        folder = world.release(tmp_path / name)
        made_with = sorted({*statistics, *(site for site, number in counted.items() if number)})
        record = {"format_version": 2, "rounds": {"made_with": made_with}}
        (folder / "release.json").write_text(json.dumps(record))
        sum_up(folder)
        list_files(folder)
        sign_release(folder, read_release_key(world.keys))
        return folder

    return make


def withdraw(world: World, notice: Path, *releases: Path, site: str = "east") -> Result:
    options = [word for folder in releases for word in ("--release", str(folder))]
    arguments = [str(world.server), site, "--output", str(notice), "--reason", REASON]
    keys = ["--release-key", str(world.keys)]
    return CliRunner().invoke(lift_server.cli.app, ["withdraw", *arguments, *keys, *options])


def verify(world: World, folder: Path, notices: Path, *options: str) -> Outcome:
    """Of the real command."""
    given: list[str | Path] = ["--ca", world.ca, "--notices", notices, *options]
    return run_here("lift", "verify-release", folder, *given)


def refused(result: Result) -> LiftError:
    assert isinstance(result.exception, LiftError), result.output
    return result.exception


@pytest.fixture
def notices(tmp_path: Path) -> Path:
    (tmp_path / "notices").mkdir()
    return tmp_path / "notices"


def test_a_notice_is_shown_with_the_releases_that_it_names_and_with_no_other(
    world: World, release: Release, notices: Path
) -> None:
    first, later = release(east=3, west=3), release("later", east=1)
    without = release("without", east=0, west=4)
    done = withdraw(world, notices / "east.json", first, later)
    assert done.exit_code == 0, done.output
    assert done.stdout.count("names: ") == 2
    for folder in (first, later):
        told = verify(world, folder, notices)
        # the release is what was signed: a warning, and no failure
        assert told.code == 0
        (line,) = [line for line in told.stdout.splitlines() if "WARNING" in line]
        assert "site 'east'" in line
        assert line.endswith(REASON)
        assert f"{json.loads((notices / 'east.json').read_text())['notice']['made']}" in line
    told = verify(world, without, notices)
    assert (told.code, "WARNING" in told.stdout) == (0, False)
    as_json = json.loads(verify(world, first, notices, "--json").stdout)
    assert [one["site"] for one in as_json["notices"]] == ["east"]
    assert as_json["refused_notices"] == []


def test_the_notice_says_nothing_but_site_date_reason_and_releases(
    world: World, release: Release, notices: Path
) -> None:
    folder = release(east=1)
    withdraw(world, notices / "east.json", folder)
    signed = json.loads((notices / "east.json").read_text())
    assert set(signed) == {"notice", "certificate", "signature"}
    assert set(signed["notice"]) == {
        *("format_version", "kind", "federation", "site", "made", "reason", "releases"),
    }
    assert signed["notice"]["releases"] == [file_digest(folder / MANIFEST_FILE)]


def test_without_a_folder_all_in_the_coordinators_are_looked_at(
    tmp_path: Path, release: Release
) -> None:
    own = make_world(tmp_path / "own")
    for name, counted in (("a", {"east": 2}), ("b", {"west": 2}), ("c", {})):
        made = release(name, statistics=("east",) if name == "c" else (), **counted)
        made.rename(own.server / name)
    done = withdraw(own, tmp_path / "notice.json")
    assert done.exit_code == 0, done.output
    named = [line for line in done.stdout.splitlines() if line.startswith("names")]
    # its statistics are in the mixer too
    assert [line.split(",")[0].rpartition("/")[2] for line in named] == ["a", "c"]
    assert "does not name: " in done.stdout


def test_a_removed_site_is_named_too_and_a_notice_removes_none(
    tmp_path: Path, release: Release
) -> None:
    own, folder = make_world(tmp_path / "own"), release(east=1, west=1)
    before = (own.server / "sites.json").read_bytes()
    assert withdraw(own, tmp_path / "east.json", folder).exit_code == 0
    assert (own.server / "sites.json").read_bytes() == before
    roster.remove_site(load_settings(own.server), "west")
    assert withdraw(own, tmp_path / "west.json", folder, site="west").exit_code == 0


def test_what_was_not_made_with_the_site_is_not_named(
    world: World, release: Release, tmp_path: Path
) -> None:
    first, without = release(east=3), release("without", west=4)
    notice = tmp_path / "notice.json"
    assert "not every release" in refused(withdraw(world, notice, first, without)).what
    assert "no release" in refused(withdraw(world, notice)).what
    assert "known: east, west" in refused(withdraw(world, notice, first, site="south")).seen
    plain = world.release(tmp_path / "plain")
    assert "does not say which sites" in refused(withdraw(world, notice, plain)).what
    (first / "run.json").write_bytes(b"{}")
    assert "run.json" in str(refused(withdraw(world, notice, first)))
    assert not notice.exists()
    notice.write_text("mine")
    assert "already" in refused(withdraw(world, notice, without, site="west")).what
    assert notice.read_text() == "mine"


@pytest.mark.parametrize(
    "change",
    ["site", "reason", "releases", "signature", "no signature", "not JSON", "twice", "a link"],
)
def test_an_altered_notice_is_refused_by_name(
    world: World, release: Release, notices: Path, tmp_path: Path, change: str
) -> None:
    folder, path = release(east=1), notices / "east.json"
    withdraw(world, path, folder)
    signed = json.loads(path.read_text())
    if change in {"site", "reason"}:
        signed["notice"][change] = "west"
    elif change == "releases":
        signed["notice"]["releases"].append("0" * 64)
    elif change == "signature":
        signed["signature"] = "A" + signed["signature"][1:-4] + "AAA="
    elif change == "no signature":
        del signed["signature"]
    path.write_text("{" if change == "not JSON" else json.dumps(signed))
    if change == "twice":
        path.write_text(path.read_text().replace('"reason"', '"reason": "a", "reason"'))
    if change == "a link":
        path.rename(tmp_path / "east.json")
        path.symlink_to(tmp_path / "east.json")
    told = verify(world, folder, notices)
    assert told.code == 9
    assert "wrong notice: east.json" in told.stdout
    assert "WARNING" not in told.stdout
    # of the release itself nothing is wrong
    assert "all as signed" in told.stdout
    assert "refused notices" in told.stderr
    (one,) = json.loads(verify(world, folder, notices, "--json").stdout)["refused_notices"]
    assert one["file"] == "east.json"


def test_another_key_s_notice_is_refused(
    world: World, other: World, release: Release, notices: Path, tmp_path: Path
) -> None:
    folder = release(east=1)
    path = notices / "east.json"
    assert withdraw(other, path, folder).exit_code == 0
    assert "not under the CA" in verify(world, folder, notices).stdout
    # a site's own key, with the certificate of the genuine one
    genuine = tmp_path / "genuine.json"
    withdraw(world, genuine, folder)
    signed = json.loads(genuine.read_text())
    text = Notice.from_data(signed["notice"], "").canonical_json().encode()
    signed["signature"] = sign_text(read_key(world.site("east").key), text)
    path.write_text(json.dumps(signed))
    told = verify(world, folder, notices)
    assert (told.code, "another key signed" in told.stdout) == (9, True)
    # the server's TLS certificate is under the same authority
    signed["certificate"] = (world.certificates / "server.pem").read_text()
    path.write_text(json.dumps(signed))
    assert "something else" in verify(world, folder, notices).stdout
    # and the genuine one beside it is shown all the same
    genuine.rename(notices / "genuine.json")
    told = verify(world, folder, notices)
    assert (told.code, "WARNING" in told.stdout) == (9, True)


def test_a_signed_manifest_is_no_notice(world: World, release: Release, notices: Path) -> None:
    folder = release(east=1)
    (notices / "manifest.json").write_bytes((folder / MANIFEST_FILE).read_bytes())
    assert "wrong notice: manifest.json" in verify(world, folder, notices).stdout


def test_a_missing_folder_is_said_and_an_empty_one_says_nothing(
    world: World, release: Release, notices: Path
) -> None:
    folder = release(east=1)
    told = verify(world, folder, notices / "none")
    assert (told.code, "there are no notices" in told.stderr) == (3, True)
    told = verify(world, folder, notices)
    assert (told.code, "notice" in told.stdout) == (0, False)


def test_it_needs_no_torch(world: World, release: Release, notices: Path) -> None:
    folder = release(east=1)
    withdraw(world, notices / "east.json", folder)
    code = (
        "import sys; sys.modules['torch'] = None; import lift.cli; "
        f"sys.argv = ['lift', 'verify-release', {str(folder)!r}, '--ca', {str(world.ca)!r}, "
        f"'--notices', {str(notices)!r}]; lift.cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, "WARNING" in done.stdout) == (0, True), done.stderr
