"""New volumes by the real commands: pretrain, simulate, resume, generate; and what is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from lift.report.terms import GENERATED_METHODS, GENERATED_METRICS
from lift_client.enrolment import enrol
from lift_client.gate.ledger import verify
from tests import wording
from tests.end_to_end.tiny_run import changed, check_refusal, run_here
from tests.lift.event_files import read_events
from tests.lift.tracking_world import expected, rounded
from tests.lift.unconditional.tiny_decoder import (
    CHANNEL,
    pca_data,
    plan_data,
    pretrain_data,
    write_bodies,
    write_settings,
)

SITES = {"east": 22, "west": 28}
NOISE = {"mode": "stats-once", "delta": 1e-4, "public_patients": 6, "noise_multiplier": 0.8}
TIED = {"positions": 6, "axes": 3, "tied": True, "tail": False}
JUDGED = 20
"""Generated volumes, of as many held-out ones at least: so few a classifier is asked about."""


@dataclass(frozen=True)
class World:
    """Two sites' volumes, a decoder, and settings of a simulation."""

    folder: Path
    bundle: Path

    def settings(self, name: str, **changes: object) -> Path:
        data: dict[str, object] = {
            "name": "tiny",
            "data_statement": "Random ellipsoids made by a test; no patient was scanned.",
            # random ellipsoids are no pair for the image checks
            "image_checks": False,
            "generator": {"bundle": str(self.bundle)},
            "sites": [
                {"name": site, "data": {"layout": "brats", "root": str(self.folder / site)}}
                for site in SITES
            ],
            "plan": plan_data(
                split={"train": 0.6, "validation": 0.0},
                unconditional__trajectory="gaussian",
                unconditional__gaussian={"positions": 6, "axes": 3},
            ),
            "compare": ["local_only", "centralised", "federated_samples"],
            "device": "cpu",
            "generated_volumes": 10,
            "written_volumes": 2,
        }
        return write_settings(self.folder / f"{name}.yaml", changed(data, changes))


