"""A signal ends the client within seconds, also while it works on a request."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.enrolled import enrolled

# the loop of the client is held in a request that never ends
SCRIPT = """
import sys, time, types
from pathlib import Path
import lift_client.app as app
from lift.config.site import SiteConfig

def answer_requests(supernode, handler, stop):
    print("working", flush=True)
    while {endless} or not stop.is_set():
        time.sleep(0.05)

app.answer_requests = answer_requests
app.load_generator = lambda *args, **kwargs: None
app.SiteSession = type("Session", (), {{"__init__": lambda self, *a, **k: None,
                                        "handle": None, "close": lambda self: None}})
app.answer_forms = lambda generator: None
app.bundle_folder = lambda choice: None
app.read_kit = lambda folder, site: types.SimpleNamespace(address="-", generator_fingerprint="-")
path = Path(sys.argv[1])
app.serve(SiteConfig.from_yaml(path).under(path.parent))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("endless", [True, False])
def test_a_signal_ends_the_client(tmp_path: Path, number: signal.Signals, *, endless: bool) -> None:
    enrolled(tmp_path, "north")
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(endless=endless), tmp_path / "site.yaml"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        if process.stdout.readline() != "working\n":
            _, errors = process.communicate(timeout=10)
            raise AssertionError(errors)
        process.send_signal(number)
        try:
            _, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 0, errors
    assert ("while it worked on a request" in errors) is endless
