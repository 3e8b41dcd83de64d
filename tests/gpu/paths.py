"""The five paths of the product on fake tensors of a CUDA device: see `fake_tensors`.

Each checks that all that is made is on the device, in the number format and the shape that the
product promises; planted mistakes must break them. A path ends where its result leaves the
device on purpose: `values()` of a trained part, NumPy arrays of `compute_features` and `mix`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from lift.config.decoder import DecoderCard, PublicFeaturesCard, SliceDecoderConfig
from lift.config.generator import (
    GeneratorCard,
    MonaiBasicUNetConfig,
    MonaiSegResNetConfig,
    MonaiUNetConfig,
    NetworkConfig,
    UNetConfig,
)
from lift.config.plan import MixerKind, Plan
from lift.device import inference_autocast, training_autocast
from lift.generator.features import Features
from lift.generator.networks import FrozenGenerator, build_network
from lift.mixer.base import Mixer
from lift.mixer.trained import TrainedPart
from lift.tasks.paired import synthesis
from lift.tasks.paired.building import plan_mixer
from lift.tasks.paired.private.engines import PatientLoop
from lift.tasks.paired.private.hooks import hooked_gradients
from lift.tasks.paired.private.training import row_losses
from lift.tasks.paired.training import draw_batches, train_round
from lift.tasks.unconditional import learning
from lift.tasks.unconditional.decoder import FrozenDecoder, PublicFeatures, SliceDecoder
from lift.tasks.unconditional.drifting.statistics import Sums
from lift.triplanar.encoder import RandomPyramid
from lift.triplanar.groups import GroupLayout
from lift.triplanar.projection import KINDS as STATISTICS
from lift.triplanar.projection import Projection
from lift.triplanar.standardise import Standardisation
from tests.gpu.fake_cuda import CUDA
from tests.gpu.fake_tensors import Seen, fake_tensors
from tests.lift.small_world import (
    SIZE,
    SOURCES,
    small_cohort,
    small_generator,
    small_plan,
    small_prepared,
)
from tests.lift.unconditional.tiny_decoder import CHANNEL, plan_data

NETWORKS: Final[tuple[NetworkConfig, ...]] = (
    UNetConfig(width=4, multipliers=(1, 2, 2), n_source=2),
    UNetConfig(width=4, multipliers=(1, 2), n_source=1, context_slices=1),
    MonaiBasicUNetConfig(n_source=2, features=(4, 4, 8, 8, 8, 4)),
    MonaiUNetConfig(n_source=2, channels=(4, 8, 8)),
    MonaiSegResNetConfig(n_source=2, width=16, blocks=(1, 1)),
)
_SLICES: Final = (3, 17, 26)
"""Slices, rows and columns: of no stride a multiple."""
_HALF: Final = torch.float16


def frozen(config: NetworkConfig) -> FrozenGenerator:
    """A frozen network of this kind on the device."""
    sources = SOURCES[: config.n_source]
    rules = small_plan().preprocessing
    card = GeneratorCard(
        network=config,
        source=sources,
        target="t2f",
        taps={},
        normalisation={name: rules.rule(name) for name in (*sources, "t2f")},
        training_data="none",
        licence="Apache-2.0",
        fingerprint="0" * 64,
        made_with="tests",
        trained_steps=0,
    )
    return FrozenGenerator(build_network(config, seed=0), card).to(CUDA)


def check_generator(config: NetworkConfig) -> Seen:
    """Prediction and taps, in half precision; the way back from taps has a gradient."""
    with fake_tensors() as seen:
        generator = frozen(config)
        assert generator.device == CUDA
        n, height, width = _SLICES
        x = torch.rand(n, config.input_channels, height, width, device=CUDA)
        names = tuple(generator.taps)
        with inference_autocast(generator.device):
            pred, taps = generator.predict(x, names)
        check(pred, (n, 1, height, width), _HALF)
        for name, tap in generator.taps.items():
            sides = (-(-height // tap.stride), -(-width // tap.stride))
            check(taps[name], (n, tap.channels, *sides))
        if names:
            levels = {name: taps[name].detach().float().requires_grad_() for name in taps}
            decoded = generator.decode(levels)
            check(decoded, (n, 1, height, width), torch.float32)
            torch.autograd.backward(decoded.square().mean())
            for name in generator.encoder_tap_names:
                check_gradient(levels[name])
        assert not seen.reads, seen.reads
    assert _HALF in seen.formats
    return seen


def check_mixer(kind: MixerKind) -> Seen:
    """Windows in bfloat16 with gradients; a whole volume by chunks in float16."""
    with fake_tensors() as seen:
        generator = small_generator().to(CUDA)
        plan = small_plan(kind)
        mixer = plan_mixer(plan, generator)
        cohort = small_cohort(generator, kind, (6, 9))
        (batch, *_) = draw_batches(mixer, cohort, plan.training, (1, 1, "north", 0))
        reads = sum(seen.reads.values())
        with training_autocast(mixer.device):
            mixed = mixer(batch.inputs)
        check(mixed, tuple(batch.target.shape))
        torch.autograd.backward(mixed.float().square().mean())
        for parameter in mixer.parameters():
            check_gradient(parameter)
        assert sum(seen.reads.values()) == reads, seen.reads
        mixer.zero_grad()
        seen.formats.clear()
        whole = synthesis.mix(mixer, synthesis.CachedStream(cohort[1], mixer), chunk=4)
        assert whole.shape == (9, 1, *SIZE)
        assert whole.dtype == np.float32
    assert _HALF in seen.formats
    return seen


def check_training_step(kind: MixerKind) -> Seen:
    """Loss, gradient, clipping and optimiser; then gradients by patient, summed both ways."""
    with fake_tensors() as seen:
        generator = small_generator().to(CUDA)
        plan = small_plan(kind, training={"steps": 2})
        mixer = plan_mixer(plan, generator)
        patients = small_cohort(generator, kind, (6, 9))
        start = mixer.values()
        seen.formats.clear()
        reads: list[int] = []
        trained = train_round(
            mixer,
            start,
            patients,
            plan,
            round_index=1,
            site="north",
            report=lambda step: reads.append(sum(seen.reads.values())),
        )
        assert len(set(reads)) == 1, seen.reads
        assert trained.values.keys() == start.keys()
        for name, value in trained.values.items():
            assert (value.device.type, value.shape) == ("cpu", start[name].shape)
        check_part(mixer)
        check_gradients_by_patient(mixer, patients, plan)
    assert torch.bfloat16 in seen.formats
    return seen


def check_gradients_by_patient(mixer: Mixer, patients: Sequence[Features], plan: Plan) -> None:
    """One after the other, and by hooks; their trial, which compares numbers, is left out."""
    losses = row_losses(plan.training)
    batches = list(draw_batches(mixer, patients, plan.training, (1, 1, "north", 1)))
    found = PatientLoop().sum_of_clipped_gradients(mixer, [batches], losses, 1.0)
    # a patient whose gradient cannot be computed has an infinite norm
    assert len(found.norms) == 1
    assert math.isfinite(found.norms[0])
    if mixer.kind == "pooled_bigru":
        return  # no hook is right for it
    rows = hooked_gradients(mixer, batches[0], losses)
    for name, parameter in mixer.named_parameters():
        shape = (len(batches[0].target), *parameter.shape)
        for gradient, needed in ((found.total[name], shape[1:]), (rows[name], shape)):
            assert (gradient.device.type, tuple(gradient.shape)) == ("cpu", needed)


def check_drifting_step(attraction: str) -> Seen:
    """New volumes, their features, the drift towards sums or the site's own, the optimiser."""
    with fake_tensors() as seen:
        decoder = frozen_decoder()
        loss = "drift" if attraction == "samples" else "hybrid"
        data = plan_data(unconditional__attraction=attraction, unconditional__loss=loss)
        plan = Plan.from_data(data, "test")
        mapper = learning.plan_mapper(plan, decoder)
        start = mapper.values()
        public = decoder.public
        if attraction == "samples":
            d = public.projection.dimension
            own = tuple(torch.rand(6, d) for _ in range(public.projection.n_groups))
            target = learning.samples_loss(plan, public, [learning.PatientFeatures(own)])
        else:
            sums = Sums.zero(public.projection)
            target = learning.statistics_loss(
                plan,
                public,
                Sums(sums.encoder_digest, sums.projection_digest, 4, sums.units),
            )
        trained = learning.train_mapper_round(
            mapper, start, decoder, target, plan, round_index=1, site="north"
        )
        assert trained.values.keys() == start.keys()
        check_part(mapper)
        for parameter in mapper.parameters():
            check_gradient(parameter)
    return seen


