"""The list of components holds what an installation brings, at the pinned versions."""

from __future__ import annotations

import hashlib
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.release import components, pins, write_sums

ROOT = Path(__file__).parents[2]


def test_components_are_all_that_is_needed_and_no_tool_of_ours() -> None:
    pinned = pins((ROOT / "constraints.txt").read_text("utf-8"))
    listed = dict(line.split("==") for line in components("lift-federated", pinned))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    direct = {canonicalize_name(Requirement(text).name) for text in project["dependencies"]}
    assert direct < set(listed)
    assert not {"pytest", "mypy", "ruff", "mkdocs", "wandb"} & set(listed)
    assert all(version == pinned[name] for name, version in listed.items() if name in pinned)
    # and nothing is missing: each listed package's own needs are listed too
    for name in listed:
        for text in metadata.requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                assert canonicalize_name(requirement.name) in listed


def test_pins_are_read_by_canonical_name() -> None:
    assert pins("# a comment\nGitPython==3.2.1\njaraco.text==1\n") == {
        "gitpython": "3.2.1",
        "jaraco-text": "1",
    }


def test_sums_are_those_that_sha256sum_reads(tmp_path: Path) -> None:
    (tmp_path / "b.whl").write_bytes(b"b")
    (tmp_path / "a.json").write_bytes(b"a")
    for _ in range(2):  # a second time: the file itself is not among them
        text = write_sums(tmp_path).read_text()
    digests = [hashlib.sha256(content).hexdigest() for content in (b"a", b"b")]
    assert text == f"{digests[0]}  a.json\n{digests[1]}  b.whl\n"
