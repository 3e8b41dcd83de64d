"""Lines in the site's log on its data folder: it is gone, it is back, patients came or went.

A running client works with what it read when it opened its patients. Nothing here changes what a
run uses; whoever changes the folder is told what holds.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from time import monotonic
from typing import Final

from lift.cohort.examination import files_digest
from lift.cohort.layouts import list_patients
from lift.cohort.patients import some
from lift.cohort.withdrawn import left_out
from lift.config.plan import Plan
from lift.config.site import SiteSettings
from lift.errors import LiftError

logger = logging.getLogger(__name__)
LOOK_EVERY_S: Final = 10.0
_SHARE: Final = 0.05
"""Of the time: how much of it looking may take on a slow disk."""
_GOES_ON: Final = (
    "Mount the folder again, or let this user read it. Until then the run goes on with what was "
    "read when it was opened; a client that is started now cannot take part."
)
_NOT_USED: Final = (
    "Not used now. Added patients take part from the next run on; changed and removed files count "
    "when the client is started again. `lift-client check --images` looks at them. To take a "
    "patient out for good: lift-client withdraw."
)


class DataWatch:
    """Compares the data folder with what it was when it was opened.

    Args:
        settings: the site's: folder, layout, who was withdrawn.
        plan: names the channels.
    """

    def __init__(self, settings: SiteSettings, plan: Plan) -> None:
        self._settings = settings
        self._plan = plan
        self._gone = False
        self._stop = threading.Event()
        self._before = self._files()

    def start(self) -> None:
        """Look every `LOOK_EVERY_S` from now on, in a thread: a slow share holds up nothing."""
        threading.Thread(target=self._watch, name="data-watch", daemon=True).start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()

    def look(self) -> None:
        """Look at the folder, and write what is new."""
        try:
            now = self._files()
            seen = "no patient is there any more" if self._before and not now else ""
        except (LiftError, OSError) as error:
            now, seen = (
                {},
                str(getattr(error, "seen", "") or getattr(error, "strerror", "") or error),
            )
        site, root = self._settings.name, self._settings.data.root
        if seen:
            if not self._gone:
                self._gone = True
                logger.error(
                    'event=data_gone site=%s cause=data seen="%s: %s" fix="%s"',
                    site,
                    root,
                    seen,
                    _GOES_ON,
                )
            return
        if self._gone:
            self._gone = False
            logger.info("event=data_back site=%s", site)
        added = sorted(set(now) - set(self._before))
        removed = sorted(set(self._before) - set(now))
        both = set(now) & set(self._before)
        changed = sorted(name for name in both if now[name] != self._before[name])
        if added or removed or changed:
            logger.warning(
                'event=data_changed site=%s added=%d removed=%d changed=%d names="%s" fix="%s"',
                site,
                len(added),
                len(removed),
                len(changed),
                some([*added, *removed, *changed]),
                _NOT_USED,
            )
        self._before = now

    def _files(self) -> Mapping[str, str]:
        """Examination -> names, sizes and times of its files."""
        plan, data = self._plan, self._settings.data.model_copy(update={"on_bad_file": "skip"})
        found, incomplete = list_patients(
            data,
            plan.task.channels,
            needs_mask=plan.preprocessing.mask == "file",
            one_by_one=plan.protects_patients,
            without=left_out(self._settings),
        )
        grid = plan.preprocessing.grid
        whole = {
            one.id: files_digest(one.with_channels(plan.task.channels).channels, grid)
            for one in found
        }
        return {**{one.patient: "" for one in incomplete}, **whole}

    def _watch(self) -> None:
        pause = LOOK_EVERY_S
        while not self._stop.wait(pause):
            began = monotonic()
            try:
                self.look()
            except Exception:
                logger.exception("event=data_watch_failed")
            pause = max(LOOK_EVERY_S, (monotonic() - began) / _SHARE)
