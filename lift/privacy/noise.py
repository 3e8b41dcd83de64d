"""Unpredictable random numbers: Gaussian noise and Poisson masks over patients.

Both come from the operating system's entropy alone. There is no seed: not in the plan, not in
a log, not in a message. A run that resumes draws fresh noise.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from typing import Final

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

BITS: Final = 53
"""Bits of every uniform number: the mantissa of a float64."""
BLOCK: Final = 2**16
"""Normal numbers that are made at once; each block has a key of its own."""

_SUMMED: Final = 4
_NONCE: Final = bytes(16)


class SecureStream:
    """An endless stream of independent random numbers, keyed by the operating system.

    Guarantees: every block of numbers is the ChaCha20 key stream (RFC 8439) under a 256-bit key
    of its own, fresh from the operating system and forgotten with the block. An instance holds
    no state at all, so no number repeats in another instance, thread, copy, process or after a
    fork, and nothing that could tell past or coming noise can be read, copied or pickled.

    The unit of the guarantee is the machine's entropy: a virtual machine that is restored from a
    snapshot relies on its kernel's reseeding.
    """

    __slots__ = ()

    def integers(self, count: int) -> NDArray[np.uint64]:
        """Independent integers, uniform over 0 .. 2^53 - 1, (count,)."""
        return _unsigned(self._key_stream(8 * count)) >> np.uint64(64 - BITS)

    def normals(self, count: int) -> NDArray[np.float64]:
        """Independent standard normal numbers, (count,).

        Each is the sum of four normals, divided by 2. Which float64 numbers a sampler can
        return betrays what the noise was added to (Mironov 2012, "On significance of the least
        significant bits for differential privacy"); after a sum of four, an attacker would have
        to search all four at once (Holohan & Braghin 2021, arXiv:2107.10138).

        Each of the four is the inverse normal distribution function of a 53-bit uniform number,
        symmetric to the bit and at most 8.3 in size: cutting the tails there costs less than
        1e-15 of delta by number.
        """
        result = np.empty(count)
        for low in range(0, count, BLOCK):
            part = result[low : low + BLOCK]
            np.sum(_normals(self.integers(_SUMMED * len(part))).reshape(_SUMMED, -1), 0, out=part)
        result *= 1 / math.sqrt(_SUMMED)
        return result

    def _key_stream(self, length: int) -> bytes:
        """`length` bytes under a new key; at most 256 GiB, after which ChaCha20 would repeat."""
        cipher = Cipher(algorithms.ChaCha20(self.new_key(), _NONCE), mode=None)
        return cipher.encryptor().update(bytes(length))

    def new_key(self) -> bytes:
        """The key of one block: 32 bytes of the operating system, of no use for any other.

        A subclass may count keys up, to repeat a computation; no setting reaches it.
        """
        return secrets.token_bytes(32)


def poisson_sample(count: int, rate: float, stream: SecureStream) -> NDArray[np.int64]:
    """The patients of one step: each of `count` takes part with probability `rate`, alone.

    The result may be empty: an empty step is taken like any other. Never redraw, pad or drop:
    the accounting holds for this very distribution and no other.

    A 53-bit integer is compared with floor(rate * 2^53), without rounding: the probability is
    never above `rate`, and at most 2^-53 below it. Rates 0 and 1 are exact.

    Args:
        count: patients of the cohort, >= 0 (private: take what is there, not the public number).
        rate: sampling rate, 0 to 1.
        stream: source of randomness.

    Returns:
        Sorted indices of the patients that take part, in 0 .. count - 1. They are private.

    Raises:
        ValueError: an argument is out of its range.
    """
    if count < 0 or not 0 <= rate <= 1:
        raise ValueError(f"a count >= 0 and a rate in [0, 1] are needed (seen: {count}, {rate})")
    # multiplying by a power of two is exact
    threshold = math.floor(rate * 2**BITS)
    return np.flatnonzero(stream.integers(count) < np.uint64(threshold)).astype(np.int64)


def add_noise(
    values: Mapping[str, Tensor], noise_std: float, stream: SecureStream
) -> dict[str, Tensor]:
    """`values` with independent Gaussian noise on every number, float32, names sorted.

    The noise is added in float64 and the sum rounded to float32 once, which is
    post-processing. The input is not modified. Shapes and devices are kept.

    Args:
        values: clipped sums by name, any float type, finite.
        noise_std: standard deviation, > 0: `noise_multiplier * clip_norm`.
        stream: source of randomness.

    Raises:
        ValueError: `noise_std` is not a positive finite number (no noise is no mechanism).
    """
    if not 0 < noise_std < math.inf:
        raise ValueError(f"noise_std must be a positive finite number (seen: {noise_std})")
    names = sorted(values)
    drawn = torch.from_numpy(stream.normals(sum(values[name].numel() for name in names)))
    noisy = {}
    at = 0
    for name in names:
        exact = values[name].double()
        part = drawn[at : at + exact.numel()].view_as(exact).to(exact.device)
        noisy[name] = (exact + noise_std * part).float()
        at += exact.numel()
    return noisy


def _normals(integers: NDArray[np.uint64]) -> NDArray[np.float64]:
    """The normal quantiles of (K + 1/2) / 2^53 for 53-bit integers K; every step but one exact.

    The quantile of the nearer tail, so that both tails are equally fine.
    """
    centred = integers.astype(np.float64)
    centred -= 2.0 ** (BITS - 1) - 0.5
    tail = np.abs(centred)
    tail *= -(2.0**-BITS)
    tail += 0.5
    ndtri(tail, out=tail)
    return np.copysign(tail, centred, out=tail)


def _unsigned(data: bytes) -> NDArray[np.uint64]:
    return np.frombuffer(data, dtype="<u8").astype(np.uint64, copy=False)
