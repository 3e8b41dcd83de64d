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
    figure, axes = canvas(10, 8.0)
    box(axes, 2.9, 7.0, 4.2, 0.8, "lift_simulation\na whole federation in one process", SERVER)
    box(axes, 0.5, 5.4, 4.2, 1.0, "lift_server\nsites, watch, rounds, tasks, release", TRAINED)
    box(axes, 5.3, 5.4, 4.2, 1.0, "lift_client\ngate, check, tasks, session, own", TRAINED)
    arrow(axes, (4.2, 7.0), (2.9, 6.4))
    arrow(axes, (5.8, 7.0), (7.1, 6.4))
    axes.add_patch(
        FancyBboxPatch(
            (0.5, 0.2),
            9.0,
            4.6,
            boxstyle="round,pad=0,rounding_size=0.15",
            fc=QUIET,
            ec=INK,
            lw=1,
        )
    )
    axes.text(0.75, 4.55, "lift", weight="bold", va="center")
    axes.text(1.15, 4.55, "what both sides share; imports neither", fontsize=8.5, va="center")
    floors = (
        ("cli, api", "the program and the Python API", "white"),
        ("audit, report, tracking", "what is made of a finished run", "white"),
        ("tasks", "paired | unconditional, and their registry", TRAINED),
        ("generator", "frozen networks, bundles, cached features", FROZEN),
        ("mixer, metrics", "what is trained; figures of volumes", TRAINED),
        ("wire, records, viewer, commands", "what travels and what is written", "white"),
        ("cohort, triplanar, inspection, privacy, protocol, release", "foundations", "white"),
        ("config, volumes, keys, errors, files ...", "settings, file formats, ground", "white"),
    )
    height, step = 0.45, 0.5
    for index, (names, text, colour) in enumerate(floors):
        low = 3.85 - step * index
        box(axes, 0.7, low, 8.6, height, "", colour)
        axes.text(0.9, low + height / 2, names, weight="bold", fontsize=9, va="center")
        axes.text(9.1, low + height / 2, text, fontsize=8.5, ha="right", va="center")
    arrow(axes, (2.6, 5.4), (2.6, 4.8))
    arrow(axes, (7.4, 5.4), (7.4, 4.8))
    axes.text(
        5.0,
        5.1,
        "arrow: may import; inside a box a row imports rows below it alone",
        ha="center",
        va="center",
        fontsize=8.5,
    )
    save(figure, "architecture.svg")


def main() -> None:
    """Both figures, beside this script."""
    method()
    architecture()


if __name__ == "__main__":
    main()
