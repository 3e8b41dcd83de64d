"""The report of a run that makes new volumes: their distance to real ones, and pictures."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.figure import Figure
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from lift.markup import Markup, foreign, join, number, pointer, table, tag
from lift.metrics.classifier import FEWEST
from lift.records.metrics import METRICS_FILE, Table
from lift.records.run import RUN_FILE
from lift.records.shipped import Number, Shipped
from lift.report.aims import FRECHET, aims_content, headline, warnings
from lift.report.figures import Picture, titled
from lift.report.privacy import privacy_section
from lift.report.read import SYNTHESIS_FOLDER, Run, read_voxels
from lift.report.record_tables import sites_table
from lift.report.sections import (
    Section,
    curves_section,
    data_banner,
    figure_markup,
    json_text,
    lacking,
    plain_setting,
    privacy_markup,
    reproducibility_section,
    rounds_section,
    seconds_section,
    shell,
)
from lift.report.spectra import spectra_figure
from lift.report.styles import styles_picture
from lift.report.tables import methods_table
from lift.report.terms import GENERATED_METHODS, GENERATED_METRICS

_JUDGED: Final = (
    "auc_content",
    "auc_texture",
    "precision",
    "recall",
    "nearest_distance",
    "near_copies",
)
_MAIN: Final = (*FRECHET, "spectrum_z", "tpr", "diversity", "ms_ssim", "nearest_ratio")
_QUALITY: Final = ("order_correlation", "reversed_volumes", "flat_volumes")
_MMD: Final = ("mmd_axial", "mmd_coronal", "mmd_sagittal")
_SHOWN: Final = 8
Floats = NDArray[np.float32]


def generated_page(run: Run, synthesis: Path, audits: Mapping[str, Any] | None) -> Markup:
    """Return the whole page of a run that makes new volumes.

    Args:
        run: the run.
        synthesis: folder of the volumes that the run wrote; it may be missing.
        audits: `audits` of the release to which the report belongs.

    Raises:
        VolumeError: a volume under `synthesis` is damaged.
    """
    return shell(run, _opening(run), _sections(run, synthesis, audits))


def _sections(run: Run, synthesis: Path, audits: Mapping[str, Any] | None) -> tuple[Section, ...]:
    return (
        _trained(run),
        _samples(run, synthesis),
        _aims(run),
        _pooled(run),
        _by_site(run),
        curves_section(run),
        rounds_section(run),
        privacy_section(run, audits),
        seconds_section(run),
        reproducibility_section(run),
    )


def _opening(run: Run) -> Iterable[Markup]:
    yield tag("p", "LiFT run report · ", foreign(run.record.kind or "run"), class_="kicker")
    yield tag("h1", foreign(run.record.name))
    yield tag("p", headline(run), class_="headline")
    if run.shipped is not None:
        yield tag("p", shipped_markup(run.shipped), class_="finding")
    yield data_banner(run)


def shipped_markup(shipped: Shipped) -> Markup:
    """Return the sentence on what is released, each number with its source."""
    return join(
        [
            number(part.value, pointer(RUN_FILE, "said", part.key), 0)
            if isinstance(part, Number)
            else part
            for part in shipped.parts
        ]
    )


def _trained(run: Run) -> Section:
    record = run.record
    facts = [("task", join(["new volumes of ", plain_setting(run, "task", "target")]))]
    gaussian = run.setting("unconditional", "gaussian")
    if run.setting("unconditional", "trajectory") == "gaussian" and isinstance(gaussian, dict):
        form = {"markov": "a Markov chain along the body", "sketch": "of whole trajectories"}
        kept = form.get(str(gaussian.get("covariance", "markov")), "")
        positions = foreign(json_text(gaussian.get("positions")))
        facts.append(
            ("source", join(["Gaussian of latents at ", positions, f" positions, {kept}"]))
        )
    if run.setting("federation", "rounds") != 0:
        facts += _mapper_facts(run)
    if run.shipped is not None:
        words = {"gaussian": "the Gaussian", "mapper": "the Gaussian with the mapper on top"}
        facts.append(("released", join([words[run.shipped.source]])))
    value = record.statistics_bytes
    if value is not None:
        count = number(value, pointer(RUN_FILE, "statistics_bytes"), 0)
        facts.append(("statistics of a site, sent once", join([count, " bytes"])))
    generator = join(
        [
            "frozen slice decoder; made from: ",
            foreign(json_text(record.generator.get("training_data"))),
            "; licence: ",
            foreign(json_text(record.generator.get("licence"))),
        ]
    )
    facts += [
        ("training", _training(run)),
        ("privacy", privacy_markup(run)),
        ("generator", generator),
    ]
    listed = [join([tag("dt", name), tag("dd", value)]) for name, value in facts]
    return Section("trained", "Training and sites", (tag("dl", *listed), sites_table(run)))


def _mapper_facts(run: Run) -> Iterable[tuple[str, Markup]]:
    """Yield the facts about a mapper that was trained in rounds."""
    loss = [plain_setting(run, "unconditional", key) for key in ("loss", "attraction")]
    yield "loss", join([loss[0], ", attraction by ", loss[1]])
    mixer, update_bytes = run.record.mixer, run.record.update_bytes
    if mixer is not None:
        count = number(mixer.parameters, pointer(RUN_FILE, "mixer", "parameters"), 0)
        yield "mapper", join([foreign(mixer.kind), ", ", count, " trained parameters"])
    if update_bytes is not None:
        count = number(update_bytes, pointer(RUN_FILE, "update_bytes"), 0)
        yield "one update", join([count, " bytes"])


def _training(run: Run) -> Markup:
    if run.setting("federation", "rounds") == 0:
        return join(["none: one exchange of moments"])
    rounds, steps = (
        plain_setting(run, "federation", "rounds"),
        plain_setting(run, "training", "steps"),
    )
    return join([rounds, " rounds of ", steps, " local steps"])


def _samples(run: Run, synthesis: Path) -> Section:
    title = "New volumes and real ones"
    pictures = [
        _mosaic(run, synthesis / folder, name)
        for folder, name in (("generated", "New"), ("held-out", "Real, held out"))
    ]
    pictures.append(styles_picture(run, synthesis))
    shown = [markup for picture in pictures for markup in figure_markup(picture)]
    note = (
        "The volumes are the first ones, not a selection. Each has its own grey scale from 0 to 1, "
        "except those with a given style."
        if pictures[-1] is not None
        else "The volumes are the first ones, not a selection. Each has its own grey scale from 0 "
        "to 1."
    )
    if not shown:
        return Section("samples", title, (lacking("No volumes were written."),))
    return Section("samples", title, (*shown, tag("p", note, class_="note")))


def _aims(run: Run) -> Section:
    content = aims_content(run)
    if not content:
        return Section("aims", "Aims", (lacking("metrics.json holds no pooled figures."),))
    return Section("aims", "Aims", (*content, *_smallest_site(run), *_tried(run)))


def _tried(run: Run) -> Iterable[Markup]:
    if run.record.runs_tried:
        yield tag("h3", "Runs tried before")
        yield tag("p", "As recorded by the authors of the settings.", class_="note")
        yield tag("ul", *(tag("li", foreign(text)) for text in run.record.runs_tried))


def _smallest_site(run: Run) -> Iterable[Markup]:
    """Whether the smallest site's own mapper is worse than the federated one, site by site."""
    if run.metrics is None or not run.record.sites:
        return
    smallest = min(run.record.sites, key=lambda site: site.patients.get("train", 0)).name
    method = f"local_only:{smallest}"
    rows = []
    for site, figures in run.metrics.sites.items():
        own, ours = figures.methods.get(method), figures.methods.get("federated")
        if own is None or ours is None:
            continue
        cells: list[str] = [foreign(site)]
        worse = 0
        for metric in FRECHET:
            for name, table_ in ((method, own), ("federated", ours)):
                key = pointer(METRICS_FILE, "sites", site, "methods", name, metric)
                cells.append(number(table_[metric].value, key, 3))
            a, b = own[metric].value, ours[metric].value
            worse += a is not None and b is not None and a > b
        rows.append([*cells, f"{worse} of 3"])
    if rows:
        headings = [
            heading
            for plane in ("ax", "co", "sa")
            for heading in (f"{plane}, local", f"{plane}, federated")
        ]
        yield table(
            f"Fréchet distances of the smallest site's own mapper ({smallest}) and of the "
            "federated one, against each site's held-out volumes.",
            ["held out at", *headings, "planes in which local is worse"],
            rows,
            kind="figures",
        )


