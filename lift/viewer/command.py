"""What `lift view` does: reads the volumes, then serves or writes the page."""

from __future__ import annotations

import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from lift.errors import ConfigError
from lift.files import write_atomically
from lift.release.check import check_beside
from lift.viewer.embedded import niivue
from lift.viewer.page import standalone_page
from lift.viewer.served import serve
from lift.viewer.volumes import viewer_volume
from lift.volumes.volume import read_volume


def show_volumes(
    paths: Sequence[Path], *, output: Path | None, label: str, port: int, browser: bool
) -> None:
    """Serve the volumes to this machine until Ctrl-C, or write them as one HTML file.

    Args:
        paths: files, or folders of DICOM series; at least one.
        output: where the file goes; None serves.
        label: heading of the page.
        port: of 127.0.0.1; 0 takes a free one.
        browser: open the page.

    Raises:
        VolumeError: a file cannot be read.
        ReleaseError: a file lies in a release that is not what was signed.
        ConfigError: the viewer was not built, or the port is taken.
    """
    # before minutes of reading
    niivue()
    volumes = []
    for path in paths:
        check_beside(path)
    for path in paths:
        sys.stderr.write(f"reading {path}\n")
        volumes.append(viewer_volume(path.name or str(path), read_volume(path)))
    if output is not None:
        write_atomically(output, standalone_page(volumes, label))
        sys.stdout.write(f"page: {output}\n")
        return

    def ready(address: str) -> None:
        sys.stdout.write(f"viewer: {address}  (Ctrl-C ends it)\n")
        sys.stdout.flush()
        if browser:
            webbrowser.open(address)

    try:
        serve(volumes, label, port, ready)
    except OSError as error:
        raise ConfigError(
            "the viewer's port is taken",
            where="--port",
            seen=f"127.0.0.1:{port}: {error.strerror}",
            remedy="Leave --port out: a free one is taken.",
        ) from None
