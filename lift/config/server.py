"""Settings of `lift-server`: one YAML file beside the folder's certificates and state."""

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
    """A coordinator's server. Relative paths are those of the YAML file's folder."""

    name: Name
    """Name of the federation."""
    data_statement: str = ""
    """What the sites' volumes are, in one sentence; it stands in the run's record."""
    phantom: bool = False
    """Whether every site's volumes are phantoms: said wherever the mixer goes."""
    address: Address
    """What sites dial: `host:port`; the host stands in the server's certificate."""
    listen_host: str = "0.0.0.0"  # noqa: S104  # the one public port
    """Interface of the public port."""
    listen_port: Port = 8443
    """The only public port: TLS, and nothing but what sites need."""
    control_port: Port = 8444
    """On 127.0.0.1 only: control of runs; needs the executor's secret."""
    health_port: Port | None = 8445
    """On 127.0.0.1 only: gRPC health service for orchestrators; null switches it off."""
    page_host: str = Field(default="127.0.0.1", min_length=1)
    """Interface of the live page: this machine alone by default; it asks for no password."""
    page_port: Port | None = 8446
    """The live page and `/metrics`, read-only; null switches both off."""
    certificates: Path = Path("certificates")
    """Folder of ca.pem, ca.key, server.pem and server.key (`lift-server init` makes them)."""
    sites: Path = Path("sites.json")
    """Admitted sites (`lift-server add-site` and `remove-site` write it)."""
    state: Path = Path("state")
    """What the server must remember between starts."""
    output: Path = Path("run")
    """What the run leaves: run.json, rounds.jsonl, checkpoints, mixer.safetensors."""
    generator: GeneratorChoice
    """The frozen generator of the federation."""
    wait_for_sites_s: Seconds = 3600.0
    """How long a start waits for the quorum of sites to connect before it gives up."""
    tracking: TrackingSettings = TrackingSettings()
    """Who gets the figures of the rounds, beside the run's own record."""
    plan: Plan
    """Everything that decides the result of the run; it is sent to every site."""

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
        """The same settings with relative paths taken from `folder`."""
        names = ("certificates", "sites", "state", "output")
        update: dict[str, object] = {name: folder / getattr(self, name) for name in names}
        update["generator"] = self.generator.under(folder)
        return self.model_copy(update=update)
