"""From a finished run to a release: a site audits with its own patients, the server asks for it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import yaml

import lift_server.cli
from lift.audit.documents import AttackRow, SiteAudit, write_signed
from lift.config.server import ServerConfig
from lift.files import file_digest
from lift.keys import read_key
from lift_server.sites import provisioning, roster
from tests import wording
from tests.end_to_end.tiny_run import (
    ENTRY_POINTS,
    SOURCES,
    Outcome,
    TinyRun,
    check_refusal,
    make_patient,
    patient_name,
    run_here,
    write_nifti,
)
from tests.enrolled import enrolled

PATIENTS = 16
SITES = ("east", "west")
LOCAL: dict[str, object] = {
    "mode": "patient-local",
    "delta": 1e-4,
    "public_patients": 8,
    "clip_norm": 0.05,
    "noise_multiplier": 4.0,
    "sampling_rate": 0.25,
}
Export = Callable[..., Outcome]


@dataclass(frozen=True)
class Federation:
    """A coordinator's folder with a finished run, two sites' folders, and the simulated run."""

    folder: Path
    simulated: Path

    @property
    def server(self) -> Path:
        return self.folder / "server"

    @property
    def run(self) -> Path:
        return self.server / "run"

    def site(self, name: str) -> Path:
        return self.folder / name

    def audit(self, name: str, mixer: Path | None = None) -> Outcome:
        return self.audit_of(name, self.run if mixer is None else mixer)

    def audit_of(self, name: str, *mixer: Path) -> Outcome:
        """With what stands on the command line for the mixer."""
        site = self.site(name)
        return run_here(
            "lift",
            "audit",
            "patients",
            *mixer,
            "--site",
            site / "site.yaml",
            "-o",
            site / "audit.json",
        )

    def export(self, out: str, *words: object) -> Outcome:
        ENTRY_POINTS["lift-server"] = lift_server.cli.main
        return run_here("lift-server", "export", self.server, self.folder / out, *map(str, words))

    def bundle(self, out: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / out / "release.json").read_text())
        return found


def make_federation(tiny: TinyRun, folder: Path, privacy: dict[str, object]) -> Federation:
    """Two sites with keys and patients, and what a run of theirs leaves at the server."""
    # the module's runs share one folder with those of other modules
    out = f"audit-{folder.parent.name}-{folder.name}"
    made = Federation(folder, tiny.folder / out)
    provisioning.init_folder(made.server, ["127.0.0.1"], "trial")
    settings = made.server / "server.yaml"
    config = ServerConfig.from_yaml(settings).under(made.server)
    for number, name in enumerate(SITES):
        joined = enrolled(made.site(name), name)
        roster.add_site(config, name, joined.public)
        for index in range(PATIENTS):
            rng = np.random.default_rng([7, number, index])
            patient = made.site(name) / "data" / patient_name(index)
            for channel, voxels in make_patient(rng).items():
                write_nifti(patient / f"{patient.name}-{channel}.nii.gz", voxels)
        data = yaml.safe_load(joined.settings.read_text())
        data |= {"generator": {"bundle": str(tiny.bundle)}, "device": "cpu"}
        data["data"] = {"layout": "brats", "root": "data"}
        joined.settings.write_text(yaml.safe_dump(data))
    done = tiny.simulate(
        out,
        sites=[
            {"name": name, "data": {"layout": "brats", "root": str(made.site(name) / "data")}}
            for name in SITES
        ],
        plan__privacy=privacy,
        plan__split={"train": 0.5, "validation": 0.2},
        plan__mixer={"kind": "zrefine", "width": 6},
    )
    assert done.code == 0, done
    made.run.mkdir()
    for name in ("mixer.safetensors", "run.json", "rounds.jsonl", "metrics.json"):
        shutil.copy(made.simulated / name, made.run)
    # the server's generator is that of the run
    text = yaml.safe_load(settings.read_text())
    text["generator"] = {"bundle": str(tiny.bundle)}
    settings.write_text(yaml.safe_dump(text))
    return made


@pytest.fixture(scope="module")
def plain(tiny: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Federation:
    made = make_federation(tiny, tmp_path_factory.mktemp("plain"), {"mode": "none"})
    for name in SITES:
        done = made.audit(name)
        assert done.code == 0, done
    return made


@pytest.fixture(scope="module")
def private(tiny: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return make_federation(tiny, tmp_path_factory.mktemp("private"), LOCAL)


def test_a_site_s_audit_says_what_leaves_and_holds_no_patient(plain: Federation) -> None:
    done = plain.audit("east")
    assert done.code == 0, done
    for word in ("loss_threshold", "reference_models", "no proof", "AUC"):
        assert word in done.stdout, done.stdout
    assert "read the file" in done.stderr
    text = (plain.site("east") / "audit.json").read_text()
    assert "BraTS" not in text
    assert str(plain.folder) not in text
    audit = json.loads(text)["audit"]
    assert audit["site"] == "east"
    assert audit["mixer_digest"] == file_digest(plain.run / "mixer.safetensors")
    assert 5 <= audit["attacks"]["loss_threshold"]["members"] <= PATIENTS
    again = plain.audit("east")
    repeated = json.loads((plain.site("east") / "audit.json").read_text())["audit"]
    assert again.code == 0
    assert repeated | {"made": ""} == audit | {"made": ""}


def test_a_site_audits_the_mixer_that_it_has_and_the_coordinator_knows_it(
    plain: Federation,
) -> None:
    given = json.loads((plain.site("east") / "audit.json").read_text())["audit"]
    check_refusal(plain.audit_of("east"), 2, names=["no finished mixer yet"])
    own = plain.site("east") / "work" / "final-mixer.safetensors"
    shutil.copy(plain.simulated / "sites" / "east" / own.name, own)
    done = plain.audit_of("east")
    assert done.code == 0, done
    # away from a terminal a line for each stage
    for stage in ("patients: ", "losses of patients: ", "steps of reference mixers: "):
        assert stage in done.stderr
    audit = json.loads((plain.site("east") / "audit.json").read_text())["audit"]
    assert audit["attacks"] == given["attacks"]
    assert audit["mixer_digest"] == file_digest(own) != given["mixer_digest"]
    audits = [plain.site(name) / "audit.json" for name in SITES]
    done = plain.export("own", *(word for path in audits for word in ("--audit", path)))
    assert done.code == 0, done
    # what a site judged in another run is another mixer
    tensors = safetensors.torch.load_file(own)
    with safetensors.safe_open(own, framework="pt") as stream:
        metadata = stream.metadata()
    changed = {name: tensor + 1 for name, tensor in tensors.items()}
    safetensors.torch.save_file(changed, own, metadata=metadata)
    assert plain.audit_of("east").code == 0
    done = plain.export("other", *(word for path in audits for word in ("--audit", path)))
    check_refusal(done, 7, names=["another mixer"])
    own.unlink()
    assert plain.audit("east").code == 0


def test_a_release_needs_the_audit_of_every_site(plain: Federation) -> None:
    east = plain.site("east") / "audit.json"
    refused = plain.export("lacking", "--audit", east)
    check_refusal(refused, 7, names=["west", "--without-audit"])
    assert not (plain.folder / "lacking").exists()
    done = plain.export("whole", "--audit", east, "--audit", plain.site("west") / "audit.json")
    assert done.code == 0, done
    bundle = plain.bundle("whole")
    assert bundle["audited"] is True
    assert set(bundle["audits"]["sites"]) == set(SITES)
    assert bundle["privacy"]["mode"] == "none"
    assert bundle["audits"]["training"] is None
    assert bundle["rounds"] == {
        "trained": 1,
        "learned_from": ["east", "west"],
        "made_with": ["east", "west"],
    }
    assert bundle["sites"]["number"] == 2
    # of a simulated run too: no patient, and no site but for its audit and its key
    tested = json.loads((plain.run / "metrics.json").read_text())["patients"]
    patients = {name for methods in tested.values() for row in methods.values() for name in row}
    assert len(patients) >= 2
    for path in (plain.folder / "whole").iterdir():
        content = path.read_text("utf-8", "replace")
        assert not any(name in content for name in patients), path.name
    for name in ("run.json", "metrics.json"):
        text = (plain.folder / "whole" / name).read_text()
        assert not any(f'"{site}"' in text for site in SITES)
        assert all(f'"{site}"' in (plain.run / name).read_text() for site in SITES)
    pooled = json.loads((plain.folder / "whole" / "metrics.json").read_text())["pooled"]
    assert pooled == json.loads((plain.run / "metrics.json").read_text())["pooled"]
    assert bundle["mixer"]["sha256"] == file_digest(plain.folder / "whole" / "mixer.safetensors")
    text = (plain.folder / "whole" / "RELEASE.txt").read_text()
    assert "AUC" in text
    assert "W I T H O U T" not in text


def test_a_release_without_audit_says_so_in_large_letters(plain: Federation) -> None:
    done = plain.export("without", "--without-audit")
    assert done.code == 0, done
    bundle = plain.bundle("without")
    assert bundle["audited"] is False
    assert bundle["audit_statement"] == f"{wording.UNAUDITED}: east, west"
    text = (plain.folder / "without" / "RELEASE.txt").read_text()
    assert "R E L E A S E D   W I T H O U T   A U D I T" in text.splitlines()[2]


@pytest.fixture(scope="module")
def keys(plain: Federation) -> Path:
    """The release key of the plain federation."""
    ENTRY_POINTS["lift-server"] = lift_server.cli.main
    folder = plain.folder / "keys"
    made = run_here("lift-server", "release-key", plain.server, "--output", folder)
    assert made.code == 0, made
    return folder


def authority(federation: Federation) -> Path:
    return federation.server / "certificates" / "ca.pem"


def verify(federation: Federation, out: str) -> Outcome:
    folder = federation.folder / out
    return run_here("lift", "verify-release", folder, "--ca", authority(federation))


def test_whoever_has_the_authority_s_certificate_can_check_a_release(
    plain: Federation, keys: Path
) -> None:
    assert plain.export("checked", "--without-audit", "--release-key", keys).code == 0
    folder = plain.folder / "checked"
    assert verify(plain, "checked").code == 0
    # and without this software, by the commands of RELEASE.txt
    commands = [
        line.strip().replace("ca.pem", str(authority(plain)))
        for line in (folder / "RELEASE.txt").read_text().splitlines()
        if line.startswith(("  openssl", "  sha256sum"))
    ]
    assert len(commands) == 6
    script = "set -e\n" + "\n".join(commands)

    def by_hand() -> subprocess.CompletedProcess[str]:
        words = ["bash", "-c", script]
        return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)

    done = by_hand()
    assert done.returncode == 0, done.stderr
    assert "LiFT trial release" in done.stdout
    assert verify(plain, "checked").code == 0
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"made": "another day"}))
    assert by_hand().returncode != 0


def test_a_mixer_times_minus_three_with_invented_audits_is_refused_everywhere(
    plain: Federation, keys: Path, tiny: TinyRun
) -> None:
    """The forger recomputes SHA256SUMS: before there was a manifest, every command said OK."""
    assert plain.export("forged", "--without-audit", "--release-key", keys).code == 0
    folder = plain.folder / "forged"
    mixer = folder / "mixer.safetensors"

    def translate(*words: str | Path) -> Outcome:
        sources = [f"{name}={tiny.file('east', 0, name)}" for name in SOURCES]
        given = ("--mixer", folder, "--generator", tiny.bundle, *words)
        return run_here("lift", "translate", *sources, "-o", plain.folder / "made.nii.gz", *given)

    assert translate("--ca", authority(plain)).code == 0
    (plain.folder / "made.nii.gz").unlink()
    with safetensors.safe_open(mixer, framework="pt") as stream:
        metadata = stream.metadata()
    values = {name: -3 * value for name, value in safetensors.torch.load_file(mixer).items()}
    safetensors.torch.save_file(values, mixer, metadata=metadata)
    text = (folder / "RELEASE.txt").read_text()
    (folder / "RELEASE.txt").write_text("\n".join(text.splitlines()[6:]))
    record = plain.bundle("forged") | {"audited": True, "audit_statement": "audited"}
    record["mixer"]["sha256"] = file_digest(mixer)
    record["audits"]["missing"] = []
    (folder / "release.json").write_text(json.dumps(record))
    sums = folder / "SHA256SUMS"
    names = [line.split()[1] for line in sums.read_text().splitlines()]
    sums.write_text("".join(f"{file_digest(folder / name)}  {name}\n" for name in names))
    # the negative control: this is what could be checked before
    words = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    subprocess.run(words, cwd=folder, capture_output=True, check=True)
    found = verify(plain, "forged")
    assert found.code == 9
    for name in ("mixer.safetensors", "RELEASE.txt", "release.json", "SHA256SUMS"):
        assert f"changed: {name} (" in found.stdout
    for refused in (translate(), translate("--ca", authority(plain))):
        check_refusal(refused, 9, names=["mixer.safetensors: changed"])
    assert not (plain.folder / "made.nii.gz").exists()


def test_an_audit_that_was_changed_or_is_of_another_mixer_is_refused(
    plain: Federation, private: Federation, tmp_path: Path
) -> None:
    own = json.loads((plain.site("east") / "audit.json").read_text())
    own["audit"]["attacks"]["loss_threshold"]["auc"] = 0.5
    forged = tmp_path / "forged.json"
    forged.write_text(json.dumps(own))
    check_refusal(plain.export("no", "--audit", forged), 7, names=["not signed by that site"])
    own["audit"]["site"] = "north"
    forged.write_text(json.dumps(own))
    check_refusal(plain.export("no", "--audit", forged), 7, names=["never admitted"])
    twice = plain.site("east") / "audit.json"
    refused = plain.export("no", "--audit", twice, "--audit", twice)
    check_refusal(refused, 7, names=["two audits"])
    other = handed_over(plain, "west", tmp_path / "other.json", mixer_digest="0" * 64)
    check_refusal(plain.export("no", "--audit", other), 7, names=["another mixer"])
    assert not (plain.folder / "no").exists()


def handed_over(
    federation: Federation, site: str, path: Path, *, mixer_digest: str | None = None
) -> Path:
    """A site's audit as an earlier version, or another program, would have signed it."""
    row = AttackRow(
        auc=0.53, auc_low=0.4, auc_high=0.66, tpr=0.1, fpr_of_tpr=0.0, members=5, others=5
    )
    audit = SiteAudit(
        kind="membership",
        site=site,
        mixer_digest=mixer_digest or file_digest(federation.run / "mixer.safetensors"),
        plan_digest="0" * 64,
        attacks={"loss_threshold": row},
        caveat="",
        made="2026-01-01T00:00:00+00:00",
    )
    write_signed(path, audit, read_key(federation.site(site) / "site.key"))
    return path


