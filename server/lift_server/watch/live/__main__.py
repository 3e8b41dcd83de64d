"""The process of the page. The first argument is the settings file. It ends with its parent."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

from lift.config.server import ServerConfig
from lift.errors import LiftError
from lift.process import keep_files_private, prepare_process
from lift.protocol.flower.children import end_with_parent
from lift_server.watch.live.app import serve_page

_NICENESS: Final = 10


def main() -> int:
    """Serve until the parent ends; 2 when that is not possible."""
    prepare_process()
    keep_files_private()
    end_with_parent()
    # what is looked at must not slow down what is looked at
    os.nice(_NICENESS)
    try:
        serve_page(ServerConfig.model_validate_json(Path(sys.argv[1]).read_bytes()))
    except LiftError as error:
        sys.stderr.write(error.render("live page") + "\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
