"""The error classes and the exit codes. All user-visible errors are defined here.

A :class:`LiftError` has four parts (what failed, where, what was seen against what is
needed, what to do next). Only the command lines catch it; libraries raise it.

No part may hold patient data: a file is named relative to its data folder, and NIfTI
`descrip`, `aux_file` and `intent_name` are never quoted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final


@dataclass(frozen=True)
class ExitCode:
    """One row of the table of exit codes: number, short label, help text."""

    number: int
    label: str
    help: str


EXIT_CODES: Final[dict[str, ExitCode]] = {
    code.label: code
    for code in (
        ExitCode(0, "done", "The command succeeded."),
        ExitCode(2, "config", "The command line or a YAML file is wrong. Correct the named key."),
        ExitCode(3, "data", "A volume, a table or a folder cannot be used. See the named file."),
        ExitCode(4, "connection", "The other side could not be reached, or TLS failed."),
        ExitCode(
            5,
            "privacy",
            "A privacy rule or the hospital's budget does not allow this. Nothing left the site.",
        ),
        ExitCode(6, "version", "A file or a peer comes from an incompatible version."),
        ExitCode(7, "policy", "A policy refused this, or the site is not admitted."),
        ExitCode(
            8, "quorum", "Too few sites answered, and nothing was aggregated. Run again to resume."
        ),
        ExitCode(
            9,
            "record",
            "A journal, a ledger or a release is damaged or forged. Keep it and ask for help.",
        ),
        ExitCode(
            10,
            "disk",
            "The disk is full, or a folder cannot be written. Free space, then run again.",
        ),
        ExitCode(70, "bug", "A bug in this software. The log file has the details."),
    )
}


class LiftError(Exception):
    """A refusal in four parts, with the exit code of its kind.

    Args:
        what: what failed, naming the thing ("cannot use volume 'sub-017/t1.nii.gz'").
        where: the file, key or folder it happened in; may be empty.
        seen: what was seen against what is needed.
        remedy: what to do next, and what was not lost.
    """

    label: ClassVar[str] = "bug"

    def __init__(self, what: str, *, where: str = "", seen: str = "", remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.seen = seen
        self.remedy = remedy

    @property
    def exit_code(self) -> int:
        """The process's exit code for this kind of error."""
        return EXIT_CODES[self.label].number

    def render(self, program: str) -> str:
        """The message for a terminal: a headline with label and code, then indented details."""
        place = f" in {self.where}" if self.where else ""
        lines = [f"{program}: {self.what}{place} [{self.label}, exit {self.exit_code}]"]
        for part in (self.seen, self.remedy):
            lines += [f"  {line}" for line in part.splitlines()]
        return "\n".join(lines)

    def __str__(self) -> str:
        return "; ".join(part for part in (self.what, self.where, self.seen, self.remedy) if part)


class ConfigError(LiftError):
    """A command line, a YAML file or a combination of settings is wrong."""

    label = "config"


class DeviceMemoryError(ConfigError):
    """The device's memory is full, however little is computed at once."""


class DataError(LiftError):
    """A cohort, a table or a folder cannot be used."""

    label = "data"


class DiskError(DataError):
    """The disk is full, or a folder cannot be written."""

    label = "disk"


class VolumeError(DataError):
    """One volume cannot be read, written or used."""


class AffineError(VolumeError):
    """A volume's geometry is unusable, or two volumes do not share one grid."""


class SpacingError(VolumeError):
    """A volume's through-plane spacing lies outside the plan's range."""


class GeneratorError(DataError):
    """A generator bundle is missing, damaged or not the one that the plan names."""


class CheckpointError(LiftError):
    """A checkpoint or a finished mixer cannot be used."""

    label = "data"


class ProtocolError(LiftError):
    """A message does not follow the protocol."""

    label = "connection"


class VersionMismatchError(ProtocolError):
    """A file or a peer speaks another version of a format."""

    label = "version"


class UpdateRejectedError(ProtocolError):
    """The server's review refused an update. The round continues without it."""


class PolicyError(LiftError):
    """A site's policy, or the other side's admission, refused."""

    label = "policy"


class QuorumError(LiftError):
    """Too few sites, or too small a share of the patients, answered in a round."""

    label = "quorum"


class FallError(LiftError):
    """The sites' validation fell, and the plan's `on_fall` wants a decision."""

    label = "policy"


class RecordError(LiftError):
    """A journal or ledger is damaged. Its content is not trusted from one line on.

    Attributes:
        line: number of the first line that is wrong, from 1; 0 when none is meant.
    """

    label = "record"

    def __init__(
        self, what: str, *, where: str = "", seen: str = "", remedy: str = "", line: int = 0
    ) -> None:
        super().__init__(what, where=where, seen=seen, remedy=remedy)
        self.line = line


class ReleaseError(LiftError):
    """A release folder does not match its signed manifest. Nothing in it may be used."""

    label = "record"


class PrivacyError(LiftError):
    """A privacy rule forbids this."""

    label = "privacy"


class BudgetSpentError(PrivacyError):
    """The privacy budget does not cover this; it was refused before any data were read."""


class NonFiniteUpdateError(PrivacyError):
    """An update holds NaN or infinity; nothing is clamped to hide it."""
