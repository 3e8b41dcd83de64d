"""LiFT-federated: one 3D synthesis model for hospitals whose scans stay where they are.

The names below are the public Python interface (:mod:`lift.api`); everything else may change
between two versions. They are loaded when they are first used: `import lift` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lift.api import (
        Cohort,
        Trained,
        Translator,
        evaluate,
        load_generator,
        make_phantom,
        make_plan,
        open_cohort,
        simulate,
        train,
        translate,
    )

    __version__: str

__all__ = [
    "Cohort",
    "Trained",
    "Translator",
    "__version__",
    "evaluate",
    "load_generator",
    "make_phantom",
    "make_plan",
    "open_cohort",
    "simulate",
    "train",
    "translate",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("lift-federated")
    if name in __all__:
        return getattr(importlib.import_module("lift.api"), name)
    raise AttributeError(f"module 'lift' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
