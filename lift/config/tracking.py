"""Where a run's figures go beside its own folder: experiment trackers, offline unless asked."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lift.config.base import Settings


class MlflowSettings(Settings):
    """MLflow; needs the extra `mlflow`."""

    uri: str | None = None
    """Tracking server, `https://...`; null keeps the run in OUT/mlflow.db. A server gets the names
    of the sites and their curves."""
    experiment: str = Field(default="lift-federated", min_length=1)


class WandbSettings(Settings):
    """Weights & Biases; needs the extra `wandb`."""

    mode: Literal["offline", "online"] = "offline"
    """online sends the names of the sites and their curves to that service."""
    project: str = Field(default="lift-federated", min_length=1)


class TrackingSettings(Settings):
    """Trackers of a run; what they get is what `rounds.jsonl` and `metrics.json` hold."""

    tensorboard: bool = True
    """Event files in OUT/tensorboard."""
    mlflow: MlflowSettings | None = None
    wandb: WandbSettings | None = None
