"""The page of all YAML keys, from the settings' own models and descriptions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, cast

from pydantic import BaseModel

from lift.config.decoder import DecoderPretrainConfig
from lift.config.generator import GeneratorDescription, PretrainConfig
from lift.config.server import ServerConfig
from lift.config.simulation import SimulationConfig
from lift.config.site import SiteConfig

FILES: Final[Mapping[str, type[BaseModel]]] = {
    "site.yaml": SiteConfig,
    "server.yaml": ServerConfig,
    "simulation": SimulationConfig,
    "pretrain": PretrainConfig,
    "pretrain, unconditional": DecoderPretrainConfig,
    "pretrain --import": GeneratorDescription,
}
"""Name of a settings file in the documentation -> its model."""
_INTRODUCTION: Final = """\
# Settings

Every settings file is YAML. It is checked before anything starts: an unknown key, a key given
twice, a wrong type or a missing required key stops the command and names the key. A text value may
contain `${NAME}` or `${NAME:-default}`, which is replaced by an environment variable. Relative
paths of `site.yaml` and `server.yaml` start at the folder of the file; all others start at the
working folder.

This page is generated from the models that read the files.

| file | read by |
|---|---|
| [site.yaml](#siteyaml) | `lift-client` |
| [server.yaml](#serveryaml) | `lift-server` |
| [simulation](#simulation) | `lift-simulate --config` |
| [pretrain](#pretrain) | `lift pretrain --config` |
| [pretrain, unconditional](#pretrain-unconditional) | the same, with `kind: unconditional` |
| [pretrain --import](#pretrain-import) | `lift pretrain --import` |

The *plan* is the section that decides the result of a run. It is the same in `server.yaml` and in
the settings of a simulation: see [plan](#plan).
"""
_SHARED: Final = """\
## Parts

The sections below stand inside the files above, under the key of their heading. Where a key
allows several kinds of section, each kind has a heading of its own with the word that chooses it.
"""
Schema = Mapping[str, object]


@dataclass(frozen=True)
class _Part:
    """One section that a file may hold: where it stands, and the word that chooses it."""

    name: str
    path: str
    chosen_by: str
    other_paths: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return f"{self.path} ({self.chosen_by})" if self.chosen_by else self.path


def settings_page() -> str:
    """The whole page as Markdown: one table for each file and each section in it.

    Raises:
        ValueError: a key has no description.
    """
    definitions: dict[str, Schema] = {}
    roots: dict[str, Schema] = {}
    for file, model in FILES.items():
        whole = model.model_json_schema()
        definitions |= whole.pop("$defs", {})
        roots[file] = whole
    parts = _parts(roots, definitions)
    titles = {model.__name__: file for file, model in FILES.items()}
    titles |= {part.name: part.title for part in parts}
    lines = [_INTRODUCTION]
    for file, schema in roots.items():
        lines += [f"## {file}", "", *_section(schema, titles, definitions)]
    lines.append(_SHARED)
    for part in sorted(parts, key=lambda part: part.title):
        lines += [f"### {part.title}", ""]
        if part.other_paths:
            lines += [f"Also under {', '.join(f'`{path}`' for path in part.other_paths)}.", ""]
        lines += _section(definitions[part.name], titles, definitions)
    return "\n".join(lines)


def undescribed() -> list[str]:
    """MODEL.KEY of every key, of any settings file, that has no description."""
    missing: set[str] = set()
    for model in FILES.values():
        schema = cast("Schema", model.model_json_schema())
        for section in [schema, *cast("Mapping[str, Schema]", schema.get("$defs", {})).values()]:
            missing |= {
                f"{section['title']}.{key}"
                for key, field in _fields(section).items()
                if not field.get("description")
            }
    return sorted(missing)


def _parts(roots: Mapping[str, Schema], definitions: Mapping[str, Schema]) -> list[_Part]:
    """Each section that is reachable, under the shortest path to it."""
    files = {model.__name__ for model in FILES.values()}
    paths: dict[str, list[str]] = {}
    chosen: dict[str, str] = {}
    queue = [("", schema) for schema in roots.values()]
    while queue:
        path, schema = queue.pop(0)
        for key, field in _fields(schema).items():
            below = f"{path}.{key}" if path else key
            for name in _references(field):
                if name in files or below in paths.get(name, []):
                    continue
                paths.setdefault(name, []).append(below)
                # a word chooses among several sections of one key
                several = "discriminator" in json.dumps(field)
                chosen.setdefault(name, _chosen_by(definitions[name]) if several else "")
                queue.append((below, definitions[name]))
    return [_Part(n, first, chosen[n], tuple(more)) for n, (first, *more) in paths.items()]


def _chosen_by(schema: Schema) -> str:
    """`key: word` of the key that tells this kind of section from others."""
    for key, field in _fields(schema).items():
        words = cast("Sequence[object]", field.get("enum", [field.get("const")]))
        if key in {"layout", "name", "mode", "rule", "kind"} and words[0] is not None:
            return f"{key}: {' or '.join(map(str, words))}"
    return ""


def _section(
    schema: Schema, titles: Mapping[str, str], definitions: Mapping[str, Schema]
) -> list[str]:
    required = set(cast("Sequence[str]", schema.get("required", ())))
    lines = [_text(str(schema.get("description", ""))), "", "| key | value | default | meaning |"]
    lines.append("|---|---|---|---|")
    for key, field in _fields(schema).items():
        described = field.get("description")
        if not described:
            raise ValueError(f"{schema['title']}.{key} has no description")
        default = "**required**" if key in required else _default(field, definitions)
        cells = (f"`{key}`", _kind(field, titles), default, _cell(str(described)))
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _fields(schema: Schema) -> Mapping[str, Schema]:
    return cast("Mapping[str, Schema]", schema.get("properties", {}))


def _references(field: object) -> Iterator[str]:
    """Names of all sections that a value may be, in order."""
    if isinstance(field, dict):
        for key, value in field.items():
            if key == "$ref":
                yield str(value).rpartition("/")[2]
            elif key not in {"discriminator", "default"}:
                yield from _references(value)
    elif isinstance(field, list):
        for value in field:
            yield from _references(value)


def _kind(field: Schema, titles: Mapping[str, str]) -> str:
    """The possible values in words."""
    if "$ref" in field:
        title = titles[str(field["$ref"]).rpartition("/")[2]]
        return f"[{title}](#{anchor(title)})"
    several = field.get("anyOf") or field.get("oneOf")
    if several:
        return " or ".join(_kind(choice, titles) for choice in cast("list[Schema]", several))
    if "const" in field or "enum" in field:
        words = cast("Sequence[object]", field.get("enum", [field.get("const")]))
        return ", ".join(f"`{json.dumps(word).strip(chr(34))}`" for word in words)
    kind = str(field.get("type", "any"))
    if kind == "array":
        return _list(field, titles)
    if kind == "object":
        inner = field.get("additionalProperties")
        return f"name → {_kind(inner, titles)}" if isinstance(inner, dict) else "mapping"
    if kind in {"number", "integer"}:
        return _number(field, kind)
    if kind == "string" and field.get("format") == "path":
        return "path"
    return {"string": "text", "boolean": "true or false"}.get(kind, kind)


def _list(field: Schema, titles: Mapping[str, str]) -> str:
    if "prefixItems" in field:
        inner = [_kind(item, titles) for item in cast("list[Schema]", field["prefixItems"])]
        return f"list: {', '.join(inner)}"
    least, most = field.get("minItems"), field.get("maxItems")
    if most == 0:
        return "empty list"
    inner_kind = _kind(cast("Schema", field.get("items", {})), titles)
    size = f" ({least or 0} to {most})" if most else f" ({least} or more)" if least else ""
    return f"list of {inner_kind}{size}"


def _number(field: Schema, kind: str) -> str:
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    limits = [f"{sign} {field[name]}" for name, sign in signs.items() if name in field]
    if "multipleOf" in field:
        limits.append(f"a multiple of {field['multipleOf']}")
    # 2**63 is where a number ends, no limit that a reader meets
    shown = [limit for limit in limits if "9223372036854775808" not in limit]
    return ", ".join(["integer" if kind == "integer" else "number", *shown])


def _default(field: Schema, definitions: Mapping[str, Schema]) -> str:
    if "default" not in field:
        return "empty"
    value = field["default"]
    if isinstance(value, dict) and value and next(_references(dict(field)), None) in definitions:
        return "its defaults"
    return f"`{json.dumps(value, ensure_ascii=False)}`".replace("|", "\\|")


def anchor(title: str) -> str:
    """The anchor that Python-Markdown's `toc` gives a heading."""
    kept = re.sub(r"[^\w\s-]", "", title).strip().lower()
    return re.sub(r"[-\s]+", "-", kept)


def _text(description: str) -> str:
    return re.sub(r":(?:class|func|meth):`~?([^`]+)`", r"`\1`", description)


def _cell(description: str) -> str:
    return " ".join(_text(description).replace("|", "\\|").split())
