"""What `deploy/`, guides and SECURITY.md say is what the code does: commands, ports, fields."""

from __future__ import annotations

import configparser
import importlib
import importlib.util
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main
import yaml
from pydantic import BaseModel

from lift.config.card import ChannelCard, DataCard, ValueCount, VendorCount
from lift.config.server import ServerConfig
from lift.config.site import SiteConfig
from lift.errors import EXIT_CODES
from lift.protocol.messages import REPLIES, DifferenceDb, FailureKind
from lift.wire.groups import GROUPS, PURPOSES

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
CONTAINERS = DEPLOY / "containers"
DOCS = ROOT / "docs"
GUIDES = sorted((DOCS / "guides").glob("*.md"))
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
CONTAINERFILES = [CONTAINERS / "Containerfile.cpu", CONTAINERS / "Containerfile.gpu"]
FILES = [
    ROOT / "SECURITY.md",
    *(
        path
        for path in sorted(DEPLOY.rglob("*"))
        if path.is_file() and not path.relative_to(DEPLOY).parts[0].startswith("lift_")
    ),
    *GUIDES,
]
# program -> its commands; "" is the program without one
COMMANDS = {
    "lift-server": [
        "",
        "try",
        "init",
        "add-site",
        "remove-site",
        "go-on",
        "renew",
        "check",
        "status",
        "page",
        "export",
        "release-key",
        "sign-release",
        "withdraw",
    ],
    "lift-client": [
        "",
        "enroll",
        "phantom",
        "check",
        "report",
        "choose",
        "journal",
        "ledger",
        "approve-release",
        "withdraw",
    ],
}
MODULES = {"lift-server": "lift_server.cli", "lift-client": "lift_client.cli"}
# somebody has to change something first: a restart cannot help
FINAL = {"config", "data", "privacy", "version", "policy", "record"}
SANDBOX = {
    "AmbientCapabilities": "",
    "CapabilityBoundingSet": "",
    "KeyringMode": "private",
    "KillMode": "mixed",
    "LimitCORE": "0",
    "LockPersonality": "yes",
    "MemoryDenyWriteExecute": "no",
    "NoNewPrivileges": "yes",
    "PrivateTmp": "yes",
    "ProtectClock": "yes",
    "ProtectControlGroups": "yes",
    "ProtectHome": "yes",
    "ProtectHostname": "yes",
    "ProtectKernelLogs": "yes",
    "ProtectKernelModules": "yes",
    "ProtectKernelTunables": "yes",
    "ProtectProc": "invisible",
    "ProtectSystem": "strict",
    "RemoveIPC": "yes",
    "Restart": "on-failure",
    "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX",
    "RestrictNamespaces": "yes",
    "RestrictRealtime": "yes",
    "RestrictSUIDSGID": "yes",
    "SystemCallArchitectures": "native",
    "SystemCallErrorNumber": "EPERM",
    "UMask": "0077",
}


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _project() -> dict[str, Any]:
    return tomllib.loads(_text(ROOT / "pyproject.toml"))


def _copied(path: Path) -> set[str]:
    """What an image's recipe takes from the repository."""
    lines = _text(path).splitlines()
    if path.suffix == ".def":
        first = lines.index("%files") + 1
        rows = lines[first : lines.index("", first)]
        return {row.split()[0] for row in rows}
    rows = [line for line in lines if line.startswith("COPY ") and "--from" not in line]
    return {source.removesuffix("/") for row in rows for source in row.split()[1:-1]}


def _service(path: Path) -> dict[str, list[str]]:
    """Key -> values of [Service]: a unit may give a key several times."""
    # it raises on a line that is no setting
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.read_string(_text(path))
    assert parser.sections() == ["Unit", "Service", "Install"]
    found: dict[str, list[str]] = {}
    body = _text(path).partition("\n[Service]\n")[2].partition("\n[Install]\n")[0]
    for line in body.splitlines():
        if line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def _shown(text: str) -> Iterator[tuple[str, str, list[str]]]:
    """Program, command and options wherever a text shows what to type."""
    typed = re.compile(
        r"(?:^|\$ |`|bin/|exec |CMD |&& )(lift-server|lift-client)(?= |`|$)([^`|#\n]*)",
        re.MULTILINE,
    )
    for program, rest in typed.findall(text):
        words = re.split(r"\s{2,}|$", rest.strip())[0].split()
        command = words[0] if words and re.fullmatch(r"[a-z]+(-[a-z]+)*", words[0]) else ""
        yield program, command, [word for word in words if word.startswith("--")]


def _table(path: Path) -> list[tuple[int, str]]:
    """Number and label of each row of a guide's table of exit codes."""
    table = _text(path).partition("## What can go wrong")[2]
    return [(int(n), label) for n, label in re.findall(r"^\| (\d+) (\w+) \|", table, re.MULTILINE)]


