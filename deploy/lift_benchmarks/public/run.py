"""A benchmark from the official folder to its table: each stage is kept, and can be run by hand."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from lift.config.generator import PretrainConfig
from lift.config.phantom import PHANTOM_MARK, lies_among_phantoms
from lift.config.simulation import SimulationConfig
from lift.device import resolve_device
from lift.errors import CheckpointError, ConfigError, DataError
from lift.files import write_atomically, write_json
from lift.generator.card import CARD_FILE
from lift.generator.pretraining import pretrain
from lift.records.published import PUBLISHED_FILE
from lift.strict_json import parse_json
from lift_benchmarks.public.config import BenchmarkSettings
from lift_benchmarks.public.division import Divided, divide, read_mapping, table_text
from lift_benchmarks.public.folders import CHANNELS, Benchmark, Examination, find_examinations
from lift_benchmarks.public.published import published
from lift_benchmarks.public.summary import write_summary
from lift_simulation.progress import Reporter
from lift_simulation.run import simulate

PRETRAIN_FILE: Final = "pretrain.yaml"
SIMULATION_FILE: Final = "simulation.yaml"
DIVISION_FILE: Final = "division.json"
_PUBLIC: Final = "public"
_LICENCES: Final[Mapping[Benchmark, str]] = {
    "brats": "terms of use of BraTS 2023 (Synapse)",
    "synthrad": "terms of use of SynthRAD (CC BY-NC 4.0)",
}


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        benchmark: which one.
        data: the official folder.
        output: for everything that is made.
        settings: sizes.
        missing: of BraTS: the contrast that is synthesised.
        region: of SynthRAD; None: the only one there.
        mapping: CSV of patients and sites, or None.
    """

    benchmark: Benchmark
    data: Path
    output: Path
    settings: BenchmarkSettings
    missing: str = "t2f"
    region: str | None = None
    mapping: Path | None = None

    @property
    def task(self) -> tuple[tuple[str, ...], str]:
        """Source channels and target."""
        channels = CHANNELS[self.benchmark]
        if self.benchmark == "synthrad":
            return (channels[0],), channels[1]
        return tuple(name for name in channels if name != self.missing), self.missing


def run_benchmark(request: Request, reporter: Reporter, *, command: str) -> Path:
    """Run it, or finish it, and return the path of its table.

    Raises:
        CheckpointError: the output folder holds another benchmark, division or settings.
        LiftError: see the message.
    """
    _, target = request.task
    found = find_examinations(request.data.absolute(), request.benchmark, region=request.region)
    root, phantom = _place_of(found.examinations)
    region = found.examinations[0].region
    told = published(request.benchmark, target, region, phantom=phantom)
    people = len({one.person for one in found.examinations})
    if phantom:
        reporter.line(
            "PHANTOM: these volumes are simulated. Nothing here says anything of patients."
        )
    reporter.line(f"{told.title}: {len(found.examinations)} examinations of {people} persons")
    for missing, count in found.incomplete.items():
        reporter.line(f"  passed over: {count} without {missing}")
    mapping = None if request.mapping is None else read_mapping(request.mapping)
    divided = divide(found.examinations, request.settings.division, mapping)
    for sentence in divided.rule:
        reporter.line(f"  {sentence}")
    for site, own in ((_PUBLIC, divided.public), *divided.sites.items()):
        reporter.line(f"  {site}: {len({one.person for one in own})} persons")
    pretraining, federation = _write_settings(request, root, divided, told.title, phantom=phantom)
    bundle = request.output / "generator"
    with reporter.stage("pre-training"):
        if (bundle / CARD_FILE).is_file():
            reporter.line(f"the generator is there already: {bundle}")
        else:
            pretrain(
                pretraining,
                bundle,
                work=request.output / "generator.work",
                device=resolve_device(request.settings.device),
                report=lambda step, steps, _: reporter.step("steps", step, steps),
                progress=reporter.step,
            )
    out = request.output / "run"
    write_json(out / PUBLISHED_FILE, told.model_dump(mode="json"))
    simulate(federation, out, reporter, command=command)
    return write_summary(out, request.output, request.benchmark)


def _place_of(examinations: Sequence[Examination]) -> tuple[Path, bool]:
    """The folder of all examinations, and whether they are phantoms.

    Raises:
        DataError: some are phantoms and some are not.
    """
    folders = [next(iter(one.channels.values())).parent for one in examinations]
    marked = {lies_among_phantoms(place) for place in {folder.parent for folder in folders}}
    root = Path(os.path.commonpath([folder.parent for folder in folders]))
    if len(marked) > 1:
        raise DataError(
            "cannot use phantoms and real volumes together",
            where=str(root),
            seen=f"some examinations lie below a {PHANTOM_MARK}, others do not",
            remedy="Name the folder of one of the two.",
        )
    return root, marked == {True}


