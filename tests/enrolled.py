"""A site that is enrolled, and whose hospital has chosen its privacy modes."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from lift_client.enrolment import Enrolled, enrol

NOT_CHOSEN: Final = "  privacy_modes: []\n"
CHECKED: Final = "  image_checks: on\n"


def enrolled(folder: Path, name: str, *modes: str) -> Enrolled:
    """What `lift-client enroll` makes, with these modes chosen in site.yaml; `none` by default.

    Without image checks: the tests' tiny volumes are random ellipsoids, no pair for them.
    """
    made = enrol(folder, name)
    text = made.settings.read_text(encoding="utf-8")
    assert text.count(NOT_CHOSEN) == text.count(CHECKED) == 1
    chosen = f"  privacy_modes: [{', '.join(modes or ('none',))}]\n"
    made.settings.write_text(
        text.replace(NOT_CHOSEN, chosen).replace(CHECKED, "  image_checks: off\n"), encoding="utf-8"
    )
    return made
