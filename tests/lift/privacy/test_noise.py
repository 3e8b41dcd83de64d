"""The noise has the distribution that is claimed, and nobody can draw it a second time."""

from __future__ import annotations

import copy
import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray
from scipy.stats import binom, chisquare, kstest, norm

import lift
from lift.privacy.noise import BLOCK, SecureStream, add_noise, poisson_sample
from tests.lift.privacy.streams import KnownStream

Floats = NDArray[np.float64]
ALPHA = 1e-4
DRAWS = 200_000


class Integers(SecureStream):
    """Given 53-bit integers, over and over."""

    __slots__ = ("_given",)

    def __init__(self, *given: int) -> None:
        self._given = given

    def integers(self, count: int) -> NDArray[np.uint64]:
        return np.resize(np.array(self._given, dtype=np.uint64), count)


def is_gaussian(draws: Floats, std: float) -> bool:
    """Std to 1%, and a Kolmogorov-Smirnov test at `ALPHA`."""
    is_scaled = abs(draws.std() / std - 1) < 0.01
    return bool(is_scaled and kstest(draws, norm(scale=std).cdf).pvalue > ALPHA)


def is_ks_gaussian(draws: Floats, std: float) -> bool:
    return bool(kstest(draws, norm(scale=std).cdf).pvalue > ALPHA)