@pytest.fixture(scope="module")
def world(decoder_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("unconditional")
    for number, (site, patients) in enumerate(SITES.items()):
        write_bodies(folder / site, 40 + number, patients)
    return World(folder, decoder_bundle)


@pytest.fixture(scope="module")
def finished(world: World) -> Path:
    out = world.folder / "out"
    done = run_here(
        "lift-simulate",
        "--config",
        world.settings("whole", generated_volumes=JUDGED),
        "--output",
        out,
    )
    assert done.code == 0, done
    return out


def wanted_metrics(row: str) -> set[str]:
    """Real volumes have no figures of how near they are to themselves."""
    of_training = {"nearest_distance", "near_copies"}
    if row == "held_out":
        return of_training
    return set(GENERATED_METRICS) - (
        {"nearest_ratio", *of_training} if row == "real_train" else set()
    )


def test_a_run_leaves_every_row_with_its_figures(finished: Path) -> None:
    metrics = json.loads((finished / "metrics.json").read_text())
    rows = {name.partition(":")[0] for name in metrics["pooled"]}
    assert rows == set(GENERATED_METHODS) - {"untrained"}
    assert {f"local_only:{site}" for site in SITES} <= set(metrics["pooled"])
    for name, figures in metrics["pooled"].items():
        assert set(figures) == wanted_metrics(name), name
        assert all(np.isfinite(figure["value"]) for figure in figures.values())
    assert set(metrics["sites"]) == set(SITES)
    assert metrics["field_of_view"] == {"slices": 12, "slice_spacing_mm": 3.0}
    spectra = metrics["spectra"]
    assert set(spectra["power_db"]) == set(metrics["pooled"])
    assert spectra["cycles_per_mm"][-1] == pytest.approx(1 / 6)
    run = json.loads((finished / "run.json").read_text())
    assert run["complete"]
    assert run["mixer"]["kind"] == "trajectory_mapper"
    assert 0 < run["statistics_bytes"] <= 200_000
    assert set(run["guard"]) == set(SITES)
    assert sum(run["said"].values()) == len(SITES)
    assert run["shipped"] in {"gaussian", "mapper"}
    lines = [json.loads(line) for line in (finished / "rounds.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["statistics", "train", "train", "guard"]
    assert lines[-1]["shipped"] == run["shipped"]


def test_the_event_file_holds_the_rounds_of_the_plans_federation_alone(finished: Path) -> None:
    events = read_events(finished / "tensorboard")
    rounds = rounded(expected(finished / "rounds.jsonl"))
    assert {tag: v for tag, v in events.scalars.items() if not tag.startswith("pooled/")} == rounds
    pooled = json.loads((finished / "metrics.json").read_text())["pooled"]
    last = max(rounds["round/seconds"])
    for method in ("federated", "local_only:east"):
        value = pooled[method]["frechet_coronal"]["value"]
        logged = events.scalars[f"pooled/{method}/frechet_coronal"]
        assert logged == {last: float(np.float32(value))}


def test_real_volumes_are_nearer_to_real_ones_than_noise_is(finished: Path) -> None:
    pooled = json.loads((finished / "metrics.json").read_text())["pooled"]
    for metric in ("frechet_coronal", "frechet_sagittal", "mmd_coronal"):
        real, noise = (pooled[row][metric]["value"] for row in ("real_train", "independent_slices"))
        assert real < noise
    assert pooled["independent_slices"]["tpr"]["value"] > 1.5
    for metric in ("auc_content", "auc_texture"):
        assert pooled["real_train"][metric]["low"] < 0.5
        assert pooled["independent_slices"][metric]["value"] > 0.9
    real, noise = (
        pooled[row]["spectrum_z"]["value"] for row in ("real_train", "independent_slices")
    )
    assert real < noise


def test_the_report_shows_the_volumes_and_names_the_aims(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    for word in (
        "Aims",
        "AUC content",
        "power spectra along depth",
        "one field of view",
        "independent slices",
        "federated, statistics",
        "local only, east",
        "ships",
    ):
        assert word in page
    run = json.loads((finished / "run.json").read_text())
    what = {"gaussian": "The Gaussian ships, without", "mapper": "The mapper ships, on top"}
    assert what.pop(run["shipped"]) in page
    assert not any(other in page for other in what.values())
    samples = sorted((finished / "synthesis" / "generated").glob("*.nii.gz"))
    assert len(samples) == 2
    image = nib.load(samples[0])
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    assert float(np.asarray(image.dataobj).std()) > 0


def test_a_finished_run_is_left_alone_and_an_interrupted_one_ends_with_the_same_mixer(
    finished: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = world.settings("whole", generated_volumes=JUDGED)
    again = run_here("lift-simulate", "--config", config, "--output", finished)
    assert again.code == 0
    assert wording.ALREADY_COMPLETE in again.stderr
    out = world.folder / "killed"

    from lift_server.rounds.store import RunStore

    save = RunStore.save

    def killed(self: RunStore, round_index: int, *rest: object) -> None:
        save(self, round_index, *rest)  # type: ignore[arg-type]
        if round_index == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "save", killed)
        assert run_here("lift-simulate", "--config", config, "--output", out).code != 0
    assert run_here("lift-simulate", "--config", config, "--output", out).code == 0
    for name in ("mixer.safetensors", "metrics.json", "rounds.jsonl"):
        if name == "rounds.jsonl":
            continue  # seconds differ
        assert (out / name).read_bytes() == (finished / name).read_bytes()


def test_generate_makes_files_from_a_runs_folder(
    finished: Path, world: World, tmp_path: Path
) -> None:
    done = run_here(
        "lift", "generate", "--mixer", finished, "--generator", world.bundle,
        "-n", "2", "--seed", "3", "-o", tmp_path / "new",
    )  # fmt: skip
    assert done.code == 0, done
    paths = [Path(line) for line in done.stdout.splitlines()]
    assert [path.name for path in paths] == ["volume-0000.nii.gz", "volume-0001.nii.gz"]
    assert nib.load(paths[0]).shape == (16, 24, 12)


def test_generate_and_translate_refuse_each_others_mixers(
    finished: Path, world: World, tmp_path: Path
) -> None:
    refused = run_here(
        "lift", "translate", tmp_path / "x.nii.gz", "--mixer", finished,
        "--generator", world.bundle, "-o", tmp_path / "y.nii.gz",
    )  # fmt: skip
    check_refusal(refused, 2, names=["task is unconditional", "lift generate"])
    missing = run_here("lift", "generate", "--mixer", tmp_path, "-o", tmp_path / "new")
    assert missing.code != 0
    assert "mixer.safetensors" in missing.stderr


def test_too_few_slices_are_refused_by_name_and_the_rest_goes_on(
    world: World, tmp_path: Path
) -> None:
    site = write_bodies(tmp_path / "east", 50, 9)
    victim = sorted(site.glob("*"))[0]
    path = next(victim.glob("*.nii.gz"))
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[:, :, 5:7], image.affine), path)
    data = [
        {"name": "east", "data": {"layout": "brats", "root": str(site)}},
        {"name": "west", "data": {"layout": "brats", "root": str(world.folder / "west")}},
    ]
    config = world.settings("thin", sites=data, compare=[], plan__federation__rounds=1)
    done = run_here("lift-simulate", "--config", config, "--output", tmp_path / "out")
    assert done.code == 0, done
    assert victim.name in done.stderr
    assert wording.SLICES_ALONG_DEPTH in done.stderr


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"plan__mixer__kind": "zrefine"}, ["trajectory_mapper"]),
        ({"plan__task": {"source": ["t2w"], "target": CHANNEL}}, ["unconditional"]),
        ({"plan__task": {"kind": "unconditional", "source": ["t2w"], "target": CHANNEL}},
         ["no source"]),
        ({"plan__unconditional__loss": "hybrid", "plan__unconditional__attraction": "samples"},
         ["samples"]),
        ({"plan__unconditional__projection_digest": "0" * 64}, ["another public projection"]),
        ({"plan__task__target": "t2w"}, ["the bundle makes t1n from nothing"]),
        ({"plan__privacy": NOISE}, ["tied: true"]),
        ({"leave_one_out": True}, ["paired tasks"]),
        ({"pretrain": pretrain_data(Path("x"))}, ["exactly one of generator and pretrain"]),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_each_other_are_refused(
    world: World, tmp_path: Path, changes: dict[str, object], words: list[str]
) -> None:
    config = world.settings("bad", **changes)
    done = run_here("lift-simulate", "--config", config, "--output", tmp_path / "out")
    check_refusal(done, 2, names=words)


