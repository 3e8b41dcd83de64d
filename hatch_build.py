"""Puts NiiVue's script beside our viewer when the project is built or installed.

NiiVue (BSD-2-Clause) comes in the wheel of `ipyniivue`, which is needed to build and never to run:
it would bring IPython onto machines of hospitals. The wheel's script is taken only when its bytes
are the pinned ones, and changed in one place: it exports the viewer's class itself.
"""

from __future__ import annotations

import hashlib
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE_SHA256: Final = "922951141f03da6294cc74a7c520d694a9723733ee25d997b85da8136057a96b"
# of what is made of it: what lies there already is trusted by its bytes alone
SCRIPT_SHA256: Final = "b5041a07db4c8292f1d5eb7e3f5b9d70f5ca3711b37e26a4462e83a83631ab53"
LICENCE_SHA256: Final = "3bf3b75cc8bc5b3ae3f120327d1d9087e3800d100a43a5fc6b0348adada411fa"
MADE: Final = ("lift/viewer/niivue.js", "lift/viewer/niivue.LICENSE")
# names in a bundle are as short as its maker could make them; the words around them are not
_CLASS: Final = re.compile(
    r'"Creating new Niivue instance"\);let \w+=[^;]*?,\w+=\w+\(\w+\);(?:\w+)=new (\w+)\('
)
_EXPORT: Final = re.compile(r"export\{\w+ as default\};\s*$")


class ViewerHook(BuildHookInterface[Any]):
    """Writes the two files before a wheel or an editable install is made."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Make what is missing, and have it packed though git does not know it."""
        del version
        make_viewer(Path(self.root))
        build_data["artifacts"].extend(MADE)


def make_viewer(root: Path) -> None:
    """`lift/viewer/niivue.js` and its licence; left alone where they are there already.

    Raises:
        RuntimeError: the package is missing, or is not the pinned one.
    """
    script, licence = (root / name for name in MADE)
    if (_digest(script), _digest(licence)) == (SCRIPT_SHA256, LICENCE_SHA256):
        return
    spec = find_spec("ipyniivue")
    if spec is None or spec.origin is None:
        raise RuntimeError(
            "the viewer needs ipyniivue==2.4.4 to build: let pip build in isolation, or install it"
        )
    package = Path(spec.origin).parent
    content = (package / "static" / "widget.js").read_bytes()
    if hashlib.sha256(content).hexdigest() != SOURCE_SHA256:
        raise RuntimeError("ipyniivue's script is not the pinned one (ipyniivue==2.4.4)")
    (found,) = package.parent.glob("ipyniivue-*.dist-info/licenses/LICENSE")
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_bytes(_mark() + with_class_exported(content.decode()).encode())
    licence.write_bytes(found.read_bytes())
    if (_digest(script), _digest(licence)) != (SCRIPT_SHA256, LICENCE_SHA256):
        raise RuntimeError("what was made of ipyniivue is not what was examined")


def with_class_exported(source: str) -> str:
    """The module with `Niivue`, the viewer's class, in place of its own export.

    Raises:
        RuntimeError: the module is not built as expected.
    """
    classes = set(_CLASS.findall(source))
    if len(classes) != 1 or not _EXPORT.search(source):
        raise RuntimeError("cannot find NiiVue's class in ipyniivue's script")
    return _EXPORT.sub(f"export{{{classes.pop()} as Niivue}};\n", source)


def _digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _mark() -> bytes:
    return f"/* NiiVue, BSD-2-Clause, see niivue.LICENSE; made from {SOURCE_SHA256} */\n".encode()
