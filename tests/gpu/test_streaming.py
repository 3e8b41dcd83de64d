"""A streamed volume: its features are computed on the device, and stay there."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Final, Literal

import nibabel
import numpy as np
import pytest

from lift.tasks.paired.synthesis import GeneratedStream, mix
from tests.end_to_end.tiny_run import SOURCES, TinyRun, run_here
from tests.gpu.fake_cuda import CUDA, fake_cuda
from tests.lift.small_world import random_mixer, small_generator, small_plan, small_prepared

DEPTH: Final = 13
CHUNK: Final = 4
"""Slices: four chunks of them."""


@pytest.mark.parametrize("kind", ["zrefine", "zconv"])
@pytest.mark.parametrize("over", ["picture", "mask"])
def test_only_the_mixed_volume_comes_back(
    kind: Literal["zrefine", "zconv"], over: Literal["picture", "mask"]
) -> None:
    prepared = small_prepared(DEPTH)
    # a chunk without any mask comes back too
    prepared.mask[:CHUNK] = 0
    generator = small_generator(over=over)
    mixer = random_mixer(small_plan(kind), generator)
    expected = mix(mixer, GeneratedStream(prepared, generator, mixer), chunk=CHUNK)
    with fake_cuda() as device:
        there = generator.to(CUDA)
        moved = mixer.to(CUDA)
        device.reads.clear()
        device.uploads.clear()
        stream = GeneratedStream(prepared, there, moved, block=DEPTH)
        found = mix(moved, stream, chunk=CHUNK)
        reads, uploads = device.reads.total(), device.uploads.total()
    # the device computes in float16; values of this mixer reach 4
    np.testing.assert_allclose(found, expected, atol=0.05)
    # a chunk's prediction, and nothing else; a block's slices, a chunk's source, mask and numbers
    assert reads == -(-DEPTH // CHUNK)
    assert uploads <= 2 + 4 * reads
    assert not any("generator" in place for place in device.reads)


@pytest.mark.parametrize("over", ["picture", "mask"])
@pytest.mark.parametrize("largest", [45_000, 60_000])
def test_shorter_blocks_and_chunks_fit_into_less_memory(
    over: Literal["picture", "mask"],
    largest: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    prepared = small_prepared(40)
    generator = small_generator(over=over)
    mixer = random_mixer(small_plan("zrefine"), generator)
    expected = mix(mixer, GeneratedStream(prepared, generator, mixer))
    with fake_cuda(largest=largest):
        there, moved = generator.to(CUDA), mixer.to(CUDA)
        found = mix(moved, GeneratedStream(prepared, there, moved, block=40), chunk=32)
    np.testing.assert_allclose(found, expected, atol=0.05)
    # a block of 40 slices does not fit (61,440 numbers), nor do two shorter ones in one piece
    assert caplog.text.count("event=device_memory_full") >= 2


def test_translation_without_the_mixer_comes_back_from_the_device(
    tiny: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tiny.simulate("fall-back").code == 0
    monkeypatch.setattr("lift.tasks.paired.translation.concerns", lambda *_: "a concern")
    inputs = [f"{name}={tiny.file('east', 0, name)}" for name in SOURCES]
    where = ("--mixer", tiny.folder / "fall-back", "--generator", tiny.bundle)
    made = {}
    for device in ("cpu", "auto"):
        made[device] = tmp_path / f"{device}.nii.gz"
        given = (*inputs, "-o", made[device], *where, "--guard", "fall-back", "--device", device)
        with fake_cuda() if device == "auto" else nullcontext():
            done = run_here("lift", "translate", *given)
        assert done.code == 0, done.stderr
        assert "the mixer was not used" in done.stderr
    found, expected = (np.asarray(nibabel.load(made[d]).dataobj) for d in ("auto", "cpu"))
    np.testing.assert_allclose(found, expected, atol=0.01 * expected.max())
