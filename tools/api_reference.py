"""The page of the Python interface, from `lift.__all__` and its docstrings."""

from __future__ import annotations

import inspect
import re
from typing import Final

import lift
from lift import api

_QUOTED: Final = re.compile(r"(: |-> )'([^']*)'")
"""An annotation, which is text in our modules."""
_INTRODUCTION: Final = """\
# Python interface

`import lift` gives the names below. They are the public interface; everything else may change
between two versions (see [versions](versions.md)). Importing is quick: torch is loaded with the
first name that needs it. Long work takes a `progress` callback, called with what is being done, the
steps done and their number.

On phantom brains that the package makes itself:

```python
"""
_AFTER: Final = """\
```

`lift.__version__` is the version as text. Errors are those of `lift.errors`: each says what failed,
where, what was seen against what is needed, and what to do.
"""


def api_page() -> str:
    """The whole page as Markdown: the example, then signature and docstring of every name."""
    lines = [_INTRODUCTION + _example() + _AFTER]
    for name in lift.__all__:
        if not name.startswith("__"):
            lines += _described(name, getattr(lift, name))
    return "\n".join(lines)


def _example() -> str:
    """The commands of the module's doctest, without their prompts."""
    text = inspect.getdoc(api) or ""
    lines = [line.removeprefix(">>> ") for line in text.splitlines() if line.startswith(">>> ")]
    return "\n".join([*lines, ""])


def _described(name: str, thing: object) -> list[str]:
    text = inspect.getdoc(thing) or ""
    # a class is made by the functions, not by hand: its fields are in its docstring
    call = name if inspect.isclass(thing) else f"{name}{inspect.signature(thing)}"  # type: ignore[arg-type]
    lines = [f"## {name}", "", "```text", _QUOTED.sub(r"\1\2", call), "", text, "```", ""]
    if inspect.isclass(thing):
        for method, inner in vars(thing).items():
            if not method.startswith("_") and (told := inspect.getdoc(inner)):
                lines += [f"`{name}.{method}`: {' '.join(told.split())}", ""]
    return lines
