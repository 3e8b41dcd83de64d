"""The tutorial notebook as a page: executed, so that what it shows is what it does."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert import MarkdownExporter

_TIMEOUT_S = 600


@dataclass(frozen=True)
class TutorialPage:
    """The page's Markdown, and its pictures by file name."""

    text: str
    pictures: Mapping[str, bytes]


def tutorial_page(path: Path, *, execute: bool) -> TutorialPage:
    """The notebook as Markdown, with the outputs of its cells when it is executed.

    Args:
        path: the notebook.
        execute: run all cells in a temporary folder first; it is removed afterwards.

    Raises:
        CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    if execute:
        with tempfile.TemporaryDirectory() as folder:
            before = os.environ["PATH"]
            # the commands of this environment, as in a shell in which it is activated
            os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{before}"
            try:
                NotebookClient(
                    notebook,
                    timeout=_TIMEOUT_S,
                    kernel_name="python3",
                    resources={"metadata": {"path": folder}},
                ).execute()
            finally:
                os.environ["PATH"] = before
    text, resources = MarkdownExporter().from_notebook_node(notebook)
    return TutorialPage(text, dict(resources["outputs"]))