def check_synthesis(kind: MixerKind) -> Seen:
    """From prepared slices to a mixed volume: features, mixer, what a site is given to write."""
    with fake_tensors() as seen:
        generator = small_generator(context_slices=1).to(CUDA)
        plan = small_plan(kind)
        mixer = plan_mixer(plan, generator)
        prepared = small_prepared(9, with_target=False)
        seen.formats.clear()
        stream = synthesis.GeneratedStream(prepared, generator, mixer)
        whole = synthesis.mix(mixer, stream, chunk=4)
        assert whole.shape == (9, 1, *SIZE)
        assert whole.dtype == np.float32
        check_part(mixer)
        assert seen.formats == {_HALF}, seen.formats
    return seen


def check(tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> None:
    """Where a tensor is, and what it is."""
    assert tensor.device == CUDA, tensor
    assert tuple(tensor.shape) == shape
    assert dtype is None or tensor.dtype == dtype, tensor.dtype


def check_gradient(parameter: Tensor) -> None:
    """A trained tensor has its gradient, where it is itself."""
    assert parameter.grad is not None
    check(parameter.grad, tuple(parameter.shape), parameter.dtype)


def check_part(part: TrainedPart) -> None:
    """Its numbers are still on the device, in float32."""
    for parameter in part.parameters():
        check(parameter, tuple(parameter.shape), torch.float32)


def frozen_decoder() -> FrozenDecoder:
    """A decoder with public features, whose numbers nobody knows, on the device."""
    config = SliceDecoderConfig(image=(24, 16), pixel_mm=4.0, latent=6, hidden=(16, 24))
    encoder = RandomPyramid(1)
    layout = GroupLayout(axial=2, coronal=1, sagittal=1)
    size, d = encoder.size, 6
    sizes = [group.blocks * size for group in layout.groups]
    standardisation = Standardisation(
        layout,
        encoder.digest,
        tuple(torch.zeros(n, dtype=torch.float16) for n in sizes),
        tuple(torch.zeros(n, d, dtype=torch.int8) for n in sizes),
        tuple(torch.ones(d) for _ in sizes),
    )
    projection = Projection(
        layout,
        encoder.digest,
        standardisation.digest,
        STATISTICS,
        (0.5, 1.0),
        2.0,
        2.0,
        torch.zeros(len(sizes), 8, d, dtype=torch.float16),
        torch.zeros(2, d, 32, dtype=torch.float16),
    )
    card = DecoderCard(
        format_version=1,
        kind="unconditional",
        network=config,
        target=CHANNEL,
        plane="axial",
        normalisation={CHANNEL: small_plan().preprocessing.rule(CHANNEL)},
        body_length_mm=60.0,
        features=PublicFeaturesCard(
            encoder_seed=1,
            standardisation_digest=standardisation.digest,
            projection_digest=projection.digest,
        ),
        training_data="none",
        licence="Apache-2.0",
        fingerprint="0" * 64,
        made_with="tests",
        trained_steps=0,
    )
    public = PublicFeatures(encoder, standardisation, projection)
    return FrozenDecoder(SliceDecoder(config), card, public).to(CUDA)
