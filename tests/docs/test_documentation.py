"""The documentation says what the code does: settings, commands, files, links, the tutorial."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from pydantic import BaseModel, Field

import lift
from lift.errors import EXIT_CODES
from tools import settings_reference
from tools.api_reference import api_page
from tools.command_reference import (
    APPLICATIONS,
    application,
    command_page,
    exit_code_page,
    subcommands,
)
from tools.settings_reference import FILES, anchor, settings_page, undescribed

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
GENERATED = {
    "tutorial.md",
    "reference/commands.md",
    "reference/python.md",
    "reference/settings.md",
    "reference/exit-codes.md",
    "architecture.md",
    "contributing.md",
    "security.md",
    "changelog.md",
}
AT_ROOT = ["README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "SECURITY.md", "CHANGELOG.md"]
PAGES = sorted([*DOCS.rglob("*.md"), *(ROOT / name for name in AT_ROOT)])
# names of files that are input, or part of a text, and not written by a program of ours
NOT_WRITTEN = {"settings.yaml", "demo.yaml", "few-patients.yaml", "phantom-t1.yaml", "niivue.js"}
NOT_WRITTEN |= {"page.html", "page.css", "page.js", "report.css"}


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_every_key_of_the_settings_is_described() -> None:
    assert undescribed() == []


def test_every_public_name_is_on_the_page_of_the_python_interface() -> None:
    page = api_page()
    for name in lift.__all__:
        assert name in page
        if not name.startswith("__"):
            assert (getattr(lift, name).__doc__ or "").split(".")[0].split("\n")[0] in page
    assert "lift.train(cohort)" in page


def test_a_key_without_a_description_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bare(BaseModel):
        told: int = Field(description="A number.")
        silent: int = 0

    monkeypatch.setattr(settings_reference, "FILES", {"bare.yaml": Bare})
    assert undescribed() == ["Bare.silent"]
    with pytest.raises(ValueError, match=r"Bare\.silent has no description"):
        settings_page()


def test_the_page_of_settings_holds_every_key_and_its_links_lead_somewhere() -> None:
    page = settings_page()
    for model in FILES.values():
        for name in model.model_fields:
            assert f"| `{name}` |" in page
    headings = {anchor(title) for title in re.findall(r"(?m)^#+ (.+)$", page)}
    assert len(headings) == len(re.findall(r"(?m)^#+ ", page))
    assert set(re.findall(r"\]\(#([^)]+)\)", page)) <= headings


def test_the_page_of_commands_holds_every_command_and_option() -> None:
    page = command_page()
    for program in APPLICATIONS:
        group = application(program)
        for name, command in [(program, group), *subcommands(group, program)]:
            section = page.partition(f" {name}\n")[2].partition("\n## ")[0].partition("\n### ")[0]
            context = click.Context(command)
            for parameter in command.params:
                words = parameter.opts
                if isinstance(parameter, click.Argument):
                    words = [parameter.make_metavar(context)]
                assert all(f"`{word}`" in section for word in words), f"{name}: {words}"


def test_the_page_of_exit_codes_is_the_table_of_the_code() -> None:
    rows = re.findall(r"(?m)^\| (\d+) \| (\w+) \|", exit_code_page())
    assert rows == [(str(code.number), code.label) for code in EXIT_CODES.values()]


def test_the_page_of_files_names_every_file_that_code_names() -> None:
    """Every string of the code that is the name of a file: a constant, or part of a path."""
    page = (DOCS / "reference" / "files.md").read_text(encoding="utf-8")
    pattern = re.compile(r"[a-z][a-z-]*\.(json|jsonl|safetensors|pem|key|pub|secret|db|log|html)")
    found: set[str] = set()
    for package in ("lift", "server/lift_server", "client/lift_client", "deploy"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                value = node.value if isinstance(node, ast.Constant) else None
                if isinstance(value, str) and pattern.fullmatch(value):
                    found.add(value)
    assert len(found) > 30
    assert sorted(name for name in found - NOT_WRITTEN if name not in page) == []


@pytest.mark.parametrize("path", PAGES, ids=_name)
def test_every_link_to_a_file_leads_to_one(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" in target:
            continue
        file = (path.parent / target).resolve()
        inside = file.is_relative_to(DOCS) and file.relative_to(DOCS).as_posix() in GENERATED
        assert inside or file.exists(), target


@pytest.mark.parametrize("path", PAGES, ids=_name)
def test_a_page_has_no_path_of_the_machine_it_was_written_on(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w./])/(work|tmp|root|Users|mnt|home/\w+)\b", text)


def test_every_page_is_in_the_menu_and_loads_nothing_from_elsewhere() -> None:
    class Loader(yaml.SafeLoader):
        """Reads the settings of the site, which hold no tags."""

    site: dict[str, Any] = yaml.load((ROOT / "mkdocs.yml").read_text("utf-8"), Loader)  # noqa: S506
    menu: list[Any] = list(site["nav"])
    named: set[str] = set()
    while menu:
        (entry,) = menu.pop().values()
        if isinstance(entry, list):
            menu += entry
        else:
            named.add(entry)
    written = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert named == written | GENERATED
    assert site["theme"]["font"] is False
    assert not {"extra_javascript", "extra_css", "repo_url"} & set(site)


def test_the_tutorial_is_plain_and_phantom() -> None:
    notebook = json.loads((DOCS / "tutorial.ipynb").read_text(encoding="utf-8"))
    cells = notebook["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 5
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    for cell in code:
        ast.parse("".join(cell["source"]))
    first = "".join(cells[0]["source"])
    assert "phantoms" in first
    assert "No patient was scanned" in first


def test_the_readme_shows_the_two_commands_and_the_number_with_its_interval() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "\nmake demo " in readme
    assert "\nmake test " in readme
    targets = set(re.findall(r"(?m)^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8")))
    shown = {name for path in PAGES for name in re.findall(r"`make ([\w-]+)", path.read_text())}
    assert shown <= targets
    assert re.search(r"\+0\.24 dB PSNR \[\.05, \.48\]", readme)
    assert (DOCS / "figures" / "report.png").stat().st_size <= 200_000
