"""Every round to all trackers, from a thread of their own: none can delay or end a run."""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lift.config.plan import Plan
from lift.config.tracking import TrackingSettings
from lift.files import write_json
from lift.round_record import RoundRecord
from lift.tracking.backends import Mlflow, TensorBoard, Tracker, Wandb
from lift.tracking.figures import final_figures, round_figures

logger = logging.getLogger(__name__)
TENSORBOARD_FOLDER: Final = "tensorboard"
STATE_FILE: Final = "tracking.json"
_CLOSE_S: Final = 20.0
_EXTRAS: Final = {"mlflow": "lift-federated[mlflow]", "wandb": "lift-federated[wandb]"}


@dataclass
class _Open:
    """One tracker, and how far it was told: prefix -> last round."""

    name: str
    tracker: Tracker
    told: dict[str, int]


class Trackers:
    """Hands rounds on; a tracker that fails is dropped with one warning.

    Args:
        settings: which trackers.
        out: the run's folder.
        about: NAME -> text of the run.
    """

    def __init__(self, settings: TrackingSettings, out: Path, about: Mapping[str, str]) -> None:
        self._settings = settings
        self._out = out
        self._about = dict(about)
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._open: list[_Open] = []
        self._state: dict[str, dict[str, Any]] = {}
        self._last = 0
        self._thread = threading.Thread(target=self._work, name="trackers", daemon=True)
        self._thread.start()

    def rounds(self, records: Sequence[Mapping[str, Any]], prefix: str = "") -> None:
        """All rounds so far; each tracker gets those that it does not have yet.

        Args:
            records: lines of `rounds.jsonl`.
            prefix: stands before every tag, with a slash: a fold's name.
        """
        # the caller's list grows while the thread works
        self._jobs.put(lambda held=tuple(records): self._tell(held, prefix))  # type: ignore[misc]  # a lambda's default

    def finished(self, metrics: Mapping[str, Any]) -> None:
        """The final figures of `metrics.json`."""
        figures = final_figures(metrics)
        if figures:
            self._jobs.put(lambda: self._each(lambda one: one.tracker.log(self._last, figures)))

    def close(self) -> None:
        """Everything is told, or twenty seconds are over."""
        self._jobs.put(None)
        self._thread.join(_CLOSE_S)
        if self._thread.is_alive():
            logger.warning("event=trackers_slow waited_s=%.0f", _CLOSE_S)

    def _work(self) -> None:
        self._start()
        while (job := self._jobs.get()) is not None:
            job()
        self._each(lambda one: one.tracker.close())

    def _start(self) -> None:
        path = self._out / STATE_FILE
        try:
            self._state = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self._state = {}
        settings, out, about = self._settings, self._out, self._about
        if settings.tensorboard:
            folder = out / TENSORBOARD_FOLDER
            self._try("tensorboard", lambda known: TensorBoard(folder, about))
        if (mlflow := settings.mlflow) is not None:
            self._try("mlflow", lambda known: Mlflow(mlflow, out, about, known))
        if (wandb := settings.wandb) is not None:
            self._try("wandb", lambda known: Wandb(wandb, out, about, known))

    def _try(self, name: str, make: Callable[[str | None], Tracker]) -> None:
        held = self._state.get(name, {})
        try:
            tracker = make(held.get("identity"))
        except Exception as error:  # whatever somebody else's package raises
            extra = f" install={_EXTRAS[name]}" if isinstance(error, ImportError) else ""
            logger.warning("event=tracker_off tracker=%s reason=%s%s", name, _named(error), extra)
            return
        told = held.get("told", {}) if isinstance(tracker, Mlflow | Wandb) else {}
        self._open.append(_Open(name, tracker, dict(told)))

    def _tell(self, records: Sequence[Mapping[str, Any]], prefix: str) -> None:
        lines = [RoundRecord.model_validate(record) for record in records]
        trained = [line for line in lines if line.kind == "train"]
        self._last = max([self._last, *(line.round for line in trained)])

        def tell(one: _Open) -> None:
            for line in trained:
                if line.round <= one.told.get(prefix, 0):
                    continue
                figures = round_figures(line)
                named = {f"{prefix}/{tag}" if prefix else tag: v for tag, v in figures.items()}
                one.tracker.log(line.round, named)
                one.told[prefix] = line.round

        self._each(tell)
        self._keep()

    def _each(self, act: Callable[[_Open], None]) -> None:
        for one in list(self._open):
            try:
                act(one)
            except Exception as error:  # a full disk, a server that is gone, a fault of theirs
                logger.warning(
                    "event=tracker_dropped tracker=%s reason=%s", one.name, _named(error)
                )
                self._open.remove(one)

    def _keep(self) -> None:
        """How far those were told that outlive a start."""
        for one in self._open:
            if isinstance(one.tracker, Mlflow | Wandb):
                self._state[one.name] = {"identity": one.tracker.identity, "told": one.told}
        if self._state:
            try:
                write_json(self._out / STATE_FILE, self._state)
            except OSError as error:
                logger.warning("event=tracking_state_lost reason=%s", _named(error))


@contextlib.contextmanager
def tracking(settings: TrackingSettings, out: Path, about: Mapping[str, str]) -> Iterator[Trackers]:
    """Trackers inside the block; whatever happens in it, what was told is written at its end."""
    trackers = Trackers(settings, out, about)
    try:
        yield trackers
    finally:
        trackers.close()


def about_run(name: str, plan: Plan, *, phantom: bool) -> dict[str, str]:
    """What trackers are told of a run beside its figures; a phantom is called one."""
    return {
        "name": f"PHANTOM {name}" if phantom else name,
        "plan_digest": plan.digest(),
        "seed": str(plan.seed),
        "mixer": plan.mixer.kind,
        "privacy": plan.privacy.mode,
        "rounds": str(plan.federation.rounds),
    }


def _named(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"
