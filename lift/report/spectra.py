"""The report's figure of power spectra along depth: real, reconstructed, generated."""

from __future__ import annotations

from typing import Final

from lift.report.figures import Picture, grid, svg, titled
from lift.report.read import Run
from lift.report.terms import GENERATED_METHODS, TARGET_COLOUR, in_known_order, method_term

_REFERENCE: Final = "held_out"
_SHOWN: Final[tuple[str, ...]] = (
    "real_train",
    "reconstruction",
    "shuffled_subjects",
    "gaussian",
    "untrained",
    "federated",
)


def spectra_figure(run: Run) -> Picture | None:
    """Mean power along depth of some rows, and their distance from the held-out volumes'."""
    spectra = run.metrics.spectra if run.metrics is not None else None
    if spectra is None or _REFERENCE not in spectra.power_db:
        return None
    frequency, real = spectra.cycles_per_mm, spectra.power_db[_REFERENCE]
    figure, (levels, distances) = grid(1, 2, 2.6)
    levels.plot(frequency, real, color=TARGET_COLOUR, linewidth=2.2, label="real (held out)")
    distances.axhline(0, color=TARGET_COLOUR, linewidth=2.2)
    shown = {name for name in _SHOWN if name in spectra.power_db}
    for method in in_known_order(shown, GENERATED_METHODS):
        term, power = method_term(method), spectra.power_db[method]
        dashed = "--" if method == "real_train" else "-"
        levels.plot(frequency, power, dashed, color=term.colour, label=term.label)
        apart = [own - other for own, other in zip(power, real, strict=True)]
        distances.plot(frequency, apart, dashed, color=term.colour)
    levels.set_ylabel("power (dB)")
    distances.set_ylabel("minus held out (dB)")
    for place in (levels, distances):
        place.set_xlabel("cycles per mm along depth")
    figure.legend(loc="outside right upper")
    figure.suptitle(titled(run, "power along depth"), x=0.01, ha="left")
    return svg(
        figure,
        "Mean power spectra along depth of real, reconstructed and generated volumes.",
        "Mean over each row's volumes, each brought to one gain. Below the black line: smoother "
        "along depth than real volumes; above: jumpier.",
    )
