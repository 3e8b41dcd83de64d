"""The report's viewer: held-out patients to scroll through, target beside synthesis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from lift.report.markup import escape, tag
from lift.report.patients import in_turn
from lift.report.read import PatientFolder, Run
from lift.report.sections import Section, lacking
from lift.report.terms import method_term
from lift.viewer.embedded import ViewerSet, is_built, viewers
from lift.viewer.volumes import COARSE, ViewerVolume, can_draw, viewer_volume
from lift.volume import read_volume

MOST_SETS: Final = 3
MOST_BYTES: Final = 2_000_000
"""All volumes together, before base64: keeps the page under 10 MB."""
_METHODS: Final = ("federated", "no_mixer")
_TITLE: Final = "Scroll through held-out patients"


@dataclass(frozen=True)
class Shown:
    """The section, and whether its viewer's script must be allowed."""

    section: Section
    has_script: bool


def viewer_section(run: Run) -> Shown:
    """A viewer of the first held-out patient of each site, at most three, at most 2 MB.

    Raises:
        VolumeError: a volume is damaged.
    """
    whole = in_turn([folder for folder in run.patients if not folder.missing])
    if not whole:
        return _without("The run folder holds no volumes of held-out patients.")
    if not is_built():
        return _without(
            "This report was written by an installation without the viewer; the volumes are in "
            "the run folder."
        )
    sets: list[ViewerSet] = []
    size = 0
    for folder in whole[:MOST_SETS]:
        volumes = _volumes(folder)
        if volumes is None:
            break
        size += sum(len(volume.packed()) for volume in volumes)
        if size > MOST_BYTES:
            break
        caption = f"{folder.site} · {folder.patient}"
        caption = f"PHANTOM · {caption}" if run.record.phantom else caption
        sets.append(ViewerSet(caption, volumes, run.record.phantom))
    if not sets:
        return _without(
            "The volumes are too large for a report: look at them with `lift view` in the run "
            "folder."
        )
    explained = tag(
        "p",
        "Scroll or use the arrow and page keys; all volumes follow. Swipe and difference compare "
        "the first two. Values are kept in a thousand grey levels here; the files under synthesis/ "
        "have them whole, and ",
        tag("code", "lift view"),
        " shows those.",
        class_="note",
    )
    return Shown(Section("volumes", _TITLE, (explained, viewers(sets))), has_script=True)


def _volumes(folder: PatientFolder) -> tuple[ViewerVolume, ...] | None:
    """The volumes of one patient; None where no browser can draw them."""
    names = {"target": "target", **{name: method_term(name).label for name in _METHODS}}
    shown = []
    for name, label in names.items():
        volume = read_volume(folder.path / f"{name}.nii.gz")
        if not can_draw(volume.voxels.shape):
            return None
        shown.append(viewer_volume(label, volume, levels=COARSE))
    return tuple(shown)


def _without(sentence: str) -> Shown:
    return Shown(Section("volumes", _TITLE, (lacking(escape(sentence)),)), has_script=False)
