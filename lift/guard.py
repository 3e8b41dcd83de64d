"""The guard: whether the mixer helped at a site, and whether a new volume is similar.

A mixer learns a slice profile; on another one it can harm (method section 9: it lost 0.4 dB
on another scanner). So each site judges the finished mixer on its own validation patients,
and `lift translate` compares a volume's spacing and profile with those of the sites helped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

Verdict = Literal["helped", "harmed", "undecided"]
JudgedOn = Literal["validation", "validation_and_training"]
"""On whom a verdict rests: with too few validation patients on training patients too, each under
curves that it had no part in."""
OPTIMISM_DB: Final = 0.3
"""What a training patient's gain over no mixer may owe to training: a verdict that rests on such
patients says `helped` beyond it alone. Measured on the same patients in and out of training, what
the mixer adds to the curves: phantoms +.07 dB [.01, .14] of a gain of 5.0 (32 patients), four real
hospitals +.08 [.04, .11] of .66 (25), five real patients, four of them trained on, +.30 [.16, .50]
of 3.4."""
_SPACING_TOLERANCE: Final = 0.25
_SHARE_TOLERANCE: Final = 0.5


@dataclass(frozen=True)
class SiteProfile:
    """The basis of one site's verdict, as stored with the mixer.

    Attributes:
        verdict: helped, harmed or undecided, against no mixer.
        lowest_slice_spacing_mm: smallest through-plane spacing of the site's volumes.
        highest_slice_spacing_mm: largest one.
        lowest_hf_share: smallest `hf_share` of its validation sources, or None.
        highest_hf_share: largest one, or None.
    """

    verdict: Verdict
    lowest_slice_spacing_mm: float
    highest_slice_spacing_mm: float
    lowest_hf_share: float | None
    highest_hf_share: float | None


def concerns(
    sites: Sequence[SiteProfile], slice_spacing_mm: float, share: float | None
) -> str | None:
    """Return why the mixer may not help on a volume, or None if there is no concern.

    Alike: spacing within 25% of the site's range, and high-frequency share within a factor of
    1.5 of its range.
    """
    helped = [site for site in sites if site.verdict == "helped"]
    if not helped:
        return "the mixer was not shown to help at any site"
    near = [site for site in helped if _within_spacing(site, slice_spacing_mm)]
    if not near:
        ranges = ", ".join(
            f"{site.lowest_slice_spacing_mm:g} to {site.highest_slice_spacing_mm:g} mm"
            for site in helped
        )
        return f"its slice spacing is {slice_spacing_mm:g} mm; the mixer helped at {ranges}"
    told = [site for site in near if site.lowest_hf_share is not None]
    if share is not None and told and not any(_within_share(site, share) for site in told):
        return (
            f"its slice profile differs: {share:.3f} of its through-plane power is above "
            "0.25 cycles per slice, unlike the volumes that the mixer helped on"
        )
    return None


def _within_spacing(site: SiteProfile, slice_spacing_mm: float) -> bool:
    low = site.lowest_slice_spacing_mm * (1 - _SPACING_TOLERANCE)
    return low <= slice_spacing_mm <= site.highest_slice_spacing_mm * (1 + _SPACING_TOLERANCE)


def _within_share(site: SiteProfile, share: float) -> bool:
    if site.lowest_hf_share is None or site.highest_hf_share is None:
        return True
    factor = 1 + _SHARE_TOLERANCE
    return site.lowest_hf_share / factor <= share <= site.highest_hf_share * factor
