"""Every YAML that ships fits its model, every exit code is explained, data files are found."""

from __future__ import annotations

import ast
import csv
import re
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from typing import Literal

import pytest
import torch

from lift.config.base import Settings, read_yaml
from lift.config.decoder import DecoderPretrainConfig, PcaDecoderConfig
from lift.config.generator import PretrainConfig
from lift.config.plan import PreprocessingPlan, TaskPlan
from lift.config.simulation import SimulationConfig
from lift.errors import EXIT_CODES, LiftError
from lift.generator.card import builtin_bundle, check_task, list_builtin, read_card
from lift.tasks.registry import load_generator
from lift_benchmarks.public.config import BenchmarkSettings

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "deploy" / "lift_simulation" / "demo.yaml"
# folder under configs/ -> what its files are; a file anywhere else fails the test
MODELS: dict[str, type[Settings]] = {
    ".": SimulationConfig,
    "presets": SimulationConfig,
    "pretrain": PretrainConfig,
    "presets/public": BenchmarkSettings,
    # made on real patients, so it does not ship: `make real-lgg` makes it
    "presets/real/lgg": PretrainConfig,
}


def _folder(path: Path) -> str:
    return path.parent.relative_to(ROOT / "configs").as_posix()


YAML_FILES = sorted(
    path for path in (ROOT / "configs").rglob("*") if path.suffix in {".yaml", ".yml"}
)
SIMULATIONS = [
    DEMO,
    *(path for path in YAML_FILES if MODELS.get(_folder(path)) is SimulationConfig),
]
SHIPPED = [path for path in YAML_FILES if _folder(path) == "pretrain"]


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _model(path: Path) -> type[Settings]:
    data = read_yaml(path)
    if isinstance(data, dict) and data.get("kind") == "unconditional":
        return DecoderPretrainConfig
    return MODELS[_folder(path)]


@pytest.mark.parametrize("path", YAML_FILES, ids=_name)
def test_every_settings_file_fits_its_model(path: Path) -> None:
    model = _model(path)
    assert model.from_yaml(path).digest() == model.from_yaml(path).digest()


def test_the_demo_is_phantom_data_and_says_so() -> None:
    demo = SimulationConfig.from_yaml(DEMO)
    assert demo.phantom
    assert "PHANTOM" in demo.data_statement
    assert demo.plan.privacy.mode == "none"
    # the budget covers every comparison that the demo makes, and stays within ten minutes
    trained = {"control_2d", "local_only", "local_steps", "centralised"}
    assert {*demo.compare} & trained <= set(demo.budget_s)
    assert sum(demo.budget_s.values()) <= 600
    # a hospital of few patients, and one that joins afterwards, as there are in life
    assert len(demo.late) == 1


@pytest.mark.parametrize("path", SIMULATIONS, ids=_name)
def test_every_builtin_generator_that_settings_name_ships_and_fits_their_task(path: Path) -> None:
    config = SimulationConfig.from_yaml(path)
    if config.generator is not None and config.generator.builtin is not None:
        card = read_card(builtin_bundle(config.generator.builtin))
        check_task(card, config.plan.task, config.plan.preprocessing)


@pytest.mark.parametrize("path", SIMULATIONS, ids=_name)
def test_tables_of_patients_beside_the_settings_are_there_and_have_the_channels(path: Path) -> None:
    config = SimulationConfig.from_yaml(path)
    for site in config.sites:
        if site.data.layout == "table":
            with (ROOT / site.data.table).open(newline="", encoding="utf-8") as stream:
                rows = list(csv.DictReader(stream))
            assert rows
            assert {"patient", *config.plan.task.channels} <= set(rows[0])


