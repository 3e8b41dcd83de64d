"""PSNR after the best contrast: what is left when grey values may be shifted and stretched.

MR has no units: two scanners, or two patients of one scanner, give one tissue different grey
values. Read this figure beside PSNR, never instead: contrast is a part of an image too.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lift.metrics.synthrad import Numbers, ValueRange, checked, psnr_db


def psnr_invariant_db(
    prediction: Numbers, target: Numbers, mask: npt.ArrayLike, values: ValueRange
) -> float:
    """PSNR, dB, after the gain >= 0 and the offset that fit the prediction to the target best.

    Both are found by least squares over the mask of this very volume, so every method gets the
    best for itself. A gain below 0 would turn an image into its negative: it counts as 0, which
    leaves the target's mean. At most `HIGHEST_PSNR_DB`, as :func:`lift.metrics.synthrad.psnr_db`.

    Raises:
        ValueError: as in :func:`lift.metrics.synthrad.mae_hu`.
    """
    predicted, wanted, inside = checked(prediction, target, mask)
    seen, meant = predicted[inside], wanted[inside]
    around = seen - seen.mean()
    spread = float(np.square(around).sum())
    gain = max(0.0, float(around @ (meant - meant.mean())) / spread) if spread > 0 else 0.0
    fitted = meant.mean() + gain * (predicted - seen.mean())
    return psnr_db(fitted, wanted, inside, values)
