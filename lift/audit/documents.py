"""Results of audits as files, signed with the key of the site."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import Field

from lift.audit.copies import CopyFigures
from lift.audit.residual import LEVEL
from lift.audit.scores import FEWEST, AttackFigures
from lift.config.base import VERSION, Settings
from lift.config.plan import Digest, Name
from lift.errors import ConfigError, PolicyError
from lift.files import write_json
from lift.keys import sign_text, signature_fits
from lift.strict_json import parse_json

Share = Annotated[float, Field(ge=0, le=1)]
_LARGEST: Final = 1_000_000


class AttackRow(Settings):
    """:class:`lift.audit.scores.AttackFigures` in a file."""

    auc: Share
    auc_low: Share
    auc_high: Share
    tpr: Share
    fpr_of_tpr: Share
    members: int = Field(ge=FEWEST)
    others: int = Field(ge=FEWEST)

    @classmethod
    def of(cls, figures: AttackFigures) -> Self:
        """The figures as a file holds them."""
        return cls(**asdict(figures))


class CopyRow(Settings):
    """:class:`lift.audit.copies.CopyFigures` in a file; its attack stands with the others."""

    nearer_training: Share
    nearer_low: Share
    nearer_high: Share
    chance_low: Share
    chance_high: Share
    copies: Share
    copies_of_held_out: Share
    generated: int = Field(ge=FEWEST)

    @classmethod
    def of(cls, figures: CopyFigures) -> Self:
        """The figures as a file holds them."""
        return cls(**{name: value for name, value in vars(figures).items() if name != "attack"})


class SiteAudit(Settings):
    """The audit of a released mixer by one site. Holds nothing about a single patient."""

    format_version: Annotated[Literal[1], VERSION] = 1
    kind: Literal["membership", "copies"]
    site: Name
    mixer_digest: Digest
    """SHA-256 of the file mixer.safetensors."""
    plan_digest: Digest
    attacks: dict[str, AttackRow]
    """ATTACK -> how well it tells training patients from held-out ones."""
    copies: CopyRow | None = None
    """Of an unconditional task."""
    caveat: str
    made: str
    """UTC, ISO 8601."""


class SignedAudit(Settings):
    """A site's audit with the signature of the key that the coordinator has admitted."""

    audit: SiteAudit
    signature: str
    """Base64 of ECDSA P-384 with SHA-384, DER, over the audit's canonical JSON."""


class TrainingAudit(Settings):
    """The canary audit of the training pipeline: no patient takes part in it."""

    format_version: Annotated[Literal[1], VERSION] = 1
    plan_digest: Digest
    audited: str
    """The pipeline with its numbers."""
    steps: int = Field(ge=1)
    canaries: int = Field(ge=1)
    guesses: int = Field(ge=1)
    correct: int = Field(ge=0)
    confidence: float = Field(gt=0, lt=1)
    delta: float = Field(gt=0, lt=1)
    claimed_epsilon: float = Field(ge=0)
    """Of the audited steps, not of the whole run."""
    epsilon_lower_bound: float = Field(ge=0)
    noise_ratio: float | None = Field(default=None, ge=0)
    """Standard deviation of the released noise over the claimed one, outside the canaries' span;
    None in documents of before."""
    noise_numbers: int | None = Field(default=None, ge=1)
    """Independent numbers that it was measured by."""
    noise_steps: int | None = Field(default=None, ge=1)
    """Steps that they are from: those of the canaries, or more."""
    noise_p_value: Share | None = None
    """Probability that the claimed noise is as small; below .001 the audit is not passed."""
    noise_p_more: Share | None = None
    """Probability that the claimed noise is as large; a small one is no failure of privacy."""
    noise_smallest_found: Share | None = None
    """Less than this share of the claimed noise would have a p value below 1e-5, almost always."""
    passed: bool
    meaningful: bool
    """Whether the bound could have failed: a claim of more than about 4 cannot."""
    statement: str

    @property
    def more_noise(self) -> bool:
        """Whether there was more noise than claimed."""
        return self.noise_p_more is not None and self.noise_p_more < LEVEL

    @property
    def noise_seen(self) -> str:
        """The measured noise, in words."""
        if self.noise_ratio is None or self.noise_numbers is None or self.noise_p_value is None:
            return "the noise was not measured"
        words = (
            f"the noise is {self.noise_ratio:.3f} of the claimed one by {self.noise_numbers} "
            f"numbers (probability of so little {self.noise_p_value:.2g}"
        )
        if self.noise_smallest_found is not None:
            words += f"; below {self.noise_smallest_found:.3f} it would be less than 1e-05"
        if self.more_noise:
            words += f"; of so much {self.noise_p_more:.2g}: more than claimed, which protects more"
        return f"{words})"


def write_signed(path: Path, audit: SiteAudit, key: ec.EllipticCurvePrivateKey) -> None:
    """Write a site's audit with its signature."""
    signature = sign_text(key, audit.canonical_json().encode())
    signed = SignedAudit(audit=audit, signature=signature)
    write_json(path, signed.model_dump(mode="json"))


def read_signed(path: Path) -> SignedAudit:
    """Read a signed audit. The signature is not checked yet.

    Raises:
        ConfigError: the file is missing or something else.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError("larger than any audit")
        data = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not the JSON of an audit"
        raise ConfigError(
            "cannot read an audit",
            where=str(path),
            seen=f"{reason}",
            remedy="Give the file that `lift audit patients` wrote at the site.",
        ) from None
    return SignedAudit.from_data(data, str(path))


def check_signature(signed: SignedAudit, public_key: str) -> None:
    """Refuse an audit that was not signed by this key, or was changed since.

    Args:
        signed: the audit.
        public_key: OpenSSH text of the site's key in the roster.

    Raises:
        PolicyError: the signature does not fit.
    """
    content = signed.audit.canonical_json().encode()
    if not signature_fits(public_key, signed.signature, content):
        raise PolicyError(
            f"the audit of site '{signed.audit.site}' is not signed by that site",
            where="signature",
            seen="it does not fit the key that was admitted, or the file was changed since",
            remedy="Ask the site to run `lift audit patients` again and to send the file as it is.",
        )
