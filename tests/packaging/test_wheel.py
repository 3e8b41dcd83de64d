"""The wheel is whole, and works where there is no checkout: it knows its versions."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
PROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGES: Final = {
    "lift": ROOT,
    "lift_server": ROOT / "server",
    "lift_client": ROOT / "client",
    "lift_simulation": ROOT / "deploy",
}
FILES: Final = ("pyproject.toml", "hatch_build.py", PROJECT["readme"], "LICENSE")
VIEWER: Final = ("lift/viewer/niivue.js", "lift/viewer/niivue.LICENSE")
HEAVY: Final = {"torch", "flwr", "numpy", "scipy", "monai", "grpc"}
# runs a command as its script does, and says from where and with what
SCRIPT: Final = """
import sys
from importlib.metadata import entry_points
name, heavy = sys.argv[1], set(sys.argv[2].split(","))
(point,) = {p.value: p for p in entry_points(group="console_scripts", name=name)}.values()
main = point.load()
sys.argv = [name, "--version"]
try:
    main()
except SystemExit as ended:
    sys.stdout.flush()
    print("exit", ended.code)
print("loaded", *sorted(heavy & set(sys.modules)))
print(sys.modules[point.module].__file__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: building puts the viewer into a checkout that has none yet."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in FILES:
        shutil.copy(ROOT / name, source)
    for package, parent in PACKAGES.items():
        place = source / parent.relative_to(ROOT) / package
        shutil.copytree(parent / package, place, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder)]
    if all((ROOT / name).exists() for name in VIEWER):
        # nothing is to be made, so nothing that makes it has to be installed for the build
        command.append("--no-build-isolation")
    _done([*command, str(source)], folder)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """The wheel's packages and commands in a folder of their own."""
    target = wheel.parent / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    _done([*pip, "--target", str(target), str(wheel)], wheel.parent)
    return target


def test_the_wheel_holds_every_module_and_data_file(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = {
        path.relative_to(parent).as_posix()
        for package, parent in PACKAGES.items()
        for path in (parent / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"lift_simulation/demo.yaml", "lift/report/report.css"} <= wanted
    # made while building, where the checkout has none yet
    assert wanted | set(VIEWER) == inside


def test_the_wheel_holds_the_licence_and_names_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (licence,) = (name for name in archive.namelist() if name.endswith("licenses/LICENSE"))
        assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()
        (metadata,) = (name for name in archive.namelist() if name.endswith("info/METADATA"))
        lines = archive.read(metadata).decode().splitlines()
    assert "License-File: LICENSE" in lines
    assert f"License-Expression: {PROJECT['license']}" in lines


@pytest.mark.parametrize("program", PROJECT["scripts"])
def test_a_command_tells_its_versions_without_torch_or_flower(
    installed: Path, program: str
) -> None:
    told, ended, loaded, file = _done(
        [sys.executable, "-c", SCRIPT, program, ",".join(HEAVY)], installed.parent, installed
    ).splitlines()
    assert Path(file).is_relative_to(installed)
    others = f"Flower {version('flwr')}, torch {version('torch')}, Python "
    expected = f"{program} {PROJECT['version']} ({others}"
    assert told.startswith(expected)
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\)", told.removeprefix(expected))
    assert ended == "exit 0"
    assert loaded == "loaded"


@pytest.mark.parametrize("program", PROJECT["scripts"])
def test_an_installed_command_starts_by_its_own_script(installed: Path, program: str) -> None:
    script = str(installed / "bin" / program)
    told = _done([script, "--version"], installed.parent, installed)
    assert told.startswith(f"{program} {PROJECT['version']} (")
    assert "--version" in _done([script, "--help"], installed.parent, installed)


def _done(command: list[str], folder: Path, packages: Path | None = None) -> str:
    """Run a command outside the checkout, which is not on its path unless pip put it there."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if packages is not None:
        environment["PYTHONPATH"] = str(packages)
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
