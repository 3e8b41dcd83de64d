"""Site curves in whole runs: what a patient's gradient sees, what leaves, and the run's rows."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from torch import Tensor

from lift.config.cohort import BratsData
from lift.config.plan import Plan
from lift.config.simulation import SimulationConfig
from lift.config.site import BudgetSettings, SiteSettings
from lift.generator.bundle import load_bundle
from lift.generator.networks import FrozenGenerator
from lift.mixer.curves import KNOTS
from lift.mixer.finished import read_mixer
from lift.protocol.codec import encode
from lift.protocol.messages import (
    GuardRequest,
    Kind,
    Parcel,
    StatisticsReply,
    StatisticsRequest,
    TrainRequest,
)
from lift.tasks.paired.choice import USES
from lift.tasks.paired.contrast import CURVES_FILE, read_site_model
from lift.wire.names import CURVE_SUMS, SHARED
from lift_client.gate.cohort_ledger import begin
from lift_client.session import SiteSession
from lift_client.tasks.paired import PairedWork, paired_work
from lift_server.tasks.registry import run_task
from tests.end_to_end.test_privacy import DELTA, LOCAL
from tests.end_to_end.tiny_run import (
    PATIENTS,
    SOURCES,
    Outcome,
    TinyRun,
    check_refusal,
    make_patient,
    patient_name,
    run_here,
    write_nifti,
)

CURVES = {"kind": "zrefine", "width": 4, "contrast": "curves"}
SPLIT = {"train": 0.75, "validation": 0.25}
# one site has the five training patients whose sums may leave, the other has not
SHARING, SILENT = "east", "west"
SHARING_PATIENTS = 8
ROWS = ["curves", "local_only", "local_curves", "control_2d", "z_filter_local", "centralised"]
SIZE = KNOTS * (1 + len(SOURCES))


@pytest.fixture(scope="module")
def generator(tiny: TinyRun) -> FrozenGenerator:
    return load_bundle(tiny.bundle, expected_fingerprint=None, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The volumes of a site that is large enough."""
    folder = tmp_path_factory.mktemp("data")
    for index in range(SHARING_PATIENTS):
        name = patient_name(index)
        (folder / name).mkdir()
        for channel, voxels in make_patient(np.random.default_rng([5, index])).items():
            write_nifti(folder / name / f"{name}-{channel}.nii.gz", voxels)
    return folder


def plan_of(tiny: TinyRun, generator: FrozenGenerator, **changes: object) -> Plan:
    # the counts leave rounded up
    federation = {"rounds": 1, "patient_count_step": 4}
    given = {"plan__mixer": CURVES, "plan__split": SPLIT, "plan__federation": federation} | changes
    plan = SimulationConfig.from_yaml(tiny.settings("contrast", **given)).plan
    return plan.model_copy(update={"generator_fingerprint": generator.fingerprint})


def open_session(
    root: Path, site: str, generator: FrozenGenerator, folder: Path, **settings: object
) -> SiteSession:
    data = BratsData(root=root)
    return SiteSession(
        SiteSettings(name=site, data=data, device="cpu", **settings),  # type: ignore[arg-type]
        generator,
        folder,
    )


def handled(session: SiteSession, request: Parcel) -> Parcel:
    reply = session.handle(request)
    assert isinstance(reply, Parcel), reply
    return reply


@pytest.fixture
def private(tmp_path: Path) -> BudgetSettings:
    budget = BudgetSettings(
        epsilon=20, delta=DELTA, ledger=tmp_path / "ledger.jsonl", mark=tmp_path / "mark.json"
    )
    begin(SiteSettings(name=SHARING, data=BratsData(root=tmp_path), budget=budget), tmp_path)
    return budget


def own_curves(work: object) -> dict[str, Tensor]:
    assert isinstance(work, PairedWork)
    found = {}
    for subject, volumes in work.cohort.persons("train").items():
        for features in volumes:
            assert features.curves is not None
            found[subject] = features.curves
    return found


