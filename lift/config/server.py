"""Settings of `lift-server`: one YAML file in the coordinator's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from lift.config.base import Settings
from lift.config.generator import GeneratorChoice
from lift.config.kit import Address
from lift.config.plan import Name, Plan
from lift.config.tracking import TrackingSettings

Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0)]


class ServerConfig(Settings):
    """Settings of the server. Paths are relative to the folder of the YAML file."""

    name: Name
    """Name of the federation."""
    data_statement: str = ""
    """One sentence that describes the volumes of the sites, for the run's record."""
    phantom: bool = False
    """Whether the volumes of all sites are phantoms. The mixer is then marked as such."""
    address: Address
    """Address that sites connect to: `host:port`. The host must be in the server's certificate."""
    listen_host: str = "0.0.0.0"  # noqa: S104  # the one public port
    """Interface of the public port."""
    listen_port: Port = 8443
    """The only public port (TLS). It serves only what sites need."""
    control_port: Port = 8444
    """On 127.0.0.1 only: control of runs, protected by the executor's secret."""
    health_port: Port | None = 8445
    """On 127.0.0.1 only: gRPC health service for orchestrators. null disables it."""
    page_host: str = Field(default="127.0.0.1", min_length=1)
    """Interface of the live page. Default: this machine only, since the page has no password."""
    page_port: Port | None = 8446
    """Port of the live page and `/metrics`, read-only. null disables both."""
    certificates: Path = Path("certificates")
    """Folder of ca.pem, ca.key, server.pem and server.key, created by `lift-server init`."""
    sites: Path = Path("sites.json")
    """Admitted sites. Written by `lift-server add-site` and `remove-site`."""
    state: Path = Path("state")
    """Folder for what the server keeps between starts."""
    output: Path = Path("run")
    """Folder for the results: run.json, rounds.jsonl, checkpoints, mixer.safetensors."""
    generator: GeneratorChoice
    """The frozen generator of the federation."""
    wait_for_sites_s: Seconds = 3600.0
    """Longest wait for a quorum of sites to connect after a start."""
    decision_within_s: float = Field(default=259_200.0, ge=0)
    """How long the server waits for the coordinator when a quorum was missed (see `lift-server
    go-on`). 0: it ends at once."""
    tracking: TrackingSettings = TrackingSettings()
    """Where the figures of the rounds go, in addition to the record of the run."""
    plan: Plan
    """Everything that determines the result of the run. Sent to every site."""

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        ports = [self.listen_port, self.control_port, self.health_port, self.page_port]
        used = [port for port in ports if port is not None]
        if len(set(used)) != len(used):
            raise ValueError(
                f"listen_port, control_port, health_port and page_port must differ (seen: {used})"
            )
        return self

    def under(self, folder: Path) -> ServerConfig:
        """Return the same settings with relative paths resolved against `folder`."""
        names = ("certificates", "sites", "state", "output")
        update: dict[str, object] = {name: folder / getattr(self, name) for name in names}
        update["generator"] = self.generator.under(folder)
        return self.model_copy(update=update)
