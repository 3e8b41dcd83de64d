"""Runs `lift-client` with a session that adds a tensor of its own to every update.

`python -m tests.federation.planting lift-client --site site.yaml`: the gate, the journal and the
way to the server are the product's.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any, Final

import numpy as np

from lift.protocol.messages import Kind, Parcel

PLANTED: Final = "scan/of-the-patient"
SCAN: Final = np.full((2, 240, 240), 0.5)


def with_scan(answer: Any) -> Any:
    """The answer with a patient's slices beside its tensors."""
    if isinstance(answer, Parcel) and answer.kind is Kind.TRAIN:
        return replace(answer, tensors={**answer.tensors, PLANTED: SCAN})
    return answer


def main(arguments: list[str]) -> None:
    """Patch the session, then run the command to its end."""
    from lift_client.cli import main as command
    from lift_client.session import SiteSession

    sys.argv = arguments
    honest: Any = SiteSession.handle
    planting: Any = SiteSession
    planting.handle = lambda session, request: with_scan(honest(session, request))
    command()


if __name__ == "__main__":
    main(sys.argv[1:])