@pytest.mark.parametrize("std", [0.3, 1.0, 40.0])
def test_noise_is_gaussian_with_the_claimed_std(std: float) -> None:
    values = {"a": torch.full((DRAWS // 2,), 5.0), "b": torch.full((2, DRAWS // 4), 5.0)}
    noisy = add_noise(values, std, KnownStream())
    draws = torch.cat([(noisy[name] - values[name]).flatten() for name in values]).double().numpy()
    assert is_gaussian(draws, std)
    # the same helpers must see a wrong factor: half or one and a half where one was due
    for wrong in (2 / 3, 3 / 2, 0.98, 1.02):
        assert not is_gaussian(draws * wrong, std)
    for wrong in (2 / 3, 3 / 2):
        assert not is_ks_gaussian(draws * wrong, std)


def test_the_operating_systems_stream_is_gaussian_too() -> None:
    # no seed: with 300,000 draws the std's standard error is 0.13%, the bar 7.7 of them away
    draws = SecureStream().normals(300_000)
    assert abs(draws.std() - 1) < 0.01
    assert abs(draws.mean()) < 0.01
    assert kstest(draws, norm.cdf).pvalue > 1e-9


def test_tails_are_there() -> None:
    draws = KnownStream().normals(2_000_000)
    for far in (3.0, 4.0):
        for count in ((draws > far).sum(), (draws < -far).sum()):
            low, high = binom.interval(1 - ALPHA, len(draws), norm.sf(far))
            assert low <= count <= high


def test_draws_are_independent() -> None:
    draws = KnownStream().normals(DRAWS)
    again = KnownStream(99).normals(DRAWS)
    bound = norm.isf(ALPHA / 2) / DRAWS**0.5

    def correlation(x: Floats, y: Floats) -> float:
        return abs(float(np.corrcoef(x, y)[0, 1]))

    # 65,536 normals are made at once, and four are summed
    for lag in (1, 2, 3, 4, 16_384, 65_536):
        assert correlation(draws[:-lag], draws[lag:]) < 1.1 * bound
        assert correlation(draws[:-lag] ** 2, draws[lag:] ** 2) < 1.1 * bound
    assert correlation(draws, again) < bound
    # the helper must see one shared summand of four
    assert correlation(draws, draws + 3**0.5 * again) > 0.4


@pytest.mark.parametrize("whole", [0, 1, 2**52 - 1, 2**52, 2**53 - 1])
def test_extreme_integers_give_finite_numbers(whole: int) -> None:
    stream = Integers(whole)
    expected = norm.ppf((whole + 0.5) * 2.0**-53) if whole < 2**52 else None
    mirrored = Integers(2**53 - 1 - whole).normals(1)[0]
    # the sum of four equal normals, halved, is twice the normal
    drawn = float(stream.normals(1)[0])
    assert abs(drawn) < 2 * 8.3
    assert drawn == -mirrored
    if expected is not None:
        assert drawn == pytest.approx(2 * expected, rel=1e-12, abs=1e-15)


def test_the_key_stream_is_chacha20_of_rfc_8439() -> None:
    class ZeroKey(SecureStream):
        __slots__ = ()

        def new_key(self) -> bytes:
            return bytes(32)

    # RFC 8439, appendix A.1, test vector 1
    block = bytes.fromhex("76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7")
    expected = np.frombuffer(block, dtype="<u8") >> np.uint64(11)
    assert (ZeroKey().integers(4) == expected).all()
    assert (
        Cipher(algorithms.ChaCha20(bytes(32), bytes(16)), None).encryptor().update(bytes(32))
        == block
    )


def test_no_seed_can_be_given_and_nothing_is_kept() -> None:
    assert not inspect.signature(SecureStream).parameters
    stream = SecureStream()
    assert not hasattr(stream, "__dict__")
    torch.manual_seed(0)
    first = stream.normals(4)
    torch.manual_seed(0)
    assert not set(first) & set(stream.normals(4))


@pytest.mark.parametrize("twin", [lambda _: SecureStream(), copy.copy, copy.deepcopy])
def test_no_two_instances_draw_the_same(twin: Callable[[SecureStream], SecureStream]) -> None:
    stream = SecureStream()
    stream.integers(8)
    other = twin(stream)
    drawn = [int(k) for s in (stream, other, stream, other) for k in s.integers(1000)]
    # 4000 random 53-bit numbers: a chance of 1e-9 that two are equal
    assert len(set(drawn)) == len(drawn)


FORKED = """
import os
from lift.privacy.noise import SecureStream
stream = SecureStream()
stream.integers(8)
read, write = os.pipe()
for _ in range(3):
    if os.fork() == 0:
        os.write(write, stream.integers(100).tobytes())
        os._exit(0)
    os.wait()
os.write(write, stream.integers(100).tobytes())
print(os.read(read, 10_000).hex())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
def test_forked_processes_do_not_draw_the_same() -> None:
    root = str(Path(lift.__file__).parent.parent)
    drawn = []
    for _ in range(2):
        answer = subprocess.run(
            [sys.executable, "-c", FORKED],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": root},
        )
        numbers = np.frombuffer(bytes.fromhex(answer.stdout.strip()), dtype=np.uint64)
        assert len(numbers) == 400
        drawn += list(numbers)
    assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize(("count", "rate"), [(20, 0.16), (200, 0.01), (7, 0.5)])
def test_poisson_counts_are_binomial(count: int, rate: float) -> None:
    stream, steps = KnownStream(), 4000
    masks = [poisson_sample(count, rate, stream) for _ in range(steps)]
    sizes = np.array([len(mask) for mask in masks])

    def p_value(of: NDArray[np.int64], claimed: float) -> float:
        values = np.arange(count + 1)
        expected = steps * binom.pmf(values, count, claimed)
        seen = np.bincount(of, minlength=count + 1)
        often = expected >= 5
        rare = ~often
        f_seen = [*seen[often], seen[rare].sum()]
        f_expected = [*expected[often], max(expected[rare].sum(), 1e-9)]
        return float(chisquare(f_seen, np.array(f_expected) * steps / sum(f_expected)).pvalue)

    assert p_value(sizes, rate) > ALPHA
    # a wrong rate, and batches of a fixed size, must show
    assert p_value(sizes, rate * 1.2) < ALPHA
    assert p_value(np.full(steps, round(count * rate)), rate) < ALPHA
    taken = np.bincount(np.concatenate(masks), minlength=count)
    assert chisquare(taken).pvalue > ALPHA


def test_patients_are_drawn_independently() -> None:
    stream = KnownStream()
    mask = np.zeros((4000, 6))
    for row in mask:
        row[poisson_sample(6, 0.3, stream)] = 1
    correlations = np.atleast_2d(np.corrcoef(mask.T))[np.triu_indices(6, 1)]
    assert np.abs(correlations).max() < norm.isf(ALPHA / 2) / 4000**0.5


@pytest.mark.parametrize("count", [0, 1, 50])
def test_rates_zero_and_one_are_exact(count: int) -> None:
    stream = SecureStream()
    for _ in range(20):
        assert poisson_sample(count, 0.0, stream).size == 0
        assert poisson_sample(count, 1.0, stream).tolist() == list(range(count))


def test_the_rate_is_compared_without_rounding() -> None:
    rate = 0.16
    threshold = int(rate * 2**53)
    assert poisson_sample(1, rate, Integers(threshold - 1)).tolist() == [0]
    assert poisson_sample(1, rate, Integers(threshold)).tolist() == []
    assert poisson_sample(1, 1.0, Integers(2**53 - 1)).tolist() == [0]
    # a rate that the integers cannot express is rounded down, never up
    assert poisson_sample(1, 2.0**-60, Integers(0)).tolist() == []


@pytest.mark.parametrize(("count", "rate"), [(-1, 0.5), (3, -0.1), (3, 1.1), (3, float("nan"))])
def test_a_rate_out_of_range_is_refused(count: int, rate: float) -> None:
    with pytest.raises(ValueError, match="rate"):
        poisson_sample(count, rate, SecureStream())


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan"), float("inf")])
def test_no_noise_is_refused(std: float) -> None:
    with pytest.raises(ValueError, match="noise_std"):
        add_noise({"a": torch.zeros(2)}, std, SecureStream())


def test_noise_is_added_once_in_float64_and_never_in_place() -> None:
    values = {"b": torch.ones(2, 3, dtype=torch.float64), "a": torch.ones(4)}
    noisy = add_noise(values, 0.5, KnownStream())
    assert list(noisy) == ["a", "b"]
    assert all(bool((tensor == 1).all()) for tensor in values.values())
    drawn = torch.from_numpy(KnownStream().normals(10))
    assert torch.equal(noisy["a"], (1 + 0.5 * drawn[:4]).float())
    assert torch.equal(noisy["b"], (1 + 0.5 * drawn[4:].view(2, 3)).float())


def test_numbers_made_in_many_blocks_are_gaussian_and_distinct() -> None:
    count = 5 * BLOCK + BLOCK // 2
    draws = KnownStream().normals(count)
    assert is_ks_gaussian(draws, 1.0)
    assert len(np.unique(draws)) == count
