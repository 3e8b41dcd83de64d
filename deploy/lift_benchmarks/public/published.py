"""Published figures of both benchmarks. None is ours, and none was measured as ours are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from lift.records.published import Published, PublishedRow
from lift_benchmarks.public.folders import Benchmark

PHANTOM: Final = (
    "PHANTOM: this run was made on simulated volumes. No published figure can be compared with it; "
    "they are listed to show where they will stand."
)
_PARTLY: Final = (
    "None of these figures was measured on the patients of this run, and no interval of a "
    "difference can be given. Read each with the sentence beside it."
)
_SPLIT: Final = "Other test patients, chosen from the same training part here."
_CWDM: Final = "Friedrich et al. 2024, as its page and arXiv 2605.19060 report it"
_2025: Final = "SynthRAD2025 challenge report, arXiv 2605.13555"


def _row(method: str, low: float, source: str, differs: str) -> PublishedRow:
    return PublishedRow(method=method, metric="MAE, HU", low=low, source=source, differs=differs)


_BRATS: Final = (
    PublishedRow(
        method="cWDM, 1000 steps, each of the four contrasts",
        metric="PSNR of the crop, dB",
        low=27.3,
        high=29.7,
        source=_CWDM,
        differs="Official validation part (219 examinations), background included; its authors "
        "published no evaluation code, and ours follows its post-processing.",
    ),
    PublishedRow(
        method="WFM, 1 to 2 steps",
        metric="PSNR, dB",
        low=26.8,
        source="arXiv 2604.21146",
        differs="Mean over contrasts, on its own split and crop; a model of 82 million parameters.",
    ),
)
_SYNTHRAD: Final = (
    _row(
        "winner",
        64.8,
        _2025,
        "Hidden test patients of abdomen, head-neck and thorax together, trained on pooled data.",
    ),
    _row(
        "third: BreizhCT, 2.5D U-Net++",
        67.2,
        _2025,
        "Hidden test patients of the three regions together, trained on pooled data.",
    ),
    _row(
        "TotalSynth, 2.5D, off the shelf",
        67.5,
        "the TotalSynth publication, taken from a transcription",
        "Trained on other, pooled data; no patient of the challenge was seen.",
    ),
    _row(
        "FedSynthCT-Brain, federated, unseen centre",
        102.0,
        "arXiv 2412.06690",
        "Median of 23 brains of a centre that took no part in training; here test patients are of "
        "centres that did, and figures are means.",
    ),
)
_BRAIN: Final = (
    _row(
        "LiFT, the paper's method",
        57.5,
        "arXiv 2605.19060, as transcribed by others",
        "SynthRAD2023 brain resampled to 128 x 128 x 128, 144 patients to train and 36 to test, in "
        "one place.",
    ),
    _row(
        "TotalSynth, brain",
        80.0,
        "the TotalSynth publication, taken from a transcription",
        "Trained on other, pooled data; no patient of the challenge was seen.",
    ),
)
_TITLES: Final[Mapping[Benchmark, str]] = {
    "brats": "BraTS 2023, missing contrast",
    "synthrad": "SynthRAD, MR to CT",
}


def published(benchmark: Benchmark, target: str, region: str, *, phantom: bool) -> Published:
    """The published figures of one task.

    Args:
        benchmark: which one.
        target: of BraTS: the missing contrast.
        region: of SynthRAD.
        phantom: whether the volumes are phantoms: then nothing is comparable.
    """
    if benchmark == "brats":
        what, rows = f"{target} missing", _BRATS
    else:
        what, rows = region, (*(_BRAIN if region == "brain" else ()), *_SYNTHRAD)
    statement = PHANTOM if phantom else f"{_PARTLY} {_SPLIT}"
    return Published(title=f"{_TITLES[benchmark]}, {what}", statement=statement, rows=rows)
