"""Runs with patient-level privacy from the command to the ledger: cost, refusal, what leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from lift.config.cohort import BratsData
from lift.config.simulation import SimulationConfig
from lift.config.site import BudgetSettings, SiteSettings
from lift.generator.bundle import load_bundle
from lift.protocol.messages import (
    Failure,
    FailureKind,
    GuardRequest,
    Kind,
    Parcel,
    StatisticsRequest,
)
from lift_client.gate.cohort_ledger import begin
from lift_client.gate.ledger import verify
from lift_client.session import SiteSession
from tests.end_to_end.tiny_run import DROP, PATIENTS, TinyRun, check_refusal, run_here

DELTA = 1e-4
LOCAL: dict[str, object] = {
    "mode": "patient-local",
    "delta": DELTA,
    "public_patients": 4,
    "clip_norm": 0.05,
    "noise_multiplier": 4.0,
    "sampling_rate": 0.5,
    "start": {"noise_multiplier": 4.0, "clip_norm": 0.1},
}
CENTRAL = {**LOCAL, "mode": "patient-central"}
DRY_EPSILON_DIGITS = 1e-4


def _sites(tiny: TinyRun, epsilon: float | None) -> list[dict[str, object]]:
    budget = {} if epsilon is None else {"budget": {"epsilon": epsilon, "delta": DELTA}}
    return [
        {"name": site, "data": {"layout": "brats", "root": str(tiny.site(site))}, **budget}
        for site in PATIENTS
    ]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_local_run_costs_what_the_dry_run_said_and_tells_nothing_else(tiny: TinyRun) -> None:
    changes: dict[str, object] = {
        "plan__privacy": LOCAL,
        "plan__federation__rounds": 2,
        "sites": _sites(tiny, 20.0),
    }
    config = tiny.settings("local", **changes)
    dry = run_here("lift-simulate", "--config", config, "--dry-run", "--epsilon", "1")
    assert dry.code == 0, dry
    planned = json.loads(dry.stdout)["privacy"]
    assert planned["epsilon_of_a_patient_in_two_hospitals"] > planned["epsilon"]
    assert planned["noise_multiplier_for"]["noise_multiplier"] > LOCAL["noise_multiplier"]
    done = tiny.simulate("local", **changes)
    assert done.code == 0, done
    assert "patient-local" in done.stderr
    out = tiny.folder / "local"
    report = (out / "report.html").read_text(encoding="utf-8")
    assert f"epsilon {planned['epsilon']} at delta {DELTA}" in report
    seen = planned["epsilon_where_times_are_seen"]
    assert seen > planned["epsilon"]
    assert "for observers of answer times" in report
    assert f"{seen:.4f}" in report
    assert "may infer who took part" in report
    twice = planned["epsilon_of_a_patient_in_two_hospitals"]
    assert f"for a patient in two hospitals {twice}" in report
    for site in PATIENTS:
        book = verify(out / "ledgers" / site / "ledger.jsonl")
        assert book.epsilon() == pytest.approx(planned["epsilon"], abs=DRY_EPSILON_DIGITS)
        assert {book.state(seq) for seq in book.reservations} == {"sent"}
        assert [(r.purpose, r.round, r.count) for r in book.reservations.values()] == [
            ("start", 0, 1),
            ("steps", 1, 2),
            ("steps", 2, 2),
        ]
    rounds = _lines(out / "rounds.jsonl")
    for site, reply in rounds[0]["statistics"].items():
        assert reply["train_patients"] == LOCAL["public_patients"], site
        assert reply["lowest_slice_spacing_mm"] is reply["highest_slice_spacing_mm"] is None
        assert reply["validation_patients"] == reply["test_patients"] == 0
        assert reply["refused_volumes"] == 0
    for record in rounds[1:]:
        assert set(record["loss"].values()) == set(record["validation_psnr_db"].values()) == {None}
    assert rounds[0]["epsilon"] < rounds[1]["epsilon"] < rounds[2]["epsilon"]
    assert rounds[2]["epsilon"] <= planned["epsilon"]
    run = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert run["privacy"]["epsilon"] == planned["epsilon"]
    assert run["guard"] == {}


def test_a_run_beyond_the_budget_is_refused_before_a_volume_is_read(tiny: TinyRun) -> None:
    done = tiny.simulate("beyond", plan__privacy=LOCAL, sites=_sites(tiny, 0.5))
    text = check_refusal(done, 5, names=["privacy budget", "0.5"])
    assert "epsilon would be" in text
    out = tiny.folder / "beyond"
    assert not (out / "cache").exists()
    assert not list(out.rglob("split.json"))
    assert not (out / "rounds.jsonl").exists()
    for site in PATIENTS:
        assert verify(out / "ledgers" / site / "ledger.jsonl").epsilon() == 0


def test_two_runs_of_the_same_settings_have_different_noise(tiny: TinyRun) -> None:
    mixers = []
    for name in ("first", "second"):
        done = tiny.simulate(name, plan__privacy=LOCAL, sites=_sites(tiny, None))
        assert done.code == 0, done
        mixers.append((tiny.folder / name / "mixer.safetensors").read_bytes())
    first, second = (safetensors.numpy.load(content) for content in mixers)
    assert all((first[name] != second[name]).any() for name in first if "mixer" in name)


def test_the_server_adds_the_noise_in_lockstep(tiny: TinyRun) -> None:
    done = tiny.simulate(
        "central",
        plan__privacy=CENTRAL,
        plan__training__steps=1,
        plan__federation__rounds=3,
        plan__aggregation={"optimiser": "adam", "learning_rate": 0.01},
        sites=_sites(tiny, 20.0),
    )
    assert done.code == 0, done
    rounds = _lines(tiny.folder / "central" / "rounds.jsonl")
    assert len(rounds) == 4
    assert sum(rounds[1]["counted"].values()) == pytest.approx(1)


def test_lockstep_refuses_more_than_one_step_a_round(tiny: TinyRun) -> None:
    done = tiny.simulate("steps", plan__privacy=CENTRAL)
    check_refusal(done, 2, names=["one step a round"])


def test_a_plan_without_a_privacy_section_is_an_error(tiny: TinyRun) -> None:
    done = tiny.simulate("missing", plan__privacy=DROP)
    check_refusal(done, 2, names=["privacy"])


def test_site_level_noise_needs_many_sites(tiny: TinyRun) -> None:
    section = {"mode": "site", "delta": DELTA, "clip_norm": 0.1, "noise_multiplier": 1.0}
    check_refusal(tiny.simulate("few", plan__privacy=section), 5, names=["100", "forced"])
    done = tiny.simulate("forced", plan__privacy={**section, "forced": True})
    assert done.code == 0, done


def test_no_patient_name_stands_in_a_ledger(tiny: TinyRun) -> None:
    done = tiny.simulate("names", plan__privacy=LOCAL, sites=_sites(tiny, 20.0))
    assert done.code == 0, done
    for path in (tiny.folder / "names" / "ledgers").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"BraTS-TST" not in content
            assert str(tiny.folder).encode() not in content


def test_budget_settings_are_strict() -> None:
    with pytest.raises(ValueError, match="epsilon"):
        BudgetSettings(epsilon=-1, delta=DELTA)
    assert SiteSettings.model_fields["budget"].default is None


def test_a_verdict_on_private_patients_is_refused(tiny: TinyRun, tmp_path: Path) -> None:
    config = SimulationConfig.from_yaml(tiny.settings("verdict", plan__privacy=LOCAL))
    generator = load_bundle(tiny.bundle, expected_fingerprint=None, device=torch.device("cpu"))
    plan = config.plan.model_copy(update={"generator_fingerprint": generator.fingerprint})
    site = next(iter(PATIENTS))
    settings = SiteSettings(
        name=site,
        data=BratsData(root=tiny.site(site)),
        budget=BudgetSettings(epsilon=20, delta=DELTA, mark=tmp_path / "mark.json"),
        device="cpu",
    )
    begin(settings, tmp_path)
    session = SiteSession(settings, generator, tmp_path)
    first = session.handle(Parcel(Kind.STATISTICS, StatisticsRequest(plan=plan)))
    assert isinstance(first, Parcel)
    asked = Parcel(
        Kind.GUARD,
        GuardRequest(plan_digest=plan.digest()),
        {"z_filter/taps": np.zeros(6)},
    )
    assert session.handle(asked) == Failure(FailureKind.POLICY)
    session.close()


def test_clip_norms_are_measured_on_phantoms_and_on_nobody_else(tiny: TinyRun) -> None:
    config = tiny.settings("norms", plan__privacy=LOCAL)
    refused = run_here("lift-simulate", "--config", config, "--clip-norms")
    check_refusal(refused, 2, names=["phantom", "ledger"])
    plain = tiny.settings("plain")
    check_refusal(
        run_here("lift-simulate", "--config", plain, "--clip-norms"), 2, names=["privacy.mode"]
    )


def test_clip_norms_of_phantoms(tiny: TinyRun) -> None:
    channels = ["t1n", "t1c", "t2w", "t2f"]
    config = tiny.settings(
        "phantoms",
        generator={"builtin": "phantom-t1n-t1c-t2w-t2f"},
        sites=[
            {
                "name": "north",
                "data": {
                    "layout": "phantom",
                    "scanner": "north",
                    "in_plane_mm": 4.0,
                    "patients": 4,
                    "seed": 5,
                    "channels": channels,
                    "target": "t2f",
                },
            }
        ],
        plan__task={"source": channels[:3], "target": "t2f"},
        plan__privacy=LOCAL,
    )
    out = tiny.folder / "clip"
    done = run_here("lift-simulate", "--config", config, "--clip-norms", "--output", out)
    assert done.code == 0, done
    found = json.loads(done.stdout)
    assert found["phantom"]
    assert set(found["gradients"]) == {"start", "round 1"}
    for quantiles in [*found["gradients"].values(), found["equations"]]:
        assert 0 < quantiles["25%"] <= quantiles["50%"] <= quantiles["95%"]
    assert found["suggested"]["clip_norm"] > 0
    # it is a measurement, not a run
    assert not (out / "rounds.jsonl").exists()
