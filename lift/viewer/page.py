"""The page of `lift view`: served, or as one file."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Final

from lift.markup import Markup, foreign, join, tag
from lift.viewer.embedded import ViewerSet, content_policy, style, viewers
from lift.viewer.volumes import ViewerVolume

_HELP: Final = (
    "Scroll or use the arrow and page keys to move through the slices; all volumes follow. Drag "
    "with the right button to set the window. Left of an image is the patient's right."
)


def standalone_page(volumes: Sequence[ViewerVolume], label: str) -> bytes:
    """One HTML file with the volumes and the viewer; it needs nothing else.

    Args:
        volumes: what is shown.
        label: the page's heading; any text.

    Raises:
        ConfigError: NiiVue is not there.
    """
    policy = f"default-src 'none'; {content_policy()}"
    body = viewers([ViewerSet("", tuple(volumes), phantom=False)], opened=True)
    return _page(label, body, tag("style", Markup(styles())), policy)


def served_page(label: str) -> bytes:
    """The page of the server, which loads everything else from the same server."""
    head = join(
        [
            tag("link", rel="stylesheet", href="page.css"),
            tag("link", rel="icon", href="data:,"),
            tag("script", type="module", src="served.js"),
        ]
    )
    body = tag("div", tag("p", "Loading the volumes…"), class_="viewer", id="viewer")
    return _page(label, body, head, None)


def styles() -> str:
    """The report's colours and the viewer's own style."""
    report = (files("lift.report") / "report.css").read_text(encoding="utf-8")
    return f"{report}\n{style()}"


def _page(label: str, body: Markup, head: Markup, policy: str | None) -> bytes:
    parts = [tag("meta", charset="utf-8")]
    if policy is not None:
        parts.append(tag("meta", http_equiv="Content-Security-Policy", content=policy))
    parts += [
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{label} · LiFT"),
        head,
    ]
    content = tag("main", tag("h1", foreign(label)), tag("p", _HELP, class_="note"), body)
    page = join([tag("head", *parts), tag("body", content)])
    whole = join([Markup("<!doctype html>\n"), tag("html", page, lang="en"), "\n"])
    return whole.encode()
