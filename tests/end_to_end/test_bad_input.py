"""Bad input through the real commands: refused by name, in four parts, and nothing is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from lift.config.generator import PretrainConfig
from lift.config.simulation import SimulationConfig
from tests.end_to_end.tiny_run import (
    DROP,
    PATIENTS,
    SHAPE,
    SOURCES,
    TARGET,
    Outcome,
    TinyRun,
    bytes_under,
    check_refusal,
    flip_byte,
    make_bundle,
    make_patient,
    patient_name,
    pretrain_settings,
    run_here,
    run_outside,
    write_nifti,
)

Damage = Callable[[Path], None]


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def four_dimensional(path: Path) -> None:
    write_nifti(path, np.arange(2 * np.prod(SHAPE)).reshape(*SHAPE, 2))


def not_finite(path: Path) -> None:
    voxels = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    voxels[3, 4, 5] = np.nan
    write_nifti(path, voxels, dtype=np.float32)


def other_shape(path: Path) -> None:
    write_nifti(path, np.arange(np.prod(SHAPE)).reshape(SHAPE)[:, :, :-1])


def other_grid(path: Path) -> None:
    write_nifti(path, np.arange(np.prod(SHAPE)).reshape(SHAPE), shift_mm=1.5)


def constant(path: Path) -> None:
    write_nifti(path, np.full(SHAPE, 7))


def not_an_image(path: Path) -> None:
    path.write_text("a letter of referral", encoding="utf-8")


# what is done to a file, and a word that the message must hold
DAMAGES: dict[str, tuple[Damage, str]] = {
    "truncated": (truncate, "ends early"),
    "empty": (empty, "empty"),
    "4d": (four_dimensional, "3D"),
    "nan": (not_finite, "NaN"),
    "shape": (other_shape, "(32, 40, 11)"),
    "grid": (other_grid, "1.500 mm"),
    "constant": (constant, "7"),
    "text": (not_an_image, "damaged"),
}
kinds = pytest.mark.parametrize("kind", DAMAGES)


@pytest.fixture(scope="module")
def good_run(tiny: TinyRun) -> Path:
    done = tiny.simulate("good", synthesis_patients=0)
    assert done.code == 0, done
    return tiny.folder / "good"


def test_a_bad_patient_of_each_kind_is_refused_by_name_and_changes_nothing_else(
    own: TinyRun, good_run: Path
) -> None:
    bad = {}
    for index, (kind, (damage, _)) in enumerate(DAMAGES.items(), start=20):
        for channel, voxels in make_patient(np.random.default_rng(index)).items():
            write_nifti(own.file("east", index, channel), voxels)
        bad[kind] = own.file("east", index, SOURCES[1])
        damage(bad[kind])
    before = bytes_under(own.folder / "data")

    done = own.simulate("out", synthesis_patients=0)

    assert done.code == 0, done
    assert "Traceback" not in done.stderr
    log = (own.folder / "out" / "log.txt").read_text(encoding="utf-8")
    for kind, path in bad.items():
        name = f"{path.parent.name}/{path.name}"
        assert DAMAGES[kind][1] in _refusal_of(name, done.stderr), kind
        assert any("event=patient_refused site=east" in s and name in s for s in log.splitlines())
    run = json.loads((own.folder / "out" / "run.json").read_text())
    assert [site["refused"] for site in run["sites"]] == [len(bad), 0]
    rounds = (own.folder / "out" / "rounds.jsonl").read_text().splitlines()
    assert json.loads(rounds[0])["statistics"]["east"]["refused_volumes"] == len(bad)
    for result in ("mixer.safetensors", "metrics.json"):
        assert (own.folder / "out" / result).read_bytes() == (good_run / result).read_bytes()
    assert bytes_under(own.folder / "data") == before


@kinds
def test_on_bad_file_stop_ends_the_simulation_with_the_files_name(own: TinyRun, kind: str) -> None:
    damage, word = DAMAGES[kind]
    path = own.file("west", 1, SOURCES[1])
    damage(path)
    sites = [
        {"name": site, "data": {"layout": "brats", "root": str(own.site(site))}}
        for site in PATIENTS
    ]
    sites[1]["data"] = {"layout": "brats", "root": str(own.site("west")), "on_bad_file": "stop"}
    before = bytes_under(own.folder / "data")

    done = own.simulate("out", sites=sites)

    check_refusal(done, 3, names=[f"{path.parent.name}/{path.name}", word])
    assert not (own.folder / "out" / "mixer.safetensors").exists()
    assert bytes_under(own.folder / "data") == before


def test_a_missing_channel_is_refused_by_name(own: TinyRun, good_run: Path) -> None:
    lonely = own.file("east", 9, SOURCES[0])
    lonely.parent.mkdir()
    shutil.copy(own.file("east", 0, SOURCES[0]), lonely)
    done = own.simulate("out", synthesis_patients=0)
    assert done.code == 0, done
    message = _refusal_of(patient_name(9), done.stderr)
    assert f"missing: {SOURCES[1]}, {TARGET}" in message
    mixer = (own.folder / "out" / "mixer.safetensors").read_bytes()
    assert mixer == (good_run / "mixer.safetensors").read_bytes()


def test_a_site_without_one_usable_patient_stops_the_run(own: TinyRun) -> None:
    for index in range(PATIENTS["west"]):
        empty(own.file("west", index, TARGET))
    message = check_refusal(own.simulate("out"), 3, names=["no patient can be used", "5 refused"])
    assert f"{patient_name(0)}-{TARGET}.nii.gz" in message


def test_a_typo_in_any_key_of_a_simulation_is_named_with_the_right_key(tiny: TinyRun) -> None:
    data = _simulation_with_every_key(tiny)
    tried = 0
    for path, wrong, broken in _typos(data, free=("normalisation", "budget_s")):
        config = tiny.folder / "typo.yaml"
        config.write_text(yaml.safe_dump(broken), encoding="utf-8")
        done = run_here("lift-simulate", "--config", config, "--output", tiny.folder / "typo")
        message = check_refusal(done, 2, names=[str(config)])
        _check_suggestion(message, path, wrong)
        tried += 1
    assert tried > 100
    assert not (tiny.folder / "typo").exists()


def test_a_typo_in_any_key_of_pretraining_is_named_with_the_right_key(tiny: TinyRun) -> None:
    raw = yaml.safe_load(pretrain_settings(tiny).read_text())
    data = PretrainConfig.from_data(raw, "raw").model_dump(mode="json")
    tried = 0
    for path, wrong, broken in _typos(data, free=("normalisation",)):
        config = tiny.folder / "typo.yaml"
        config.write_text(yaml.safe_dump(broken), encoding="utf-8")
        done = run_here("lift", "pretrain", "--config", config, "-o", tiny.folder / "typo")
        message = check_refusal(done, 2, names=[str(config)])
        _check_suggestion(message, path, wrong)
        tried += 1
    assert tried > 20
    assert not (tiny.folder / "typo").exists()


def test_a_typo_stops_the_installed_command(tiny: TinyRun) -> None:
    config = tiny.settings("outside", plan__training__step=4)
    done = run_outside("lift-simulate", "--config", config, "--output", tiny.folder / "outside")
    check_refusal(done, 2, names=["plan.training.step: unknown key; did you mean 'steps'?"])
    assert done.stdout == ""


def test_privacy_has_no_silent_default(tiny: TinyRun) -> None:
    done = tiny.simulate("private", plan__privacy=DROP)
    check_refusal(done, 2, names=["plan.privacy: missing; this key is required"])
    done = tiny.simulate("private", plan__privacy={})
    check_refusal(done, 2, names=["plan.privacy: the key 'mode' is missing"])


def test_a_key_given_twice_is_refused(tiny: TinyRun) -> None:
    config = tiny.settings("twice")
    config.write_text(config.read_text() + "device: cpu\n", encoding="utf-8")
    check_refusal(run_here("lift-simulate", "--config", config), 2, names=["device", "twice"])


def test_a_missing_or_unreadable_settings_file_is_a_config_error(tiny: TinyRun) -> None:
    missing = tiny.folder / "nowhere.yaml"
    for command in (["lift-simulate"], ["lift", "pretrain", "-o", tiny.folder / "b"]):
        program, *rest = map(str, command)
        done = run_here(program, *rest, "--config", missing)
        check_refusal(done, 2, names=[str(missing), "No such file"])
    missing.write_bytes(b"\xff\xfe\x00settings")
    check_refusal(run_here("lift-simulate", "--config", missing), 2, names=["UTF-8"])
    missing.unlink()


def test_another_generator_than_the_plans_is_refused(own: TinyRun) -> None:
    fingerprint = json.loads((own.bundle / "generator.json").read_text())["fingerprint"]
    make_bundle(own.bundle)
    before = bytes_under(own.bundle)
    done = own.simulate("out", plan__generator_fingerprint=fingerprint)
    check_refusal(done, 3, names=["fingerprint", fingerprint[:16]])
    assert bytes_under(own.bundle) == before


def test_damaged_generator_weights_are_refused(own: TinyRun) -> None:
    weights = own.bundle / "weights.safetensors"
    whole = weights.read_bytes()
    truncate(weights)
    check_refusal(own.simulate("out"), 3, names=["weights.safetensors", "truncated"])
    weights.write_bytes(whole)
    flip_byte(weights, len(whole) - 2)
    check_refusal(own.simulate("out"), 3, names=["fingerprint"])


def test_an_unknown_builtin_generator_names_those_that_exist(tiny: TinyRun) -> None:
    done = tiny.simulate("builtin", generator={"builtin": "phantom-t1n-t1c-t2w-t2"})
    check_refusal(done, 3, names=["'phantom-t1n-t1c-t2w-t2'", "phantom-t1n-t1c-t2w-t2f"])


def test_a_bundle_for_another_task_is_refused(tiny: TinyRun) -> None:
    done = tiny.simulate("task", plan__task={"source": list(SOURCES[::-1]), "target": TARGET})
    check_refusal(done, 2, names=["t2w, t1n"])


def test_the_folder_of_another_run_is_left_as_it_is(own: TinyRun, good_run: Path) -> None:
    out = own.folder / "out"
    shutil.copytree(good_run, out)
    before = bytes_under(out)
    done = own.simulate("out", plan__seed=4)
    check_refusal(done, 3, names=["other settings", str(out)])
    assert bytes_under(out) == before
    truncate(out / "run.json")
    before = bytes_under(out)
    check_refusal(own.simulate("out"), 3, names=["run.json"])
    assert bytes_under(out) == before


def test_an_output_folder_that_is_a_file_is_refused_and_kept(own: TinyRun) -> None:
    out = own.folder / "out"
    out.write_text("my notes", encoding="utf-8")
    check_refusal(own.simulate("out"), 3, names=[str(out)])
    assert out.read_text() == "my notes"


def test_leaving_one_out_of_one_patient_is_refused(own: TinyRun) -> None:
    for index in range(1, PATIENTS["east"]):
        shutil.rmtree(own.patient("east", index))
    only = [{"name": "east", "data": {"layout": "brats", "root": str(own.site("east"))}}]
    done = own.simulate("out", sites=only, leave_one_out=True)
    check_refusal(done, 2, names=["leave_one_out needs at least 2 patients", "1 patients"])


def test_a_held_out_patient_that_nobody_has_is_refused_by_name(tiny: TinyRun) -> None:
    here = f"east/{patient_name(0)}"
    typo = tiny.simulate("typo", plan__split={"held_out": [here, "east/BraTS-TST-0000-000"]})
    message = check_refusal(typo, 3, names=["east/BraTS-TST-0000-000 (1 of 2 names)", "held_out"])
    assert here not in message
    assert not (tiny.folder / "typo" / "metrics.json").exists()
    stranger = tiny.simulate("stranger", plan__split={"held_out": [here, "south/x"]})
    check_refusal(stranger, 2, names=["south/x", "SITE/PATIENT"])


@pytest.mark.parametrize("damage", [truncate, empty, not_an_image], ids=lambda d: d.__name__)
def test_a_damaged_mixer_is_refused_and_the_earlier_result_stays(
    own: TinyRun, good_run: Path, damage: Damage
) -> None:
    mixer = own.folder / "mixer.safetensors"
    shutil.copy(good_run / "mixer.safetensors", mixer)
    result = own.folder / "result.nii.gz"
    assert _translate(own, mixer, result).code == 0
    kept = result.read_bytes()
    damage(mixer)
    check_refusal(_translate(own, mixer, result), 3, names=["mixer.safetensors"])
    assert result.read_bytes() == kept


@kinds
def test_translate_refuses_a_bad_volume_and_the_earlier_result_stays(
    own: TinyRun, good_run: Path, kind: str
) -> None:
    damage, word = DAMAGES[kind]
    result = own.folder / "result.nii.gz"
    result.write_bytes(b"the result of last week")
    path = own.file("east", 0, SOURCES[1])
    damage(path)
    done = _translate(own, good_run, result)
    check_refusal(done, 3, names=[path.name, word])
    assert result.read_bytes() == b"the result of last week"


def test_translate_refuses_inputs_that_do_not_fit_the_mixer(tiny: TinyRun, good_run: Path) -> None:
    result = tiny.folder / "misfit.nii.gz"
    volume = tiny.file("east", 0, SOURCES[0])
    common = ("--mixer", good_run, "--generator", tiny.bundle, "-o", result)
    done = run_here("lift", "translate", f"t1n={volume}", *common)
    check_refusal(done, 2, names=["given: t1n; needed: t1n, t2w"])
    done = run_here("lift", "translate", f"t1n={volume}", f"t2={volume}", *common)
    check_refusal(done, 2, names=["given: t1n, t2; needed: t1n, t2w"])
    done = run_here("lift", "translate", f"t1n={volume}", volume, *common)
    check_refusal(done, 2, names=[f"given: t1n, {volume.name}; needed: t1n, t2w"])
    other = tiny.folder / "other-bundle"
    make_bundle(other)
    done = run_here(
        "lift", "translate", volume, volume, "--mixer", good_run, "--generator", other, "-o", result
    )
    check_refusal(done, 3, names=["fingerprint"])
    assert not result.exists()


def test_the_installed_translate_refuses_without_a_traceback(tiny: TinyRun) -> None:
    result = tiny.folder / "outside.nii.gz"
    done = run_outside(
        "lift", "translate", "t1n=a.nii.gz", "--mixer", tiny.folder / "none", "-o", result
    )
    check_refusal(done, 3, names=["mixer.safetensors", "no such file"])
    assert not result.exists()


@kinds
def test_evaluate_refuses_a_bad_prediction_and_the_earlier_table_stays(
    own: TinyRun, kind: str
) -> None:
    damage, word = DAMAGES[kind]
    for folder in ("predicted", "target"):
        (own.folder / folder).mkdir()
        for index in range(2):
            name = own.folder / folder / f"p{index}.nii.gz"
            shutil.copy(own.file("east", index, TARGET), name)
    table = own.folder / "table.json"
    folders = ("--predicted", own.folder / "predicted", "--target", own.folder / "target")
    good = run_here("lift", "evaluate", *folders, "--protocol", "mr", "-o", table)
    assert good.code == 0, good
    kept = table.read_bytes()
    damage(own.folder / "predicted" / "p1.nii.gz")
    done = run_here("lift", "evaluate", *folders, "--protocol", "mr", "-o", table)
    check_refusal(done, 3, names=["p1.nii.gz", word])
    assert done.stdout == ""
    assert table.read_bytes() == kept


def test_the_installed_evaluate_refuses_a_prediction_without_its_target(own: TinyRun) -> None:
    (own.folder / "empty").mkdir()
    done = run_outside(
        "lift",
        "evaluate",
        *("--predicted", own.site("east"), "--target", own.folder / "empty", "--protocol", "mr"),
    )
    check_refusal(done, 3, names=["empty", "no file of a volume"])


def test_pretraining_leaves_bad_patients_out_and_gives_the_same_bundle(own: TinyRun) -> None:
    before = bytes_under(own.bundle)
    for index, (damage, _) in enumerate(DAMAGES.values(), start=20):
        for channel, voxels in make_patient(np.random.default_rng(index)).items():
            write_nifti(own.file("east", index, channel), voxels)
        damage(own.file("east", index, SOURCES[1]))
    again = own.folder / "again"
    done = run_here("lift", "pretrain", "--config", pretrain_settings(own), "-o", again)
    assert done.code == 0, done
    assert bytes_under(again) == before


@kinds
def test_pretraining_stops_at_a_bad_patient_where_asked_and_keeps_the_bundle(
    own: TinyRun, kind: str
) -> None:
    damage, word = DAMAGES[kind]
    before = bytes_under(own.bundle)
    path = own.file("east", 2, SOURCES[1])
    damage(path)
    cohort = {"layout": "brats", "root": str(own.site("east")), "on_bad_file": "stop"}
    config = pretrain_settings(own, cohorts=[cohort])
    done = run_here("lift", "pretrain", "--config", config, "-o", own.bundle)
    check_refusal(done, 3, names=[f"{path.parent.name}/{path.name}", word])
    assert bytes_under(own.bundle) == before


def test_importing_what_is_no_state_dict_is_refused(own: TinyRun) -> None:
    before = bytes_under(own.bundle)
    state = own.folder / "weights.pt"
    not_an_image(state)
    raw = yaml.safe_load(pretrain_settings(own).read_text())
    wanted = ("network", "source", "target", "training_data", "licence")
    config = own.folder / "import.yaml"
    config.write_text(yaml.safe_dump({key: raw[key] for key in wanted}), encoding="utf-8")
    done = run_here("lift", "pretrain", "--config", config, "-o", own.bundle, "--import", state)
    check_refusal(done, 3, names=[str(state)])
    assert bytes_under(own.bundle) == before


def test_a_wrong_command_line_is_a_usage_error(tiny: TinyRun) -> None:
    wrong: list[tuple[str, ...]] = [
        ("lift-simulate", "--confg", "x.yaml"),
        ("lift", "evaluate", "--protocol", "us"),
        ("lift", "translate"),
        ("lift", "transalte"),
    ]
    for words in wrong:
        done = run_here(*words)
        assert done.code == 2, words
        assert "[config, exit 2]" in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""


def _translate(tiny: TinyRun, mixer: Path, result: Path) -> Outcome:
    words = [f"{name}={tiny.file('east', 0, name)}" for name in SOURCES]
    return run_here(
        "lift", "translate", *words, "--mixer", mixer, "--generator", tiny.bundle, "-o", result
    )


def _refusal_of(name: str, screen: str) -> str:
    """The whole message that names this file or patient: headline and indented lines."""
    lines = screen.splitlines()
    for at, line in enumerate(lines):
        if line.endswith("[data, exit 3]") and name in line:
            more = iter(lines[at + 1 :])
            details = []
            for detail in more:
                if not detail.startswith("  ") or detail.startswith("  round"):
                    break
                details.append(detail)
            assert len(details) >= 2, line
            assert " in " in line
            return "\n".join([line, *details])
    raise AssertionError(f"{name} is not named:\n{screen}")


def _simulation_with_every_key(tiny: TinyRun) -> dict[str, object]:
    """Settings in which each key of every section stands, a phantom's scanner included."""
    scanner = {
        "field_t": 3.0,
        "t1": {"tr_ms": 600.0, "te_ms": 10.0},
        "t2": {"tr_ms": 5000.0, "te_ms": 90.0},
        "flair": {"tr_ms": 9000.0, "te_ms": 120.0, "ti_ms": 2480.0},
        "slice_spacing_mm": 3.0,
        "flair_thickness_mm": 3.0,
        "bias": 0.2,
        "snr": 35.0,
        "slice_gain_sd": 0.08,
        "lost_slice_rate": 0.08,
        "slice_noise": 0.02,
    }
    phantom = {"layout": "phantom", "patients": 3, "scanner": scanner, "seed": 1}
    table = {"layout": "table", "root": str(tiny.folder), "table": "table.csv"}
    config = tiny.settings(
        "every",
        sites=[
            {"name": "east", "data": {"layout": "brats", "root": str(tiny.site("east"))}},
            {"name": "north", "data": phantom},
            {"name": "west", "data": table},
        ],
        plan__preprocessing={
            "normalisation": {"t1n": {"rule": "percentile"}, "t2w": {"rule": "window"}}
        },
    )
    return SimulationConfig.from_yaml(config).model_dump(mode="json")


