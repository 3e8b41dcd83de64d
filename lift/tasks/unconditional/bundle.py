"""A decoder's bundle: card, weights, and the public files of the drifting loss.

`generator.json` and `weights.safetensors` as for any generator, and `standardisation.safetensors`,
`projection.safetensors` and, from format 2 on, `moments.safetensors`, whose digests the card names.
Weights are stored as float16 and computed with as float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import safetensors.torch
import torch

from lift.config.decoder import DecoderCard
from lift.config.plan import Plan, UnconditionalPlan
from lift.config.privacy import Privacy
from lift.errors import ConfigError, DataError, GeneratorError
from lift.files import write_atomically, write_json
from lift.generator.bundle import check_fingerprint, check_tensors, read_weights
from lift.generator.card import CARD_FILE, WEIGHTS_FILE, damaged_bundle, read_card
from lift.tasks.unconditional.decoder import (
    AnyDecoder,
    FrozenDecoder,
    PublicFeatures,
    build_decoder,
    decoder_fingerprint,
)
from lift.tasks.unconditional.public_moments import PublicMoments
from lift.triplanar.encoder import RandomPyramid
from lift.triplanar.projection import Projection
from lift.triplanar.standardise import Standardisation

STANDARDISATION_FILE: Final = "standardisation.safetensors"
PROJECTION_FILE: Final = "projection.safetensors"
MOMENTS_FILE: Final = "moments.safetensors"


def save_decoder(
    folder: Path, network: AnyDecoder, card: DecoderCard, public: PublicFeatures
) -> str:
    """Write the bundle, the card last, and return its fingerprint.

    Raises:
        GeneratorError: a weight does not fit float16; nothing is written.
        ValueError: the card is that of other weights.
    """
    tensors = {
        name: t.detach().cpu().half().contiguous() for name, t in network.state_dict().items()
    }
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise GeneratorError(
            "cannot write the generator bundle",
            where=str(folder),
            seen="a weight is not finite, or too large for half precision",
            remedy="Nothing was written. The weights come from a training that diverged.",
        )
    if decoder_fingerprint(card.network, tensors) != card.fingerprint:
        raise ValueError("the card is that of other weights: make it when the weights are final")
    public.standardisation.save(folder / STANDARDISATION_FILE)
    public.projection.save(folder / PROJECTION_FILE)
    if public.moments is not None:
        public.moments.save(folder / MOMENTS_FILE)
    write_atomically(folder / WEIGHTS_FILE, safetensors.torch.save(tensors))
    write_json(folder / CARD_FILE, card.model_dump(mode="json"))
    return card.fingerprint


def load_decoder(
    folder: Path, *, expected_fingerprint: str | None, device: torch.device
) -> FrozenDecoder:
    """The frozen decoder of a bundle, on `device`, fingerprint and digests checked.

    Raises:
        GeneratorError: a file is missing or damaged, it is a bundle of another kind, or its
            fingerprint is not the card's or not the expected one.
        VersionMismatchError: another version of the format.
    """
    card = read_card(folder)
    if not isinstance(card, DecoderCard):
        raise GeneratorError(
            "cannot make new volumes with this generator bundle",
            where=str(folder),
            seen=f"it makes {card.target} from {', '.join(card.source)}; needed: a bundle of "
            "kind unconditional",
            remedy="Give the bundle that the mixer was trained with.",
        )
    tensors = read_weights(folder)
    network = build_decoder(card.network)
    check_tensors(tensors, {n: t.half() for n, t in network.state_dict().items()}, folder)
    found = decoder_fingerprint(card.network, tensors)
    check_fingerprint(found, card.fingerprint, "its card", folder)
    if expected_fingerprint is not None:
        check_fingerprint(found, expected_fingerprint, "the plan", folder)
    network.load_state_dict(tensors)
    return FrozenDecoder(network, card, _public(folder, card)).to(device)


def with_public_files(plan: Plan, decoder: FrozenDecoder) -> Plan:
    """The plan with the digests of the public files that it will run with.

    Raises:
        ConfigError: the plan names other public files than the bundle has.
    """
    check_public_files(plan, decoder)
    settings = plan.unconditional
    if settings is None:
        return plan
    own: dict[str, object] = {"projection_digest": decoder.public.projection.digest}
    if decoder.public.moments is not None and _falls_back(settings, plan.privacy):
        own["moments_digest"] = decoder.public.moments.digest
    return plan.model_copy(update={"unconditional": settings.model_copy(update=own)})


def check_public_files(plan: Plan, decoder: FrozenDecoder) -> None:
    """Raise ConfigError where the plan names other public files than the decoder's bundle has.

    Sums would live in another space.
    """
    if plan.unconditional is None:
        return
    settings, moments = plan.unconditional, decoder.public.moments
    named = {
        "projection": (settings.projection_digest, decoder.public.projection.digest),
        "moments": (settings.moments_digest, None if moments is None else moments.digest),
    }
    for kind, (wanted, found) in named.items():
        if wanted is not None and wanted != found:
            bundle = "none" if found is None else f"{found[:16]}..."
            raise ConfigError(
                f"the plan names another public {kind} than the bundle has"
                if kind == "projection"
                else "the plan names other public moments than the bundle has",
                where=f"unconditional.{kind}_digest",
                seen=f"plan {wanted[:16]}..., bundle {bundle}",
                remedy="Nothing was computed. Install the bundle that belongs to this plan.",
            )
    if settings.site_styles and decoder.card.network.volume_latents == 0:
        raise ConfigError(
            "the plan asks for sites' grey scales, and the decoder has none",
            where="unconditional.site_styles",
            seen="a trained decoder without latents of a whole volume's grey scale",
            remedy="Nothing was computed. Use a decoder of the kind `network: pca`, or leave "
            "site_styles out.",
        )


def _falls_back(settings: UnconditionalPlan, privacy: Privacy) -> bool:
    """Whether a plan's moments get noise, which then falls back on public ones."""
    return privacy.mode == "stats-once" and settings.trajectory == "gaussian"


def _public(folder: Path, card: DecoderCard) -> PublicFeatures:
    named = card.features
    encoder = RandomPyramid(named.encoder_seed, named.encoder_form)
    try:
        standardisation = Standardisation.load(
            folder / STANDARDISATION_FILE, expected_digest=named.standardisation_digest
        )
        projection = Projection.load(
            folder / PROJECTION_FILE, expected_digest=named.projection_digest
        )
        moments = None
        if named.moments_digest is not None:
            moments = PublicMoments.load(
                folder / MOMENTS_FILE, expected_digest=named.moments_digest
            )
    except (DataError, ConfigError) as error:
        raise damaged_bundle(folder, f"{Path(error.where).name}: {error.seen}") from None
    if (
        standardisation.encoder_digest != encoder.digest
        or projection.standardisation_digest != standardisation.digest
        or (moments is not None and moments.latent != card.network.latent)
    ):
        raise damaged_bundle(folder, "its public files do not belong together")
    return PublicFeatures(encoder, standardisation, projection, moments)
