"""Hospitals' approvals: of one release, by the key that is known, and of nobody else."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lift.audit.documents import SignedAudit
from lift.config.server import ServerConfig
from lift.errors import ConfigError, LiftError, PolicyError, RecordError, ReleaseError
from lift.keys import public_text, read_key, sign_text
from lift.release.approvals import Approval, read_roster_keys
from lift.release.manifest import MANIFEST_FILE
from lift_client.approval import APPROVED_FILE, approve, approved_releases
from lift_server.release.key import read_release_key, sign_release
from lift_server.sites import roster
from tests.enrolled import enrolled
from tests.release.made import World, findings, list_files, looked_at, make_world, sum_up
from tests.release.test_forged import forge

NOW = datetime.now(UTC)
WRONG = {("approvals/east.json", "wrong approval")}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def folder(world: World, tmp_path: Path) -> Path:
    return world.release(tmp_path / "release")


def approved(world: World, folder: Path) -> list[str]:
    return [one.site for one in looked_at(folder, world.ca).approvals]


def detail(world: World, folder: Path) -> str:
    (found,) = looked_at(folder, world.ca).findings
    return found.detail


def change(folder: Path, **changes: object) -> None:
    path = folder / "approvals" / "east.json"
    data = json.loads(path.read_text())
    data["approval"] |= changes
    path.write_text(json.dumps(data))


def test_each_site_s_approval_is_shown_and_the_release_stays_whole(
    world: World, folder: Path
) -> None:
    before = (folder / MANIFEST_FILE).read_bytes()
    for site in ("west", "east"):
        approve(world.site(site), folder, NOW)
    assert approved(world, folder) == ["east", "west"]
    assert findings(folder, world.ca) == set()
    assert (folder / MANIFEST_FILE).read_bytes() == before
    # a second time replaces the first
    approve(world.site("east"), folder, NOW + timedelta(days=1))
    assert approved(world, folder) == ["east", "west"]
    # and the release may be signed anew
    sign_release(folder, read_release_key(world.keys))
    assert approved(world, folder) == ["east", "west"]


def test_a_forged_release_is_not_approved_and_loses_its_approvals(
    world: World, folder: Path
) -> None:
    approve(world.site("west"), folder, NOW)
    forge(folder)
    with pytest.raises(ReleaseError, match="Nothing was signed"):
        approve(world.site("east"), folder, NOW)
    list_files(folder)
    assert approved(world, folder) == []
    assert not (folder / "approvals" / "east.json").exists()


def test_an_approval_of_another_release_is_none_of_this_one(
    world: World, folder: Path, tmp_path: Path
) -> None:
    approve(world.site("east"), folder, NOW)
    (folder / "run.json").write_text('{"another": "run"}')
    list_files(folder)
    sign_release(folder, read_release_key(world.keys))
    assert findings(folder, world.ca) == WRONG
    assert detail(world, folder) == "it is of another release"
    # the site itself may look again
    approve(world.site("east"), folder, NOW)
    assert approved(world, folder) == ["east"]


def test_a_changed_or_renamed_approval_is_named(world: World, folder: Path) -> None:
    path = approve(world.site("east"), folder, NOW)
    change(folder, made="2020-01-01T00:00:00+00:00")
    assert findings(folder, world.ca) == WRONG
    assert "does not fit" in detail(world, folder)
    approve(world.site("east"), folder, NOW)
    path.rename(path.with_name("west.json"))
    assert detail(world, folder) == "it is of site 'east'"


def test_a_site_cannot_approve_for_another(world: World, folder: Path) -> None:
    path = approve(world.site("east"), folder, NOW)
    data = json.loads(path.read_text())
    key = read_key(world.site("west").key)
    approval = Approval(**data["approval"])
    signature = sign_text(key, approval.canonical_json().encode())
    path.write_text(json.dumps(data | {"signature": signature}))
    assert findings(folder, world.ca) == WRONG
    own = public_text(key.public_key()).decode()
    path.write_text(json.dumps(data | {"signature": signature, "public_key": own}))
    assert "another key than that of site 'east'" in detail(world, folder)


def test_a_site_s_signature_under_an_audit_is_no_approval() -> None:
    audit, approval = SignedAudit.model_fields["audit"].annotation, Approval
    assert audit is not None
    required = {name for name, field in audit.model_fields.items() if field.is_required()}
    assert not required <= set(approval.model_fields)


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"approval": 1, "approval": 2}', '{"approval": {}}', "x" * 200_000, "\x00"],
)
def test_a_file_that_is_no_approval_is_named_and_harms_no_other(
    world: World, folder: Path, content: str
) -> None:
    approve(world.site("west"), folder, NOW)
    (folder / "approvals" / "east.json").write_text(content)
    assert findings(folder, world.ca) == WRONG
    assert approved(world, folder) == ["west"]


def test_a_roster_from_elsewhere_overrules_the_keys_that_the_release_names(
    world: World, folder: Path, tmp_path: Path
) -> None:
    approve(world.site("east"), folder, NOW)
    keys = read_roster_keys(world.server / "sites.json")
    assert set(keys) == {"east", "west"}
    assert looked_at(folder, world.ca, keys=keys).findings == ()
    swapped = {"east": keys["west"]}
    (found,) = looked_at(folder, world.ca, keys=swapped).findings
    assert "another key" in found.detail
    (found,) = looked_at(folder, world.ca, keys={}).findings
    assert "no key of a site 'east'" in found.detail
    for content in ("[]", "{}", '{"sites": {"east": 3}}', '{"sites": 1, "sites": 2}', "\x00"):
        (tmp_path / "sites.json").write_text(content)
        with pytest.raises(ConfigError):
            read_roster_keys(tmp_path / "sites.json")


def test_a_site_that_the_release_does_not_name_is_told_so(
    world: World, folder: Path, tmp_path: Path
) -> None:
    # a coordinator that admits the site after the export
    server = tmp_path / "server"
    shutil.copytree(world.server, server)
    config = ServerConfig.from_yaml(server / "server.yaml").under(server)
    joined = enrolled(tmp_path / "north", "north")
    shutil.copytree(roster.add_site(config, "north", joined.public).kit, tmp_path / "north" / "kit")
    late = World(tmp_path).site("north")
    with pytest.raises(PolicyError, match="names no site 'north'"):
        approve(late, folder, NOW)
    assert not (folder / "approvals").exists()


def test_a_release_of_another_federation_is_not_approved(
    folder: Path, tmp_path: Path, world: World
) -> None:
    other = make_world(tmp_path / "other", sites=("east",))
    with pytest.raises(LiftError, match="not under the CA"):
        approve(other.site("east"), folder, NOW)
    assert findings(folder, world.ca) == set()


def test_the_site_remembers_what_it_approved_and_of_which_run(
    world: World, folder: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    site = world.site("east").model_copy(update={"folder": work})
    approve(site, folder, NOW)
    (folder / "release.json").write_text(json.dumps({"plan_digest": "a" * 64}))
    sign_again(world, folder)
    approve(site, folder, NOW)
    approve(site, folder, NOW)
    found = approved_releases(work)
    assert [one.run for one in found] == ["", "a" * 64]
    assert [one.federation for one in found] == ["trial", "trial"]
    # a record that nobody can read is not written over
    (work / APPROVED_FILE).write_text("{")
    with pytest.raises(RecordError, match="which releases"):
        approve(site, folder, NOW)
    assert (work / APPROVED_FILE).read_text() == "{"


def sign_again(world: World, folder: Path) -> None:
    sum_up(folder)
    list_files(folder)
    sign_release(folder, read_release_key(world.keys))