def test_everything_that_operators_need_is_there() -> None:
    names = {_name(path) for path in FILES}
    assert names == {
        "SECURITY.md",
        "deploy/containers/Containerfile.cpu",
        "deploy/containers/Containerfile.cpu.dockerignore",
        "deploy/containers/Containerfile.gpu",
        "deploy/containers/Containerfile.gpu.dockerignore",
        "deploy/containers/compose.yaml",
        "deploy/containers/lift.def",
        "deploy/kubernetes/deployment.yaml",
        "deploy/kubernetes/gpu.yaml",
        "deploy/kubernetes/kustomization.yaml",
        "deploy/kubernetes/namespace.yaml",
        "deploy/kubernetes/network-policy.yaml",
        "deploy/kubernetes/volumes.yaml",
        "deploy/nginx/lift.conf",
        "deploy/oauth2-proxy/oauth2-proxy.cfg",
        "deploy/systemd/lift-client.service",
        "deploy/systemd/lift-server.service",
        "docs/guides/air-gapped.md",
        "docs/guides/coordinator.md",
        "docs/guides/monitoring.md",
        "docs/guides/operations.md",
        "docs/guides/security-officer.md",
        "docs/guides/site.md",
    }


@pytest.mark.parametrize("path", UNITS, ids=_name)
def test_a_unit_runs_our_command_in_a_sandbox(path: Path) -> None:
    service = _service(path)
    assert {key: service.get(key, ["missing"])[-1] for key in SANDBOX} == SANDBOX
    assert service["SystemCallFilter"][0] == "@system-service"
    assert service["SystemCallFilter"][1].startswith("~@privileged")
    assert service["User"] == service["Group"]
    assert service["User"][0] not in {"root", "nobody"}
    (start,) = service["ExecStart"]
    assert Path(start.split()[0]).name == path.stem
    # what it writes, and nothing else: its state, and its log where the details of a fault go
    writable = service["ReadWritePaths"][0].split()
    assert writable == [f"/var/lib/{service['User'][0]}", f"/var/log/{service['User'][0]}"]
    assert f"TMPDIR={writable[1]}" in service["Environment"]
    assert start.split()[-1].startswith(f"{writable[0]}/")


@pytest.mark.parametrize("path", UNITS, ids=_name)
def test_a_unit_is_not_restarted_where_a_restart_cannot_help(path: Path) -> None:
    (codes,) = _service(path)["RestartPreventExitStatus"]
    assert {int(code) for code in codes.split()} == {EXIT_CODES[label].number for label in FINAL}
    assert "\nStartLimitBurst=5\n" in _text(path)


