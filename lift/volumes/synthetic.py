"""What a synthetic volume says of itself: that it is synthetic, and what made it.

The sidecar is JSON as BIDS writes it: the volume's name with the ending .json, keys in CamelCase.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal

from lift.errors import VolumeError
from lift.files import write_json
from lift.strict_json import parse_json
from lift.volumes.volume import stem_of

SOFTWARE: Final = "LiFT-federated"
_DISTRIBUTION: Final = "lift-federated"
_LARGEST_SIDECAR: Final = 1 << 20


@dataclass(frozen=True)
class Synthesis:
    """How a synthetic volume was made; nothing in it tells of the patient.

    Attributes:
        target: the channel that was synthesised.
        sources: the channels that it was computed from.
        unit: of its values: HU, or arbitrary as MR has none.
        method: `mixer`, `no_mixer`, or what the site chose.
        mixer: SHA-256 of `mixer.safetensors`.
        site_mixer: SHA-256 of the site's own mixer where that one was used, or None.
        generator: fingerprint of the generator.
        plan: digest of the plan.
        concern: why the mixer may not help on this volume, or None.
        phantom: whether the mixer was trained on phantom data alone.
    """

    target: str
    sources: tuple[str, ...]
    unit: Literal["HU", "arbitrary"]
    method: str
    mixer: str
    site_mixer: str | None
    generator: str
    plan: str
    concern: str | None
    phantom: bool

    @property
    def modality(self) -> Literal["CT", "MR"]:
        """CT where the values are HU, else MR."""
        return "CT" if self.unit == "HU" else "MR"

    @property
    def sentence(self) -> str:
        """That it is synthetic, in words, and of what its quality is in doubt."""
        parts = [
            f"Synthetic {self.target}, computed from {', '.join(self.sources)} by {SOFTWARE}; not "
            "acquired from the patient."
        ]
        if self.phantom:
            parts.append("The mixer was trained on phantom data alone.")
        if self.concern is not None:
            parts.append(f"Concern: {self.concern}.")
        return " ".join(parts)

    @property
    def digests(self) -> str:
        """Of everything that made it, in one line."""
        own = "" if self.site_mixer is None else f", site's own mixer {self.site_mixer}"
        return f"mixer {self.mixer}{own}, generator {self.generator}, plan {self.plan} (SHA-256)"

    def sidecar(self) -> dict[str, Any]:
        """The content of the JSON file beside the volume."""
        content = {
            "Synthetic": True,
            "Description": self.sentence,
            "Modality": self.modality,
            "Contrast": self.target,
            "SourceContrasts": list(self.sources),
            "Units": self.unit,
            "Method": self.method,
            "MixerDigest": self.mixer,
            "SiteMixerDigest": self.site_mixer,
            "GeneratorFingerprint": self.generator,
            "PlanDigest": self.plan,
            "Concern": self.concern,
            "TrainedOnPhantomsAlone": self.phantom,
            "GeneratedBy": [{"Name": SOFTWARE, "Version": software_version()}],
        }
        return {key: value for key, value in content.items() if value is not None}


def software_version() -> str:
    """The installed version of this software."""
    return version(_DISTRIBUTION)


def sidecar_path(volume: Path) -> Path:
    """Where the sidecar of a volume lies."""
    return volume.with_name(f"{stem_of(volume.name)}.json")


def check_sidecar(volume: Path) -> None:
    """Raise VolumeError where a file that is no sidecar of ours has the sidecar's name."""
    path = sidecar_path(volume)
    try:
        if not path.exists():
            return
        ours = path.stat().st_size <= _LARGEST_SIDECAR and _is_ours(path.read_bytes())
    except OSError:
        ours = False
    if not ours:
        raise VolumeError(
            f"cannot write volume '{volume.name}'",
            where=str(volume.parent),
            seen=f"its sidecar would replace '{path.name}', which this program did not write",
            remedy="Nothing was written. Choose another name, or move that file.",
        )


def write_sidecar(volume: Path, made: Synthesis) -> None:
    """Write the sidecar of a volume. Write it before the volume: none is ever without it.

    Raises:
        VolumeError: a file of somebody else has its name, or the disk refuses.
    """
    check_sidecar(volume)
    path = sidecar_path(volume)
    try:
        write_json(path, made.sidecar())
    except OSError as error:
        raise VolumeError(
            f"cannot write '{path.name}'",
            where=str(path.parent),
            seen=error.strerror or type(error).__name__,
            remedy="Free disk space or choose another folder.",
        ) from None


def _is_ours(content: bytes) -> bool:
    try:
        found = parse_json(content)
        return found["Synthetic"] is True and found["GeneratedBy"][0]["Name"] == SOFTWARE
    except (ValueError, TypeError, LookupError):
        return False
