"""Sites that connect as real ones do and answer at once, many in one process.

`python -m tests.federation.fake_sites FOLDER NAME...`: FOLDER is a federation's; each site has its
key, its kit, its own network process and its own thread. No volume is read and nothing is trained.
"""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

from lift.process import prepare_process

prepare_process()

from lift.config.kit import CA_FILE  # noqa: E402
from lift.config.plan import Plan  # noqa: E402
from lift.logs import log_to_file  # noqa: E402
from lift.protocol.flower.children import keep_loopback_direct  # noqa: E402
from lift.protocol.flower.executor import SuperNode, answer_requests  # noqa: E402
from lift.protocol.flower.supernode import SuperNodeSettings  # noqa: E402
from lift.protocol.messages import Failure, Parcel, StatisticsRequest  # noqa: E402
from lift_benchmarks.bench.federation import idle_site  # noqa: E402
from lift_client.enrolment import read_kit  # noqa: E402
from tests.ports import free_port  # noqa: E402


class _Idle:
    """Takes the plan from the first request, as a real site does."""

    def __init__(self) -> None:
        self._plan: Plan | None = None

    def __call__(self, request: Parcel) -> Parcel | Failure:
        if isinstance(request.body, StatisticsRequest):
            self._plan = request.body.plan
        assert self._plan is not None
        return idle_site(self._plan)(request)


def main() -> None:
    """Run until SIGTERM."""
    keep_loopback_direct()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    folder = Path(sys.argv[1])
    with log_to_file(folder / "fake-sites.log"):
        threads = []
        for name in sys.argv[2:]:
            supernode = _supernode(folder / "sites" / name, name)
            threads.append(
                threading.Thread(target=answer_requests, args=(supernode, _Idle(), stop))
            )
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _supernode(site: Path, name: str) -> SuperNode:
    kit = read_kit(site / "kit", site=name)
    work = site / "work"
    work.mkdir(exist_ok=True)
    settings = SuperNodeSettings(
        address=kit.address,
        ca=str(site / "kit" / CA_FILE),
        key=str(site / "site.key"),
        local_port=free_port(),
        secret=str(work / "executor.secret"),
        local_certificate=str(work / "local.pem"),
        local_key=str(work / "local.key"),
        node_file=str(work / "node"),
        connection_file=str(work / "connection.json"),
    )
    return SuperNode(settings, work / "connection.log")


if __name__ == "__main__":
    main()
