"""One data set: train what is missing, and measure held-out patients."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from time import process_time
from typing import Any, Final

import torch

from lift.config.simulation import SimulationConfig
from lift.device import resolve_devices
from lift.errors import ConfigError
from lift.files import write_json
from lift.randomness import derive_seed
from lift.strict_json import parse_json
from lift_benchmarks.downstream.config import DataSetSettings, DownstreamConfig, Entry, list_entries
from lift_benchmarks.downstream.volumes import PAIRS_FILE, Volumes, prepare_volumes
from lift_simulation.progress import Reporter
from lift_simulation.segmenter import Source, dice, predict, train_segmenter

_VERSION: Final = 2
Digests = dict[Path, str]
"""File of results -> what it must depend on to be of these settings."""


def run_data_set(
    config: SimulationConfig,
    downstream: DownstreamConfig,
    out: Path,
    reporter: Reporter,
    *,
    entries: Sequence[Entry] | None = None,
    done: Callable[[Digests], None] = lambda _: None,
) -> None:
    """Train and measure what is not there yet.

    Args:
        config: sites, decoder and plan.
        downstream: pairs and segmenters.
        out: folder of the result.
        reporter: says what is being done.
        entries: trainings; None: all.
        done: called at the start, and after each training, with every file that there should be in
            the end.

    Raises:
        ConfigError: the settings do not fit the data set.
        LiftError: see the message.
    """
    data = check_data_set(config, downstream)
    digests = digests_of(config, downstream, out)
    done(digests)
    chosen = list_entries(downstream, data) if entries is None else list(entries)
    missing = []
    for entry in chosen:
        path = entry_file(out, entry)
        if is_finished(path, digests[path]):
            reporter.line(f"{entry.name}: kept")
        else:
            missing.append(entry)
    facts = out / PAIRS_FILE
    if not missing and is_finished(facts, digests[facts]):
        return
    volumes = prepare_volumes(config, downstream, data, out, reporter, digests[facts])
    device = resolve_devices(config.device)[0]
    for entry in missing:
        path = entry_file(out, entry)
        with reporter.stage(entry.name):
            _run_entry(volumes, downstream, entry, path, digests[path], reporter, device=device)
        done(digests)


def entry_file(out: Path, entry: Entry) -> Path:
    """Where a training's figures lie."""
    return out / "trainings" / f"{entry.name}.json"


def is_finished(path: Path, digest: str) -> bool:
    """Whether a file is whole and of these settings."""
    try:
        return bool(parse_json(path.read_bytes())["digest"] == digest)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def check_data_set(config: SimulationConfig, downstream: DownstreamConfig) -> DataSetSettings:
    """The settings for a simulation.

    Raises:
        ConfigError: there are none, or they do not fit it.
    """
    data = downstream.data_sets.get(config.name)
    known = ", ".join(sorted(downstream.data_sets))
    task, privacy = config.plan.task.kind, config.plan.privacy.mode
    names = [site.name for site in config.sites]
    problem = None
    if data is None:
        problem = ("data_sets", f"{config.name}; there are settings for {known}")
    elif task != "unconditional" or privacy != "none":
        problem = ("plan", f"task {task}, privacy {privacy}; needed: unconditional and none")
    elif data.site not in names:
        problem = ("site", f"{data.site}; the sites are {', '.join(names)}")
    elif data.tissue and not config.phantom:
        problem = ("tissue", f"{data.tissue}; these volumes are no phantoms, give labels")
    if problem is not None or data is None:
        where, seen = problem or ("data_sets", config.name)
        raise ConfigError(
            "these settings cannot be used for the experiment",
            where=where,
            seen=seen,
            remedy="Correct one of the two files; nothing was started.",
        )
    return data


def digests_of(config: SimulationConfig, downstream: DownstreamConfig, out: Path) -> Digests:
    """Every file that there should be in the end, and its digest."""
    data = check_data_set(config, downstream)
    sites = [site.model_dump(mode="json") for site in config.sites]
    decoder = [
        None if part is None else part.model_dump(mode="json")
        for part in (config.generator, config.pretrain)
    ]
    # how many trainings there are changes none of them
    kept = data.model_dump(mode="json", exclude={"few"})
    common = [_VERSION, config.plan.digest(), sites, decoder, kept, downstream.pairs]
    common += [downstream.threads]
    found = {out / PAIRS_FILE: _digest([*common, "pairs"])}
    trained = [*common, downstream.segmenter.model_dump(mode="json")]
    for entry in list_entries(downstream, data):
        found[entry_file(out, entry)] = _digest([*trained, entry.name])
    return found


def _digest(parts: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _run_entry(
    volumes: Volumes,
    downstream: DownstreamConfig,
    entry: Entry,
    path: Path,
    digest: str,
    reporter: Reporter,
    *,
    device: torch.device,
) -> None:
    settings = downstream.segmenter
    began = process_time()
    network = train_segmenter(
        sources_of(volumes, entry, settings.synthetic_share),
        settings,
        # rows of one seed start alike
        seed=derive_seed(entry.seed, "segmenter"),
        augmented=entry.augmented,
        device=device,
        report=lambda step: reporter.step(entry.name, step, settings.steps),
    )
    figures = {
        site: {
            person: fmean(dice(predict(network, stack), stack.label) for stack in stacks)
            for person, stacks in people.items()
        }
        for site, people in volumes.test.items()
    }
    record: dict[str, Any] = {
        "digest": digest,
        "core_s": round(process_time() - began, 1),
        "dice": figures,
    }
    write_json(path, record)


def sources_of(volumes: Volumes, entry: Entry, share: float) -> list[Source]:
    """What an entry is trained on.

    The labelled patients of one seed are the first of one random order: more of them are the same
    ones and others.
    """
    if entry.row.startswith("all_real"):
        return [Source(volumes.everyone, 1.0)]
    if entry.row == "shuffled":
        return [Source(volumes.shuffled, 1.0)]
    if entry.row.startswith("synthetic"):
        return [Source(volumes.generated, 1.0)]
    order = list(range(len(volumes.own)))
    random.Random(derive_seed(entry.seed, "labelled")).shuffle(order)  # noqa: S311  # no secret
    real = [stack for person in order[: entry.few] for stack in volumes.own[person]]
    if entry.row.startswith("real"):
        return [Source(real, 1.0)]
    return [Source(real, 1.0 - share), Source(volumes.generated, share)]