def _typos(
    data: object, *, free: tuple[str, ...], path: tuple[str | int, ...] = ()
) -> Iterator[tuple[tuple[str | int, ...], str, object]]:
    """Each key path of `data` with a misspelt last key, and the whole data with that typo.

    Keys of `free` sections are names that the user chooses: only what is below them counts.
    """
    if isinstance(data, list):
        for index, item in enumerate(data):
            for where, wrong, broken in _typos(item, free=free, path=(*path, index)):
                yield where, wrong, [*data[:index], broken, *data[index + 1 :]]
    if not isinstance(data, dict):
        return
    for key, value in data.items():
        if not (path and path[-1] in free):
            wrong = _misspelt(key)
            renamed = {(wrong if name == key else name): item for name, item in data.items()}
            yield (*path, key), wrong, renamed
        for where, wrong, broken in _typos(value, free=free, path=(*path, key)):
            yield where, wrong, {**data, key: broken}


def _misspelt(key: str) -> str:
    """The last two letters swapped; the last one doubled in a key of two."""
    swapped = key[:-2] + key[-1] + key[-2]
    return swapped if len(key) > 2 and swapped != key else key + key[-1]


def _check_suggestion(message: str, path: tuple[str | int, ...], wrong: str) -> None:
    key = str(path[-1])
    if key in {"layout", "rule"} or path[-2:] in {
        ("network", "name"),
        ("privacy", "mode"),
        ("grid", "kind"),
    }:
        # the key that says which keys there are: without it none can be checked
        assert f"'{key}'" in message, (path, message)
        return
    lines = [line for line in message.splitlines() if f".{wrong}: " in f".{line.strip()}"]
    # keys of all sections are compared, and `plaen` lies nearer to `plan`
    right = {key, "plan"} if key == "plane" else {key}
    assert any(f"did you mean '{name}'?" in line for line in lines for name in right), message
