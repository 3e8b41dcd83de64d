"""How a log record is written: one line for a person, or one JSON object for a program."""

from __future__ import annotations

import json
import logging
import math
import re
from datetime import UTC, datetime
from typing import Final

from lift.errors import LiftError

# the parts of a message before its arguments are put in: KEY=VALUE, KEY="VALUE", or a word
_PART: Final = re.compile(
    r"(?P<key>[a-z][a-z0-9_]*)=(?:\"(?P<quoted>[^\"]*)\"|(?P<bare>\S*))|(?P<word>\S+)"
)
_PLACE: Final = re.compile(r"%[-#0 +]*\d*(?:\.\d+)?[a-zA-Z]|%%")
_PAIRS: Final = re.compile(r"[a-z][a-z0-9_]*=\S+(?: [a-z][a-z0-9_]*=\S+)*")
_TEXT: Final = "%(asctime)s %(levelname)s %(name)s %(message)s"


class TextLines(logging.Formatter):
    """One line an event, whatever its arguments hold; a traceback follows on lines of its own."""

    def __init__(self, form: str = _TEXT, time: str | None = None) -> None:
        super().__init__(form, time)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        """See `logging.Formatter`."""
        record.message = one_line(record.message)
        return super().formatMessage(record)


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, event, message, and the fields of the event.

    Fields are read from the template of the message, so a value may hold spaces and quotes. An
    error of ours has the fields `class`, `what`, `where`, `seen` and `fix`.
    """

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        time = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, object] = {
            "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": None,
            "message": one_line(record.getMessage()),
        }
        for key, value in fields_of(record).items():
            if key == "event" or key not in line:
                line[key] = value
        if record.exc_info and record.exc_info[0] is not None:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def one_line(text: str) -> str:
    """The text without line breaks: nothing that it quotes begins a line of its own."""
    return "; ".join(text.splitlines())


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """What stands as KEY=VALUE in a record's message; numbers stay numbers."""
    given = record.args if isinstance(record.args, tuple) else ()
    arguments = list(given)
    fields: dict[str, object] = {}
    for part in _PART.finditer(str(record.msg)):
        raw = next(part[name] for name in ("quoted", "bare", "word") if part[name] is not None)
        count = sum(place != "%%" for place in _PLACE.findall(raw)) if given else 0
        own, arguments = arguments[:count], arguments[count:]
        if len(own) < count:
            # `logging` itself says what is wrong with such a record
            return fields
        error = own[0] if len(own) == 1 and isinstance(own[0], LiftError) else None
        if error is not None:
            fields |= _parts_of(error)
        if part["key"]:
            fields[part["key"]] = _value(raw, own) if given else raw
        elif error is None and own and _PAIRS.fullmatch(text := str(own[0])):
            fields |= dict(pair.split("=", 1) for pair in text.split(" "))
    return fields


def _parts_of(error: LiftError) -> dict[str, object]:
    parts = {
        "class": error.label,
        "what": error.what,
        "where": error.where,
        "seen": error.seen,
        "fix": error.remedy,
    }
    return {key: value for key, value in parts.items() if value}


def _value(raw: str, own: list[object]) -> object:
    text = raw % tuple(own)
    if len(own) != 1 or not _PLACE.fullmatch(raw) or isinstance(own[0], bool):
        return text
    if isinstance(own[0], int):
        return own[0]
    if isinstance(own[0], float) and math.isfinite(own[0]):
        return float(text)
    return text
