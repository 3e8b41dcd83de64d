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

from lift.files import file_digest

ROOT: Final = Path(__file__).parents[2]
PROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGES: Final = {
    "lift": ROOT,
    "lift_server": ROOT / "server",
    "lift_client": ROOT / "client",
    "lift_simulation": ROOT / "deploy",
}
# folder of the repository -> where the wheel has it
ADDED: Final = {"configs": "lift_simulation/configs"}
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
    for added in ADDED:
        shutil.copytree(ROOT / added, source / added)
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
    wanted |= {
        f"{place}/{path.relative_to(ROOT / added).as_posix()}"
        for added, place in ADDED.items()
        for path in (ROOT / added).rglob("*")
        if path.is_file()
    }
    assert {"lift_simulation/demo.yaml", "lift/report/report.css"} <= wanted
    assert "lift_simulation/configs/presets/phantom-t1.yaml" in wanted
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


def test_the_settings_that_ship_are_found_where_the_wheel_is_installed(installed: Path) -> None:
    script = (
        "from lift.config.simulation import SimulationConfig as S\n"
        "from lift_simulation.shipped import shipped_settings\n"
        "found = sorted(shipped_settings().glob('presets/*.yaml'))\n"
        "print(*(S.from_yaml(path).name for path in found))\n"
        "print(found[0])"
    )
    names, first = _done([sys.executable, "-c", script], installed.parent, installed).splitlines()
    assert len(names.split()) == len(list((ROOT / "configs" / "presets").glob("*.yaml")))
    assert Path(first).is_relative_to(installed)


def test_two_builds_have_the_same_bytes(tmp_path: Path) -> None:
    """In other folders, with other times of files and other rights."""
    if not all((ROOT / name).exists() for name in VIEWER):
        pytest.skip("the viewer is made by an installation of the checkout")
    sums = []
    for name, mode in (("first", 0o644), ("second", 0o600)):
        source = tmp_path / name / "source"
        for package, parent in PACKAGES.items():
            place = source / parent.relative_to(ROOT) / package
            shutil.copytree(parent / package, place, ignore=shutil.ignore_patterns("__pycache__"))
        for added in ADDED:
            shutil.copytree(ROOT / added, source / added)
        for file in FILES:
            shutil.copy(ROOT / file, source)
        for path in source.rglob("*"):
            if path.is_file():
                path.chmod(mode)
                os.utime(path, (mode, mode))
        command = [sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path / name)]
        _done(command, source, {"SOURCE_DATE_EPOCH": "1700000000"})
        made = sorted((tmp_path / name).glob("lift_federated-*"))
        assert len(made) == 2
        sums.append([(path.name, file_digest(path)) for path in made])
    assert sums[0] == sums[1]


def _done(command: list[str], folder: Path, more: Path | dict[str, str] | None = None) -> str:
    """Run a command outside the checkout, which is not on its path unless pip put it there.

    Args:
        command: program and arguments.
        folder: where it runs.
        more: a folder of packages, or variables of the environment.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if isinstance(more, Path):
        environment["PYTHONPATH"] = str(more)
    elif more is not None:
        environment |= more
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
