"""The figure: PSNR against parameters, a panel for each data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lift.files import write_atomically

_KINDS: Final = {
    "zrefine": ("#d55e00", "D", "zrefine", 0.85),
    "pyramid": ("#0072b2", "o", "pyramid", 1.0),
    "unet": ("#222222", "s", "3D U-Net from the sources", 1.0),
}
_MODES: Final = {"pooled": ("full", "-", 1.0), "fedavg": ("none", "--", 1.06)}
_LINES: Final = {
    "no_mixer": ("#999999", "-"),
    "z_filter": ("#999999", ":"),
    "curves": ("#009e73", "-"),
    "curves_z_filter": ("#009e73", ":"),
}
NEAR_DB: Final = 0.3
"""What counts as near the rival."""
_PANEL_INCHES: Final = 4.0
_NARROWEST_INCHES: Final = 8.5


class DrawnDataSet(Protocol):
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
    def reference(self) -> float | None:
        """PSNR of the pooled rival, dB."""
        ...

    @property
    def lines(self) -> Mapping[str, float]:
        """Row without a network -> PSNR, dB."""
        ...

    @property
    def points(
        self,
    ) -> Mapping[tuple[str, str], Sequence[tuple[int, float, float | None, float | None]]]:
        """(kind, mode) -> (parameters, PSNR, ends of the interval to the reference)."""
        ...


def draw(data_sets: Sequence[DrawnDataSet], path: Path) -> None:
    """Write the figure as PNG; nothing without a data set."""
    if not data_sets:
        return
    # the legend's lines are the widest thing of a figure of one panel
    width = max(_PANEL_INCHES * len(data_sets) + 0.5, _NARROWEST_INCHES)
    figure = Figure(figsize=(width, 5.2), layout="constrained", dpi=120)
    panels = figure.subplots(1, len(data_sets), squeeze=False)[0]
    for panel, data in zip(panels, data_sets, strict=True):
        _panel(panel, data)
    panels[0].set_ylabel("PSNR, dB, inside the mask")
    legend: dict[str, Artist] = {}
    for panel in panels:
        handles, labels = panel.get_legend_handles_labels()
        legend |= dict(zip(labels, handles, strict=True))
    figure.legend(
        list(legend.values()),
        list(legend),
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=8,
    )
    figure.suptitle(
        "Quality against parameters; bars: 95% interval of the difference to the pooled U-Net",
        fontsize=11,
    )
    temporary = path.with_suffix(".part.png")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(temporary)
    write_atomically(path, temporary.read_bytes())
    temporary.unlink()


def _panel(panel: Axes, data: DrawnDataSet) -> None:
    statement = "PHANTOM" if data.phantom else "real"
    panel.set_title(f"{data.name} ({statement}, {data.held_out} held out)", fontsize=10)
    sizes = [size for found in data.points.values() for size, *_ in found] or [1_000, 1_000_000]
    panel.set_xscale("log")
    panel.set_xlim(min(sizes) / 2, 2 * max(sizes))
    panel.set_xlabel("trained numbers")
    panel.grid(axis="y", color="#dddddd", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
    for row, (colour, style) in _LINES.items():
        if row in data.lines:
            panel.axhline(data.lines[row], color=colour, linestyle=style, linewidth=1.2, label=row)
    if data.reference is not None:
        panel.axhspan(
            data.reference - NEAR_DB,
            data.reference + NEAR_DB,
            color="#eeeeee",
            zorder=0,
            label=f"pooled U-Net, {NEAR_DB:g} dB to either side",
        )
    for kind, (colour, marker, label, place) in _KINDS.items():
        for mode, (fill, style, shift) in _MODES.items():
            found = data.points.get((kind, mode), ())
            if not found:
                continue
            # of (nearly) the same size: a little apart, so that all intervals are seen
            panel.errorbar(
                [parameters * place * shift for parameters, *_ in found],
                [value for _, value, *_ in found],
                yerr=[
                    [value - (value if low is None else low) for _, value, low, _ in found],
                    [(value if high is None else high) - value for _, value, _, high in found],
                ],
                color=colour,
                marker=marker,
                fillstyle=fill,
                linestyle=style,
                elinewidth=0.6,
                capsize=2,
                markersize=5,
                label=f"{label}, {mode}",
            )
