"""What stays the same between two records of the same kind: their keys, and the types of values."""

from __future__ import annotations

from collections.abc import Collection, Iterator

Structure = dict[str, set[str]]
"""PATH -> the kinds of value that stand there, in any element of a list."""
NOTHING = "null"


def structure(value: object, names: Collection[str] = ()) -> Structure:
    """The structure of JSON data; keys that are one of `names` (sites) count as one key."""
    found: Structure = {}
    for path, kind in _walk(value, "", frozenset(names)):
        found.setdefault(path, set()).add(kind)
    return found


def differences(one: Structure, other: Structure) -> list[str]:
    """Paths that one of two structures lacks, or whose values are of other kinds.

    A null fits any kind: few patients have no interval, a first round no loss.
    """
    lacking = [f"{path}: in one alone" for path in one.keys() ^ other.keys()]
    kinds = [
        f"{path}: {sorted(one[path])} against {sorted(other[path])}"
        for path in one.keys() & other.keys()
        if not _fit(one[path] - {NOTHING}, other[path] - {NOTHING})
    ]
    return sorted([*lacking, *kinds])


def _fit(one: set[str], other: set[str]) -> bool:
    return not one or not other or one == other


def _walk(value: object, path: str, names: frozenset[str]) -> Iterator[tuple[str, str]]:
    yield path, _kind(value)
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _walk(inner, f"{path}/{'NAME' if key in names else key}", names)
    elif isinstance(value, list):
        for inner in value:
            yield from _walk(inner, f"{path}/*", names)


def _kind(value: object) -> str:
    if value is None:
        return NOTHING
    # a whole number is a number: 4.0 seconds and 4 are one kind
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "number"
    return type(value).__name__
