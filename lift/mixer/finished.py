"""A plan's mixer around a frozen generator, and the finished mixer as one file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import safetensors
import safetensors.torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from lift.config.plan import Plan
from lift.errors import CheckpointError, VersionMismatchError
from lift.files import file_digest, write_atomically
from lift.guard import SiteProfile
from lift.release.check import mixer_file
from lift.strict_json import is_version, parse_json
from lift.wire.names import MIXER, TAPS, group, grouped

MIXER_FILE_VERSION: Final = 1
FINAL_MIXER_FILE: Final = "final-mixer.safetensors"
"""In a site's work folder: the mixer of the last verdict."""
_SITES: Final = TypeAdapter(tuple[SiteProfile, ...])
_PHANTOM: Final = TypeAdapter(bool)


@dataclass(frozen=True)
class FinishedMixer:
    """A trained mixer with everything needed to use it, except the generator.

    Attributes:
        values: trained tensors by name.
        taps: the shared z-filter, (6,); empty for an unconditional task.
        plan: the plan it was trained under; it names the generator's fingerprint.
        sites: the guard's verdicts with the profiles they hold for, without site names.
        phantom: whether it was trained on phantom data alone.
        file: SHA-256 of the file that it was read from, or None.
    """

    values: Mapping[str, Tensor]
    taps: Tensor
    plan: Plan
    sites: Sequence[SiteProfile]
    phantom: bool
    file: str | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of `mixer.safetensors`: of the file it was read from, or that it would become."""
        return self.file or hashlib.sha256(_content(self)).hexdigest()


def write_mixer(path: Path, finished: FinishedMixer) -> None:
    """Write `mixer.safetensors`: tensors, and the rest as JSON in its metadata."""
    write_atomically(path, _content(finished))


def site_copy_digest(finished: FinishedMixer) -> str:
    """SHA-256 of the file in which a site keeps this mixer: it knows of no other site."""
    return replace(finished, sites=(), phantom=False, file=None).digest


def _content(finished: FinishedMixer) -> bytes:
    card = {
        "version": MIXER_FILE_VERSION,
        "plan": json.loads(finished.plan.canonical_json()),
        "sites": [asdict(site) for site in finished.sites],
        "phantom": finished.phantom,
    }
    values = {name: t.contiguous() for name, t in sorted(finished.values.items())}
    tensors = grouped(values, MIXER)
    tensors[TAPS] = finished.taps
    metadata = {"lift": json.dumps(card, sort_keys=True, allow_nan=False)}
    return safetensors.torch.save(tensors, metadata=metadata)


def read_mixer(path: Path, *, ca: Path | None = None) -> FinishedMixer:
    """The finished mixer of a file, or of a run's or a release's folder.

    Args:
        path: the file or the folder. Where it is a release, every file there must fit its manifest.
        ca: certificate of a federation's authority: the release must be signed under it.

    Raises:
        ReleaseError: the release is not what was signed, or with `ca` there is none.
        CheckpointError: the file is missing, damaged or not a finished mixer.
        VersionMismatchError: it comes from another version.
    """
    file = mixer_file(path, ca=ca)
    try:
        with safetensors.safe_open(file, framework="pt") as stream:
            metadata = stream.metadata() or {}
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        card = parse_json(metadata["lift"])
        if not is_version(card["version"], MIXER_FILE_VERSION):
            raise VersionMismatchError(
                "cannot use the mixer: it comes from another version",
                where=path.name,
                seen=f"format {card['version']}; this version reads {MIXER_FILE_VERSION}",
                remedy="Use the version that trained it.",
            )
        return FinishedMixer(
            values=group(tensors, MIXER),
            taps=tensors[TAPS],
            plan=Plan.model_validate_json(json.dumps(card["plan"])),
            sites=_SITES.validate_python(card["sites"]),
            phantom=_PHANTOM.validate_python(card["phantom"], strict=True),
            file=file_digest(file),
        )
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        # ValidationError is a ValueError: a plan of another version ends here too
        reason = "its card does not fit" if isinstance(error, ValidationError) else ""
        seen = reason or ("no such file" if not file.is_file() else "not a finished mixer")
        raise CheckpointError(
            "cannot use the mixer",
            where=path.name,
            seen=f"{seen}; needed: the mixer.safetensors that a run wrote",
            remedy="Give the run's mixer.safetensors; nothing was written.",
        ) from None
