"""The bench's figure: gain by epsilon, a line for each mode, a column for each cohort."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lift.files import write_atomically
from lift.metrics.intervals import Interval

_MODES: Final = {
    "patient-local": ("#0072b2", "o", -0.05),
    "patient-central": ("#d55e00", "s", 0.05),
}
_METRICS: Final = {"psnr_db": "PSNR over no_mixer (dB)", "dz_corr": "dz_corr over no_mixer"}
_INFINITE: Final = "∞"
_COLUMN_INCHES: Final = 3.3
_LEGEND_INCHES: Final = 7.5


class DrawnCell(Protocol):
    """What the figure needs of a cell."""

    @property
    def patients(self) -> int:
        """Training patients of all sites."""
        ...

    @property
    def mode(self) -> str:
        """Privacy mode."""
        ...

    @property
    def epsilon(self) -> float | None:
        """None: no promise."""
        ...

    @property
    def values(self) -> Mapping[str, Mapping[str, float]]:
        """METHOD -> METRIC -> mean."""
        ...

    @property
    def gains(self) -> Mapping[str, Mapping[str, Interval]]:
        """`no_mixer` or `z_filter` -> METRIC -> difference."""
        ...


def draw(cells: Sequence[DrawnCell], path: Path) -> None:
    """Write the figure as PNG; nothing without a cell."""
    cohorts = sorted({cell.patients for cell in cells})
    if not cohorts:
        return
    levels = sorted({cell.epsilon for cell in cells if cell.epsilon is not None})
    # the legend's line is the widest thing of a figure of one column
    width = max(_COLUMN_INCHES * len(cohorts) + 0.9, _LEGEND_INCHES)
    figure = Figure(figsize=(width, 6.4), layout="constrained", dpi=120)
    panels = figure.subplots(2, len(cohorts), sharex=True, sharey="row", squeeze=False)
    for column, patients in enumerate(cohorts):
        here = [cell for cell in cells if cell.patients == patients]
        for row, (metric, label) in enumerate(_METRICS.items()):
            panel: Axes = panels[row][column]
            _panel(panel, here, metric, levels)
            panel.set_xticks(
                range(len(levels) + 1), [*(f"{level:g}" for level in levels), _INFINITE]
            )
            panel.grid(axis="y", color="#dddddd", linewidth=0.6)
            panel.spines[["top", "right"]].set_visible(False)
            if row == 0:
                panel.set_title(f"{patients} patients", fontsize=10)
            else:
                panel.set_xlabel("epsilon of a patient")
            if column == 0:
                panel.set_ylabel(label)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    figure.suptitle("What privacy costs: PHANTOM volumes, 3 sites, 95% intervals", fontsize=11)
    temporary = path.with_suffix(".part.png")
    figure.savefig(temporary)
    write_atomically(path, temporary.read_bytes())
    temporary.unlink()


def _panel(panel: Axes, cells: Sequence[DrawnCell], metric: str, levels: Sequence[float]) -> None:
    for cell in cells:
        if cell.mode == "none":
            value = cell.gains["no_mixer"][metric].value
            panel.axhline(value, color="#222222", linewidth=1.2, label="without privacy")
    panel.axhline(0, color="#999999", linewidth=0.8)
    rows = cells[0].values
    panel.axhline(
        rows["z_median"][metric] - rows["no_mixer"][metric],
        color="#009e73",
        linewidth=1.2,
        linestyle=":",
        label="z_median (untrained)",
    )
    # a z-filter that spends all of epsilon is the same for both modes
    filters = sorted(
        (_place(cell, levels), cell.values["z_filter"][metric] - cell.values["no_mixer"][metric])
        for cell in cells
        if cell.mode == "patient-central"
    )
    if filters:
        x, y = zip(*filters, strict=True)
        panel.plot(x, y, color="#888888", linestyle="--", marker="^", label="z_filter")
    for mode, (colour, marker, shift) in _MODES.items():
        found = sorted(
            (
                (_place(cell, levels), cell.gains["no_mixer"][metric])
                for cell in cells
                if cell.mode == mode
            ),
            key=lambda pair: pair[0],
        )
        if not found:
            continue
        gains = [gain for _, gain in found]
        spread = [
            [gain.value - (gain.value if gain.low is None else gain.low) for gain in gains],
            [(gain.value if gain.high is None else gain.high) - gain.value for gain in gains],
        ]
        panel.errorbar(
            [place + shift for place, _ in found],
            [gain.value for gain in gains],
            yerr=spread,
            color=colour,
            marker=marker,
            capsize=2,
            label=mode,
        )


def _place(cell: DrawnCell, levels: Sequence[float]) -> float:
    return float(len(levels) if cell.epsilon is None else list(levels).index(cell.epsilon))
