"""Runs `lift-client` with a session that claims a million patients, and then keeps silent.

`python -m tests.federation.lying lift-client --site site.yaml`: the gate, the journal and the way
to the server are the product's.
"""

from __future__ import annotations

import sys
import threading
from dataclasses import replace
from typing import Any, Final

from lift.protocol.messages import Parcel, StatisticsReply

CLAIMED: Final = 10**6


def main(arguments: list[str]) -> None:
    """Patch the session, then run the command to its end."""
    from lift_client.cli import main as command
    from lift_client.session import SiteSession

    sys.argv = arguments
    honest: Any = SiteSession.handle
    lying: Any = SiteSession

    def handle(session: Any, request: Parcel) -> Any:
        answer = honest(session, request)
        if isinstance(answer, Parcel) and isinstance(answer.body, StatisticsReply):
            body = answer.body.model_copy(update={"train_patients": CLAIMED})
            return replace(answer, body=body)
        threading.Event().wait()
        return answer

    lying.handle = handle
    command()


if __name__ == "__main__":
    main(sys.argv[1:])
