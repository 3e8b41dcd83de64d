"""Generator and mixer as one MONAI bundle, and what its config calls.

The bundle holds data alone: safetensors, JSON and a model card. Its config names one class of this
package, which must be installed where the bundle is used.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from lift.config.generator import GeneratorCard
from lift.config.plan import Plan, WindowRule
from lift.device import resolve_device
from lift.errors import DataError
from lift.files import file_digest, write_atomically, write_json
from lift.generator.bundle import load_bundle
from lift.generator.card import CARD_FILE, WEIGHTS_FILE
from lift.mixer.finished import FinishedMixer, read_mixer
from lift.release.check import MIXER_FILE, is_release, mixer_file
from lift.release.folder import printable
from lift.release.manifest import RECORD_FILE
from lift.strict_json import parse_json
from lift.tasks.paired.local import with_site
from lift.tasks.paired.translation import Translated, translate

logger = logging.getLogger(__name__)
_CONFIGS, _MODELS, _DOCS = "configs", "models", "docs"
_GENERATOR: Final = "generator"
_VERSION: Final = "1.0.0"
_USE: Final = (
    "Research: a missing channel of an examination is estimated from the others, on the grid of "
    "the first source."
)
_MISUSE: Final = (
    "Diagnosis, treatment, or any other clinical decision. The output is SYNTHETIC: it may lack "
    "findings that are there, and show some that are not. It is no medical device. Other channels, "
    "body parts, spacings or scanners than those of the training were not tried."
)


class Translator:
    """Generator and mixer of a MONAI bundle that `lift export-bundle` wrote.

    The bundle's `configs/inference.json` makes one. Its volumes are those of `lift translate`.

    Raises:
        GeneratorError: the generator is missing, damaged or not the mixer's.
        CheckpointError: the mixer is missing or damaged.
    """

    def __init__(self, folder: str | Path, device: str = "auto") -> None:
        models = Path(folder) / _MODELS
        self._finished = read_mixer(models / MIXER_FILE)
        self._generator = load_bundle(
            models / _GENERATOR,
            expected_fingerprint=self._finished.plan.generator_fingerprint,
            device=resolve_device(device),
        )

    def translate(
        self,
        inputs: Mapping[str, str | Path],
        output: str | Path,
        *,
        mask: str | Path | None = None,
        curves: str | Path | None = None,
    ) -> Translated:
        """Write the target channel of one examination, on the grid of its first source.

        Args:
            inputs: channel name -> file, exactly the plan's sources.
            output: ends in .nii.gz or .nii.
            mask: the examination's mask, where the plan's rule is `file`.
            curves: `site-curves.safetensors` of a site, for a mixer with contrast.

        Raises:
            ConfigError: a source or the mask is missing or extra.
            VolumeError: an input cannot be used.
        """
        finished, site = with_site(self._finished, None if curves is None else Path(curves))
        done = translate(
            {name: Path(file) for name, file in inputs.items()},
            Path(output),
            finished,
            self._generator,
            mask=None if mask is None else Path(mask),
            site=site,
            on_concern="warn",
        )
        if done.concern is not None:
            logger.warning("event=concern %s; check the result", done.concern)
        return done


@dataclass(frozen=True)
class _Facts:
    """What metadata and model card say."""

    finished: FinishedMixer
    card: GeneratorCard
    mixer_sha256: str
    audit: str


def export_monai_bundle(folder: Path, mixer: Path, generator: Path, *, ca: Path | None) -> None:
    """Write generator and mixer as a MONAI bundle to `folder`; the same bytes under our names.

    `configs/inference.json` comes last: a folder without it is not complete.

    Args:
        folder: new or empty, or an earlier export, which is replaced.
        mixer: a file, or the folder of a run or a release, of a paired task.
        generator: the mixer's bundle.
        ca: as in :func:`lift.mixer.finished.read_mixer`.

    Raises:
        DataError: the folder holds something else.
        GeneratorError: the generator is missing, damaged or not the mixer's.
        CheckpointError, ReleaseError: the mixer cannot be used.
    """
    finished = read_mixer(mixer, ca=ca)
    file = mixer_file(mixer, ca=ca)
    frozen = load_bundle(
        generator,
        expected_fingerprint=finished.plan.generator_fingerprint,
        device=resolve_device("cpu"),
    )
    foreign = {path.name for path in folder.glob("*")} - {_CONFIGS, _MODELS, _DOCS}
    if foreign or (folder.exists() and not folder.is_dir()):
        raise DataError(
            "cannot write the MONAI bundle",
            where=str(folder),
            seen=f"it holds '{printable(min(foreign))}'" if foreign else "it is a file",
            remedy="Nothing was written. Give a new folder, or an empty one.",
        )
    config = folder / _CONFIGS / "inference.json"
    config.unlink(missing_ok=True)
    models = folder / _MODELS
    write_atomically(models / MIXER_FILE, file.read_bytes())
    for name in (CARD_FILE, WEIGHTS_FILE):
        write_atomically(models / _GENERATOR / name, (generator / name).read_bytes())
    facts = _Facts(finished, frozen.card, file_digest(models / MIXER_FILE), _audit_of(file.parent))
    write_atomically(folder / _DOCS / "README.md", _model_card(facts).encode())
    write_json(folder / _CONFIGS / "metadata.json", _metadata(facts))
    write_json(config, _inference(finished.plan))


def _inference(plan: Plan) -> dict[str, object]:
    """The config: files in, one file out. `bundle_root` and the files are for the user to set."""
    return {
        "bundle_root": ".",
        "device": "auto",
        "inputs": {name: f"{name}.nii.gz" for name in plan.task.source},
        "output": f"{plan.task.target}.nii.gz",
        "mask": "mask.nii.gz" if plan.preprocessing.mask == "file" else None,
        "curves": None,
        "translator": {
            "_target_": "lift.Translator",
            "folder": "@bundle_root",
            "device": "@device",
        },
        "run": ["$@translator.translate(@inputs, @output, mask=@mask, curves=@curves)"],
    }


def _metadata(facts: _Facts) -> dict[str, object]:
    plan, card = facts.finished.plan, facts.card
    sources, target = plan.task.source, plan.task.target
    ours = version("lift-federated")
    return {
        "version": _VERSION,
        "changelog": {_VERSION: "written by lift export-bundle"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch"),
        "numpy_version": version("numpy"),
        "required_packages_version": {"lift-federated": ours},
        "name": f"LiFT {target} from {', '.join(sources)}",
        "task": "synthesis of a missing channel",
        "description": f"A frozen 2D generator and a through-plane mixer make a SYNTHETIC {target} "
        f"volume from {', '.join(sources)}.",
        "authors": "not stated",
        "copyright": "not stated; see docs/README.md",
        "data_source": card.training_data,
        "data_type": "nifti",
        "intended_use": f"{_USE} Not for: {_MISUSE}",
        "network_data_format": {
            "inputs": {name: _format(plan, name) for name in sources},
            "outputs": {target: _format(plan, target)},
        },
        "lift": {
            "synthetic": True,
            "phantom": facts.finished.phantom,
            "generator_fingerprint": card.fingerprint,
            "generator_licence": card.licence,
            "mixer_sha256": facts.mixer_sha256,
            "plan_digest": plan.digest(),
            "audit": facts.audit,
            "made_with": ours,
        },
    }


def _format(plan: Plan, channel: str) -> dict[str, object]:
    is_ct = isinstance(plan.preprocessing.rule(channel), WindowRule)
    return {
        "type": "image",
        "format": "hounsfield" if is_ct else "magnitude",
        "modality": "CT" if is_ct else "MR",
        "num_channels": 1,
        "spatial_shape": ["*", "*", "*"],
        "dtype": "int16" if is_ct and channel == plan.task.target else "float32",
        "value_range": [],
        "is_patch_data": False,
        "channel_def": {"0": channel},
    }


def _audit_of(folder: Path) -> str:
    """What a release says of its audits. Its files were checked when the mixer was read."""
    if not is_release(folder):
        return "none known: the mixer comes from no release"
    try:
        record = parse_json((folder / RECORD_FILE).read_bytes())
    except ValueError:
        record = None
    stated = record.get("audit_statement") if isinstance(record, dict) else None
    return str(stated or "not stated")


def _model_card(facts: _Facts) -> str:
    finished, card = facts.finished, facts.card
    plan = finished.plan
    helped = sum(site.verdict == "helped" for site in finished.sites)
    rows = {
        "sources": ", ".join(plan.task.source),
        "target": plan.task.target,
        "generator": f"{card.network.name}, fingerprint {card.fingerprint}",
        "licence of the generator": card.licence,
        "generator trained on": card.training_data,
        "mixer": f"{plan.mixer.kind}, {sum(t.numel() for t in finished.values.values())} numbers, "
        f"SHA-256 {facts.mixer_sha256}",
        "mixer trained on": "simulated (phantom) volumes alone"
        if finished.phantom
        else "volumes of the run's sites; the mixer does not say that they are phantoms",
        "plan digest": plan.digest(),
        "privacy mode": plan.privacy.mode,
        "sites at which the mixer helped": f"{helped} of {len(finished.sites)} that judged it",
        "audit": facts.audit,
        "made with": f"lift-federated {version('lift-federated')}",
    }
    given = ", ".join(f'"{name}": "{name}.nii.gz"' for name in plan.task.source)
    files = " ".join(f"{name}={name}.nii.gz" for name in plan.task.source)
    models = f"BUNDLE/{_MODELS}"
    return "\n".join(
        [
            f"# SYNTHETIC {_code(plan.task.target)} from {_code(', '.join(plan.task.source))}",
            "",
            "A frozen 2D generator predicts each slice of the missing channel. A small mixer makes "
            "the slices one volume.",
            "",
            f"**For:** {_USE}",
            "",
            f"**Not for:** {_MISUSE}",
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {_code(text)} |" for name, text in rows.items()),
            "",
            "The package lift-federated must be installed. BUNDLE is this folder.",
            "",
            "```python",
            "from monai.bundle import ConfigParser",
            "",
            "parser = ConfigParser()",
            'parser.read_config("BUNDLE/configs/inference.json")',
            'parser["bundle_root"] = "BUNDLE"',
            f'parser["inputs"] = {{{given}}}',
            f'parser["output"] = "{plan.task.target}.nii.gz"',
            'parser.get_parsed_content("run")',
            "```",
            "",
            "The same volume without MONAI's config:",
            "",
            "```",
            f"lift translate {files} -o {plan.task.target}.nii.gz \\",
            f"  --mixer {models}/{MIXER_FILE} --generator {models}/{_GENERATOR}",
            "```",
            "",
        ]
    )


def _code(text: str) -> str:
    """Foreign text that Markdown shows as it is, in a table too."""
    return f"`{printable(text).replace('`', chr(39)).replace('|', chr(92) + '|')}`"
