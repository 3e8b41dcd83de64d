"""TensorBoard, MLflow, Weights & Biases: one small interface, offline unless asked.

Each package is imported when its tracker is opened, and told to send nothing of its own.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from lift.config.tracking import MlflowSettings, WandbSettings


class Tracker(Protocol):
    """What a tracker does; whatever it raises ends it, and nothing else."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Figures at a step."""
        ...

    def close(self) -> None:
        """Everything is written."""
        ...


class TensorBoard:
    """Event files in a folder, made anew at each start: the rounds so far are told again.

    Args:
        folder: for event files alone; those of an earlier start are removed.
        about: NAME -> text, shown as the run's description.
    """

    def __init__(self, folder: Path, about: Mapping[str, str]) -> None:
        from tensorboardX import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer = SummaryWriter(str(folder), flush_secs=2)
        for name, text in about.items():
            self._writer.add_text(name, text)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Figures at a step."""
        for tag, value in figures.items():
            self._writer.add_scalar(tag, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Everything is written."""
        self._writer.close()


class Mlflow:
    """One MLflow run; the run of an earlier start is gone on with.

    Args:
        settings: where to.
        out: the run's folder, which holds the database where no server is named.
        about: NAME -> text, kept as tags.
        known: identity of the run that an earlier start made.
    """

    def __init__(
        self, settings: MlflowSettings, out: Path, about: Mapping[str, str], known: str | None
    ) -> None:
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        from mlflow import MlflowClient

        uri = settings.uri or f"sqlite:///{(out / 'mlflow.db').absolute()}"
        self._client = MlflowClient(tracking_uri=uri)
        if known is None:
            found = self._client.get_experiment_by_name(settings.experiment)
            experiment = (
                found.experiment_id
                if found is not None
                else self._client.create_experiment(settings.experiment)
            )
            known = str(
                self._client.create_run(
                    experiment, run_name=about.get("name"), tags=dict(about)
                ).info.run_id
            )
        self.identity = known

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Figures at a step."""
        for tag, value in figures.items():
            self._client.log_metric(self.identity, tag, value, step=step)

    def close(self) -> None:
        """The run is marked as finished."""
        self._client.set_terminated(self.identity)


class Wandb:
    """One run of Weights & Biases; it is given figures, and looks at nothing itself.

    Args:
        settings: offline, or online by the coordinator's choice.
        out: the run's folder; files go to OUT/wandb.
        about: NAME -> text, kept as the run's configuration.
        known: identity of the run that an earlier start made.
    """

    def __init__(
        self, settings: WandbSettings, out: Path, about: Mapping[str, str], known: str | None
    ) -> None:
        os.environ["WANDB_ERROR_REPORTING"] = "false"
        import wandb

        self.identity = known or uuid.uuid4().hex[:12]
        quiet = wandb.Settings(
            console="off",
            silent=True,
            save_code=False,
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            x_disable_stats=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_disable_viewer=True,
            x_save_requirements=False,
            host="not told",
        )
        self._run: Any = wandb.init(
            mode=settings.mode,
            project=settings.project,
            dir=str(out),
            id=self.identity,
            name=about.get("name"),
            resume="allow" if settings.mode == "online" else None,
            config=dict(about),
            settings=quiet,
        )

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Figures at a step."""
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        """Everything is written."""
        # its own helper process ends with this, too
        with suppress(BrokenPipeError):
            self._run.finish()