def test_one_patient_cannot_be_compared_and_says_so(world: World, tmp_path: Path) -> None:
    site = write_bodies(tmp_path / "east", 50, 1)
    data = [{"name": "east", "data": {"layout": "brats", "root": str(site)}}]
    config = world.settings("lonely", sites=data, compare=[])
    done = run_here("lift-simulate", "--config", config, "--output", tmp_path / "out")
    check_refusal(done, 3, names=["no site has 5 training patients"])


@pytest.mark.parametrize("rounds", [0, 2])
def test_noisy_statistics_are_paid_once_and_every_round_after_them_is_free(
    world: World, rounds: int
) -> None:
    config = world.settings(
        f"noisy-{rounds}",
        plan__privacy=NOISE,
        plan__unconditional__gaussian=TIED,
        plan__federation__rounds=rounds,
    )
    out = world.folder / f"noisy-{rounds}"
    done = run_here("lift-simulate", "--config", config, "--output", out)
    assert done.code == 0, done
    run = json.loads((out / "run.json").read_text())
    assert run.get("shipped") == ("gaussian" if rounds else None)
    for text in (done.stderr.replace("\n", " "), (out / "report.html").read_text()):
        assert ("protects patients by noise" in text) == bool(rounds)
    planned = run["privacy"]
    assert planned["mode"] == "stats-once"
    for site in SITES:
        book = verify(out / "ledgers" / site / "ledger.jsonl")
        assert [item.purpose for item in book.reservations.values()] == ["statistics"]
        assert book.epsilon() <= planned["epsilon"] < book.epsilon() + 1e-3
    records = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    assert len(records) == rounds + 1
    assert {record["epsilon"] for record in records} == {records[0]["epsilon"]}
    replies = records[0]["statistics"].values()
    assert {reply["train_patients"] for reply in replies} == {6}
    pooled = json.loads((out / "metrics.json").read_text())["pooled"]
    figures = pooled["federated" if rounds else "gaussian"]
    assert all(np.isfinite(figure["value"]) for figure in figures.values())


