"""Seeds derived by name, so that no generator is ever shared or re-used by accident."""

from __future__ import annotations

import hashlib


def derive_seed(run_seed: int, *names: str | int) -> int:
    """A 63-bit seed that depends on the run's seed and on a path of names.

    The same arguments give the same seed on every machine and Python version; two
    different paths give independent seeds: `derive_seed(7, "round", 3, "site", "north")`.
    """
    parts = [f"{type(name).__name__}:{name}" for name in names]
    # escaped, so that no name can look like two
    escaped = [part.replace("%", "%25").replace("/", "%2F") for part in parts]
    path = "/".join([str(run_seed), *escaped])
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") >> 1
