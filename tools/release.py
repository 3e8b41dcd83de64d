"""What `make wheel` puts beside the wheel: a list of components (CycloneDX), and checksums."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT: Final = Path(__file__).parents[1]
SUMS: Final = "SHA256SUMS"


def pins(text: str) -> dict[str, str]:
    """Canonical name -> version of the lines `NAME==VERSION` of constraints.txt."""
    lines = (line.partition("==") for line in text.splitlines() if not line.startswith("#"))
    return {canonicalize_name(name): version for name, same, version in lines if same}


def components(distribution: str, pinned: Mapping[str, str]) -> list[str]:
    """`NAME==VERSION` of everything that a plain install of a distribution brings, sorted.

    What needs what is read from the installed packages; the versions are those of the pins. A
    package that is not pinned (CUDA's libraries come with a build of torch) has its installed
    version.

    Raises:
        PackageNotFoundError: a package that is needed is not installed here.
    """
    found: dict[str, str] = {}
    queue = [(distribution, frozenset[str]())]
    seen = set(queue)
    while queue:
        name, extras = queue.pop()
        for requirement in _needed(name, extras):
            needed = canonicalize_name(requirement.name)
            found[needed] = pinned.get(needed) or metadata.version(needed)
            step = (needed, frozenset(requirement.extras))
            if step not in seen:
                seen.add(step)
                queue.append(step)
    return [f"{name}=={version}" for name, version in sorted(found.items())]


def write_sbom(folder: Path) -> Path:
    """The list of components as CycloneDX JSON; equal pins give equal bytes.

    Raises:
        CalledProcessError: cyclonedx-py refused; its message is on the screen.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    pinned = pins((ROOT / "constraints.txt").read_text("utf-8"))
    listed = "\n".join(components(project["name"], pinned)) + "\n"
    path = folder / f"{project['name']}-{project['version']}.cdx.json"
    command = [sys.executable, "-m", "cyclonedx_py", "requirements", "--output-reproducible"]
    command += ["--pyproject", str(ROOT / "pyproject.toml"), "--mc-type", "application"]
    command += ["--output-format", "JSON", "--output-file", str(path), "-"]
    subprocess.run(command, input=listed, text=True, check=True)  # noqa: S603  # our own words
    return path


def write_sums(folder: Path) -> Path:
    """SHA256SUMS of all other files of a folder, sorted by name, as `sha256sum -c` reads it."""
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name not in {SUMS, ".gitignore"}
    ]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")
    return folder / SUMS


def _needed(name: str, extras: frozenset[str]) -> Iterator[Requirement]:
    for text in metadata.requires(name) or ():
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in {"", *extras}):
            yield requirement


def main() -> None:
    """Complete the folder that the command line names."""
    folder = Path(sys.argv[1])
    write_sbom(folder)
    sys.stdout.write(write_sums(folder).read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
