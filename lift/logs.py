"""Log handlers: libraries only log; a command line installs what this module gives."""

from __future__ import annotations

import io
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final, Literal

from lift.log_lines import JsonLines, TextLines

LogFormat = Literal["text", "json"]
LARGEST_LOG_BYTES: Final = 10_000_000
OLDER_LOGS: Final = 4
"""How many full logs are kept beside the one that is written: NAME.1 is the newest of them."""
TELL_EVERY_S: Final = 30.0
"""How often something that takes long says how far it is."""
_OURS: Final = ("lift", "lift_server", "lift_client", "lift_simulation")
_SILENT: Final = logging.CRITICAL + 1
_mutes: dict[str, tuple[int, int]] = {}
"""LOGGER -> how many blocks mute it now, and the level that it had before."""
_mutes_lock = threading.Lock()


@contextmanager
def log_to_file(path: Path, log_format: LogFormat = "text") -> Iterator[None]:
    """Write this project's log lines, and errors of other libraries, to a file.

    Warnings of other libraries go nowhere inside the block: they are no operator's business. The
    file and its `OLDER_LOGS` predecessors take `LARGEST_LOG_BYTES` each at most.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # a full disk must not print a traceback for each line
    logging.raiseExceptions = False
    handler = rotating_file(path)
    handler.setFormatter(_formatter(log_format))
    handler.addFilter(lambda record: _is_ours(record.name) or record.levelno >= logging.ERROR)
    root = logging.getLogger()
    root.addHandler(handler)
    logging.captureWarnings(True)
    try:
        with _informative(), _libraries_off_the_terminal():
            yield
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        handler.close()


@contextmanager
def log_to_terminal(log_format: LogFormat = "text") -> Iterator[None]:
    """Write this project's log lines to stderr, for an operator or a service manager."""
    handler = logging.StreamHandler()
    text = TextLines("%(asctime)s %(message)s", "%H:%M:%S")
    handler.setFormatter(text if log_format == "text" else _formatter(log_format))
    with _informative() as ours:
        for logger in ours:
            logger.addHandler(handler)
        try:
            yield
        finally:
            for logger in ours:
                logger.removeHandler(handler)


def rotating_file(path: Path) -> RotatingFileHandler:
    """A handler of one file that one process writes; see :func:`log_to_file` for its size."""
    return RotatingFileHandler(
        path,
        maxBytes=LARGEST_LOG_BYTES,
        backupCount=OLDER_LOGS,
        encoding="utf-8",
        # a file's name may hold anything
        errors="backslashreplace",
    )


class LinesAsRecords(io.TextIOBase):
    """A stream for text: each whole line is a record of the logger.

    Args:
        logger: takes the lines.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._begun = ""

    def write(self, text: str) -> int:
        """See `io.TextIOBase`."""
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            if line.strip():
                self._logger.info("%s", line)
        return len(text)


def _formatter(log_format: LogFormat) -> logging.Formatter:
    return TextLines() if log_format == "text" else JsonLines()


def _is_ours(name: str) -> bool:
    return name.partition(".")[0] in _OURS


@contextmanager
def _informative() -> Iterator[list[logging.Logger]]:
    """Inside the block our loggers, which it gives, tell more than warnings."""
    ours = [logging.getLogger(name) for name in _OURS]
    levels = [logger.level for logger in ours]
    for logger in ours:
        logger.setLevel(logging.INFO)
    try:
        yield ours
    finally:
        for logger, level in zip(ours, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _libraries_off_the_terminal() -> Iterator[None]:
    """Inside the block no other library writes its log to the terminal by itself."""
    changed: list[tuple[logging.Logger, list[logging.Handler], bool]] = []
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if not isinstance(logger, logging.Logger) or _is_ours(name):
            continue
        on_terminal: list[logging.Handler] = [
            handler
            for handler in logger.handlers
            if isinstance(handler, logging.StreamHandler)
            and handler.stream in {sys.stderr, sys.stdout}
        ]
        if on_terminal:
            changed.append((logger, on_terminal, logger.propagate))
            for handler in on_terminal:
                logger.removeHandler(handler)
            logger.propagate = True
    try:
        yield
    finally:
        for logger, handlers, propagate in changed:
            for handler in handlers:
                logger.addHandler(handler)
            logger.propagate = propagate


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
