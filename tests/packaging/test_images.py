"""Images of a release: from a base that its digest names, with the list of what is in them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tools.images import unpinned

ROOT = Path(__file__).parents[2]
CONTAINERS = ROOT / "deploy" / "containers"
DIGEST = f"sha256:{'0123456789abcdef' * 4}"
BASE = f"docker.io/library/python@{DIGEST}"
PODMAN = '#!/bin/sh\necho "$@" >> {log}\n'


def make_images(folder: Path, *settings: str) -> tuple[int, str, list[str]]:
    """`make images` with a podman that only notes what it is asked for."""
    log = folder / "asked"
    podman = folder / "podman"
    podman.write_text(PODMAN.format(log=log), encoding="utf-8")
    podman.chmod(0o755)
    copy = folder / "repository"
    copy.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "tools"):
        (copy / name).symlink_to(ROOT / name)
    (copy / ".venv" / "bin").mkdir(parents=True)
    (copy / ".venv" / "bin" / "python").symlink_to(sys.executable)
    # the environment is there: nothing is installed
    (copy / ".venv" / ".installed").touch()
    make = shutil.which("make")
    assert make is not None
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(
        [make, "-o", ".venv/.installed", "images", *settings],
        cwd=copy,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    asked = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return done.returncode, done.stderr, asked


@pytest.mark.parametrize(
    "name",
    [
        "docker.io/library/python:3.11.14-slim-bookworm",
        "docker.io/library/python@sha256:0123",
        f"docker.io/library/python@{DIGEST}0",
        f"docker.io/library/python@{DIGEST.upper()}",
        f"@{DIGEST}",
        "",
    ],
)
def test_a_name_without_a_whole_digest_is_refused(name: str) -> None:
    assert unpinned([name]) == [name]
    assert unpinned([BASE, name]) == [name]


def test_a_name_with_its_digest_is_taken_with_and_without_a_tag() -> None:
    named = ["registry.example:5000/lift-site:0.1.0", "python:3.11.14-slim-bookworm", "lift-site"]
    assert unpinned([BASE, *(f"{name}@{DIGEST}" for name in named)]) == []


@pytest.mark.parametrize("settings", [[], ["PYTHON_IMAGE=docker.io/library/python:3.11"]])
def test_no_image_of_a_release_is_built_from_a_base_without_a_digest(
    tmp_path: Path, settings: list[str]
) -> None:
    code, said, asked = make_images(tmp_path, *settings)
    assert code != 0
    assert "an image of a release is named by its digest" in said
    assert asked == []


def test_each_image_is_built_from_the_base_and_says_what_is_in_it(tmp_path: Path) -> None:
    code, said, asked = make_images(tmp_path, f"PYTHON_IMAGE={BASE}")
    assert code == 0, said
    builds = [line for line in asked if line.startswith("build ")]
    assert len(builds) == 3
    for line in builds:
        assert f"--build-arg PYTHON_IMAGE={BASE} " in line
        recipe, target = re.findall(r"--file (\S+)", line)[0], re.findall(r"--target (\w+)", line)
        text = (ROOT / recipe).read_text(encoding="utf-8")
        assert f" AS {target[0]}\n" in text
        assert (ROOT / re.findall(r"--ignorefile (\S+)", line)[0]).is_file()
        assert "\nARG PYTHON_IMAGE=" in text
    lists = sorted(path.name for path in (tmp_path / "repository" / "dist").iterdir())
    assert lists == [f"lift-{name}.cdx.json" for name in ("server-cpu", "site-cpu", "site-gpu")]
    read = [line for line in asked if line.startswith("run ")]
    assert all(line.endswith(" /opt/lift/lift.cdx.json") for line in read)
    assert len(read) == 3


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_the_list_is_made_of_the_environment_that_is_copied(kind: str) -> None:
    text = (CONTAINERS / f"Containerfile.{kind}").read_text(encoding="utf-8")
    (line,) = re.findall(r"cyclonedx-py environment ((?:.|\\\n)*?[^\\])\n", text)
    words = line.replace("\\\n", " ").split()
    assert words[-1] == "/opt/lift/bin/python"
    assert words[words.index("--output-file") + 1] == "/opt/lift/lift.cdx.json"
    # after the last installation, and before the environment is copied
    assert text.rindex("/opt/lift/bin/pip install") < text.index("cyclonedx-py")
    assert text.index("cyclonedx-py") < text.index("COPY --from=build /opt/lift /opt/lift")


def test_compose_takes_a_verified_image_by_its_digest() -> None:
    compose = yaml.safe_load((CONTAINERS / "compose.yaml").read_text(encoding="utf-8"))
    guide = (ROOT / "docs" / "guides" / "operations.md").read_text(encoding="utf-8")
    for name, service in compose["services"].items():
        assert service["image"].startswith(f"${{LIFT_{name.upper()}_IMAGE:-")
    assert "LIFT_SITE_IMAGE=registry.example/lift-site@sha256:" in guide