def test_in_training_a_patient_is_seen_with_curves_of_nobody_else(
    tiny: TinyRun, root: Path, generator: FrozenGenerator, tmp_path: Path, private: BudgetSettings
) -> None:
    plan = plan_of(tiny, generator, plan__privacy=LOCAL)
    whole = open_session(root, SHARING, generator, tmp_path / "a", budget=private)
    everyone = own_curves(whole.work(plan))
    assert len(everyone) > 2
    left_out = sorted(everyone)[0]
    fewer = tmp_path / "fewer"
    shutil.copytree(root, fewer)
    shutil.rmtree(next(fewer.glob(f"{left_out}*")))
    part = open_session(fewer, SHARING, generator, tmp_path / "b", budget=private)
    neighbours = own_curves(part.work(plan))
    assert set(neighbours) == set(everyone) - {left_out}
    for subject, curves in neighbours.items():
        assert torch.equal(curves, everyone[subject])
    # under privacy the pooled equations are no release: none leaves
    reply = handled(whole, Parcel(Kind.STATISTICS, StatisticsRequest(plan=plan)))
    assert not set(reply.tensors) & set(CURVE_SUMS)
    for session in (whole, part):
        session.close()


class Crossing:
    """One site through a whole run by hand; everything that left it."""

    def __init__(
        self, session: SiteSession, plan: Plan, generator: FrozenGenerator, folder: Path
    ) -> None:
        self.session, self.plan, self.folder = session, plan, folder
        task = run_task(plan, generator)
        first = handled(session, Parcel(Kind.STATISTICS, StatisticsRequest(plan=plan)))
        self.statistics = first
        assert isinstance(first.body, StatisticsReply)
        _, contribution = task.review(first, plan.digest())
        # another site with as many patients
        self.shared = task.combine([contribution, contribution])
        start = {name: tensor.numpy() for name, tensor in task.start(self.shared).items()}
        request = TrainRequest(plan_digest=plan.digest(), round=1)
        self.trained = handled(session, Parcel(Kind.TRAIN, request, start | task.sent(self.shared)))
        judged = {f"mixer/{name}": array for name, array in start.items()}
        judged |= {name: tensor.numpy() for name, tensor in self.shared.items()}
        self.verdict = handled(
            session, Parcel(Kind.GUARD, GuardRequest(plan_digest=plan.digest()), judged)
        )

    @property
    def left(self) -> Iterator[bytes]:
        for parcel in (self.statistics, self.trained, self.verdict):
            yield from (tensor.tobytes() for tensor in parcel.tensors.values())
            encoded = encode(parcel)
            yield repr(encoded).encode()


@pytest.fixture(scope="module")
def crossing(
    tiny: TinyRun,
    root: Path,
    generator: FrozenGenerator,
    tmp_path_factory: pytest.TempPathFactory,
) -> Crossing:
    folder = tmp_path_factory.mktemp("crossing")
    session = open_session(root, SHARING, generator, folder)
    return Crossing(session, plan_of(tiny, generator), generator, folder)


def traces(curves: Tensor, sent: bytes) -> int:
    """How many of these numbers are found in what was sent, in any width that it may have."""
    found = 0
    for kind in (np.float64, np.float32, np.float16):
        for number in curves.numpy().astype(kind):
            bits = number.tobytes()
            # two bytes are found anywhere by chance
            found += len(bits) > 2 and bits in sent
    whole = curves.numpy().astype(np.float16).tobytes()
    return found + (whole in sent)


def test_fitted_curves_never_leave(crossing: Crossing) -> None:
    arrays = {name: tensor.numpy() for name, tensor in crossing.shared.items()}
    work = crossing.session.work(crossing.plan)
    assert isinstance(work, PairedWork)
    assert work.contrast is not None
    fitted = [*own_curves(work).values()]
    for names in ((), *({name} for name in work.contrast.validation)):
        curves = work.curves(arrays, without=names).curves
        fitted += [] if curves is None else [curves]
    assert len(fitted) > len(PATIENTS)
    for sent in crossing.left:
        for curves in fitted:
            assert traces(curves, sent) == 0
    # one that were sent would be seen
    for kind in (torch.float64, torch.float32, torch.float16):
        assert traces(fitted[0], fitted[0].to(kind).numpy().tobytes()) > 0