def _pooled(run: Run) -> Section:
    title = "All sites together"
    if run.metrics is None or not run.metrics.pooled:
        return Section("pooled", title, (lacking("metrics.json holds no pooled figures."),))
    pooled, path = run.metrics.pooled, ("pooled",)
    captions = (
        ("Can the volumes be distinguished from the held-out ones of all sites?", _JUDGED),
        ("Compared with the held-out volumes of all sites.", _MAIN),
        ("The same features, compared by MMD.", _MMD),
        ("Quality of single volumes.", _QUALITY),
    )
    tables = [
        _table(pooled, path, caption, metrics, warnings(pooled)) for caption, metrics in captions
    ]
    terms = [(term.label, term.meaning) for term in GENERATED_METHODS.values()]
    terms += [(term.label, term.meaning) for term in GENERATED_METRICS.values()]
    listed = [join([tag("dt", label), tag("dd", meaning)]) for label, meaning in terms]
    meanings = tag(
        "details",
        tag("summary", "What the rows and columns mean"),
        tag(
            "p",
            "Features are those of a random encoder that is not used in training. Compare the "
            "distances only within this page, not with published ones. Few volumes make them "
            "larger; the first row, with real volumes, shows by how much.",
        ),
        tag("dl", *listed),
    )
    drawn = figure_markup(spectra_figure(run))
    return Section("pooled", title, (*_how_compared(run), *tables, *drawn, meanings))


