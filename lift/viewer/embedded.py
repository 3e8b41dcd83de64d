"""A viewer embedded in a self-contained page: script and volumes."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

from lift.errors import ConfigError
from lift.markup import Markup, escape, foreign, join, tag
from lift.viewer.volumes import ViewerVolume

NIIVUE_FILE: Final = "niivue.js"
_SCRIPT_ID: Final = "niivue-script"


@dataclass(frozen=True)
class ViewerSet:
    """Volumes of one patient that are shown together.

    Attributes:
        caption: what they are.
        volumes: the first two can be compared by swipe and difference.
        phantom: whether PHANTOM stands over every image.
    """

    caption: str
    volumes: tuple[ViewerVolume, ...]
    phantom: bool


def is_built() -> bool:
    """Whether NiiVue is there: it is put beside this module when the project is built."""
    return (files("lift.viewer") / NIIVUE_FILE).is_file()


def niivue() -> bytes:
    """NiiVue's script, as a module that exports its class.

    Raises:
        ConfigError: the project was installed without its build step.
    """
    if not is_built():
        raise ConfigError(
            "there is no viewer in this installation",
            where=f"lift/viewer/{NIIVUE_FILE}",
            seen="the file is missing: the project was not built, but put on the path",
            remedy="Install it: `pip install .` in its folder puts NiiVue in its place.",
        )
    return (files("lift.viewer") / NIIVUE_FILE).read_bytes()


def style() -> str:
    """The viewer's style sheet; it uses the report's colours."""
    return _text("viewer.css")


def viewers(sets: Sequence[ViewerSet], *, opened: bool = False) -> Markup:
    """A viewer for each set, then the scripts: everything that they need.

    Args:
        sets: what is shown, each in a viewer of its own.
        opened: open without waiting for the reader to press the button.

    Raises:
        ConfigError: NiiVue is not there.
    """
    parts: list[Markup] = []
    packed: dict[str, bytes] = {_SCRIPT_ID: _packed_niivue()}
    for number, shown in enumerate(sets):
        listed = []
        for place, volume in enumerate(shown.volumes):
            identity = f"volume-{number}-{place}"
            packed[identity] = volume.packed()
            listed.append({"label": volume.label, "id": identity})
        told = {
            "volumes": listed,
            "phantom": shown.phantom,
            "hounsfield": all(volume.hounsfield for volume in shown.volumes),
        }
        size = sum(len(packed[entry["id"]]) for entry in listed) / 1e6
        inside = (
            [tag("p", "Opening the viewer…")]
            if opened
            else [
                tag("button", "Open the viewer", type="button"),
                tag("p", f" {len(listed)} volumes, {size:.1f} MB", class_="viewer-note"),
            ]
        )
        if shown.caption:
            parts.append(tag("h3", foreign(shown.caption)))
        parts.append(tag("div", *inside, class_="viewer", data_volumes=json.dumps(told)))
    parts += [
        tag("script", Markup(base64.b64encode(data).decode()), type="text/plain", id=identity)
        for identity, data in packed.items()
    ]
    parts.append(tag("script", Markup(_script()), type="module"))
    parts.append(
        tag(
            "details",
            tag("summary", "The viewer is NiiVue: its licence"),
            tag("pre", escape(_text("niivue.LICENSE"))),
        )
    )
    return join(parts)


def content_policy() -> str:
    """What a page with viewers must allow: our script by its hash, and what that unpacks.

    NiiVue's fonts are data that it carries, and reads as if they were fetched.
    """
    digest = base64.b64encode(hashlib.sha256(_script().encode()).digest()).decode()
    return (
        f"script-src 'sha256-{digest}' blob:; connect-src data: blob:; img-src data: blob:; "
        "style-src 'unsafe-inline'"
    )


@cache
def _script() -> str:
    # two modules in one: what is exported is used beside it
    script = f"{_text('viewer.js')}\n{_text('embedded.js')}"
    if "</script" in script:
        raise ValueError("the viewer's script would end its own element")
    return script


@cache
def _packed_niivue() -> bytes:
    return gzip.compress(niivue(), 9, mtime=0)


def _text(name: str) -> str:
    return (files("lift.viewer") / name).read_text(encoding="utf-8")
