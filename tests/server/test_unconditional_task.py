"""The server's side of drifting statistics: what it adds, and what it refuses in one sentence."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from lift.config.plan import Plan
from lift.config.privacy import StatisticsOnce
from lift.errors import DataError, UpdateRejectedError
from lift.privacy.noise import SecureStream
from lift.protocol.messages import Kind, Parcel, StatisticsReply
from lift.tasks.unconditional.decoder import FrozenDecoder
from lift.tasks.unconditional.drifting.release import from_arrays, merge_small_cells, to_arrays
from lift.tasks.unconditional.drifting.statistics import Sums, patient_sums
from lift.tasks.unconditional.moments import (
    TrajectorySums,
    form_of,
    gaussian_shapes,
    moments_to_arrays,
    patient_moments,
)
from lift.tasks.unconditional.private.moments import release_moments
from lift.tasks.unconditional.public_gaussian import fallback_of
from lift.wire.names import SHARED, TRAJECTORY
from lift_server.tasks.registry import run_task
from lift_server.tasks.unconditional import UnconditionalRun, UnconditionalSums
from tests import wording
from tests.lift.unconditional.tiny_decoder import tiny_plan

PATIENTS = 12
NOTHING = UnconditionalSums(None, None)
Arrays = dict[str, np.ndarray]


def site_sums(decoder: FrozenDecoder, seed: int, patients: int = PATIENTS) -> Sums:
    projection = decoder.public.projection
    random = torch.Generator().manual_seed(seed)
    total = Sums.zero(projection)
    for _ in range(patients):
        rows = [
            0.4 * torch.randn(2, projection.dimension, generator=random)
            for _ in range(projection.n_groups)
        ]
        total = total + patient_sums(projection, rows)
    return merge_small_cells(total, projection)


@pytest.fixture
def plan(decoder: FrozenDecoder) -> Plan:
    return tiny_plan(decoder)


def answer(plan: Plan, arrays: Arrays, *, patients: int = PATIENTS, version: int = 3) -> Parcel:
    reply = StatisticsReply(
        plan_digest=plan.digest(),
        train_patients=patients,
        validation_patients=0,
        test_patients=0,
        refused_volumes=0,
        lowest_slice_spacing_mm=3,
        highest_slice_spacing_mm=3,
        data_version=version,
    )
    return Parcel(Kind.STATISTICS, reply, arrays)


def test_the_total_does_not_depend_on_the_order_and_reaches_every_site(
    decoder: FrozenDecoder, plan: Plan
) -> None:
    task = run_task(plan, decoder)
    assert isinstance(task, UnconditionalRun)
    sums = [site_sums(decoder, seed) for seed in (1, 2, 3)]
    reviewed = [
        task.review(answer(plan, to_arrays(s, data_version=3)), plan.digest())[1] for s in sums
    ]
    one, other = task.combine(reviewed), task.combine(reviewed[::-1])
    assert set(one) == set(other)
    assert all(torch.equal(one[name], other[name]) for name in one)
    sent = task.sent(one)
    assert all(name.startswith(SHARED) for name in sent)
    arrays = {name.removeprefix(SHARED): array for name, array in sent.items()}
    received = from_arrays(arrays, decoder.public.projection).sums
    assert received.patients == 3 * PATIENTS
    whole = sums[0] + sums[1] + sums[2]
    assert all(torch.equal(received.units[name], whole.units[name]) for name in whole.units)


def _with(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Arrays], Arrays]:
    return lambda arrays: arrays | {name: change(arrays[name])}


def _nan(array: np.ndarray) -> np.ndarray:
    broken = array.astype(np.float64)
    broken[0] = np.nan
    return broken


BAD: dict[str, tuple[Callable[[Arrays], Arrays], str]] = {
    "NaN": (_with("drifting_feature_sums", _nan), "int64 is needed"),
    "negative counts": (_with("drifting_anchor_counts", lambda a: -a), "negative"),
    "wrong number of groups": (
        _with("drifting_anchor_counts", lambda a: a[: len(a) // 2]),
        "is needed",
    ),
    "another encoder": (_with("drifting_encoder", lambda a: a + 1), "digest"),
    "another projection": (_with("drifting_projection", lambda a: a + 1), "digest"),
    "older data": (_with("drifting_data_version", lambda a: a - 1), "data version 2"),
    "a part missing": (
        lambda arrays: {n: a for n, a in arrays.items() if n != "drifting_anchor_sums"},
        "it is missing",
    ),
    "nothing at all": (lambda _: {}, "missing"),
    "an overflow": (
        _with("drifting_anchor_counts", lambda a: np.full_like(a, np.iinfo(np.int64).max)),
        "count",
    ),
    "more patients than it trains on": (
        _with("drifting_patients", lambda a: a + 100),
        "patients",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_statistics_are_refused_in_a_sentence_that_says_why(
    decoder: FrozenDecoder, plan: Plan, name: str
) -> None:
    change, reason = BAD[name]
    arrays = change(to_arrays(site_sums(decoder, 1), data_version=3))
    with pytest.raises(UpdateRejectedError) as caught:
        run_task(plan, decoder).review(answer(plan, arrays), plan.digest())
    assert reason in caught.value.seen
    assert caught.value.remedy


def test_a_site_that_says_it_has_fewer_patients_than_its_sums_is_refused(
    decoder: FrozenDecoder, plan: Plan
) -> None:
    arrays = to_arrays(site_sums(decoder, 1), data_version=3)
    with pytest.raises(UpdateRejectedError, match="more patients than it trains on"):
        run_task(plan, decoder).review(answer(plan, arrays, patients=11), plan.digest())


def test_a_site_of_four_patients_takes_part_without_statistics(
    decoder: FrozenDecoder, plan: Plan
) -> None:
    task = run_task(plan, decoder)
    # the number may have been rounded up to five
    for patients in (4, 5):
        _, sums = task.review(answer(plan, {}, patients=patients), plan.digest())
        assert sums == NOTHING
    with pytest.raises(DataError, match="no site has 5"):
        task.combine([NOTHING, NOTHING])


def test_samples_send_nothing_and_anything_is_refused(decoder: FrozenDecoder) -> None:
    plan = tiny_plan(decoder, unconditional__attraction="samples", unconditional__loss="drift")
    task = run_task(plan, decoder)
    reply, sums = task.review(answer(plan, {}), plan.digest())
    assert (reply.train_patients, sums) == (PATIENTS, NOTHING)
    assert task.combine([NOTHING]) == {}
    arrays = to_arrays(site_sums(decoder, 1), data_version=3)
    with pytest.raises(UpdateRejectedError, match="no such tensor"):
        task.review(answer(plan, arrays), plan.digest())


def test_noisy_moments_are_taken_by_their_form_and_make_a_gaussian_in_any_order(
    decoder: FrozenDecoder,
) -> None:
    plan = tiny_plan(
        decoder,
        unconditional__trajectory="gaussian",
        unconditional__gaussian={"positions": 4, "axes": 3, "tied": True},
        federation__rounds=0,
        privacy={
            "mode": "stats-once",
            "delta": 1e-4,
            "public_patients": 3,
            "noise_multiplier": 50.0,
        },
    )
    assert isinstance(plan.privacy, StatisticsOnce)
    assert plan.unconditional is not None
    form = form_of(plan.unconditional.gaussian, decoder)
    public = fallback_of(plan, decoder, form)
    assert public is not None
    task = run_task(plan, decoder)
    reviewed = []
    for _ in range(3):
        # no patient at all: whether there is one cannot be seen
        noisy = release_moments([], form, plan.privacy, 3, SecureStream(), public)
        arrays = dict(moments_to_arrays(noisy, noisy=True))
        reviewed.append(task.review(answer(plan, arrays, patients=3), plan.digest())[1])
    one, other = task.combine(reviewed), task.combine(reviewed[::-1])
    assert {name: tuple(tensor.shape) for name, tensor in one.items()} == gaussian_shapes(form)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in one.values())
    with pytest.raises(UpdateRejectedError, match="it is missing"):
        task.review(answer(plan, {}, patients=3), plan.digest())
    wrong = arrays | {TRAJECTORY + "mean": arrays[TRAJECTORY + "mean"][:, :-1]}
    with pytest.raises(UpdateRejectedError, match="is needed"):
        task.review(answer(plan, wrong, patients=3), plan.digest())


def test_styles_are_those_of_the_sites_that_sent_moments_and_reach_no_site(
    pca: FrozenDecoder,
) -> None:
    asked: dict[str, object] = {
        "unconditional__trajectory": "gaussian",
        "unconditional__gaussian": {"positions": 4, "axes": 3},
    }
    plan = tiny_plan(pca, **asked, unconditional__site_styles=True)
    assert plan.unconditional is not None
    form = form_of(plan.unconditional.gaussian, pca)
    sent = {}
    for number, site in enumerate(("east", "west", "mean")):
        random = torch.Generator().manual_seed(number)
        states = [number + 0.1 * torch.randn(4, 7, generator=random) for _ in range(6)]
        moments = sum((patient_moments([s], form) for s in states), start=TrajectorySums.zero(form))
        sent[site] = UnconditionalSums(None, moments), torch.stack(states).mean((0, 1))[3:5]
    contributions = {site: sums for site, (sums, _) in sent.items()} | {"few": NOTHING}
    task = run_task(plan, pca)
    found = task.by_site(contributions)
    # a site of the name `mean` could not be asked for
    assert sorted(found) == ["style/east", "style/west"]
    for site in ("east", "west"):
        torch.testing.assert_close(found[f"style/{site}"], sent[site][1], atol=1e-5, rtol=0)
    assert not any("style" in name for name in task.sent(found))
    silent = run_task(tiny_plan(pca, **asked), pca)
    assert silent.by_site(contributions) == {}


def test_a_replayed_answer_of_another_plan_is_refused(decoder: FrozenDecoder, plan: Plan) -> None:
    arrays = to_arrays(site_sums(decoder, 1), data_version=3)
    with pytest.raises(UpdateRejectedError, match=wording.ANOTHER_PLAN):
        run_task(plan, decoder).review(answer(plan, arrays), "0" * 64)
