"""MLflow: a SQLite store in the run's folder, or a tracking server that the coordinator chose."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from lift.config.tracking import MlflowSettings
from lift.tracking.base import About
from lift.tracking.identity import Identity

# before the package is imported: it reads them once
_ENVIRONMENT: Final = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "GIT_PYTHON_REFRESH": "quiet",
}
_MOST_AT_ONCE: Final = 500
_LOCAL: Final = "local"


class MlflowTracker:
    """One federation as one MLflow run; a resumed one goes on with the same run.

    The run's identity is kept in OUT/mlflow/runs.json. A step that the run has already got is
    not told again, so that the history holds each value once.

    Raises:
        Exception: whatever the package raises.
    """

    def __init__(self, settings: MlflowSettings, out: Path, about: About) -> None:
        os.environ.update(_ENVIRONMENT)
        from mlflow.entities import Metric, RunStatus
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        for noisy in ("mlflow", "alembic"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        self._metric, self._status = Metric, RunStatus
        folder = (out / "mlflow").absolute()
        folder.mkdir(parents=True, exist_ok=True)
        self._client = MlflowClient(
            tracking_uri=settings.uri or f"sqlite:///{folder / 'mlflow.db'}",
            registry_uri=settings.uri or f"sqlite:///{folder / 'mlflow.db'}",
        )
        identity = Identity(folder / "runs.json", about.part, settings.uri or _LOCAL)
        self._run_id = identity.known or ""
        self._known: set[tuple[str, int]] = set()
        if self._run_id:
            try:
                self._known = self._history()
                self._client.update_run(self._run_id, status=RunStatus.to_string(RunStatus.RUNNING))
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                # somebody deleted it there
                self._run_id = ""
        if not self._run_id:
            self._run_id = self._new_run(settings, folder, about)
            identity.keep(self._run_id)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Add what the run has not got yet."""
        now_ms = int(time.time() * 1000)
        new = [
            self._metric(tag, value, now_ms, step)
            for tag, value in figures.items()
            if (tag, step) not in self._known
        ]
        for start in range(0, len(new), _MOST_AT_ONCE):
            self._client.log_batch(self._run_id, metrics=new[start : start + _MOST_AT_ONCE])

    def close(self, *, complete: bool) -> None:
        """Say how the run ended."""
        ended = self._status.FINISHED if complete else self._status.KILLED
        self._client.set_terminated(self._run_id, status=self._status.to_string(ended))

    def _history(self) -> set[tuple[str, int]]:
        tags = self._client.get_run(self._run_id).data.metrics
        return {
            (tag, metric.step)
            for tag in tags
            for metric in self._client.get_metric_history(self._run_id, tag)
        }

    def _new_run(self, settings: MlflowSettings, folder: Path, about: About) -> str:
        name = settings.experiment or about.federation
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            experiment = found.experiment_id
        else:
            experiment = self._client.create_experiment(
                name,
                artifact_location=None if settings.uri else (folder / "artifacts").as_uri(),
            )
        run = self._client.create_run(experiment, run_name=about.title, tags=about.texts)
        for key, text in about.texts.items():
            self._client.log_param(run.info.run_id, key, text)
        return str(run.info.run_id)