def _table(
    methods: Mapping[str, Table],
    path: tuple[str, ...],
    caption: str,
    metrics: Sequence[str],
    warned: Mapping[tuple[str, str], str],
) -> Markup:
    """Rows of real volumes first, then those drawn by the decoder."""
    return methods_table(
        methods,
        path,
        caption,
        only=metrics,
        counted="volumes",
        warnings=warned,
        known=GENERATED_METHODS,
        intervals="Brackets: 95% interval over volumes",
    )


def _how_compared(run: Run) -> Iterable[Markup]:
    """Yield how all rows were prepared, and what is missing."""
    if run.metrics is None:
        return
    view = run.metrics.field_of_view
    if view is not None:
        place = (METRICS_FILE, "field_of_view")
        yield tag(
            "p",
            "All rows have one field of view, that of the generated volumes: ",
            number(view.slices, pointer(*place, "slices"), 0),
            " slices of ",
            number(view.slice_spacing_mm, pointer(*place, "slice_spacing_mm"), 2),
            " mm. Real volumes were cut to it around the middle of the body. A shorter one was "
            "extended with its own border, and slices with another spacing were resampled.",
            class_="note",
        )
    if not any("auc_content" in figures for figures in run.metrics.pooled.values()):
        yield lacking(f"Fewer than {FEWEST} volumes on one side: no classifier was trained.")


def _by_site(run: Run) -> Section:
    title = "Site by site"
    if run.metrics is None or not run.metrics.sites:
        return Section("sites", title, (lacking("metrics.json holds no figures by site."),))
    content: list[Markup] = []
    for site in run.sites:
        content.append(tag("h3", foreign(site)))
        if site not in run.metrics.sites:
            content.append(lacking("This site has too few held-out volumes for a distribution."))
            continue
        found = run.metrics.sites[site]
        caption = f"Compared with the {found.patients} held-out volumes of this site."
        path = ("sites", site, "methods")
        content.append(_table(found.methods, path, caption, _MAIN, {}))
    return Section("sites", title, tuple(content))


def _mosaic(run: Run, folder: Path, name: str) -> Picture | None:
    """Draw three planes of some volumes, one volume per column, in millimetres."""
    paths = sorted(folder.glob("*.nii.gz"))[:_SHOWN]
    if not paths:
        return None
    volumes = [_read(path) for path in paths]
    figure = Figure(figsize=(1.45 * len(volumes) + 0.6, 4.6))
    for column, (voxels, (x, y, z)) in enumerate(volumes):
        i, j, k = (length // 2 for length in voxels.shape)
        planes = (
            (voxels[:, :, k].T, y / x),
            (voxels[:, j].T, z / x),
            (voxels[i].T, z / y),
        )
        for row, (plane, aspect) in enumerate(planes):
            place = figure.add_subplot(3, len(volumes), row * len(volumes) + column + 1)
            place.imshow(
                plane, cmap="gray", origin="lower", aspect=aspect, vmin=0, vmax=_upper(voxels)
            )
            place.set_xticks([])
            place.set_yticks([])
            place.grid(visible=False)
            if column == 0:
                place.set_ylabel(("axial", "coronal", "sagittal")[row])
    figure.suptitle(titled(run, f"{name}: middle slices"), x=0.01, ha="left")
    figure.tight_layout(rect=(0, 0, 1, 0.95), pad=0.3)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110, metadata={"Software": None})
    alt = f"{name}: axial, coronal and sagittal middle slices of {len(volumes)} volumes"
    return Picture(
        content.getvalue(), "png", alt, f"{name}: {len(volumes)} volumes in three planes."
    )


def _upper(voxels: Floats) -> float:
    return max(float(np.percentile(voxels, 99.9)), 1e-6)


def _read(path: Path) -> tuple[Floats, tuple[float, float, float]]:
    voxels, affine = read_voxels(path, f"{SYNTHESIS_FOLDER}/{path.parent.name}/{path.name}")
    x, y, z = (float(side) for side in voxel_sizes(affine))
    return voxels, (x, y, z)
