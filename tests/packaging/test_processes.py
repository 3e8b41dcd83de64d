"""What every process of ours is promised to say before Flower and torch are imported."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from lift.process import prepared_environment
from lift_server.sites.provisioning import init_folder
from tests.enrolled import enrolled

ROOT: Final = Path(__file__).parents[2]
PROMISED: Final = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
# python runs it at its start: the process notes its environment when it comes to one of the two
# packages, and ends at the last that is waited for
WATCH: Final = """
import json, os, sys
def watched(event, arguments):
    if event == "import" and arguments[0] in ("torch", "flwr"):
        with open({report!r}, "a") as file:
            file.write(json.dumps([arguments[0], dict(os.environ)]) + "\\n")
        if arguments[0] == {last!r}:
            os._exit(0)
sys.addaudithook(watched)
"""
NOWHERE: Final = "nowhere"
LINK: Final = {
    "listen_host": "127.0.0.1",
    "listen_port": 1,
    "control_port": 1,
    **dict.fromkeys(("ca", "certificate", "key", "database", "secret", "second_sessions"), NOWHERE),
}
NODE: Final = {
    "address": "127.0.0.1:1",
    "local_port": 1,
    **dict.fromkeys(
        ("ca", "key", "node_file", "secret", "local_certificate", "local_key", "connection_file"),
        NOWHERE,
    ),
}
Entry = tuple[list[str], str]


def _program(name: str) -> str:
    return str(Path(sysconfig.get_path("scripts")) / name)


def _module(name: str, *words: str) -> list[str]:
    return [sys.executable, "-m", name, *words]


# ENTRY -> what makes its command line in a folder, and the package that it comes to last
ENTRIES: Final[dict[str, Callable[[Path], Entry]]] = {
    "lift": lambda _: (
        [_program("lift"), "evaluate", "--generated", NOWHERE, "--real", NOWHERE],
        "torch",
    ),
    "lift-server": lambda folder: (
        [_program("lift-server"), "--config", str(_federation(folder))], "flwr",
    ),
    "lift-client": lambda folder: (
        [_program("lift-client"), "--site", str(enrolled(folder, "north").settings)], "flwr",
    ),
    "lift-simulate": lambda _: ([_program("lift-simulate"), "--dry-run"], "flwr"),
    "lift.protocol.flower.superlink": lambda _: (
        _module("lift.protocol.flower.superlink", json.dumps(LINK)), "flwr",
    ),
    "lift.protocol.flower.supernode": lambda _: (
        _module("lift.protocol.flower.supernode", json.dumps(NODE)), "flwr",
    ),
    # they import neither
    "lift_server.trial.bound": lambda _: (_module("lift_server.trial.bound", NOWHERE), ""),
    "lift_server.watch.live": lambda _: (_module("lift_server.watch.live", NOWHERE), ""),
    "lift_benchmarks.bench": lambda _: (_module("lift_benchmarks.bench"), "flwr"),
    "lift_benchmarks.bench.memory": lambda _: (_module("lift_benchmarks.bench.memory"), "torch"),
    "lift_benchmarks.few_patients": lambda folder: (
        _module(
            "lift_benchmarks.few_patients",
            "--config", str(ROOT / "configs/presets/few-patients.yaml"), "--output", str(folder),
        ),
        "flwr",
    ),
    "lift_benchmarks.crop_quality": lambda folder: (
        _module("lift_benchmarks.crop_quality", "--output", str(folder), "--steps", "1"), "torch",
    ),
    "lift_benchmarks.downstream": lambda folder: (
        _module(
            "lift_benchmarks.downstream",
            "--config",
            str(folder / NOWHERE),
            "--output",
            str(folder),
        ),
        "torch",
    ),
    "lift_benchmarks.public": lambda folder: (
        _module(
            "lift_benchmarks.public",
            "brats",
            "--data",
            str(folder),
            "--output",
            str(folder / NOWHERE),
        ),
        "flwr",
    ),
    "lift_benchmarks.gpu": lambda _: (_module("lift_benchmarks.gpu", "--device", NOWHERE), "torch"),
    "lift_benchmarks.reach": lambda folder: (
        _module(
            "lift_benchmarks.reach", "--output", str(folder), "--beside", str(folder / NOWHERE)
        ),
        "torch",
    ),
    "lift_simulation.plain.cost": lambda _: (
        _module("lift_simulation.plain.cost", NOWHERE), "torch",
    ),
    "lift_benchmarks.utility": lambda _: (_module("lift_benchmarks.utility"), "flwr"),
}  # fmt: skip


def test_no_entry_point_is_left_out() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    modules = set()
    for parent in (ROOT, ROOT / "server", ROOT / "client", ROOT / "deploy"):
        for path in parent.glob("lift*/**/*.py"):
            if re.search(r'^if __name__ == "__main__"', path.read_text("utf-8"), re.MULTILINE):
                name = ".".join(path.relative_to(parent).with_suffix("").parts)
                modules.add(name.removesuffix(".__main__"))
    assert set(ENTRIES) == modules | set(project["scripts"])


@pytest.mark.parametrize("entry", ENTRIES)
def test_flower_and_torch_find_what_was_promised(tmp_path: Path, entry: str) -> None:
    command, last = ENTRIES[entry](tmp_path / "made")
    # a machine where somebody else's Flower is told to report
    seen = _watched(command, last, tmp_path, {"FLWR_TELEMETRY_ENABLED": "1"})
    assert last in {"", *(package for package, _ in seen)}
    assert bool(seen) == bool(last)
    for package, environment in seen:
        assert PROMISED.items() <= environment.items(), package
        assert environment["GOMP_SPINCOUNT"] == "20000"


def test_what_only_changes_speed_is_left_to_the_operator(tmp_path: Path) -> None:
    command, last = ENTRIES["lift"](tmp_path)
    ((_, environment),) = _watched(command, last, tmp_path, {"GOMP_SPINCOUNT": "7"})
    assert environment["GOMP_SPINCOUNT"] == "7"
    assert prepared_environment()["GOMP_SPINCOUNT"] == os.environ["GOMP_SPINCOUNT"]


def test_this_test_run_reports_nothing_either() -> None:
    assert PROMISED.items() <= os.environ.items()
    telemetry = importlib.import_module("flwr.supercore.telemetry")
    assert telemetry.FLWR_TELEMETRY_ENABLED == "0"


# somebody else's program that imported Flower long ago, and now does a child's work itself
LIBRARY: Final = """
import json, os, sys
def no_request(event, arguments):
    if event == "urllib.Request":
        os._exit(9)
