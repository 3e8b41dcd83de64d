"""Log handlers: libraries only log; a command line installs what this module gives."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_OURS = ("lift", "lift_server", "lift_client")
_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"


@contextmanager
def log_to_file(path: Path) -> Iterator[None]:
    """Write this project's log lines, and warnings of other libraries, to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter(_FORMAT))
    root = logging.getLogger()
    ours = [logging.getLogger(name) for name in _OURS]
    levels = [logger.level for logger in ours]
    root.addHandler(handler)
    for logger in ours:
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
        for logger, level in zip(ours, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def log_to_terminal() -> Iterator[None]:
    """Write this project's log lines to stderr, for somebody who watches or a service manager."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    ours = [logging.getLogger(name) for name in _OURS]
    for logger in ours:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in ours:
            logger.removeHandler(handler)