def test_exact_figures_of_protected_patients_are_neither_written_nor_published(
    private: Federation, tmp_path: Path
) -> None:
    file = private.site("east") / "audit.json"
    done = private.audit("east")
    assert done.code == 0, done
    # the hospital sees them
    assert "reference_models" in done.stdout
    assert "nothing was written" in done.stderr
    assert not file.exists()
    assert str(file) not in done.stdout
    audit = handed_over(private, "east", tmp_path / "east.json")
    for words in ((), ("--without-audit",)):
        refused = private.export("exact", "--audit", audit, *words)
        check_refusal(refused, 7, names=["epsilon does not count", "patient-local"])
    assert not (private.folder / "exact").exists()


def test_statistics_that_no_audit_may_look_at_are_released_only_without(
    private: Federation,
) -> None:
    path = private.run / "run.json"
    before = path.read_text(encoding="utf-8")
    record = json.loads(before)
    record["plan"] |= {
        "task": {"kind": "unconditional", "source": [], "target": "t1n"},
        "mixer": {"kind": "trajectory_mapper"},
        "unconditional": {"gaussian": {"tied": True}},
        "privacy": {
            "mode": "stats-once",
            "delta": 1e-4,
            "public_patients": 8,
            "noise_multiplier": 4.0,
        },
    }
    path.write_text(json.dumps(record))
    try:
        check_refusal(private.export("once"), 7, names=["stats-once", "--without-audit"])
        assert private.export("once", "--without-audit").code == 0
    finally:
        path.write_text(before)
    assert private.bundle("once")["audits"]["missing"] == ["the statistics"]


