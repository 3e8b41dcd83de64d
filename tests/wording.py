"""Parts of messages that several tests look for: where the wording changes, this file does.

A part that one test file alone looks for stays there.
"""

from __future__ import annotations

import errno
import os
from typing import Final

ALREADY_COMPLETE: Final = "already complete"
ANOTHER_ENCODER: Final = "another feature encoder"
ANOTHER_PLAN: Final = "another plan"
ANOTHER_PROJECTION: Final = "another projection"
CANNOT_USE_VOLUME: Final = "cannot use volume"
CARD_SAYS: Final = "its card says"
DID_YOU_MEAN: Final = "did you mean '"
EACH_NEEDS_A_VOLUME: Final = "each patient needs a volume"
ENDS_EARLY: Final = "ends early"
FILE_EXISTS: Final = "the file exists"
HEADER_CLAIMS: Final = "its header claims"
NEVER_LEAVES: Final = "never leave its site"
NO_FINISHED_MIXER: Final = "no finished mixer"
NO_PATIENTS_AT_A_SERVER: Final = "A server has no patients"
NOT_FINITE: Final = "NaN or infinity"
NOT_ON_ONE_GRID: Final = "not on one grid"
NUMBER_FORMAT: Final = "number format"
PLAN_SAYS: Final = "the plan says"
SEND_PUBLIC_KEY: Final = "send site.pub"
SIDES_UNKNOWN: Final = "left and right"
SLICES_ALONG_DEPTH: Final = "slices along depth"
TOO_FEW_VOLUMES: Final = {1: "1 volume; at least 2", 3: "3 volumes; at least 4"}
UNAUDITED: Final = "RELEASED WITHOUT AUDIT"

# the operating system's own words
NO_SPACE: Final = os.strerror(errno.ENOSPC)
NO_SUCH_FILE: Final = os.strerror(errno.ENOENT)