@pytest.mark.parametrize("path", CONTAINERFILES, ids=_name)
def test_an_image_is_small_pinned_and_runs_as_nobody_special(path: Path) -> None:
    text = _text(path)
    (base,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", text, re.MULTILINE)
    assert re.fullmatch(r"\S+/python:3\.11\.\d+-slim-[a-z]+", base)
    stages = re.findall(r"^FROM (\S+) AS (\w+)$", text, re.MULTILINE)
    assert len(stages) >= 2
    assert {source for source, _ in stages} <= {"${PYTHON_IMAGE}", "runtime"}
    # the last stage, or the one that it starts from, leaves root behind
    users = re.findall(r"^USER (\S+)$", text, re.MULTILINE)
    assert users == ["10001:10001"]
    assert text.index("USER 10001") > text.index("COPY --from=build")
    assert not re.search(r"^(ADD|ARG \w*(KEY|SECRET|TOKEN|PASSWORD))", text, re.MULTILINE)
    for stage in text.split("\nFROM ")[1:]:
        if 'ENTRYPOINT ["lift-server"]' in stage:
            assert re.search(r"^HEALTHCHECK [^#]*CMD lift-server status ", stage, re.MULTILINE)
        if 'ENTRYPOINT ["lift-client"]' in stage:
            assert "\nHEALTHCHECK NONE\n" in stage


@pytest.mark.parametrize("path", [*CONTAINERFILES, CONTAINERS / "lift.def"], ids=_name)
def test_an_image_holds_every_package_at_its_pinned_version(path: Path) -> None:
    copied = _copied(path)
    assert all((ROOT / source).exists() for source in copied)
    packages: list[str] = _project()["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    for package in packages:
        assert any(f"{package}/".startswith(f"{source}/") for source in copied), package
    wheel = _project()["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert set(wheel["force-include"]) <= copied
    hook = _project()["tool"]["hatch"]["build"]["hooks"]["custom"]["path"]
    readme = _project()["project"]["readme"]
    assert {"pyproject.toml", hook, readme, "constraints.txt"} <= copied
    pin = re.search(r"^torch==(\S+)$", _text(ROOT / "constraints.txt"), re.MULTILINE)
    assert pin is not None
    assert re.findall(r'"torch==([^"]+)"', _text(path)) == [pin[1]]
    # an image of ours lists its components too, by a program at its pinned version
    lists = _text(path).count("cyclonedx-py environment")
    assert _text(path).count("--constraint constraints.txt") == 2 + lists


@pytest.mark.parametrize("path", CONTAINERFILES, ids=_name)
def test_a_build_sees_what_it_copies_and_nothing_else(path: Path) -> None:
    rules = [
        line
        for line in _text(path.with_name(f"{path.name}.dockerignore")).splitlines()
        if not line.startswith("#")
    ]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == _copied(path)
    assert "**/*.key" in rules[rules.index("!deploy/lift_simulation") :]


def test_the_cluster_image_starts_the_site_and_passes_the_gpu() -> None:
    text = _text(CONTAINERS / "lift.def")
    sections = re.findall(r"^%(\w+)", text, re.MULTILINE)
    assert {"help", "files", "post", "environment", "runscript", "test"} <= set(sections)
    assert re.search(r"^From: python:3\.11\.\d+-slim-[a-z]+$", text, re.MULTILINE)
    assert 'exec lift-client "$@"' in text.partition("%runscript")[2].partition("%")[0]
    assert "--nv --containall" in text.partition("%help")[2].partition("%files")[0]


def test_compose_publishes_one_port_and_gives_no_right_away() -> None:
    compose = yaml.safe_load(_text(CONTAINERS / "compose.yaml"))
    server, site = compose["services"]["server"], compose["services"]["site"]
    port = ServerConfig.model_fields["listen_port"].default
    assert server["ports"] == [f"{port}:{port}"]
    assert not {"ports", "network_mode", "privileged"} & set(site)
    version = _project()["project"]["version"]
    for service in (server, site):
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["user"] == "10001:10001"
        assert service["restart"].startswith("on-failure:")
        assert f":{version}" in service["image"]
        build = service["build"]
        context = (CONTAINERS / build["context"]).resolve()
        assert context == ROOT
        assert f" AS {build['target']}\n" in _text(context / build["dockerfile"])
    assert any(volume.endswith(":/srv/lift/data:ro") for volume in site["volumes"])


def test_nginx_passes_tls_through_and_limits_connections() -> None:
    text = re.sub(r"#.*", "", _text(DEPLOY / "nginx" / "lift.conf"))
    assert text.count("{") == text.count("}")
    assert text.lstrip().startswith("stream {")
    assert not re.search(r"\bssl|\bhttp\b|proxy_protocol", text)
    for directive in ("limit_conn ", "proxy_timeout ", "proxy_connect_timeout ", "proxy_pass "):
        assert directive in text


def test_the_login_proxy_asks_the_page_under_the_pages_own_name() -> None:
    """tests/server/test_live_page.py: another name is refused."""
    settings = tomllib.loads(_text(DEPLOY / "oauth2-proxy" / "oauth2-proxy.cfg"))
    fields = ServerConfig.model_fields
    page = f"{fields['page_host'].default}:{fields['page_port'].default}"
    assert settings["upstreams"] == [f"http://{page}/"]
    assert settings["pass_host_header"] is False
    assert not any(
        settings[f"pass_{what}"] for what in ("basic_auth", "user_headers", "access_token")
    )
    assert settings["cookie_secure"] is settings["cookie_httponly"] is True
    assert settings["allowed_groups"]
    assert not {"cookie_secret", "client_secret", "skip_auth_routes"} & set(settings)


@pytest.mark.parametrize("path", GUIDES, ids=_name)
def test_a_guide_has_one_title_and_closes_its_blocks(path: Path) -> None:
    lines = _text(path).splitlines()
    assert lines[0].startswith("# ")
    outside = "\n".join(_text(path).split("```")[::2])
    assert len(re.findall(r"^# ", outside, re.MULTILINE)) == 1
    assert sum(line.startswith("```") for line in lines) % 2 == 0


@pytest.mark.parametrize("path", [p for p in GUIDES if p.name != "monitoring.md"], ids=_name)
def test_a_guide_explains_exit_codes_of_the_table_once(path: Path) -> None:
    rows = _table(path)
    assert rows
    assert len(rows) == len(set(rows))
    assert all(EXIT_CODES[label].number == number for number, label in rows)


def test_the_guides_explain_every_exit_code() -> None:
    assert {row for path in GUIDES for row in _table(path)} == {
        (code.number, code.label) for code in EXIT_CODES.values()
    }


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_every_command_that_a_file_shows_exists(path: Path) -> None:
    for program, command, _ in _shown(_text(path)):
        assert command in COMMANDS[program], f"{program} {command}"


def test_the_guides_show_every_command() -> None:
    shown = {(program, command) for path in GUIDES for program, command, _ in _shown(_text(path))}
    assert shown == {(program, name) for program, names in COMMANDS.items() for name in names}


@pytest.mark.parametrize("program", COMMANDS)
def test_the_programs_have_the_commands_and_options_that_files_show(program: str) -> None:
    if importlib.util.find_spec(MODULES[program]) is None:
        return
    group = typer.main.get_command(importlib.import_module(MODULES[program]).app)
    assert isinstance(group, click.Group)
    assert set(COMMANDS[program]) - {""} <= set(group.commands)
    for path in FILES:
        for shown, command, options in _shown(_text(path)):
            if shown == program:
                found = group.commands[command] if command else group
                known = {name for parameter in found.params for name in parameter.opts}
                assert set(options) <= known | {"--help"}, f"{_name(path)}: {program} {command}"


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_no_file_names_a_path_of_the_machine_it_was_written_on(path: Path) -> None:
    assert not re.search(r"(?<![\w.])/(work|tmp|root|Users|mnt|home/\w+)\b", _text(path))


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_every_port_is_a_default_of_the_settings(path: Path) -> None:
    names = ("listen_port", "control_port", "health_port", "page_port")
    ports = {str(ServerConfig.model_fields[name].default) for name in names}
    ports |= {str(SiteConfig.model_fields["local_port"].default)}
    # 443: what sites may dial where nginx stands in front; 3128: a hospital's proxy
    shown = re.findall(
        r"(?:127\.0\.0\.1|tcp|listen|example|proxy|port):? ?\(?(\d{3,5})\b", _text(path)
    )
    assert set(shown) <= ports | {"443", "3128"}


def test_the_air_gapped_guide_installs_this_version() -> None:
    text, project = _text(DOCS / "guides" / "air-gapped.md"), _project()["project"]
    name = project["name"].replace("-", "_")
    assert f"{name}-{project['version']}-py3-none-any.whl" in text
    assert f'"{project["name"]}=={project["version"]}"' in text
    pinned = re.findall(r'"(torch==[^"]+)"', text)
    assert pinned
    assert set(pinned) <= set(_text(ROOT / "constraints.txt").splitlines())


def test_security_lists_every_field_that_leaves_a_site() -> None:
    section = _text(ROOT / "SECURITY.md").partition("## Data that leaves a site")[2]
    listed = set(re.findall(r"`([^`]+)`", section.partition("\n## ")[0]))
    inner: list[type[BaseModel]] = [DifferenceDb, DataCard, ChannelCard, VendorCount, ValueCount]
    models: list[type[BaseModel]] = [*REPLIES.values(), *inner]
    leaving = {field for model in models for field in model.model_fields}
    assert leaving | {kind.value for kind in FailureKind} <= listed
    tensors = {name for group in GROUPS for name in group.tensors if " " not in name}
    assert tensors <= listed
    for sentence in (*PURPOSES.values(), *(group.purpose for group in GROUPS)):
        assert f'"{sentence}"' in " ".join(section.split())
    # and no reply holds a model that this test does not know
    schemas = json.dumps([model.model_json_schema() for model in models])
    assert set(re.findall(r'"#/\$defs/(\w+)"', schemas)) == {model.__name__ for model in inner}


def test_every_file_that_security_names_is_there() -> None:
    named = re.findall(r"`((?:lift|server|client|deploy)/[^`]*)`", _text(ROOT / "SECURITY.md"))
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_security_says_what_is_not_covered_and_how_to_report() -> None:
    text = _text(ROOT / "SECURITY.md")
    for heading in ("Assets", "Actors", "Trust boundaries", "Threats", "NOT covered",
                    "Keys and certificates", "Reporting a vulnerability"):  # fmt: skip
        assert f"\n## {heading}\n" in text


@pytest.mark.parametrize("module", ["lift.cli", "lift_server.cli", "lift_client.cli"])
def test_help_says_what_every_argument_is(module: str) -> None:
    group = typer.main.get_command(importlib.import_module(module).app)
    assert isinstance(group, click.Group)
    commands = [(group, name) for name in group.commands]
    while commands:
        parent, name = commands.pop()
        command = parent.commands[name]
        if isinstance(command, click.Group):
            commands += [(command, inner) for inner in command.commands]
            continue
        text = " ".join(command.get_help(click.Context(command, info_name=name)).split())
        for parameter in command.params:
            told = getattr(parameter, "help", None)
            assert told, f"{name}: {parameter.name}"
            assert " ".join(str(told).split())[:40] in text, f"{name}: {parameter.name}"
