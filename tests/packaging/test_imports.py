"""Importing a module of ours changes nothing of the process: that is for entry points to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
# Others' packages may set what they like when they are imported. So ours are imported a second
# time, when all others are there already and what they set has been taken back.
SCRIPT: Final = """
import importlib, json, logging, os, pkgutil, sys, threading, warnings

OURS = ("lift", "lift_server", "lift_client", "lift_simulation", "lift_benchmarks")

def names():
    for package in map(importlib.import_module, OURS):
        yield package.__name__
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            yield module.name

def loggers():
    return [logging.getLogger(), *map(logging.getLogger, list(logging.root.manager.loggerDict))]

def umask():
    found = os.umask(0)
    os.umask(found)
    return oct(found)

def state():
    import torch
    return {
        "environment": dict(os.environ),
        "loggers": {
            logger.name: [
                logger.level, logger.disabled, logger.propagate,
                *map(repr, [*logger.filters, *logger.handlers]),
            ]
            for logger in loggers()
        },
        "logging": [logging.root.manager.disable, repr(logging.getLoggerClass())],
        "warnings": [list(map(repr, warnings.filters)), repr(warnings.showwarning)],
        "torch": [
            torch.get_num_threads(), torch.get_default_dtype().itemsize,
            torch.are_deterministic_algorithms_enabled(), torch.is_grad_enabled(),
        ],
        "umask": umask(),
        "hooks": [repr(sys.excepthook), repr(threading.excepthook), sys.getrecursionlimit()],
    }

environment, filters = dict(os.environ), list(warnings.filters)
modules = sorted(set(names()))
for name in modules:
    importlib.import_module(name)
for name in modules:
    del sys.modules[name]
os.environ.clear()
os.environ.update(environment)
warnings.filters[:] = filters
for logger in loggers():
    logger.setLevel(logging.NOTSET)
    logger.filters.clear()
    logger.disabled = False
before = state()
for name in modules:
    importlib.import_module(name)
after = state()
# a logger that is only there, as others would make it, changes nothing
new = set(after["loggers"]) - set(before["loggers"])
for name in new:
    if after["loggers"][name] == [0, False, True]:
        del after["loggers"][name]
print(json.dumps({"modules": modules, "before": before, "after": after}))
"""


def test_importing_every_module_of_ours_changes_nothing_of_the_process() -> None:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        env=kept,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    sources = [*ROOT.glob("lift/**/*.py"), *ROOT.glob("*/lift_*/**/*.py")]
    assert len(told["modules"]) == len(sources)
    assert {"lift.volumes.formats.dicom_image", "lift_server.watch.live.__main__"} <= set(
        told["modules"]
    )
    assert told["after"] == told["before"]
