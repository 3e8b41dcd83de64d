"""One digest for everything public that two sides must share to the bit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from torch import Tensor


def digest_of(header: Mapping[str, object], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over a description and every tensor's name, dtype, shape and bytes.

    Neither the order of the names nor the device matters; the description must be plain data
    (JSON), and NaN in it is refused (ValueError).
    """
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False)
    digest = hashlib.sha256(text.encode() + b"\n")
    for name in sorted(tensors):
        values = tensors[name].detach().cpu().contiguous().numpy()
        digest.update(f"{name} {values.dtype.name} {list(values.shape)}\n".encode())
        digest.update(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()
