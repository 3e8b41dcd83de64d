"""Figures: Dice against labelled patients; and real and generated pairs in three planes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Final, Protocol

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lift.metrics.intervals import Interval
from lift_benchmarks.downstream.config import BY_NUMBER
from lift_benchmarks.downstream.pairs import Pair

_LABELS: Final = {
    "real": "few real",
    "real_augmented": "few real, augmented",
    "both": "few real and synthetic",
    "both_augmented": "few real and synthetic, augmented",
    "synthetic": "synthetic alone",
    "synthetic_augmented": "synthetic alone, augmented",
    "shuffled": "control: labels of other volumes",
    "all_real": "all sites' real patients",
    "all_real_augmented": "all sites' real patients, augmented",
}
_COLOURS: Final = {
    "real": "#0072b2",
    "both": "#d55e00",
    "synthetic": "#009e73",
    "shuffled": "#999999",
    "all": "#222222",
}


class DrawnDice(Protocol):
    """What the figure needs of a data set."""

    @property
    def name(self) -> str:
        """Of its settings."""
        ...

    @property
    def phantom(self) -> bool:
        """Whether every site is a phantom."""
        ...

    @property
    def held_out(self) -> int:
        """Patients."""
        ...

    @property
    def by_number(self) -> Mapping[str, Mapping[int, Interval]]:
        """Row -> labelled patients -> Dice."""
        ...

    @property
    def once(self) -> Mapping[str, Interval]:
        """Row without a number -> Dice."""
        ...


def draw_dice(data: DrawnDice) -> bytes:
    """The figure, PNG."""
    figure = Figure(figsize=(8.5, 5.6), layout="constrained", dpi=120)
    panel = figure.subplots()
    numbers = sorted({few for found in data.by_number.values() for few in found})
    for place, row in enumerate(BY_NUMBER):
        if found := data.by_number.get(row):
            _line(panel, row, found, 1 + 0.02 * (place - 1.5))
    for name, interval in data.once.items():
        panel.axhline(
            interval.value, color=_colour(name), linestyle=_style(name), label=_LABELS[name]
        )
    if numbers:
        panel.set_xscale("log", base=2)
        panel.set_xticks(numbers, [str(few) for few in numbers])
        panel.set_xlim(0.8 * numbers[0], 1.25 * numbers[-1])
        panel.minorticks_off()
    panel.set_xlabel("labelled patients of the hospital")
    panel.set_ylabel("Dice of held-out patients")
    panel.grid(axis="y", color="#dddddd", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    kind = "PHANTOM volumes" if data.phantom else "real volumes"
    figure.suptitle(
        f"{data.name}: {kind}, {data.held_out} held out, 95% intervals over patients", fontsize=11
    )
    return _png(figure)


def _line(panel: Axes, row: str, found: Mapping[int, Interval], shift: float) -> None:
    numbers = sorted(found)
    values = [found[few] for few in numbers]
    lows = [one.value - (one.value if one.low is None else one.low) for one in values]
    highs = [(one.value if one.high is None else one.high) - one.value for one in values]
    panel.errorbar(
        [few * shift for few in numbers],
        [one.value for one in values],
        yerr=[lows, highs],
        color=_colour(row),
        linestyle=_style(row),
        marker="o",
        fillstyle="none" if row.endswith("_augmented") else "full",
        elinewidth=0.6,
        capsize=2,
        label=_LABELS[row],
    )


def _colour(row: str) -> str:
    return _COLOURS[row.partition("_")[0]]


def _style(row: str) -> str:
    return "--" if row.endswith("_augmented") else "-"


def draw_pairs(real: Sequence[Pair], generated: Sequence[Pair]) -> bytes:
    """Real pairs above, generated ones below, three planes through the label's middle, PNG."""
    columns = max(len(real), len(generated))
    figure = Figure(figsize=(1.6 * columns, 9.8), layout="constrained", dpi=80)
    panels = figure.subplots(6, columns, squeeze=False)
    for panel in panels.flat:
        panel.axis("off")
    for first, pairs in ((0, real), (3, generated)):
        for column, pair in enumerate(pairs):
            for row, (image, label, aspect) in enumerate(_planes(pair)):
                shown = panels[first + row][column]
                shown.imshow(image.numpy(), cmap="gray", origin="lower", aspect=aspect)
                if bool(label.any()) and not bool(label.all()):
                    shown.contour(label.float().numpy(), [0.5], colors="#d55e00", linewidths=1)
    figure.suptitle("above: real training pairs; below: generated pairs", fontsize=10)
    return _png(figure)


def _planes(pair: Pair) -> list[tuple[Tensor, Tensor, float]]:
    """Image, label and height of a pixel over its width, of three planes."""
    voxels, label = pair.voxels, pair.label
    dz, dy, dx = pair.body.spacing_mm
    inside = torch.nonzero(label).double()
    middle = inside.mean(0) if len(inside) else torch.tensor(label.shape) / 2
    z, y, x = (int(place) for place in middle)
    return [
        (voxels[z], label[z], dy / dx),
        (voxels[:, y], label[:, y], dz / dx),
        (voxels[:, :, x], label[:, :, x], dz / dy),
    ]


def _png(figure: Figure) -> bytes:
    content = BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()