def test_private_training_is_audited_before_it_is_released(
    private: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    # no site is asked for anything, and nothing is missing
    done = until_passed(lambda: private.export("whole"))
    assert done.code == 0, done
    assert "invented patients" in done.stderr
    bundle = private.bundle("whole")
    assert bundle["audited"] is True
    assert bundle["audits"]["sites"] == {}
    training = bundle["audits"]["training"]
    assert training["passed"] is True
    assert training["meaningful"] is True
    assert abs(training["noise_ratio"] - 1) < 0.2
    assert training["noise_p_value"] >= 0.001
    assert training["noise_numbers"] >= 12_000
    assert training["noise_smallest_found"] > 0.95
    assert training["plan_digest"] == bundle["plan_digest"]
    assert set(bundle["privacy"]["epsilon_spent_by_site"]) == set(SITES)
    assert bundle["privacy"]["epsilon_spent_by_site"]["east"] == bundle["privacy"]["epsilon"]
    assert bundle["privacy"]["epsilon_of_a_patient_in_two_hospitals"] > bundle["privacy"]["epsilon"]
    text = (private.folder / "whole" / "RELEASE.txt").read_text()
    assert "a patient of two hospitals: epsilon" in text
    page = (private.folder / "whole" / "report.html").read_text()
    for shown in (f"{training['noise_ratio']:.3f} of the claimed one", "below 0.95"):
        assert shown in " ".join(text.split())
    assert "release.json#/audits/training/noise_smallest_found" in page

    def no_noise(values: Any, noise_std: float, stream: object) -> Any:
        del noise_std, stream
        return {name: values[name].float() for name in sorted(values)}

    monkeypatch.setattr(sys.modules["lift.tasks.paired.private.engines"], "add_noise", no_noise)
    # once: tests/lift/audit/test_canary.py shows that it fails every time
    broken = private.export("broken")
    check_refusal(broken, 7, names=["did not pass its audit", "canaries"])
    assert not (private.folder / "broken").exists()


def until_passed(audit: Callable[[], Outcome]) -> Outcome:
    """The last of at most four tries: a right pipeline fails an audit once in 20 times by chance,
    a wrong one (without noise, say) every time.
    """
    for _ in range(3):
        done = audit()
        if done.code == 0:
            return done
    return audit()


def test_the_training_s_audit_needs_no_patient(private: Federation, plain: Federation) -> None:
    done = until_passed(
        lambda: run_here("lift", "audit", "training", private.run, *_bundle(private))
    )
    assert done.code == 0, done
    assert json.loads(done.stdout)["passed"] is True
    refused = run_here("lift", "audit", "training", plain.run, *_bundle(plain))
    check_refusal(refused, 2, names=["privacy.mode"])


def _bundle(federation: Federation) -> tuple[str, str]:
    settings = yaml.safe_load((federation.server / "server.yaml").read_text())
    return "--generator", settings["generator"]["bundle"]


def test_a_key_that_others_can_read_is_refused_before_hours_are_spent(plain: Federation) -> None:
    key = plain.site("east") / "site.key"
    key.chmod(0o644)
    try:
        check_refusal(plain.audit("east"), 2, names=["0600"])
    finally:
        key.chmod(0o600)


def test_training_that_no_audit_can_refute_is_released_only_without(
    private: Federation,
) -> None:
    path = private.run / "run.json"
    before = path.read_text(encoding="utf-8")
    record = json.loads(before)
    record["plan"]["privacy"]["noise_multiplier"] = 0.1
    path.write_text(json.dumps(record))
    try:
        check_refusal(private.export("weak"), 2, names=["more than an audit can refute"])
        assert not (private.folder / "weak").exists()
        assert private.export("weak", "--without-audit").code == 0
    finally:
        path.write_text(before)
    assert private.bundle("weak")["audits"]["missing"] == ["the training"]
    assert private.bundle("weak")["audit_statement"] == f"{wording.UNAUDITED}: the training"