def test_sums_tell_the_rounded_number_of_patients_alone(crossing: Crossing) -> None:
    body = crossing.statistics.body
    assert isinstance(body, StatisticsReply)
    work = crossing.session.work(crossing.plan)
    assert isinstance(work, PairedWork)
    exact = len(work.train_patients)
    assert exact < body.train_patients
    total = crossing.statistics.tensors["curves_a"].astype(np.float64).sum() / 2**40
    assert total / (1 + len(SOURCES)) ** 2 == pytest.approx(body.train_patients, abs=1e-6)


def test_what_comes_back_without_a_sites_own_share_is_the_others(crossing: Crossing) -> None:
    body = crossing.statistics.body
    assert isinstance(body, StatisticsReply)
    doubled = crossing.shared["curves/a"]
    own = torch.from_numpy(crossing.statistics.tensors["curves_a"]).double() / 2**40
    assert torch.equal(doubled, own + own)
    assert crossing.shared["curves/patients"].tolist() == [2.0 * body.train_patients]


def test_the_site_keeps_its_curves_for_itself(crossing: Crossing) -> None:
    path = crossing.folder / CURVES_FILE
    # validation patients chose it, and the server was not told
    assert read_site_model(path, len(SOURCES)).use in USES
    assert "use" not in crossing.verdict.body.model_dump()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_site_model(path, len(SOURCES)).curves.shape == (SIZE,)


def test_a_site_of_few_patients_shares_nothing_and_takes_the_others(
    tiny: TinyRun, generator: FrozenGenerator, tmp_path: Path, crossing: Crossing
) -> None:
    session = open_session(tiny.site(SILENT), SILENT, generator, tmp_path)
    reply = handled(session, Parcel(Kind.STATISTICS, StatisticsRequest(plan=crossing.plan)))
    assert set(reply.tensors) == {"z_filter_a", "z_filter_b"}
    alone = paired_work(session, crossing.plan).site_curves({})
    joined = paired_work(session, crossing.plan).site_curves(crossing.shared)
    assert joined is not None
    assert alone is None or not torch.equal(alone, joined)


@pytest.mark.parametrize("damage", ["none", "missing", "shape", "nan", "fewer"])
def test_sums_of_all_sites_that_cannot_be_are_refused_at_the_site(
    crossing: Crossing, damage: str
) -> None:
    start = {
        name: tensor.numpy()
        for name, tensor in crossing.session.work(crossing.plan).start().items()
    }
    shared = {SHARED + name: tensor.numpy().copy() for name, tensor in crossing.shared.items()}
    shared.pop(SHARED + "z_filter/taps")
    match damage:
        case "missing":
            shared.pop(SHARED + "curves/b")
        case "shape":
            shared[SHARED + "curves/b"] = np.zeros(SIZE + 1)
        case "nan":
            shared[SHARED + "curves/b"][0] = np.nan
        case "fewer":
            shared[SHARED + "curves/patients"] = np.array([1.0])
    request = TrainRequest(plan_digest=crossing.plan.digest(), round=1)
    reply = crossing.session.handle(Parcel(Kind.TRAIN, request, start | shared))
    assert isinstance(reply, Parcel) == (damage == "none")


@pytest.fixture(scope="module")
def run(tiny: TinyRun) -> Path:
    changes = {"plan__mixer": CURVES, "plan__split": {"train": 0.6, "validation": 0.2}}
    done = tiny.simulate("contrast-curves", **changes, compare=ROWS)
    assert done.code == 0, done.stderr
    return tiny.folder / "contrast-curves"


@pytest.fixture(scope="module")
def plain(tiny: TinyRun) -> Path:
    """The same run with a mixer that learns the contrast too."""
    changes = {
        "plan__mixer": {**CURVES, "contrast": "none"},
        "plan__split": {"train": 0.6, "validation": 0.2},
    }
    done = tiny.simulate("contrast-none", **changes, compare=ROWS)
    assert done.code == 0, done.stderr
    return tiny.folder / "contrast-none"


def pooled(run: Path) -> Mapping[str, Mapping[str, Mapping[str, float]]]:
    return dict(json.loads((run / "metrics.json").read_text(encoding="utf-8"))["pooled"])