def _write_settings(
    request: Request, root: Path, divided: Divided, title: str, *, phantom: bool
) -> tuple[PretrainConfig, SimulationConfig]:
    """Write tables and settings of both stages; those of another benchmark are never replaced."""
    out, settings = request.output, request.settings
    source, target = request.task
    tables = {
        name: table_text(own, root, (*source, target))
        for name, own in ((_PUBLIC, divided.public), *divided.sites.items())
    }
    kind = "PHANTOM volumes in the layout of" if phantom else "REAL volumes:"
    about = f"{kind} {title}; {' '.join(divided.rule)}"

    def cohort(name: str) -> dict[str, str]:
        table = (out / "tables" / f"{name}.csv").absolute()
        return {"layout": "table", "root": str(root), "table": str(table)}

    rules = settings.preprocessing.model_dump(mode="json")
    network = settings.network.model_dump(mode="json")
    pretraining = {
        **settings.pretraining,
        "network": {**network, "n_source": len(source)},
        "source": list(source),
        "target": target,
        "cohorts": [cohort(_PUBLIC)],
        "preprocessing": rules,
        "training_data": f"The public part of the benchmark. {about}",
        "licence": "Apache-2.0" if phantom else _LICENCES[request.benchmark],
    }
    federation = {
        "name": request.benchmark,
        "data_statement": about,
        "generator": {"bundle": str((out / "generator").absolute())},
        "sites": [{"name": name, "data": cohort(name)} for name in divided.sites],
        "plan": {
            **settings.plan,
            "task": {"source": list(source), "target": target},
            "preprocessing": rules,
        },
        "compare": list(settings.compare),
        "synthesis_patients": settings.synthesis_patients,
        "image_checks": settings.image_checks,
        "cache": settings.cache.model_dump(mode="json"),
        "device": settings.device,
    }
    texts = {f"tables/{name}.csv": text for name, text in tables.items()}
    texts[PRETRAIN_FILE] = _yaml(pretraining, "lift pretrain --config pretrain.yaml -o generator")
    texts[SIMULATION_FILE] = _yaml(
        federation, "lift-simulate --config simulation.yaml --output run"
    )
    # both are checked before anything is written
    checked = (
        PretrainConfig.from_data(pretraining, "pretraining"),
        SimulationConfig.from_data(federation, "plan"),
    )
    _keep(out, texts, divided)
    return checked


def _yaml(data: Mapping[str, Any], command: str) -> str:
    text = yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True, width=100)
    return f"# Written by the benchmark. By hand, in this folder: {command}\n{text}"


def _keep(out: Path, texts: Mapping[str, str], divided: Divided) -> None:
    """Write the files of a new benchmark; of one that has begun they must be the same."""
    digest = hashlib.sha256(
        "".join(f"{name}\n{text}" for name, text in sorted(texts.items())).encode()
    ).hexdigest()
    path = out / DIVISION_FILE
    if path.is_file():
        try:
            held = parse_json(path.read_bytes())["digest"]
        except (OSError, ValueError, KeyError, TypeError):
            held = None
        if held != digest:
            raise CheckpointError(
                "cannot resume this benchmark",
                where=str(out),
                seen="it was begun with other data, another division or other settings",
                remedy="Name another --output, or delete the folder to begin again.",
            )
    for name, text in texts.items():
        write_atomically(out / name, text.encode())
    write_json(
        path,
        {
            "digest": digest,
            "rule": list(divided.rule),
            "persons": {
                name: len({one.person for one in own})
                for name, own in ((_PUBLIC, divided.public), *divided.sites.items())
            },
        },
    )


def check_missing(channel: str) -> str:
    """The missing contrast of BraTS.

    Raises:
        ConfigError: BraTS has no such contrast.
    """
    known: Sequence[str] = CHANNELS["brats"]
    if channel not in known:
        raise ConfigError(
            "there is no such contrast",
            where="--missing",
            seen=f"'{channel}'; BraTS 2023 has {', '.join(known)}",
            remedy="Name one of these: t1n (T1), t1c (T1 with contrast agent), t2w (T2), t2f "
            "(FLAIR).",
        )
    return channel
