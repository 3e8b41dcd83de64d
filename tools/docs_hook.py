"""Hooks of MkDocs: pages that are generated while the site is built."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from tools.api_reference import api_page
from tools.command_reference import command_page, exit_code_page
from tools.settings_reference import settings_page
from tools.tutorial import tutorial_page

ROOT: Final = Path(__file__).parents[1]
COPIED: Final = {
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
}
"""Files at the root that are pages of the site too."""
_IN_DOCS: Final = re.compile(r"(\]\()docs/")
_FROM_DOCS: Final = re.compile(
    r"\]\((|\.\./)\.\./(" + "|".join(map(re.escape, COPIED)) + r")([#)])"
)
_AT_ROOT: Final = re.compile(r"\]\((" + "|".join(map(re.escape, COPIED)) + r")([#)])")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages and the files of the root to those of `docs/`."""
    pages = {
        "reference/python.md": api_page(),
        "reference/commands.md": command_page(),
        "reference/exit-codes.md": exit_code_page(),
        "reference/settings.md": settings_page(),
        **{page: as_page((ROOT / name).read_text("utf-8")) for name, page in COPIED.items()},
    }
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    execute = os.environ.get("LIFT_DOCS_TUTORIAL", "run") == "run"
    page = tutorial_page(ROOT / "docs" / "tutorial.ipynb", execute=execute)
    files.append(File.generated(config, "tutorial.md", content=page.text))
    for name, picture in page.pictures.items():
        files.append(File.generated(config, name, content=picture))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to files at the root and to the notebook, which work in the repository, as links."""
    del page, config, files
    markdown = _FROM_DOCS.sub(lambda found: f"]({found[1]}{COPIED[found[2]]}{found[3]}", markdown)
    return markdown.replace("](tutorial.ipynb)", "](tutorial.md)")


def as_page(text: str) -> str:
    """A file of the root with its links as they are inside `docs/`."""
    text = _IN_DOCS.sub(r"\1", text)
    return _AT_ROOT.sub(lambda found: f"]({COPIED[found[1]]}{found[2]}", text)