def test_pretrain_and_dry_run_by_the_command_line(world: World, tmp_path: Path) -> None:
    public = world.bundle.parent / "public"
    settings = write_settings(tmp_path / "p.yaml", pretrain_data(public, steps=3))
    done = run_here("lift", "pretrain", "--config", settings, "-o", tmp_path / "bundle")
    assert done.code == 0, done
    assert "fingerprint" in done.stdout
    config = world.settings("dry", generator={"bundle": str(tmp_path / "bundle")})
    dry = run_here("lift-simulate", "--config", config, "--dry-run")
    assert dry.code == 0, dry
    planned = json.loads(dry.stdout)
    assert planned["mixer_parameters"] > 100
    assert len(planned["plan"]["unconditional"]["projection_digest"]) == 64
    strict = pretrain_data(public, steps=3, allow_weaker_than_pca=False)
    settings = write_settings(tmp_path / "p.yaml", strict)
    refused = run_here("lift", "pretrain", "--config", settings, "-o", tmp_path / "strict")
    check_refusal(refused, 3, names=["network", "a PCA with as many latents"])
    assert not (tmp_path / "strict").exists()


def test_a_run_makes_its_pca_decoder_first_and_draws_within_its_ceiling(
    world: World, tmp_path: Path
) -> None:
    public = world.bundle.parent / "public"
    config = world.settings("pca", generator=None, pretrain=pca_data(public), compare=[])
    out = tmp_path / "out"
    done = run_here("lift-simulate", "--config", config, "--output", out)
    assert done.code == 0, done
    network = json.loads((out / "run.json").read_text())["generator"]["network"]
    assert (network["name"], network["axes"]) == ("pca", 4)
    pooled = json.loads((out / "metrics.json").read_text())["pooled"]
    for plane in ("coronal", "sagittal"):
        real, nearest, noise = (
            pooled[row][f"frechet_{plane}"]["value"]
            for row in ("real_train", "reconstruction", "independent_slices")
        )
        assert real < nearest < noise


def test_a_site_searches_generated_volumes_for_copies(
    world: World, finished: Path, tmp_path: Path
) -> None:
    site = enrol(tmp_path / "site", "west").settings
    data: dict[str, object] = {
        "name": "west",
        "data": {"layout": "brats", "root": str(world.folder / "west")},
        "generator": {"bundle": str(world.bundle)},
        "device": "cpu",
        "policy": {"privacy_modes": ["none"], "image_checks": False},
    }
    write_settings(site, data)
    out = tmp_path / "audit.json"
    words = ("--site", site, "-o", out, "--generated", "8")
    done = run_here("lift", "audit", "patients", finished, *words)
    assert done.code == 0, done
    assert "chance" in done.stdout
    audit = json.loads(out.read_text(encoding="utf-8"))["audit"]
    assert audit["kind"] == "copies"
    assert set(audit["attacks"]) == {"nearest_generated"}
    assert audit["copies"]["generated"] == 8
    refused = run_here("lift", "audit", "training", finished, "--generator", str(world.bundle))
    check_refusal(refused, 2, names=["privacy.mode"])
