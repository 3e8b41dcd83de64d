"""All trackers of one run: opened by its settings, fed with rounds, dropped on failure."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from lift.config.tracking import TrackingSettings
from lift.records.metrics import Metrics
from lift.records.rounds import RoundRecord
from lift.strict_json import parse_json
from lift.tracking.background import Background
from lift.tracking.base import About, Tracker
from lift.tracking.figures import final_figures, round_figures

logger = logging.getLogger(__name__)
_CLOSE_WITHIN_S: Final = 20.0
_SHOWN: Final = 200
_REMEDIES: Final = {
    "tensorboard": "look at the disk and at the folder OUT/tensorboard",
    "mlflow": "look at tracking.mlflow.uri and its server, or at the disk",
    "wandb": "look at the network and the login (`wandb login`, WANDB_API_KEY), or at the disk",
}


class Tracking:
    """The trackers that the settings ask for.

    Nothing here raises because of a tracker, and none holds a round up: TensorBoard's file is
    appended, all others work in threads of their own. A tracker that fails is named in one
    warning and dropped for the rest of the process; the next start has another try.

    On every start the rounds of `rounds.jsonl` are told again, then the live ones follow, so that
    a resumed run ends with the figures of an uninterrupted one.

    Args:
        settings: the trackers.
        out: the run's folder; TensorBoard's files lie under `tensorboard/`, and so on.
        say: takes the warning's text, for a screen.
        close_within_s: how long the end of a run waits for a slow service.
    """

    def __init__(
        self,
        settings: TrackingSettings,
        out: Path,
        *,
        say: Callable[[str], None] | None = None,
        close_within_s: float = _CLOSE_WITHIN_S,
    ) -> None:
        self._settings = settings
        self._out = out
        self._say = say
        self._close_within_s = close_within_s
        self._trackers: dict[str, Tracker] = {}
        self._dropped: set[str] = set()
        self._rounds: Path | None = None
        self._last = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        del error, trace
        self.close(complete=kind is None)

    def begin(self, about: About, rounds: Path | None = None, *, part: str = "") -> None:
        """Open the trackers for one federation, and send them the existing record.

        The federation before, if any, is closed as complete.

        Args:
            about: what the trackers say of the run.
            rounds: the federation's `rounds.jsonl`, there or not yet; None where it has none.
            part: name of the federation in a run of several; it becomes a sub-folder.
        """
        self.close(complete=True)
        self._rounds, self._last = rounds, -1
        for name, opened in self._wanted(replace(about, part=part)).items():
            if name not in self._dropped:
                try:
                    self._trackers[name] = opened()
                except Exception as error:  # a foreign library raises anything
                    self._drop(name, error)
        self._catch_up(None)

    def round_done(self, record: RoundRecord) -> None:
        """Send the trackers one line of `rounds.jsonl`, after the lines that they missed."""
        self._catch_up(record.round)
        self._tell(record)

    def finished(self, metrics: Metrics) -> None:
        """Send the trackers the final figures from `metrics.json`."""
        # a run that was killed between its last round and its end tells no round any more
        self._catch_up(None)
        self._log(max(self._last, 0), final_figures(metrics))

    def close(self, *, complete: bool) -> None:
        """Close all trackers; `complete` says whether the federation came to its end."""
        for name, tracker in list(self._trackers.items()):
            try:
                tracker.close(complete=complete)
            except Exception as error:  # a foreign library raises anything
                self._drop(name, error)
        self._trackers = {}

    def _wanted(self, about: About) -> dict[str, Callable[[], Tracker]]:
        """The packages are imported by the calls: a command's help must not wait for them."""
        settings, out = self._settings, self._out
        wanted: dict[str, Callable[[], Tracker]] = {}

        def tensorboard() -> Tracker:
            from lift.tracking.tensorboard import TensorboardTracker

            return TensorboardTracker(out / "tensorboard" / about.part, about)

        if settings.tensorboard:
            wanted["tensorboard"] = tensorboard
        if settings.mlflow is not None:
            mlflow_settings = settings.mlflow

            def mlflow() -> Tracker:
                from lift.tracking.mlflow_runs import MlflowTracker

                return MlflowTracker(mlflow_settings, out, about)

            wanted["mlflow"] = lambda: self._behind("mlflow", mlflow)
        if settings.wandb is not None:
            wandb_settings = settings.wandb

            def wandb() -> Tracker:
                from lift.tracking.wandb_runs import WandbTracker

                return WandbTracker(wandb_settings, out, about)

            wanted["wandb"] = lambda: self._behind("wandb", wandb)
        return wanted

    def _behind(self, name: str, opened: Callable[[], Tracker]) -> Tracker:
        return Background(opened, name=name, close_within_s=self._close_within_s)

    def _catch_up(self, before: int | None) -> None:
        """Tell the recorded rounds after the last one told; `before` one round, or all."""
        if self._rounds is None or not self._trackers:
            return
        for record in _recorded(self._rounds):
            if self._last < record.round and (before is None or record.round < before):
                self._tell(record)

    def _tell(self, record: RoundRecord) -> None:
        self._last = max(self._last, record.round)
        self._log(record.round, round_figures(record))

    def _log(self, step: int, figures: Mapping[str, float]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                tracker.log(step, figures)
            except Exception as error:  # a foreign library raises anything
                self._drop(name, error)

    def _drop(self, name: str, error: Exception) -> None:
        self._trackers.pop(name, None)
        if name in self._dropped:
            return
        self._dropped.add(name)
        reason = f"{type(error).__name__}: {error}"
        remedy = _REMEDIES[name]
        if isinstance(error, ImportError):
            remedy = f"install the package: pip install 'lift-federated[{name}]'"
        # a foreign text: one line of bounded length, whatever it holds
        shown = ascii(reason[:_SHOWN])
        logger.warning(
            "event=tracker_dropped tracker=%s reason=%s; the run goes on without it: %s",
            name,
            shown,
            remedy,
        )
        if self._say is not None:
            self._say(f"tracking: {name} was dropped ({shown}); the run goes on. {remedy}")


def _recorded(path: Path) -> list[RoundRecord]:
    """The whole lines of a record; a half-written one is passed over."""
    records: list[RoundRecord] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return records
    for line in lines:
        try:
            records.append(RoundRecord.model_validate(parse_json(line)))
        except ValueError:
            continue
    return records
