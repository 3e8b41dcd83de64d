"""How much memory this process used at most."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Final

_RESET: Final = Path("/proc/self/clear_refs")
_STATUS: Final = Path("/proc/self/status")
_PEAK: Final = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)


def reset_peak() -> None:
    """Reset the count of peak memory, if the system allows it (Linux; proc(5), clear_refs)."""
    with contextlib.suppress(OSError):
        _RESET.write_text("5")


def peak_mb() -> float | None:
    """Largest resident memory, MB, since the last reset (or the start); None if it is not known."""
    try:
        found = _PEAK.search(_STATUS.read_text(encoding="ascii", errors="replace"))
    except OSError:
        return None
    return None if found is None else round(int(found[1]) * 1024 / 1e6, 1)
