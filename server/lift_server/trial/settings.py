"""What a trial is made of, and the values that it writes into the guides' settings files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field

from lift.config.base import VERSION, Settings
from lift.errors import ConfigError
from lift.files import write_json
from lift.strict_json import parse_json

TRIAL_FILE: Final = "trial.json"
FEWEST_ROUNDS: Final = 5
"""As many as the drill needs."""
Privacy = Literal["none", "patient-local", "patient-central"]
DELTA: Final = 0.001
BUDGET: Final = f"{{epsilon: 100.0, delta: {DELTA}}}"
"""For phantoms, who need no protection: several runs fit in."""
_SCANNERS: Final = ("north", "harbour", "valley")
_TRAIN_SHARE: Final = 0.7


class Trial(Settings):
    """What was asked for when the folder was made: the content of `trial.json`."""

    format_version: Annotated[Literal[1], VERSION] = 1
    """Version of the file's format."""
    sites: int = Field(ge=2, le=12)
    """Number of sites."""
    patients: int = Field(ge=6, le=200)
    """Phantom patients of each site."""
    rounds: int = Field(ge=FEWEST_ROUNDS, le=100)
    """Training rounds."""
    privacy: Privacy
    """The plan's privacy mode."""
    made: bool = False
    """Whether all files are there. From then on no settings file is written again."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the sites."""
        others = (f"site{number}" for number in range(len(_SCANNERS) + 1, self.sites + 1))
        return (*_SCANNERS, *others)[: self.sites]

    def phantoms(self, site: str) -> dict[str, Any]:
        """The phantom cohort of a site."""
        number = self.names.index(site)
        scanner = _SCANNERS[number % len(_SCANNERS)]
        return {"patients": self.patients, "seed": 100 + number, "scanner": scanner}

    def plan(self) -> dict[str, str]:
        """Keys of the plan in server.yaml, with values in YAML."""
        values = {
            "threads": "1",
            "training": "{steps: 10, patients_per_step: 2, window: [10, 48, 48]}",
            "rounds": str(self.rounds),
            "privacy": "{mode: none}",
        }
        if self.privacy == "none":
            return values
        # clip norms as measured on phantoms; the noise is for a trial, see `--dry-run`
        values |= {
            "mixer": "{kind: zdiff, contrast: none}",
            "training": "{steps: 10, window: [8, 32, 32], learning_rate: 0.02}",
            "privacy": f"{{mode: {self.privacy}, delta: {DELTA}, "
            f"public_patients: {round(_TRAIN_SHARE * self.patients)}, clip_norm: 0.05, "
            "noise_multiplier: 2.0, sampling_rate: 0.4, windows_per_volume: 1, "
            "start: {noise_multiplier: 2.0, clip_norm: 0.07}}",
        }
        if self.privacy == "patient-central":
            values |= {
                "training": "{steps: 1, window: [8, 32, 32]}",
                "aggregation": "{optimiser: adam, learning_rate: 0.01, epsilon: 0.0001}",
            }
        return values

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The trial of a folder; None if there is none."""
        path = folder / TRIAL_FILE
        try:
            data = parse_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            data = None
        return cls.from_data(data, str(path))

    def write(self, folder: Path) -> None:
        """Keep it in the folder."""
        write_json(folder / TRIAL_FILE, self.model_dump(mode="json"))


def with_values(text: str, values: Mapping[str, object]) -> str:
    """The text of a settings file with the values of some keys replaced; comments stay.

    Args:
        text: YAML that has each key once, with its value on the same line.
        values: key -> value, as YAML text or a number.

    Raises:
        ConfigError: a key is missing, or is there several times.
    """
    for key, value in values.items():
        # a quoted value may hold `#`; a comment begins after a space
        line = re.compile(
            rf'^(?P<key>[ ]*{re.escape(key)}:)[ ]+(?:"[^"]*"|[^"#\n]\S*(?:[ ]+[^#\s]\S*)*)',
            re.MULTILINE,
        )
        text, count = line.subn(lambda found, value=value: f"{found['key']} {value}", text)  # type: ignore[misc]  # a default argument
        if count != 1:
            raise ConfigError(
                "cannot write the settings of the trial",
                where=key,
                seen=f"the key is there {count} times; needed: once",
                remedy="Make a trial in a new folder.",
            )
    return text


def quoted(text: str) -> str:
    """A text as YAML."""
    return json.dumps(text)