sys.addaudithook(no_request)
from flwr.supercore import telemetry
from lift.protocol.flower import superlink, supernode
assert telemetry.FLWR_TELEMETRY_ENABLED == "1"
part, settings = sys.argv[1], json.loads(sys.argv[2])
try:
    if part == "superlink":
        superlink.make_app(superlink.SuperLinkSettings(**settings))
    else:
        supernode.run(supernode.SuperNodeSettings(**settings))
except FileNotFoundError:
    print(telemetry.event(telemetry.EventType.PING).result(60))
"""
# one that only holds our modules, and is ended by Flower
EXIT: Final = """
import importlib, pkgutil, sys
import lift.protocol.flower as ours
for module in pkgutil.iter_modules(ours.__path__, "lift.protocol.flower."):
    importlib.import_module(module.name)
from flwr.supercore import telemetry
from flwr.supercore.exit import flwr_exit
try:
    flwr_exit(0)
except SystemExit:
    print(telemetry.state["source"])
"""


@pytest.mark.parametrize(("part", "settings"), [("superlink", LINK), ("supernode", NODE)])
def test_a_childs_work_reports_nothing_in_any_process(
    tmp_path: Path, part: str, settings: dict[str, object]
) -> None:
    assert _run_alone(tmp_path, LIBRARY, part, json.dumps(settings)) == "disabled\n"


def test_a_program_that_imports_our_modules_has_no_event_to_report(tmp_path: Path) -> None:
    # an event would have given the process a source
    assert _run_alone(tmp_path, EXIT) == "None\n"


def _federation(folder: Path) -> Path:
    init_folder(folder, ["localhost"], "trial")
    return folder / "server.yaml"


def _watched(
    command: list[str], last: str, folder: Path, environment: dict[str, str]
) -> list[tuple[str, dict[str, str]]]:
    """PACKAGE and environment for each time that the process came to one of the two."""
    report, hook = folder / "report", folder / "hook"
    hook.mkdir()
    script = WATCH.format(report=str(report), last=last)
    (hook / "sitecustomize.py").write_text(script, encoding="utf-8")
    log = folder / "log"
    with (
        log.open("wb") as output,
        # a child ends with its parent, which it sees by its standard input
        subprocess.Popen(
            command,
            cwd=folder,
            env={"PYTHONPATH": str(hook), "HOME": str(folder), **environment},
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
        ) as process,
    ):
        try:
            code = process.wait(120)
        finally:
            process.kill()
    # it came to the package, or ended by itself for want of settings
    assert (code == 0) == bool(last), log.read_text(encoding="utf-8")
    lines = report.read_text(encoding="utf-8").splitlines() if report.exists() else []
    return [tuple(json.loads(line)) for line in lines]


def _run_alone(folder: Path, script: str, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        cwd=folder,
        env={"HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
