"""The kit that a coordinator sends to one site. Nothing in it is secret."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from lift.config.base import VERSION, Settings
from lift.config.plan import Digest, GridRule, Name, OwnGrid

KIT_FILE: Final = "kit.json"
CA_FILE: Final = "ca.pem"
Address = Annotated[str, Field(pattern=r"^([A-Za-z0-9._-]+|\[[0-9A-Fa-f:]+\]):[0-9]{1,5}$")]
"""`host:port`."""


class TaskRule(Settings):
    """A task by its channels."""

    source: tuple[Name, ...] = Field(default=(), max_length=8)
    """None: new volumes of the target."""
    target: Name
    """The channel that is synthesised."""


class Kit(Settings):
    """The content of `kit.json`. The certificate of the authority is in the same folder."""

    format_version: Annotated[Literal[1], VERSION] = 1
    """Version of the kit's format."""
    federation: Name
    """Name of the federation."""
    site: Name
    """The name under which the site was admitted."""
    address: Address
    """Address of the server: the only address that the site connects to."""
    ca_sha256: Digest
    """SHA-256 of the certificate authority's certificate (DER), to be compared by telephone."""
    generator_fingerprint: Digest
    """The frozen generator that the federation uses."""
    task: TaskRule
    """What the federation synthesises."""
    grid: GridRule = OwnGrid()
    """Whether its plan brings a patient's channels to one grid, for the site's check of its images.
    The plan itself comes with round 0."""
