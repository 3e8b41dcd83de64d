"""Refuses the name of an image that is not fixed by its digest; a tag may be moved."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Final

_PINNED: Final = re.compile(r"[a-z0-9][\w.:/-]*@sha256:[0-9a-f]{64}")


def unpinned(references: Sequence[str]) -> list[str]:
    """Those of the names of images that do not end in `@sha256:` and a whole digest."""
    return [name for name in references if not _PINNED.fullmatch(name)]


def main() -> None:
    """Exit with 2, and name them, where an image on the command line has no digest."""
    names = sys.argv[1:]
    bad = unpinned(names) if names else ["(no image was named)"]
    if bad:
        sys.stderr.write(
            "an image of a release is named by its digest (docs/guides/operations.md, Signed "
            f"images): NAME@sha256:...; seen: {', '.join(bad)}\n"
        )
        raise SystemExit(2)


if __name__ == "__main__":
    main()
