"""Settings of experiment tracking: where the curves of a run go, in addition to its record."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from lift.config.base import Settings

Title = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,99}$")]


def _plain_address(address: str) -> str:
    scheme, _, rest = address.partition("://")
    if scheme not in {"http", "https"} or not rest.strip("/"):
        raise ValueError("needed: an address that starts with http:// or https://")
    if "@" in rest:
        raise ValueError(
            "a name or password does not belong into the settings; the tracker's own "
            "environment variables or login hold it"
        )
    return address


ServiceAddress = Annotated[str, AfterValidator(_plain_address)]


class MlflowSettings(Settings):
    """MLflow (`pip install 'lift-federated[mlflow]'`)."""

    uri: ServiceAddress | None = None
    """A tracking server. Default: none; the figures stay in OUT/mlflow/mlflow.db."""
    experiment: Title | None = None
    """Name of the experiment; by default the federation's."""


class WandbSettings(Settings):
    """Weights & Biases (`pip install 'lift-federated[wandb]'`)."""

    mode: Literal["offline", "online"] = "offline"
    """Offline writes only to OUT/wandb. Online sends during the run."""
    uri: ServiceAddress | None = None
    """A server of your own; without it, online means wandb.ai."""
    project: Title | None = None
    """By default the federation's name."""
    entity: Title | None = None
    """Team or user on the service; by default that of the login."""

    @model_validator(mode="after")
    def _an_address_is_used(self) -> Self:
        if self.uri is not None and self.mode == "offline":
            raise ValueError("uri is for `mode: online`; offline nothing is sent anywhere")
        return self


class TrackingSettings(Settings):
    """Where the figures of the rounds go, in addition to `rounds.jsonl`.

    Trackers get what the record of the run already holds, nothing else: names of sites, their
    curves (loss, validation PSNR), bytes, seconds, numbers counted and refused, epsilon, the
    final metrics, the federation's name and the plan's digest. No volume, no mixer, no log.

    A tracker that is online (`mlflow.uri`, `wandb.mode: online`) **sends the names of the sites
    and their curves to that service**: agree on it with the sites first. W&B adds its own version,
    Python's, and the names of well-known packages that are loaded.

    These settings are no part of the plan, and of no digest: they change nothing of the result,
    and may change when a run is resumed.
    """

    tensorboard: bool = True
    """Event files in OUT/tensorboard; nothing is sent."""
    mlflow: MlflowSettings | None = None
    """Null disables it."""
    wandb: WandbSettings | None = None
    """Null disables it."""
