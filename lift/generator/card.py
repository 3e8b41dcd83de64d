"""A bundle without its weights: its folder, its card, its task. Does not need torch."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from lift.config.decoder import DecoderCard
from lift.config.generator import GeneratorCard, GeneratorChoice
from lift.config.plan import PreprocessingPlan, TaskPlan
from lift.errors import ConfigError, GeneratorError, VersionMismatchError
from lift.records.run import read_run_record
from lift.strict_json import parse_json

CARD_FILE: Final = "generator.json"
WEIGHTS_FILE: Final = "weights.safetensors"
_VERSIONS: Final = (1, 2)
_DECODER_VERSIONS: Final = (1, 2)
_BUILTIN: Final = Path(__file__).parent / "bundles"
_NOTHING_LOADED: Final = "Nothing was loaded. Copy the bundle again from its source."


def read_card(folder: Path) -> GeneratorCard | DecoderCard:
    """The card of a bundle; the weights are not read.

    Raises:
        GeneratorError: the card is missing, damaged or contradicts itself.
        VersionMismatchError: another version of the format.
    """
    path = folder / CARD_FILE
    try:
        data = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "the file is not JSON"
        raise damaged_bundle(folder, f"{CARD_FILE}: {reason}") from None
    found = data.get("format_version") if isinstance(data, dict) else None
    unconditional = isinstance(data, dict) and data.get("kind") == "unconditional"
    readable = _DECODER_VERSIONS if unconditional else _VERSIONS
    if type(found) is int and found not in readable:
        raise VersionMismatchError(
            "cannot use the generator bundle: it comes from another version",
            where=str(folder),
            seen=f"format {found}; this version reads format {' and '.join(map(str, readable))}",
            remedy="Install the version that made the bundle, or ask for a bundle of this one.",
        )
    try:
        return (DecoderCard if unconditional else GeneratorCard).from_data(data, str(path))
    except ConfigError as error:
        raise damaged_bundle(folder, f"{CARD_FILE}: {error.seen}") from None


def check_task(
    card: GeneratorCard | DecoderCard, task: TaskPlan, preprocessing: PreprocessingPlan
) -> None:
    """Raise unless the bundle was made for exactly this task and these normalisation rules.

    Raises:
        ConfigError: other source channels, another order of them, another target, or a rule
            that differs: the network would run, and give a picture of nothing.
    """
    wanted = {name: preprocessing.rule(name) for name in (*task.source, task.target)}
    differences = []
    if (card.source, card.target) != (task.source, task.target):
        differences.append(
            f"the bundle makes {card.target} from {', '.join(card.source) or 'nothing'}; "
            f"the plan wants {task.target} from {', '.join(task.source) or 'nothing'}"
        )
    if isinstance(card, DecoderCard) and card.plane != preprocessing.plane:
        differences.append(
            f"the bundle's slices are {card.plane}; the plan has plane {preprocessing.plane}"
        )
    differences += [
        f"{name}: the bundle was trained with {card.normalisation[name].canonical_json()}; "
        f"the plan has {rule.canonical_json()}"
        for name, rule in wanted.items()
        if name in card.normalisation and card.normalisation[name] != rule
    ]
    if differences:
        raise ConfigError(
            "the generator bundle does not fit the plan",
            where="task and preprocessing.normalisation",
            seen="\n".join(differences),
            remedy="Correct the plan, or choose the bundle that was trained for it.",
        )


def list_builtin() -> list[str]:
    """Names of the bundles that are part of this package, sorted."""
    return sorted(card.parent.name for card in _BUILTIN.glob(f"*/{CARD_FILE}"))


def builtin_bundle(name: str) -> Path:
    """The folder of a bundle that is part of this package.

    Raises:
        GeneratorError: there is none of this name.
    """
    if name not in list_builtin():
        raise GeneratorError(
            f"there is no built-in generator bundle '{name}'",
            where="generator",
            seen=f"built in: {', '.join(list_builtin()) or 'none'}",
            remedy="Name one of these, or give the folder of a bundle.",
        )
    return _BUILTIN / name


def shipped_bundle(fingerprint: str | None) -> Path:
    """The folder of the built-in bundle with this fingerprint.

    Raises:
        ConfigError: there is none.
    """
    for name in list_builtin():
        folder = builtin_bundle(name)
        if read_card(folder).fingerprint == fingerprint:
            return folder
    raise ConfigError(
        "the mixer's generator does not ship with this package",
        where="--generator",
        seen=f"fingerprint {str(fingerprint)[:12]}... is needed",
        remedy="Give the bundle's folder with --generator.",
    )


def known_bundle(mixer: Path, fingerprint: str | None) -> Path:
    """The folder of a finished mixer's bundle: a built-in one, or the one that its run was given.

    Args:
        mixer: a run's folder, or its `mixer.safetensors`.
        fingerprint: the generator's.

    Raises:
        ConfigError: neither is there.
    """
    folder = mixer if mixer.is_dir() else mixer.parent
    try:
        own = read_run_record(folder).bundle
        if own is not None and read_card(Path(own)).fingerprint == fingerprint:
            return Path(own)
    except (OSError, ValueError, GeneratorError):
        # no record, none of an own bundle, or a bundle that is elsewhere now
        pass
    return shipped_bundle(fingerprint)


def bundle_folder(choice: GeneratorChoice) -> Path:
    """The folder of the chosen bundle; one of your own may not exist.

    Raises:
        GeneratorError: no bundle of this name is part of the package.
    """
    return choice.bundle or builtin_bundle(str(choice.builtin))


def damaged_bundle(folder: Path, seen: str) -> GeneratorError:
    """The refusal of a bundle that is missing or damaged; `seen` says what is wrong with it."""
    return GeneratorError(
        "cannot use the generator bundle", where=str(folder), seen=seen, remedy=_NOTHING_LOADED
    )