@pytest.mark.parametrize(
    ("folder", "public", "patients", "made_public"),
    [("hippocampus", "public", 200, 40), ("lgg", "du-public", 38, 9)],
)
def test_public_patients_are_at_no_site_of_the_real_run(
    folder: str, public: str, patients: int, made_public: int
) -> None:
    tables = (ROOT / "configs" / "presets" / "real" / folder).glob("*.csv")
    seen: dict[str, str] = {}
    for table in tables:
        with table.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                assert row["patient"] not in seen, (row, seen[row["patient"]])
                seen[row["patient"]] = table.stem
    assert len(seen) == patients
    assert sum(owner == public for owner in seen.values()) == made_public


@pytest.mark.parametrize("path", SHIPPED, ids=_name)
def test_the_shipped_bundle_is_what_its_settings_say(path: Path) -> None:
    config = _model(path).from_yaml(path)
    assert isinstance(config, PretrainConfig | DecoderPretrainConfig)
    assert path.stem in list_builtin()
    card = read_card(builtin_bundle(path.stem))
    source = config.source if isinstance(config, PretrainConfig) else ()
    assert (card.network, card.source, card.target) == (config.network, source, config.target)
    closed_form = isinstance(card.network, PcaDecoderConfig)
    assert card.trained_steps == (0 if closed_form else config.steps)
    assert (card.training_data, card.licence) == (config.training_data, config.licence)
    kind: Literal["paired", "unconditional"] = "paired" if source else "unconditional"
    check_task(card, TaskPlan(kind=kind, source=source, target=config.target), config.preprocessing)


@pytest.mark.parametrize("name", list_builtin())
def test_every_shipped_bundle_loads_and_is_honest_about_its_data(name: str) -> None:
    folder = builtin_bundle(name)
    generator = load_generator(folder, expected_fingerprint=None, device=torch.device("cpu"))
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 1_000_000
    assert "PHANTOM" in generator.card.training_data
    rules = PreprocessingPlan()
    for channel, rule in generator.card.normalisation.items():
        assert rule == rules.rule(channel)
    assert (builtin_bundle(name) / "weights.safetensors").stat().st_size < 2_000_000


def test_every_exit_code_is_explained_once() -> None:
    numbers = [code.number for code in EXIT_CODES.values()]
    assert sorted(numbers) == [0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 70]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    paragraph = readme[readme.index("Exit codes:") :].split("\n\n")[0]
    stated = [
        int(number)
        for number in re.findall(r"(?:^|[ ,:])(\d+) [a-z]", paragraph.replace("\n", " "))
    ]
    assert stated == sorted(numbers)
    for label, code in EXIT_CODES.items():
        assert code.label == label
        assert code.help.endswith(".")
        assert len(code.help) > 20


def test_every_error_has_an_exit_code_of_the_table() -> None:
    queue, seen = [LiftError], set()
    while queue:
        kind = queue.pop()
        queue += kind.__subclasses__()
        seen.add(kind)
        error = kind("it failed", where="here", seen="a, not b", remedy="Do c.")
        assert error.exit_code == EXIT_CODES[kind.label].number
        assert error.exit_code != 0
        assert error.render("lift").splitlines() == [
            f"lift: it failed in here [{kind.label}, exit {error.exit_code}]",
            "  a, not b",
            "  Do c.",
        ]
    assert len(seen) > 10


def test_the_commands_are_installed() -> None:
    ours = {point.name: point.value for point in entry_points(group="console_scripts")}
    assert ours["lift"] == "lift.cli:main"
    assert ours["lift-simulate"] == "lift_simulation.cli:main"


def test_data_files_are_found_as_resources() -> None:
    assert (files("lift_simulation") / "demo.yaml").is_file()
    assert (files("lift.report") / "report.css").is_file()
    for name in list_builtin():
        for part in ("generator.json", "weights.safetensors"):
            assert (files("lift.generator") / "bundles" / name / part).is_file()


def test_no_module_of_the_package_prints_or_evaluates() -> None:
    for package in ("lift", "server", "client", "deploy"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                    assert node.func.id not in {"print", "eval", "exec"}, _name(path)
