"""The only reader of JSON from other sources: messages, records, files.

Python's own reader keeps the last of two equal keys, takes NaN and numbers of any length, and
fails in other ways than by a ValueError where a text is nested deeply.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import BaseModel, TypeAdapter

DEEPEST: Final = 64
"""Lists and objects inside each other; what this project writes has fewer than 20."""
LARGEST_NUMBER: Final = 1 << 64
"""A whole number's size stays below it."""
_LONGEST_NUMBER: Final = len(str(LARGEST_NUMBER)) + 1
Model = TypeVar("Model", bound=BaseModel)
Value = TypeVar("Value")


def parse_json(text: str | bytes) -> Any:
    """The plain data of one JSON text (RFC 8259; bytes are UTF-8).

    Raises:
        ValueError: it is not JSON; or gives a key twice, nests deeper than `DEEPEST`, holds NaN,
            infinity, a number beyond a double, or a whole number of `LARGEST_NUMBER` or more.
            The message quotes nothing of the text.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        data = json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_whole,
            parse_float=_real,
            parse_constant=_no_constant,
        )
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON at line {error.lineno}, column {error.colno}") from None
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 text") from None
    _check_depth(data)
    return data


def parse_model(model: type[Model], text: str | bytes) -> Model:
    """A JSON text as a model of pydantic, read as :func:`parse_json` reads.

    Raises:
        ValueError: as there; or it does not fit the model (pydantic's ValidationError is one).
    """
    parse_json(text)
    return model.model_validate_json(text)


def read_model(
    model: type[Model], path: Path, refuse: Callable[[str], Exception], *, damaged: str
) -> Model | None:
    """The content of one of our own files; None where there is no file.

    Args:
        model: what the file holds.
        path: the file.
        refuse: gives the error from what was seen.
        damaged: what is seen in a file that holds something else.

    Raises:
        Exception: what `refuse` gives, when the file cannot be read or does not fit the model.
    """
    try:
        return parse_model(model, path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise refuse(error.strerror or type(error).__name__) from None
    except ValueError:
        raise refuse(damaged) from None


def parse_typed(adapter: TypeAdapter[Value], text: str | bytes) -> Value:
    """The same for what an adapter of pydantic describes."""
    parse_json(text)
    return adapter.validate_json(text)


def is_version(found: object, version: int) -> bool:
    """Whether a version that a file or a message names is this one: `true` and `1.0` are none."""
    return type(found) is int and found == version


_TOO_DEEP: Final = f"nested deeper than {DEEPEST}"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


def _whole(digits: str) -> int:
    if len(digits) <= _LONGEST_NUMBER and abs(number := int(digits)) < LARGEST_NUMBER:
        return number
    raise ValueError("a whole number beyond 64 bits")


def _real(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("a number beyond a double")
    return number


def _no_constant(_name: str) -> float:
    raise ValueError("NaN or infinity")


def _check_depth(data: object) -> None:
    level: list[Any] = [data]
    for _ in range(DEEPEST + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise ValueError(_TOO_DEEP)
