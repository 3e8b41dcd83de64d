"""Training the mapper: reproducible, towards the real volumes, from sums or from samples."""

from __future__ import annotations

import pytest
import torch

from lift.config.decoder import DecoderPretrainConfig
from lift.config.plan import Plan
from lift.device import fix_threads
from lift.errors import ConfigError, DataError
from lift.mixer.trajectory import slice_positions
from lift.tasks.unconditional.decoder import FrozenDecoder
from lift.tasks.unconditional.drifting.attraction import Anchors, RandomFeatures
from lift.tasks.unconditional.drifting.statistics import Sums
from lift.tasks.unconditional.grid import whole_extent
from lift.tasks.unconditional.learning import (
    PatientFeatures,
    features_of,
    plan_mapper,
    samples_loss,
    settings_of,
    statistics_loss,
    sums_of,
    train_mapper_round,
)
from lift.tasks.unconditional.pretraining import read_public_volumes
from lift.triplanar.features import generated_rows
from tests import wording
from tests.lift.unconditional.tiny_decoder import (
    pretrain_data,
    tiny_plan,
    write_bodies,
)


@pytest.fixture(scope="module")
def patients(
    decoder: FrozenDecoder, tmp_path_factory: pytest.TempPathFactory
) -> list[PatientFeatures]:
    """Features of 14 ellipsoids that the decoder has not seen."""
    folder = tmp_path_factory.mktemp("patients")
    config = DecoderPretrainConfig.from_data(
        pretrain_data(write_bodies(folder / "data", 31, 14)), "test"
    )
    volumes = read_public_volumes(config, folder)
    return [features_of([volume.body], decoder.public) for volume in volumes]


def mmd2(plan: Plan, decoder: FrozenDecoder, values: dict[str, torch.Tensor], total: Sums) -> float:
    """Squared MMD of 64 generated volumes to the sums."""
    mapper = plan_mapper(plan, decoder)
    mapper.load_values(values)
    settings = settings_of(plan)
    position = slice_positions(settings.slices)
    with torch.no_grad():
        noise = mapper.draw(64, torch.Generator().manual_seed(99))
        volumes = decoder(mapper(noise, position))
        rows = generated_rows(
            volumes,
            (settings.slice_spacing_mm, 4.0, 4.0),
            whole_extent(64, settings.slices, 24, 16),
            decoder.public.encoder,
            decoder.public.standardisation,
            groups=range(decoder.public.projection.n_groups),
            places=None,
        )
        x = torch.stack([rows[group].features for group in sorted(rows)])
        source = RandomFeatures(decoder.public.projection, total)
        _, found = source.mmd_force(x, rows[0].owner, tuple(sorted(rows)))
    return float(found.mean())


def trained(
    plan: Plan, decoder: FrozenDecoder, total: Sums, *, site: str = "a", rounds: int = 1
) -> dict[str, torch.Tensor]:
    fix_threads(plan.threads)
    mapper = plan_mapper(plan, decoder)
    values = mapper.values()
    loss = statistics_loss(plan, decoder.public, total)
    for index in range(1, rounds + 1):
        values = train_mapper_round(
            mapper, values, decoder, loss, plan, round_index=index, site=site
        ).values
    return values


@pytest.mark.parametrize("loss", ["drift", "mmd", "hybrid"])
def test_training_comes_nearer_to_the_real_volumes(
    decoder: FrozenDecoder, patients: list[PatientFeatures], loss: str
) -> None:
    plan = tiny_plan(
        decoder,
        unconditional__loss=loss,
        unconditional__volumes_per_step=8,
        unconditional__groups_per_step=4,
        training__steps=60,
        training__learning_rate=1e-2,
        federation__rounds=1,
    )
    total = sums_of(patients, decoder.public)
    before = mmd2(plan, decoder, plan_mapper(plan, decoder).values(), total)
    after = mmd2(plan, decoder, trained(plan, decoder, total), total)
    assert after < 0.6 * before