def test_a_run_with_curves_has_its_own_rows(run: Path) -> None:
    rows = pooled(run)
    assert {"federated_curves", "local_curves", "local_only", "curves", "curves_z_filter"} <= set(
        rows
    )
    assert "federated" not in rows
    chosen = json.loads((run / "run.json").read_text())["chosen"][0]
    assert set(chosen) == set(PATIENTS)
    for site, choice in chosen.items():
        figures = json.loads((run / "metrics.json").read_text())["sites"][site]["methods"]
        name = choice["method"]
        assert name in choice["psnr_db"]
        if name in figures:
            assert figures["chosen"] == figures[name]
    comparisons = json.loads((run / "metrics.json").read_text())["comparisons"]["pooled"]
    for reference in ("no_mixer", "local_only", "local_curves", "curves_z_filter"):
        assert f"federated_curves - {reference}" in comparisons


def test_rows_without_curves_are_those_of_a_run_without(run: Path, plain: Path) -> None:
    own, other = pooled(run), pooled(plain)
    for row in ("no_mixer", "z_median", "z_filter_local", "local_only", "curves"):
        assert own[row] == other[row], row
    # the filter that the mixer starts from is given what the mixer is given
    for row, plain_row in (("federated_curves", "federated"), ("z_filter", "z_filter")):
        assert own[row] != other[plain_row]


def test_the_report_and_the_volumes_are_of_the_runs_own_mixer(run: Path) -> None:
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "federated + curves" in page
    assert "staying out" in page
    for patient in (run / "synthesis").glob("*/*"):
        assert (patient / "federated_curves.nii.gz").is_file()


def test_a_translation_takes_the_sites_curves_or_says_that_it_has_none(
    run: Path, tiny: TinyRun, tmp_path: Path
) -> None:
    site = next(iter(PATIENTS))
    inputs = [f"{name}={tiny.file(site, 1, name)}" for name in SOURCES]
    common: list[str | Path] = ["translate", *inputs, "--mixer", run, "--generator", tiny.bundle]
    curves = next((run / "sites" / site).glob(CURVES_FILE))
    without = run_here("lift", *common, "--output", tmp_path / "without.nii.gz")
    assert without.code == 0, without.stderr
    assert "--curves" in without.stderr
    done = run_here("lift", *common, "--output", tmp_path / "with.nii.gz", "--curves", curves)
    assert done.code == 0, done.stderr
    assert "--curves" not in done.stderr
    assert (tmp_path / "with.nii.gz").read_bytes() != (tmp_path / "without.nii.gz").read_bytes()


def test_curves_for_a_mixer_that_has_none_are_refused(
    tiny: TinyRun, run: Path, plain: Path, tmp_path: Path
) -> None:
    site = next(iter(PATIENTS))
    curves = next((run / "sites" / site).glob(CURVES_FILE))
    wrong = tmp_path / "wrong.safetensors"
    wrong.write_bytes(safetensors.numpy.save({"curves": np.zeros(3)}))
    inputs = [f"{name}={tiny.file(site, 1, name)}" for name in SOURCES]
    common: list[str | Path] = ["translate", *inputs, "--generator", tiny.bundle]
    common += ["--output", tmp_path / "x.nii.gz"]
    refused = run_here("lift", *common, "--mixer", run, "--curves", wrong)
    check_refusal(refused, 3, names=[wrong.name])
    assert read_mixer(plain / "mixer.safetensors").plan.mixer.contrast == "none"
    refused = run_here("lift", *common, "--mixer", plain, "--curves", curves)
    check_refusal(refused, 2, names=["--curves"])


def calibrated(run: Path, tiny: TinyRun, output: Path, *words: str | Path) -> Outcome:
    common: tuple[str | Path, ...] = ("--mixer", run, "--output", output)
    return run_here("lift", "calibrate", *words, *common, "--generator", tiny.bundle)


