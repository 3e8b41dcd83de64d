"""Draws the two figures of the documentation as SVG: `python docs/figures/make.py`.

The same matplotlib gives the same bytes: no date, fixed identifiers, text as text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

HERE: Final = Path(__file__).parent
INK: Final = "#1f2933"
FROZEN: Final = "#d9e2ec"
TRAINED: Final = "#bde5d8"
SERVER: Final = "#fde9c8"
QUIET: Final = "#f5f7fa"
mpl.rcParams |= {
    "svg.fonttype": "none",
    "svg.hashsalt": "lift",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
}


def box(axes: Axes, x: float, y: float, w: float, h: float, text: str, colour: str) -> None:
    """A rounded box with centred text; the first line is bold."""
    axes.add_patch(
        FancyBboxPatch(
            (x, y), w, h, boxstyle="round,pad=0,rounding_size=0.12", fc=colour, ec=INK, lw=1
        )
    )
    head, _, rest = text.partition("\n")
    lines = rest.count("\n") + 1 if rest else 0
    axes.text(x + w / 2, y + h / 2 + 0.15 * lines, head, ha="center", va="center", weight="bold")
    if rest:
        axes.text(x + w / 2, y + h / 2 - 0.18, rest, ha="center", va="center", fontsize=8.5)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], text: str = "") -> None:
    """An arrow with a remark above its middle."""
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, color=INK, lw=1.2)
    )
    if text:
        middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.12)
        axes.text(*middle, text, ha="center", va="bottom", fontsize=8.5)


def slices(axes: Axes, x: float, y: float, *, jumps: bool) -> None:
    """A stack of five slices, seen from the side; with jumps their grey differs."""
    greys = np.array([0.72, 0.50, 0.80, 0.55, 0.75]) if jumps else np.linspace(0.6, 0.7, 5)
    for index, grey in enumerate(greys):
        axes.add_patch(
            Rectangle((x + 0.13 * index, y + 0.13 * index), 0.9, 0.9, fc=str(grey), ec=INK, lw=0.8)
        )


def canvas(width: float, height: float) -> tuple[plt.Figure, Axes]:
    """Axes in inches without frame."""
    figure = plt.figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.axis("off")
    return figure, axes


def save(figure: plt.Figure, name: str) -> None:
    """Write the SVG without a date."""
    figure.savefig(HERE / name, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)


def method() -> None:
    """Slices through the frozen generator and the trained mixer; updates to the server."""
    figure, axes = canvas(10, 5.4)
    axes.add_patch(
        FancyBboxPatch(
            (0.2, 2.35),
            9.6,
            2.8,
            boxstyle="round,pad=0,rounding_size=0.15",
            fc=QUIET,
            ec="#9aa5b1",
            lw=1,
            ls="--",
        )
    )
    axes.text(0.4, 4.9, "one site: volumes never leave", fontsize=9, style="italic", va="center")
    slices(axes, 0.45, 3.0, jumps=False)
    axes.text(1.15, 2.62, "source slices", ha="center", va="center", fontsize=8.5)
    arrow(axes, (1.95, 3.7), (2.4, 3.7))
    box(axes, 2.4, 3.1, 1.65, 1.25, "generator\n2D, frozen,\nfrom public data", FROZEN)
    arrow(axes, (4.05, 3.7), (4.45, 3.7))
    slices(axes, 4.45, 3.0, jumps=True)
    axes.text(5.15, 2.62, "one prediction a slice", ha="center", va="center", fontsize=8.5)
    arrow(axes, (5.95, 3.7), (6.4, 3.7))
    box(axes, 6.4, 3.1, 1.35, 1.25, "mixer\ncouples slices\nalong depth", TRAINED)
    arrow(axes, (7.75, 3.7), (8.15, 3.7))
    slices(axes, 8.15, 3.0, jumps=False)
    axes.text(8.85, 2.62, "volume", ha="center", va="center", fontsize=8.5)
    box(axes, 5.85, 0.5, 2.45, 1.1, "server\nreviews and averages\nupdates", SERVER)
    arrow(axes, (6.75, 3.1), (6.75, 1.6))
    axes.text(6.65, 2.0, "update, kilobytes", ha="right", va="center", fontsize=8.5)
    arrow(axes, (7.4, 1.6), (7.4, 3.1))
    axes.text(7.5, 2.0, "mixer", ha="left", va="center", fontsize=8.5)
    box(axes, 2.4, 0.5, 2.45, 1.1, "other sites\neach with its own\nvolumes", QUIET)
    arrow(axes, (4.85, 1.2), (5.85, 1.2), "updates")
    arrow(axes, (5.85, 0.85), (4.85, 0.85))
    axes.text(5.35, 0.66, "mixer", ha="center", va="center", fontsize=8.5)
    for y, (text, colour) in zip(
        (1.45, 1.05, 0.65),
        (("frozen", FROZEN), ("trained", TRAINED), ("sees updates and sums", SERVER)),
        strict=True,
    ):
        axes.add_patch(Rectangle((0.5, y - 0.1), 0.3, 0.2, fc=colour, ec=INK, lw=0.8))
        axes.text(0.9, y, text, fontsize=8.5, va="center")
    save(figure, "method.svg")


def architecture() -> None:
    """The packages in layers: an arrow means `may import`."""
    figure, axes = canvas(10, 6.0)
    box(axes, 2.9, 5.0, 4.2, 0.8, "lift_simulation\na whole federation in one process", SERVER)
    box(axes, 0.5, 3.5, 4.2, 0.9, "lift_server\nrounds, review, aggregation, roster", TRAINED)
    box(axes, 5.3, 3.5, 4.2, 0.9, "lift_client\nsession, policy, journal, ledger, checks", TRAINED)
    arrow(axes, (4.2, 5.0), (2.9, 4.4))
    arrow(axes, (5.8, 5.0), (7.1, 4.4))
    axes.add_patch(
        FancyBboxPatch(
            (0.5, 0.3),
            9.0,
            2.5,
            boxstyle="round,pad=0,rounding_size=0.15",
            fc=QUIET,
            ec=INK,
            lw=1,
        )
    )
    axes.text(0.75, 2.55, "lift", weight="bold", va="center")
    axes.text(1.15, 2.55, "what both sides share; imports neither", fontsize=8.5, va="center")
    rows = (
        ("volumes", "formats, grids,\ncohorts, phantom"),
        ("generator", "frozen networks,\nbundles"),
        ("mixer", "trained part, losses,\nsynthesis"),
        ("drifting", "unconditional task,\nstatistics"),
        ("metrics", "figures, report,\nviewer"),
    )
    for index, (name, text) in enumerate(rows):
        box(axes, 0.7 + 1.74 * index, 1.4, 1.64, 0.9, f"{name}\n{text}", FROZEN)
    box(axes, 0.7, 0.45, 2.8, 0.8, "config, errors, randomness\nimport no torch", "white")
    box(axes, 3.6, 0.45, 2.8, 0.8, "protocol\nthe only place of Flower, gRPC", "white")
    box(axes, 6.5, 0.45, 2.8, 0.8, "privacy, audit\nclipping, noise, accounting", "white")
    arrow(axes, (2.6, 3.5), (2.6, 2.8))
    arrow(axes, (7.4, 3.5), (7.4, 2.8))
    axes.text(5.0, 3.15, "arrow: may import; never the other way", ha="center", fontsize=8.5)
    save(figure, "architecture.svg")


def main() -> None:
    """Both figures, beside this script."""
    method()
    architecture()


if __name__ == "__main__":
    main()
