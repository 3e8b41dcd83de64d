"""Which held-out patients the report shows, and what it says of those it does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from lift.markup import Markup, escape, foreign, join
from lift.report.figures import Picture, Profile
from lift.report.mosaics import mosaic, profile
from lift.report.read import SYNTHESIS_FOLDER, PatientFolder, Run, read_patient

MOST_PATIENTS: Final = 8
"""Patients that are shown; the others' volumes stay in the run folder."""
MOST_BYTES: Final = 3_000_000
"""All mosaics together, before base64: keeps the page under 10 MB."""


@dataclass(frozen=True)
class Pictures:
    """The mosaics and profiles of the patients shown, and what was left out and why."""

    mosaics: tuple[Picture, ...]
    profiles: tuple[Profile, ...]
    notes: tuple[Markup, ...]


def held_out_pictures(run: Run) -> Pictures:
    """The first patients of each site in order of name: none is chosen by its look.

    At most 8 patients and 3 MB of mosaics; one volume set is in memory at a time.

    Raises:
        VolumeError: a volume is damaged or does not fit its neighbours.
    """
    notes = [
        join(
            [
                "Not shown: ",
                foreign(f"{folder.site}/{folder.patient}"),
                f" lacks {', '.join(folder.missing)}.",
            ]
        )
        for folder in run.patients
        if folder.missing
    ]
    whole = in_turn([folder for folder in run.patients if not folder.missing])
    mosaics: list[Picture] = []
    profiles: list[Profile] = []
    size = 0
    for folder in whole[:MOST_PATIENTS]:
        volumes = read_patient(folder)
        picture = mosaic(run, folder, volumes)
        size += len(picture.content)
        if size > MOST_BYTES:
            break
        mosaics.append(picture)
        profiles.append(profile(folder, volumes, run.plane))
    if len(mosaics) < len(whole):
        notes.append(
            escape(
                f"{len(mosaics)} of {len(whole)} patients are shown, the first of each site in "
                "order of name, not a selection. The volumes of the others are under "
                f"{SYNTHESIS_FOLDER}/."
            )
        )
    if not whole:
        notes.append(escape("The run folder holds no volumes of held-out patients."))
    return Pictures(tuple(mosaics), tuple(profiles), tuple(notes))


def in_turn(folders: Sequence[PatientFolder]) -> list[PatientFolder]:
    """One patient of each site, then the next of each, so that every site is shown."""
    turn: dict[str, int] = {}
    keyed = []
    for folder in folders:
        turn[folder.site] = turn.get(folder.site, -1) + 1
        keyed.append((turn[folder.site], folder))
    return [folder for _, folder in sorted(keyed, key=lambda item: item[0])]
