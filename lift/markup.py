"""Safe HTML: all text is escaped unless it was built here."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Final

_VOID: Final = frozenset({"img", "link", "meta"})
# control characters have no place in HTML; tab, line feed and carriage return do
_CONTROLS: Final = {
    code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if code not in {9, 10, 13}
}
MINUS: Final = "\N{MINUS SIGN}"


class Markup(str):
    """Text that is HTML already; a plain `str` is not, and :func:`tag` escapes it."""

    __slots__ = ()


def escape(text: str) -> Markup:
    """The text as HTML, safe between tags and inside quoted attributes."""
    return Markup(text if isinstance(text, Markup) else html.escape(text.translate(_CONTROLS)))


def join(parts: Iterable[str], separator: str = "") -> Markup:
    """All parts in a row, each escaped unless it is markup."""
    return Markup(escape(separator).join(escape(part) for part in parts))


def tag(name: str, /, *children: str, **attributes: str | None) -> Markup:
    """One element; `class_` and `data_key` become `class` and `data-key`, None is left out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(children)}</{name}>")


def foreign(text: str) -> Markup:
    """Foreign text, isolated so that it cannot turn its line right-to-left."""
    return tag("bdi", text)


def pointer(file: str, *path: str | int) -> str:
    """Where a number comes from: the file, `#`, and a JSON pointer (RFC 6901) into it."""
    return f"{file}#" + "".join(
        "/" + str(part).replace("~", "~0").replace("/", "~1") for part in path
    )


def number(value: float | None, key: str, decimals: int, *, signed: bool = False) -> Markup:
    """A number of the run's files, rounded for reading; `data-value` holds all its digits.

    None is a dash. A whole number has its thousands grouped.
    """
    if value is None:
        return tag("span", "\N{EN DASH}", class_="none", title="not available")
    shown = f"{value:{'+' if signed else ''}z,.{decimals}f}".replace("-", MINUS)
    return tag("span", shown, class_="num", data_key=key, data_value=repr(value))


def table(
    caption: str, header: Iterable[str], rows: Iterable[Iterable[str]], *, kind: str = ""
) -> Markup:
    """A table that scrolls sideways on a narrow screen; the first cell of a row names it.

    Cells and headings are the contents, or whole `td` and `th` elements. `kind` is the class
    that says how the table looks.
    """
    head = tag("tr", *(_cell(cell, "th", scope="col") for cell in header))
    body = []
    for row in rows:
        first, *others = row
        body.append(
            tag("tr", _cell(first, "th", scope="row"), *(_cell(other, "td") for other in others))
        )
    whole = tag("table", tag("thead", head), tag("tbody", *body))
    # a caption element would be as wide as the table and scroll out of sight
    scroller = tag("div", whole, class_=f"scroll {kind}".strip(), tabindex="0")
    return tag("figure", tag("figcaption", caption), scroller)


def _cell(content: str, name: str, scope: str | None = None) -> Markup:
    if isinstance(content, Markup) and content.startswith(("<td", "<th")):
        return content
    return tag(name, content, scope=scope)
