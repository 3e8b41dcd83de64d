"""Names of tensors are spelt in `lift.wire` alone: what travels can be declared in one place."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Final

import pytest

from lift.wire import names

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = ("lift", "server/lift_server", "client/lift_client", "deploy")
WIRE: Final = ROOT / "lift" / "wire"


def spelt() -> tuple[set[str], tuple[str, ...]]:
    """Whole names, and prefixes that end in a slash."""
    values = [value for name, value in vars(names).items() if name.isupper()]
    flat = [v for value in values for v in ([value] if isinstance(value, str) else value)]
    groups = {f"{name}/" for name in names.SERVER_STATE}
    whole = {v for v in flat if isinstance(v, str)} - set(names.SERVER_STATE)
    return whole, tuple(sorted(groups | {v for v in whole if v.endswith("/")}))


def literals_of(source: str) -> list[str]:
    """Tensor names that a module spells itself."""
    whole, prefixes = spelt()
    return [
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and "\n" not in node.value
        and " " not in node.value
        and (node.value in whole or node.value.startswith(prefixes))
    ]


def test_no_module_outside_wire_spells_the_name_of_a_tensor() -> None:
    modules = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert len(modules) > 200
    found = {
        str(path.relative_to(ROOT)): literals
        for path in modules
        if WIRE not in path.parents and (literals := literals_of(path.read_text("utf-8")))
    }
    assert found == {}


@pytest.mark.parametrize(
    "source",
    ['a["z_filter_a"]', 'f"mixer/{name}"', 'x.startswith("gaussian/")', '{"curves/a": 1}'],
)
def test_a_name_that_is_spelt_elsewhere_is_found(source: str) -> None:
    assert literals_of(source)


def test_rows_and_kinds_that_look_alike_are_no_tensors() -> None:
    assert literals_of('["trajectory_mapper", "curves_z_filter", "drifting_loss_share"]') == []
