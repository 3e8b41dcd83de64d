"""From finished trainings to `downstream.json` and a table; no patient's name is in either."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from lift.config.simulation import SimulationConfig
from lift.errors import ConfigError
from lift.files import write_atomically, write_json
from lift.metrics.intervals import Interval, bootstrap_mean, paired_difference
from lift.randomness import derive_seed
from lift.strict_json import parse_json
from lift_benchmarks.downstream.config import BY_NUMBER, DownstreamConfig, Entry, list_entries
from lift_benchmarks.downstream.pictures import draw_dice
from lift_benchmarks.downstream.run import Digests, check_data_set, entry_file, is_finished
from lift_benchmarks.downstream.volumes import PAIRS_FILE

SUMMARY_FILE: Final = "downstream.json"
TABLE_FILE: Final = "downstream.md"
FIGURE_FILE: Final = "downstream.png"
_SEED: Final = derive_seed(0, "downstream")
Patients = dict[tuple[str, str], float]
"""(site, patient) -> Dice."""


@dataclass(frozen=True)
class Drawn:
    """What is drawn of a data set."""

    name: str
    phantom: bool
    held_out: int
    by_number: Mapping[str, Mapping[int, Interval]]
    once: Mapping[str, Interval]


def write_summary(
    config: SimulationConfig, downstream: DownstreamConfig, digests: Digests, out: Path
) -> bool:
    """Write table, figure and `downstream.json` of what has finished; False: nothing has.

    A cell is a row and a number of labelled patients. A patient's Dice is the mean over the cell's
    seeds that have finished; a comparison takes the seeds that both cells have.

    Args:
        config: the data set's.
        downstream: the trainings'.
        digests: every file that there should be in the end.
        out: folder of the result.
    """
    data = check_data_set(config, downstream)
    facts = out / PAIRS_FILE
    if not is_finished(facts, digests[facts]):
        return False
    cells: dict[str, dict[int, Patients]] = {}
    entries: dict[str, Entry] = {}
    seconds = []
    for entry in list_entries(downstream, data):
        path = entry_file(out, entry)
        if is_finished(path, digests[path]):
            record = _read(path)
            seconds.append(record["core_s"])
            entries.setdefault(entry.cell, entry)
            cells.setdefault(entry.cell, {})[entry.seed] = {
                (site, patient): value
                for site, patients in record["dice"].items()
                for patient, value in patients.items()
            }
    if not cells:
        return False
    rows = [_row(entries[cell], found, data.site) for cell, found in cells.items()]
    pairs = [pair for pair in _comparisons(sorted(data.few)) if set(pair) <= set(cells)]
    compared = {f"{a} - {b}": _compared(cells[a], cells[b]) for a, b in pairs}
    own = {f"{a} - {b}": _compared(cells[a], cells[b], data.site) for a, b in pairs}
    about = {key: value for key, value in _read(facts).items() if key != "digest"}
    write_json(
        out / SUMMARY_FILE,
        {
            "name": config.name,
            "data_statement": config.data_statement,
            "phantom": config.phantom,
            "site": data.site,
            "settings": downstream.segmenter.model_dump(mode="json"),
            "core_s": round(sum(seconds), 1),
            **about,
            "rows": rows,
            "comparisons": compared,
            "comparisons_own": own,
            "control": _control(compared),
        },
    )
    write_atomically(out / TABLE_FILE, table(read_summary(out)).encode())
    write_atomically(out / FIGURE_FILE, draw_dice(read_drawn(out)))
    return True


def _comparisons(few: Sequence[int]) -> list[tuple[str, str]]:
    """What is asked: cell and cell that it is compared with."""
    asked = [("synthetic", "shuffled"), ("synthetic", "all_real")]
    for number in few:
        asked += [
            (f"both-{number}", f"real-{number}"),
            (f"both_augmented-{number}", f"real_augmented-{number}"),
            (f"real_augmented-{number}", f"real-{number}"),
            ("synthetic_augmented", f"real_augmented-{number}"),
            (f"both_augmented-{number}", "all_real_augmented"),
        ]
    return asked


def _row(entry: Entry, seeds: Mapping[int, Patients], site: str) -> dict[str, Any]:
    means = _means(seeds, seeds)
    own = [value for (where, _), value in means.items() if where == site]
    return {
        "cell": entry.cell,
        "row": entry.row,
        "few": entry.few,
        "seeds": [fmean(seeds[seed].values()) for seed in sorted(seeds)],
        "dice": asdict(bootstrap_mean(list(means.values()), seed=_SEED)),
        "dice_own": asdict(bootstrap_mean(own, seed=_SEED)) if own else None,
    }


def _compared(
    one: Mapping[int, Patients], other: Mapping[int, Patients], site: str | None = None
) -> dict[str, Any]:
    """The paired difference over all held-out patients, or those of one site; empty: none."""
    shared = sorted(set(one) & set(other))
    if not shared:
        return {}
    first, second = _means(one, shared), _means(other, shared)
    patients = [patient for patient in first if site is None or patient[0] == site]
    if not patients:
        return {}
    found = paired_difference(
        [first[patient] for patient in patients],
        [second[patient] for patient in patients],
        seed=_SEED,
    )
    return {**asdict(found.interval), "wins": found.wins}


def _means(
    seeds: Mapping[int, Patients], chosen: Mapping[int, Patients] | Sequence[int]
) -> Patients:
    taken = [seeds[seed] for seed in sorted(chosen)]
    return {patient: fmean(one[patient] for one in taken) for patient in sorted(taken[0])}


def _control(compared: Mapping[str, Mapping[str, Any]]) -> str:
    """Whether the experiment can tell anything: broken pairs must be worse."""
    found = compared.get("synthetic - shuffled")
    if not found or found["low"] is None:
        return "not measured"
    return "held" if found["low"] > 0 else "failed"


def read_summary(out: Path) -> dict[str, Any]:
    """The content of `downstream.json`.

    Raises:
        ConfigError: there is no result in the folder.
    """
    try:
        return _read(out / SUMMARY_FILE)
    except (OSError, ValueError):
        raise ConfigError(
            "there is nothing to show",
            where=str(out),
            seen=f"no {SUMMARY_FILE}",
            remedy="Give the folder of a run that has finished at least one training.",
        ) from None


def read_drawn(out: Path) -> Drawn:
    """What is drawn of a finished folder.

    Raises:
        ConfigError: there is no result in it.
    """
    data = read_summary(out)
    by_number: dict[str, dict[int, Interval]] = {}
    once = {}
    for row in data["rows"]:
        interval = Interval(**row["dice"])
        if row["row"] in BY_NUMBER:
            by_number.setdefault(row["row"], {})[row["few"]] = interval
        else:
            once[row["row"]] = interval
    held_out = sum(data["held_out"].values())
    return Drawn(data["name"], data["phantom"], held_out, by_number, once)


def table(data: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    kind = "PHANTOM volumes" if data["phantom"] else "real volumes"
    held_out = sum(data["held_out"].values())
    near = data["nearest_distance"]
    lines = [
        f"# {data['name']}: {kind}, {held_out} held out",
        "",
        f"Labelled patients are those of `{data['site']}`. Training patients by site: "
        f"{_counts(data['training'])}; of these in the Gaussian: {_counts(data['in_gaussian'])}. "
        f"{data['pairs']} generated pairs; distance to the nearest training volume "
        f"{near['generated']:.3f} (held-out volumes {near['held_out']:.3f}). "
        f"Control (broken pairs are worse): {data['control']}.",
        "",
        f"| row | labelled | Dice | of `{data['site']}` | single seeds |",
        "|---|---|---|---|---|",
    ]
    for row in data["rows"]:
        number = str(row["few"]) if row["few"] else ""
        seeds = " ".join(f"{value:.3f}" for value in row["seeds"])
        own = _shown(row["dice_own"]) if row["dice_own"] else ""
        lines.append(f"| {row['row']} | {number} | {_shown(row['dice'])} | {own} | {seeds} |")
    lines += [
        "",
        f"| difference | all held out | better in | of `{data['site']}` | better in |",
        "|---|---|---|---|---|",
    ]
    for name, found in data["comparisons"].items():
        if found:
            columns = f"{_difference(found)} | {_difference(data['comparisons_own'][name])}"
            lines.append(f"| {name} | {columns} |")
    return "\n".join([*lines, ""])


def _difference(found: Mapping[str, Any]) -> str:
    return f"{_shown(found, '+')} | {found['wins']} of {found['n']}" if found else " | "


def _counts(by_site: Mapping[str, int]) -> str:
    return ", ".join(f"{site} {count}" for site, count in by_site.items())


def _shown(found: Mapping[str, Any], sign: str = "") -> str:
    value = f"{found['value']:{sign}.3f}"
    if found["low"] is None:
        return value
    return f"{value} [{found['low']:.3f}, {found['high']:.3f}]"


def _read(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = parse_json(path.read_bytes())
    return data