def test_the_decoder_stays_frozen_and_the_same_round_gives_the_same_bits(
    decoder: FrozenDecoder, patients: list[PatientFeatures]
) -> None:
    plan = tiny_plan(decoder)
    total = sums_of(patients, decoder.public)
    before = decoder.fingerprint
    torch.manual_seed(1)
    first = trained(plan, decoder, total)
    torch.manual_seed(2)  # the global state has no say
    second = trained(plan, decoder, total)
    assert decoder.fingerprint == before
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = trained(plan, decoder, total, site="b")
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_sums_are_exact_under_splitting_a_cohort_in_any_order(
    decoder: FrozenDecoder, patients: list[PatientFeatures]
) -> None:
    whole = sums_of(patients, decoder.public)
    parts = [sums_of(part, decoder.public) for part in (patients[9:], patients[:4], patients[4:9])]
    total = parts[0] + parts[1] + parts[2]
    assert total.patients == whole.patients == 14
    assert all(torch.equal(total.units[name], whole.units[name]) for name in whole.units)


def test_two_volumes_of_one_patient_count_as_one(
    decoder: FrozenDecoder, patients: list[PatientFeatures]
) -> None:
    twice = PatientFeatures(tuple(torch.cat([rows, rows]) for rows in patients[0].groups))
    one, two = (sums_of([patient], decoder.public) for patient in (patients[0], twice))
    assert two.patients == 1
    for name in one.units:
        difference = (one.units[name] - two.units[name]).abs().max()
        assert int(difference) <= 2  # rounding of the same mean


def test_samples_stay_and_need_a_patient(
    decoder: FrozenDecoder, patients: list[PatientFeatures]
) -> None:
    plan = tiny_plan(decoder, unconditional__attraction="samples", unconditional__loss="drift")
    fix_threads(1)
    loss = samples_loss(plan, decoder.public, patients)
    mapper = plan_mapper(plan, decoder)
    round_ = train_mapper_round(
        mapper, mapper.values(), decoder, loss, plan, round_index=1, site="a"
    )
    assert round_.loss is not None
    assert round_.loss > 0
    with pytest.raises(DataError, match="0 training patients"):
        samples_loss(plan, decoder.public, [])


def test_sums_of_nobody_or_of_other_public_files_are_refused(
    decoder: FrozenDecoder, patients: list[PatientFeatures]
) -> None:
    plan = tiny_plan(decoder)
    with pytest.raises(DataError, match="hold no patient"):
        statistics_loss(plan, decoder.public, Sums.zero(decoder.public.projection))
    total = sums_of(patients, decoder.public)
    other = Sums(total.encoder_digest, "0" * 64, total.patients, total.units)
    with pytest.raises(ConfigError, match=wording.ANOTHER_PROJECTION):
        statistics_loss(plan, decoder.public, other)
    moments = tiny_plan(decoder, unconditional__attraction="moments")
    with pytest.raises(ConfigError, match="holds anchors, random_features"):
        statistics_loss(moments, decoder.public, total)
    assert isinstance(statistics_loss(plan, decoder.public, total).attraction, Anchors)


def test_the_global_random_state_is_not_touched(decoder: FrozenDecoder) -> None:
    plan = tiny_plan(decoder)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, second = plan_mapper(plan, decoder).values(), plan_mapper(plan, decoder).values()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_under_noise_a_patient_without_statistics_adds_nothing(
    decoder: FrozenDecoder, patients: list[PatientFeatures]
) -> None:
    spoilt = PatientFeatures(tuple(group * float("nan") for group in patients[0].groups))
    with pytest.raises(DataError):
        sums_of([*patients, spoilt], decoder.public)
    found = sums_of([patients[0], spoilt, *patients[1:]], decoder.public, one_by_one=True)
    others = sums_of(patients, decoder.public)
    assert found.patients == others.patients
    assert all(torch.equal(found.units[name], others.units[name]) for name in others.units)
