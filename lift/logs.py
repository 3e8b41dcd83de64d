"""Log handlers: libraries only log; a command line installs what this module gives."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_OURS = ("lift", "lift_server", "lift_client")
_SILENT = logging.CRITICAL + 1
_mutes: dict[str, tuple[int, int]] = {}
"""LOGGER -> how many blocks mute it now, and the level that it had before."""
_mutes_lock = threading.Lock()
_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"


@contextmanager
def log_to_file(path: Path) -> Iterator[None]:
    """Write this project's log lines, and warnings of other libraries, to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # a full disk must not print a traceback for each line
    logging.raiseExceptions = False
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
    """Write this project's log lines to stderr, for an operator or a service manager."""
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


@contextmanager
def muted(name: str) -> Iterator[None]:
    """Inside the block a library's logger, and those below it, say nothing.

    Blocks may overlap, in several threads too: the last one that ends gives the level back.
    """
    logger = logging.getLogger(name)
    with _mutes_lock:
        inside, level = _mutes.get(name, (0, logger.level))
        _mutes[name] = (inside + 1, level)
        logger.setLevel(_SILENT)
    try:
        yield
    finally:
        with _mutes_lock:
            inside, level = _mutes.pop(name)
            if inside > 1:
                _mutes[name] = (inside - 1, level)
            else:
                logger.setLevel(level)


@contextmanager
def without_messages(name: str, text: str) -> Iterator[None]:
    """Inside the block a library's logger leaves out the messages that contain `text`."""

    def tells_something(record: logging.LogRecord) -> bool:
        return text not in record.getMessage()

    logger = logging.getLogger(name)
    logger.addFilter(tells_something)
    try:
        yield
    finally:
        logger.removeFilter(tells_something)
