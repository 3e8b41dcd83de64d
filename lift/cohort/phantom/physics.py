"""Signal equations of the phantom and the tissue values that go into them.

Relaxation times (ms) at 1.5 and 3 T: white and grey matter from Stanisz et al. 2005, Magn
Reson Med 54:507; fat, marrow and muscle from Gold et al. 2004, AJR 183:343. Relaxivity of
gadobutrol in plasma from Rohrer et al. 2005, Invest Radiol 40:715. Values marked *chosen* are
not from a paper: they lie where textbooks put such tissue.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from lift.config.phantom import SequenceConfig


@dataclass(frozen=True)
class Tissue:
    """One tissue: relaxation by field strength, proton density, contrast uptake, CT number.

    Attributes:
        t1_ms: field strength (T) -> T1.
        t2_ms: field strength (T) -> T2.
        density: proton density relative to water.
        gadolinium_mmol_l: concentration after contrast.
        hu: Hounsfield units.
    """

    t1_ms: dict[float, float]
    t2_ms: dict[float, float]
    density: float
    gadolinium_mmol_l: float
    hu: float


def _tissue(
    t1: tuple[float, float],
    t2: tuple[float, float],
    density: float,
    hu: float,
    gadolinium: float = 0.0,
) -> Tissue:
    return Tissue({1.5: t1[0], 3.0: t1[1]}, {1.5: t2[0], 3.0: t2[1]}, density, gadolinium, hu)


TISSUES: Final[dict[str, Tissue]] = {
    # Stanisz 2005; densities and HU chosen (textbook)
    "wm": _tissue((884, 1084), (72, 69), 0.70, 28),
    "gm": _tissue((1124, 1820), (95, 99), 0.82, 37),
    # chosen: free water, the same at both fields
    "csf": _tissue((4300, 4300), (2000, 2000), 1.0, 8),
    # Gold 2004; densities chosen
    "fat": _tissue((288, 371), (165, 133), 0.90, -100),
    "marrow": _tissue((288, 365), (165, 133), 0.55, 350),
    "muscle": _tissue((1130, 1420), (35.3, 31.7), 0.75, 50, 0.05),
    # chosen: no signal left at any echo time used here
    "bone": _tissue((800, 800), (0.5, 0.5), 0.10, 1200),
    # chosen: between white matter and free water
    "hyperintensity": _tissue((1250, 1500), (130, 130), 0.85, 24),
    "oedema": _tissue((1400, 1700), (160, 160), 0.90, 22),
    "enhancing": _tissue((1300, 1600), (110, 110), 0.85, 40, 0.35),
    "necrosis": _tissue((2800, 3000), (400, 400), 0.95, 14),
}
RELAXIVITY_L_MMOL_S: Final = {1.5: 5.2, 3.0: 5.0}


def signal(tissue: Tissue, sequence: SequenceConfig, field_t: float, *, contrast: bool) -> float:
    """Magnitude of the signal of one tissue, relative to fully relaxed water.

    Spin echo: density (1 - exp(-TR / T1)) exp(-TE / T2). With an inversion:
    density |1 - 2 exp(-TI / T1) + exp(-TR / T1)| exp(-TE / T2). Contrast agent shortens T1:
    1 / T1' = 1 / T1 + r1 c.
    """
    rate = 1.0 / tissue.t1_ms[field_t]
    if contrast:
        rate += RELAXIVITY_L_MMOL_S[field_t] * tissue.gadolinium_mmol_l / 1000.0
    recovered = 1.0 - math.exp(-sequence.tr_ms * rate)
    if sequence.ti_ms is not None:
        recovered = 1.0 - 2.0 * math.exp(-sequence.ti_ms * rate) + math.exp(-sequence.tr_ms * rate)
    return tissue.density * abs(recovered) * math.exp(-sequence.te_ms / tissue.t2_ms[field_t])