def test_a_hospital_that_took_no_part_fits_its_own_curves(
    run: Path, tiny: TinyRun, root: Path, tmp_path: Path
) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for index in range(3):
        shutil.copytree(root / patient_name(index), few / patient_name(index))
    folder, table = tmp_path / "folder.safetensors", tmp_path / "table.safetensors"
    done = calibrated(run, tiny, folder, few)
    assert done.code == 0, done.stderr
    assert "3 patients of this hospital" in done.stderr
    assert "uses: " in done.stderr
    assert stat.S_IMODE(folder.stat().st_mode) == 0o600
    channels = (*SOURCES, "t2f")
    rows = [["patient", *channels]]
    for index in range(3):
        name = patient_name(index)
        rows.append([name, *(f"{name}/{name}-{channel}.nii.gz" for channel in channels)])
    (few / "pairs.csv").write_text("\n".join(",".join(row) for row in rows), encoding="utf-8")
    assert calibrated(run, tiny, table, few / "pairs.csv").code == 0
    curves = read_site_model(folder, len(SOURCES)).curves
    assert torch.equal(read_site_model(table, len(SOURCES)).curves, curves)
    assert curves.any()
    inputs = [f"{name}={few}/{patient_name(0)}/{patient_name(0)}-{name}.nii.gz" for name in SOURCES]
    words: list[str | Path] = ["--mixer", run, "--generator", tiny.bundle, "--curves", folder]
    done = run_here("lift", "translate", *inputs, *words, "-o", tmp_path / "made.nii.gz")
    assert done.code == 0, done.stderr


def test_one_pair_says_that_nothing_could_be_compared(
    run: Path, tiny: TinyRun, root: Path, tmp_path: Path
) -> None:
    few = tmp_path / "few"
    shutil.copytree(root / patient_name(0), few / patient_name(0))
    done = calibrated(run, tiny, tmp_path / "c.safetensors", few)
    assert done.code == 0, done.stderr
    assert "warning" in done.stderr
    assert read_site_model(tmp_path / "c.safetensors", len(SOURCES)).curves.any()


def test_what_cannot_be_calibrated_is_refused_and_writes_nothing(
    run: Path, plain: Path, tiny: TinyRun, root: Path, tmp_path: Path
) -> None:
    output = tmp_path / "c.safetensors"
    check_refusal(calibrated(run, tiny, output), 2, names=["PAIRS", "--site"])
    check_refusal(calibrated(plain, tiny, output, root), 2, names=["contrast"])
    (tmp_path / "empty").mkdir()
    assert calibrated(run, tiny, output, tmp_path / "empty").code == 3
    assert not output.exists()


def test_a_gain_and_an_offset_may_take_the_place_of_curves(tiny: TinyRun) -> None:
    affine = {"plan__mixer": {**CURVES, "contrast": "affine"}}
    done = tiny.simulate("contrast-affine", **affine, compare=["curves"], synthesis_patients=0)
    assert done.code == 0, done.stderr
    rows = pooled(tiny.folder / "contrast-affine")
    assert rows["federated_curves"]["psnr_db"] != rows["curves"]["psnr_db"]
    for site in PATIENTS:
        path = tiny.folder / "contrast-affine" / "sites" / site / CURVES_FILE
        line = read_site_model(path, len(SOURCES)).curves
        assert torch.allclose(line[:KNOTS].diff(n=2), torch.zeros(KNOTS - 2).double())
        assert not line[KNOTS:].any()


def test_a_translation_finds_the_runs_own_generator(
    run: Path, tiny: TinyRun, tmp_path: Path
) -> None:
    site = next(iter(PATIENTS))
    inputs = [f"{name}={tiny.file(site, 1, name)}" for name in SOURCES]
    for mixer in (run, run / "mixer.safetensors"):
        done = run_here("lift", "translate", *inputs, "--mixer", mixer, "-o", tmp_path / "x.nii.gz")
        assert done.code == 0, done.stderr
    # without the run's record nobody knows where it lies
    shutil.copy(run / "mixer.safetensors", tmp_path)
    alone = tmp_path / "mixer.safetensors"
    refused = run_here("lift", "translate", *inputs, "--mixer", alone, "-o", tmp_path / "y.nii.gz")
    check_refusal(refused, 2, names=["--generator"])
