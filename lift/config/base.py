"""The common base of all settings, and the one reader of YAML files."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, Final, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from lift.csv_tables import not_utf_8
from lift.errors import ConfigError
from lift.strict_json import DEEPEST

_MOST_SHOWN = 20
_MOST_NODES: Final = 100_000
_VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(:-(?P<default>[^}]*))?\}")


def _number_of_a_version(value: object) -> object:
    # true and 1.0 are equal to 1, and would pass
    if type(value) is not int:
        raise ValueError("a version is a whole number")
    return value


VERSION: Final = BeforeValidator(_number_of_a_version)
"""For a field that names the version of a format: `Annotated[Literal[1], VERSION]`."""


class Settings(BaseModel):
    """Strict and frozen settings: an unknown key, a wrong type or a NaN stops the start."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @classmethod
    def from_data(cls, data: object, where: str) -> Self:
        """Validated settings from plain data (what YAML or JSON gives).

        Raises:
            ConfigError: names every wrong key, what was seen and what is needed.
        """
        try:
            # JSON mode: strict about types, yet a list may become a tuple and text a path
            return cls.model_validate_json(json.dumps(data))
        except ValidationError as error:
            raise ConfigError(
                "cannot use the settings",
                where=where,
                seen=_explanations(cls, error),
                remedy="Correct the file; nothing was started or changed.",
            ) from None
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(
                "cannot use the settings",
                where=where,
                seen=f"a value is of a kind that settings cannot hold: {error}",
                remedy="Put the value in quotation marks; nothing was started or changed.",
            ) from None

    @classmethod
    def from_yaml(cls, path: Path) -> Self:
        """Validated settings from one YAML file.

        `${NAME}` and `${NAME:-default}` in a text value stand for environment variables.

        Raises:
            ConfigError: the file is missing, is not YAML, repeats a key or does not fit.
        """
        return cls.from_data(read_yaml(path), str(path))

    def canonical_json(self) -> str:
        """JSON with sorted keys and no spaces: equal settings give equal text."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    def digest(self) -> str:
        """SHA-256 of :meth:`canonical_json`, in hexadecimal."""
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice (YAML would silently keep the last)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


# 1e-5 as YAML 1.2 and everybody else has it: PyYAML asks for a dot and a sign
_UniqueKeyLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+\Z"),
    list("-+.0123456789"),
)


def read_yaml(path: Path) -> object:
    """The plain data of one YAML file, with environment variables filled in."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            "cannot read the settings",
            where=str(path),
            seen=error.strerror or type(error).__name__,
            remedy="Check the path given on the command line.",
        ) from None
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        seen, remedy = not_utf_8(content, error)
        raise ConfigError(
            "cannot read the settings", where=str(path), seen=seen, remedy=remedy
        ) from None
    try:
        data = _plain_data(text)
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark is not None else ""
        raise ConfigError(
            "cannot read the settings",
            where=str(path),
            seen=f"{line}{getattr(error, 'problem', None) or 'not valid YAML'}",
            remedy="Correct the YAML; nothing was started or changed.",
        ) from None
    return _fill_variables({} if data is None else data, str(path))


def _plain_data(text: str) -> object:
    """What a YAML text holds, when it is not too large in the end (aliases are repetitions)."""
    loader = _UniqueKeyLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _check_size(root: yaml.Node) -> None:
    """Refuse a graph of nodes that holds itself, is deep, or has many nodes when it is a tree."""
    sizes: dict[int, int] = {}
    above: set[int] = set()

    def size(node: yaml.Node) -> int:
        if id(node) in sizes:
            return sizes[id(node)]
        if id(node) in above:
            raise _TooLargeError(
                None, None, "an alias stands inside what it names", node.start_mark
            )
        if len(above) > DEEPEST:
            raise _TooLargeError(None, None, f"nested deeper than {DEEPEST}", node.start_mark)
        above.add(id(node))
        total = 1
        if isinstance(node, yaml.MappingNode):
            total += sum(size(key) + size(value) for key, value in node.value)
        elif isinstance(node, yaml.SequenceNode):
            total += sum(size(item) for item in node.value)
        above.remove(id(node))
        if total > _MOST_NODES:
            problem = f"more than {_MOST_NODES} values, those that aliases repeat among them"
            raise _TooLargeError(None, None, problem, node.start_mark)
        sizes[id(node)] = total
        return total

    size(root)


