"""Commands that use a mixer refuse a release that is not what was signed, before they compute."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

import lift.cli
from lift.errors import ReleaseError
from lift.release.check import MIXER_FILE, mixer_file
from lift.viewer.command import show_volumes
from lift_client.approval import approve
from tests.lift.small_world import assert_four_parts
from tests.release.made import FILES, World, list_files, make_world, write_files
from tests.release.test_forged import forge


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def folder(world: World, tmp_path: Path) -> Path:
    return world.release(tmp_path / "release")


Outcome = tuple[int, str, str]


@pytest.fixture
def lift_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    def call(*words: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["lift", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            lift.cli.main()
        screen = capsys.readouterr()
        return int(ended.value.code or 0), screen.out, screen.err

    return call


def test_verify_release_says_file_by_file_what_is_wrong(
    world: World, folder: Path, lift_command: Callable[..., Outcome]
) -> None:
    code, out, _ = lift_command("verify-release", folder, "--ca", world.ca)
    assert code == 0
    assert all(f"ok: {name}\n" in out for name in FILES)
    assert "signed: by 'LiFT trial release'" in out
    assert "complete: 5 files" in out
    forge(folder)
    code, out, err = lift_command("verify-release", folder, "--ca", world.ca)
    assert code == 9
    assert f"changed: {MIXER_FILE} (" in out
    assert "changed: RELEASE.txt (" in out
    assert "ok: run.json" in out
    assert "complete" not in out
    assert "do not use" in err


def test_verify_release_as_json(
    world: World, folder: Path, lift_command: Callable[..., Outcome]
) -> None:
    def data() -> dict[str, object]:
        code, out, _ = lift_command("verify-release", folder, "--ca", world.ca, "--json")
        found: dict[str, object] = json.loads(out)
        assert found["exit_code"] == code
        return found

    good = data()
    assert good["whole"] is True
    assert good["findings"] == []
    (folder / "note").write_text("x")
    bad = data()
    assert (bad["whole"], bad["exit_code"]) == (False, 9)
    assert bad["findings"] == [
        {"file": "note", "problem": "extra", "detail": "a file not in the manifest"}
    ]
    (folder / "manifest.json").unlink()
    assert data()["manifest_sha256"] is None


@pytest.mark.parametrize("content", ["", "no certificate", "two", "server"])
def test_an_authority_that_is_none_is_the_user_s_to_mend(
    world: World,
    folder: Path,
    tmp_path: Path,
    lift_command: Callable[..., Outcome],
    content: str,
) -> None:
    ca = tmp_path / "ca.pem"
    text = world.ca.read_text()
    server = (world.certificates / "server.pem").read_text()
    ca.write_text({"two": text + server, "server": server}.get(content, content))
    code, _, err = lift_command("verify-release", folder, "--ca", ca)
    assert code == 2
    assert "never from the release itself" in err
    code, _, err = lift_command("verify-release", folder / "absent", "--ca", world.ca)
    assert code == 3


def test_a_manifest_of_another_version_says_so(
    world: World, folder: Path, lift_command: Callable[..., Outcome]
) -> None:
    data = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(data | {"format_version": 2}))
    code, _, err = lift_command("verify-release", folder, "--ca", world.ca)
    assert code == 6
    assert "format 2" in err


def test_verify_release_loads_no_torch(world: World, folder: Path) -> None:
    script = (
        "import sys, lift.cli\n"
        "try: lift.cli.main()\n"
        "except SystemExit as ended: code = ended.code\n"
        "heavy = {'torch', 'flwr', 'monai', 'numpy', 'nibabel'} & set(sys.modules)\n"
        "sys.exit(code or (99 if heavy else 0))\n"
    )
    words = [sys.executable, "-c", script, "verify-release", str(folder), "--ca", str(world.ca)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def refused(path: Path, ca: Path | None = None) -> ReleaseError:
    with pytest.raises(ReleaseError) as caught:
        mixer_file(path, ca=ca)
    assert_four_parts(caught.value)
    assert caught.value.exit_code == 9
    return caught.value


def test_a_mixer_of_a_release_is_used_only_while_every_file_fits(
    world: World, folder: Path
) -> None:
    for ca in (None, world.ca):
        assert mixer_file(folder, ca=ca) == folder / MIXER_FILE
        assert mixer_file(folder / MIXER_FILE, ca=ca) == folder / MIXER_FILE
    # of another file than the mixer: whoever changed the banner is not believed on the rest
    (folder / "RELEASE.txt").write_text("audited")
    for ca in (None, world.ca):
        assert "RELEASE.txt: changed" in refused(folder, ca).seen
        assert "RELEASE.txt: changed" in refused(folder / MIXER_FILE, ca).seen


def test_a_manifest_that_was_written_anew_passes_without_the_authority_only(
    world: World, folder: Path
) -> None:
    forge(folder)
    list_files(folder)
    assert mixer_file(folder) == folder / MIXER_FILE
    assert "wrong key" in refused(folder, world.ca).seen


@pytest.mark.parametrize("left", ["release.json", "RELEASE.txt", "release.pem"])
def test_a_release_without_its_manifest_is_no_run(folder: Path, left: str) -> None:
    for path in folder.iterdir():
        if path.name not in {MIXER_FILE, left}:
            path.unlink()
    assert "manifest.json: missing" in refused(folder).seen


def test_a_run_s_folder_works_as_it_is_and_is_no_release_under_an_authority(
    world: World, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / MIXER_FILE).write_bytes(b"numbers")
    assert mixer_file(run) == run / MIXER_FILE
    assert "manifest.json: missing" in refused(run, world.ca).seen


def test_a_link_into_a_forged_release_or_out_of_one_is_no_way_round(
    folder: Path, tmp_path: Path
) -> None:
    link = tmp_path / "mixer.safetensors"
    link.symlink_to(folder / MIXER_FILE)
    assert mixer_file(link) == link
    forge(folder)
    refused(link)
    (folder / MIXER_FILE).unlink()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "other").write_bytes(b"numbers")
    (folder / MIXER_FILE).symlink_to(tmp_path / "run" / "other")
    refused(folder)


def test_a_file_that_the_manifest_does_not_list_is_no_mixer_of_the_release(
    world: World, folder: Path, tmp_path: Path
) -> None:
    approvals = folder / "approvals"
    approvals.mkdir()
    hidden = approvals / "hidden.json"
    hidden.write_bytes(b"numbers")
    refused(hidden, world.ca)
    stray = folder / "manifest.json"
    refused(stray, world.ca)


@pytest.mark.parametrize("command", ["translate", "calibrate", "generate"])
def test_each_command_with_a_mixer_refuses_a_forged_release(
    folder: Path, tmp_path: Path, lift_command: Callable[..., Outcome], command: str
) -> None:
    forge(folder)
    inputs: dict[str, list[object]] = {"translate": ["a.nii.gz"], "calibrate": [tmp_path]}
    given = inputs.get(command, [])
    output = tmp_path / "out.nii.gz"
    code, _, err = lift_command(command, *given, "--mixer", folder, "-o", output)
    assert code == 9
    assert f"{MIXER_FILE}: changed" in err
    assert not output.exists()


def test_audits_and_the_viewer_refuse_it_too(
    folder: Path, tmp_path: Path, world: World, lift_command: Callable[..., Outcome]
) -> None:
    forge(folder)
    code, _, err = lift_command("audit", "training", folder)
    assert (code, f"{MIXER_FILE}: changed" in err) == (9, True)
    site = world.site("east").key.parent / "site.yaml"
    code, _, err = lift_command("audit", "patients", folder, "--site", site)
    assert (code, f"{MIXER_FILE}: changed" in err) == (9, True)
    volume = folder / "volume.nii.gz"
    volume.write_bytes(b"voxels")
    with pytest.raises(ReleaseError):
        show_volumes([volume], output=tmp_path / "o", label="", port=0, browser=False)


def test_every_reader_of_a_mixer_comes_through_the_check(world: World, folder: Path) -> None:
    from lift.mixer.finished import read_mixer

    (folder / "run.json").unlink()
    with pytest.raises(ReleaseError):
        read_mixer(folder / MIXER_FILE)


def test_a_site_checks_a_release_by_its_kit_s_authority(
    world: World, folder: Path, tmp_path: Path
) -> None:
    from lift_client.own.work import finished_mixer

    list_files(folder)
    forge(folder)
    list_files(folder)
    with pytest.raises(ReleaseError, match="wrong key"):
        finished_mixer(world.site("east"), folder / MIXER_FILE)


def test_an_unsigned_release_is_not_approved(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "unsigned"
    write_files(folder, FILES)
    list_files(folder, sites={})
    with pytest.raises(ReleaseError, match="not signed"):
        approve(world.site("east"), folder, datetime.now(UTC))
    assert not (folder / "approvals").exists()