class _TooLargeError(yaml.MarkedYAMLError):
    """A text that is more than settings can be."""


def _fill_variables(data: object, where: str) -> object:
    if isinstance(data, Mapping):
        return {key: _fill_variables(value, where) for key, value in data.items()}
    if isinstance(data, list):
        return [_fill_variables(value, where) for value in data]
    if isinstance(data, str):
        return _VARIABLE.sub(lambda match: _variable(match, where), data)
    return data


def _variable(match: re.Match[str], where: str) -> str:
    value = os.environ.get(match["name"], match["default"])
    if value is None:
        raise ConfigError(
            f"the environment variable {match['name']} is not set",
            where=where,
            seen=f"{match.group(0)} has no default",
            remedy=f"Set {match['name']}, or write ${{{match['name']}:-default}}.",
        )
    return value


def _root_causes(error: ValidationError) -> list[Any]:
    """The errors without those that another one explains.

    A list whose every item is refused counts as empty: its items say why, not its length.
    """
    items: list[Any] = list(error.errors())
    return [
        item
        for item in items
        if item["type"] != "too_short"
        or not any(
            len(other["loc"]) > len(item["loc"]) and other["loc"][: len(item["loc"])] == item["loc"]
            for other in items
        )
    ]


def _explanations(model: type[BaseModel], error: ValidationError) -> str:
    """One line for each error, the first ones only: a stranger's message may hold thousands."""
    causes = _root_causes(error)
    lines = [_explain(model, item) for item in causes[:_MOST_SHOWN]]
    if len(causes) > _MOST_SHOWN:
        lines.append(f"and {len(causes) - _MOST_SHOWN} more")
    return "\n".join(lines)


def _explain(model: type[BaseModel], item: Any) -> str:
    """One line for one validation error: key, what was seen, what is needed."""
    location = [str(part) for part in item["loc"]]
    key = ".".join(location) or "the file"
    if item["type"] == "extra_forbidden":
        # the section's own keys first: another section's may look more alike
        close = _close(location[-1], _section_keys(model, location)) or _close(
            location[-1], _known_keys(model)
        )
        return f"{key}: unknown key" + (f"; did you mean '{close[0]}'?" if close else "")
    if item["type"] == "missing":
        return f"{key}: missing; this key is required"
    if item["type"] in {"union_tag_not_found", "union_tag_invalid"}:
        # the key that says which kind of settings this is (a layout, a rule, a network)
        context = item["ctx"]
        choices = context.get("expected_tags", "")
        needed = f"one of {choices}" if choices else "it says which other keys there are"
        seen = f" (seen: {context['tag']!r})" if "tag" in context else ""
        name = str(context["discriminator"]).strip("'")
        problem = "holds an unknown name" if seen else "is missing"
        return f"{key}: the key '{name}' {problem}; needed: {needed}{seen}"
    message = item["msg"].removeprefix("Value error, ")
    seen = item.get("input")
    shown = f" (seen: {seen!r})" if isinstance(seen, str | int | float | bool) else ""
    return f"{key}: {message}{shown}"


def _close(word: str, keys: list[str]) -> list[str]:
    return difflib.get_close_matches(word, keys, n=1, cutoff=0.6)


def _section_keys(model: type[BaseModel], location: list[str]) -> list[str]:
    """Keys of the section in which a key lies; of all kinds that the section may be."""
    sections = [model]
    for part in location[:-1]:
        # a part that is no key is a place in a list, or the name of a kind
        below = [
            found
            for section in sections
            if part in section.model_fields
            for found in _models_in(section.model_fields[part].annotation)
        ]
        sections = below or sections
    return sorted({key for section in sections for key in section.model_fields})


def _known_keys(model: type[BaseModel]) -> list[str]:
    """Every key that any nested model knows: good enough to guess a typo from."""
    known: set[str] = set()
    queue: list[type[BaseModel]] = [model]
    visited: set[type[BaseModel]] = set()
    while queue:
        current = queue.pop()
        if current in visited:
            continue
        visited.add(current)
        for name, field in current.model_fields.items():
            known.add(name)
            queue += _models_in(field.annotation)
    return sorted(known)


def _models_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    found: list[type[BaseModel]] = []
    for argument in getattr(annotation, "__args__", ()):
        found += _models_in(argument)
    return found
