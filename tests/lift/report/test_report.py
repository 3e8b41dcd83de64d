"""The run report shows what the run folder holds, as it is, and says what it lacks."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from decimal import ROUND_HALF_EVEN, Decimal
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lift.errors import AffineError, DataError, LiftError, VolumeError
from lift.markup import MINUS, foreign, number, tag
from lift.report import volumes
from lift.report.figures import house_style
from lift.report.findings import headline, smoothing
from lift.report.mosaics import _cut, mosaic, profile
from lift.report.page import render_report, write_report
from lift.report.patients import held_out_pictures
from lift.report.read import PatientFolder, Run, read_patient, read_run
from lift.report.record_tables import rounds_table
from lift.report.tables import methods_table
from lift.report.terms import METHODS
from lift.volumes.volume import read_volume
from tests.lift.report.example_run import (
    QUALITY_DB,
    SHAPE,
    SITES,
    SPACING_MM,
    example_metrics,
    example_record,
    example_rounds,
    write_example_patient,
    write_example_run,
    write_json,
    write_volume,
)

RECORDS = ("run.json", "rounds.jsonl", "metrics.json")
HOSTILE = "<script>alert('x')</script>&$x^2$" + "A" * 300
RIGHT_TO_LEFT = "\u05d0\u05d1\u05d2 \u202e \u4e2d"


class Page(HTMLParser):
    """What a browser would take from the page: elements, text, numbers with their places."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.numbers: list[tuple[str, str, str]] = []
        self.text = ""
        self._open: tuple[str, str] | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attrs}
        self.tags.append((tag, named))
        if "data-key" in named:
            self._open = (named["data-key"], named["data-value"])

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._open is not None:
            self.numbers.append((*self._open, data))
            self._open = None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_example_run(tmp_path_factory.mktemp("run"), patients=1)


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """A run folder without volumes: quick to read, and free to be changed."""
    return write_example_run(tmp_path / "run", patients=0)


def change(file: Path, edit: Callable[[Any], None]) -> None:
    data = json.loads(file.read_text(encoding="utf-8"))
    edit(data)
    write_json(file, data)


def load_records(folder: Path) -> dict[str, Any]:
    texts = {name: (folder / name).read_text(encoding="utf-8") for name in RECORDS}
    lines = texts.pop("rounds.jsonl").splitlines()
    loaded = {name: json.loads(text) for name, text in texts.items()}
    return {**loaded, "rounds.jsonl": [json.loads(line) for line in lines]}


def resolve(loaded: dict[str, Any], key: str) -> Any:
    """The value that a key points to (RFC 6901), read with nothing of the report's code."""
    file, path = key.split("#/", 1)
    value = loaded[file]
    for part in path.split("/"):
        name = part.replace("~1", "/").replace("~0", "~")
        value = value[int(name)] if isinstance(value, list) else value[name]
    return value


def is_rounding_of(shown: str, value: float) -> bool:
    plain = shown.replace(MINUS, "-").replace("+", "").replace(",", "")
    return Decimal(plain) == Decimal(value).quantize(Decimal(plain), ROUND_HALF_EVEN)


def test_every_number_is_the_value_in_the_files_rounded(folder: Path, page: str) -> None:
    numbers, loaded = Page(page).numbers, load_records(folder)
    for key, value, shown in numbers:
        assert float(value) == resolve(loaded, key), key
        assert is_rounding_of(shown, float(value)), (key, value, shown)
    assert len(numbers) > 1000


def test_every_measured_figure_and_interval_is_on_the_page(page: str) -> None:
    keys = {key for key, _, _ in Page(page).numbers}
    metrics = example_metrics()
    for end in ("value", "low", "high"):
        for method, table in metrics["pooled"].items():
            assert all(f"metrics.json#/pooled/{method}/{metric}/{end}" in keys for metric in table)
        for site in SITES:
            for method in QUALITY_DB:
                assert f"metrics.json#/sites/{site}/methods/{method}/hf_error/{end}" in keys
            assert f"run.json#/guard/{site}/difference_db/{end}" in keys
    for index in range(len(example_rounds())):
        assert f"rounds.jsonl#/{index}/seconds" in keys


@given(value=st.floats(-1e6, 1e6), decimals=st.integers(0, 4), signed=st.booleans())
def test_a_shown_number_is_its_value_rounded(value: float, decimals: int, signed: bool) -> None:
    ((_, held, shown),) = Page(number(value, "f#/a", decimals, signed=signed)).numbers
    assert float(held) == value
    assert is_rounding_of(shown, value)
    assert not re.fullmatch(rf"{MINUS}0(\.0+)?", shown)


@given(text=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1))
def test_any_text_comes_back_as_text_and_never_as_an_element(text: str) -> None:
    seen = Page(tag("p", foreign(text), title=text))
    assert seen.text == text
    assert seen.tags == [("p", {"title": text}), ("bdi", {})]


def test_hostile_names_stay_text_everywhere(records: Path) -> None:
    for name in RECORDS:
        text = (records / name).read_text(encoding="utf-8")
        for site, hostile in zip(SITES, (HOSTILE, RIGHT_TO_LEFT), strict=True):
            text = text.replace(json.dumps(site), json.dumps(hostile))
        (records / name).write_text(text, encoding="utf-8")
    change(records / "run.json", lambda run: run.update(name=HOSTILE, command=HOSTILE))
    seen = Page(write_report(records).read_text(encoding="utf-8"))
    names = {name for name, _ in seen.tags}
    assert "script" not in names
    assert not any(key.startswith("on") for _, attributes in seen.tags for key in attributes)
    assert seen.text.count(HOSTILE) > 5
    assert seen.text.count(RIGHT_TO_LEFT) > 5


def test_the_page_needs_nothing_else(page: str) -> None:
    seen = Page(page)
    for name, attributes in seen.tags:
        assert name not in {"iframe", "link", "object", "embed", "form"}
        # data of the viewer, and one script whose bytes the page itself vouches for
        assert name != "script" or attributes["type"] in {"text/plain", "module"}
        assert attributes.get("src", "data:").startswith("data:")
        assert attributes.get("href", "#").startswith("#")
    style = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert len(style) == 1
    assert "url(" not in style[0]
    assert "@import" not in style[0]
    scripts = re.findall(r'<script type="module">(.*?)</script>', page, re.DOTALL)
    head = html.unescape(page.split("</head>", maxsplit=1)[0])
    allowed = re.findall(r"'sha256-([^']+)'", head)
    digests = [hashlib.sha256(script.encode()).digest() for script in scripts]
    assert [base64.b64encode(digest).decode() for digest in digests] == allowed
    anchors = {attributes["href"][1:] for name, attributes in seen.tags if name == "a"}
    assert anchors <= {attributes.get("id") for name, attributes in seen.tags}
    for picture in drawings(page):
        for element in ET.fromstring(picture).iter():  # noqa: S314  (we wrote it)
            links = [value for key, value in element.attrib.items() if key.endswith("href")]
            assert all(link.startswith(("#", "data:")) for link in links)


def drawings(page: str) -> list[str]:
    found = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page)
    return [base64.b64decode(picture).decode() for picture in found]


def test_a_phantom_is_called_a_phantom_above_every_figure(page: str, records: Path) -> None:
    assert len(drawings(page)) == 6
    # matplotlib writes each text as a comment beside its outlines
    assert all("<!-- PHANTOM · " in picture for picture in drawings(page))
    assert "made by a program" in page
    change(records / "run.json", lambda run: run.update(phantom=False))
    other = write_report(records).read_text(encoding="utf-8")
    assert not any("PHANTOM" in picture for picture in drawings(other))
    assert "made by a program" not in other


def test_the_same_run_gives_the_same_bytes_and_nothing_else_is_touched(
    folder: Path, page: str
) -> None:
    before = {path: digest(path) for path in folder.rglob("*") if path.is_file()}
    assert write_report(folder) == folder / "report.html"
    assert {path: digest(path) for path in folder.rglob("*") if path.is_file()} == before


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def first_sentence(run: Path) -> str:
    return Page(headline(read_run(run))[0]).text


def on_the_filter(run: Path) -> str:
    """The one paragraph of the headline on the fitted linear z-filter."""
    texts = [Page(paragraph).text for paragraph in headline(read_run(run))]
    (found,) = [text for text in texts if "linear z-filter" in text]
    return found


def test_the_first_sentence_says_whether_joining_is_better_than_staying_out(records: Path) -> None:
    assert first_sentence(records).startswith("Joining is")

    def edit(metrics: Any) -> None:
        for reference in ("no_mixer", "z_filter_local", "curves", "curves_z_filter", "local_only"):
            metrics["comparisons"]["pooled"].pop(f"federated - {reference}")

    change(records / "metrics.json", edit)
    assert "linear z-filter" in first_sentence(records)


@pytest.mark.parametrize(
    ("value", "low", "high", "words"),
    [
        (0.50, 0.39, 0.61, "is better than the fitted linear z-filter"),
        (0.02, -0.05, 0.08, "not shown to be better than the fitted linear z-filter"),
        (-0.30, -0.41, -0.21, "is worse than the fitted linear z-filter"),
        (0.50, None, None, "not shown to be better than the fitted linear z-filter"),
    ],
)
def test_the_headline_says_whether_a_linear_filter_is_beaten(
    records: Path, value: float, low: float | None, high: float | None, words: str
) -> None:
    def edit(metrics: Any) -> None:
        entry = metrics["comparisons"]["pooled"]["federated - z_filter"]["psnr_db"]
        entry.update(value=value, low=low, high=high)

    change(records / "metrics.json", edit)
    sentence = on_the_filter(records)
    assert words in sentence
    assert f"{value:+.2f}".replace("-", MINUS) in sentence


def test_a_missing_comparison_is_said_and_not_passed_over(records: Path) -> None:
    change(
        records / "metrics.json",
        lambda metrics: metrics["comparisons"]["pooled"].pop("federated - z_filter"),
    )
    assert "not compared with the fitted linear z-filter" in on_the_filter(records)
    (records / "metrics.json").unlink()
    assert "no figures" in first_sentence(records)


def test_an_incomplete_run_says_so_first(records: Path) -> None:
    change(records / "run.json", lambda run: run.update(complete=False, finished=None))
    assert first_sentence(records).startswith("This run is not complete")


def test_harm_at_a_site_is_in_the_headline(records: Path) -> None:
    text = Page("".join(headline(read_run(records)))).text
    assert f"harmed at {SITES[1]}" in text
    assert f"helped at {SITES[0]}" in text


@pytest.mark.parametrize(
    ("error", "coherence", "words"),
    [
        ((-0.1, -0.2, -0.05), (0.1, 0.05, 0.2), "does more than smooth"),
        ((-0.1, -0.2, 0.01), (0.1, 0.05, 0.2), "not shown to do more than smooth"),
        ((-0.1, -0.2, -0.05), (-0.1, -0.2, -0.05), "not shown to do more than smooth"),
        ((0.1, 0.05, 0.2), (0.1, 0.05, 0.2), "not shown to do more than smooth"),
    ],
)
def test_more_than_smoothing_is_claimed_only_beyond_the_filter(
    records: Path,
    error: tuple[float, float, float],
    coherence: tuple[float, float, float],
    words: str,
) -> None:
    def edit(metrics: Any) -> None:
        table = metrics["comparisons"]["pooled"]["federated - z_filter"]
        table["hf_error"].update(zip(("value", "low", "high"), error, strict=True))
        table["hf_coherence"].update(zip(("value", "low", "high"), coherence, strict=True))

    change(records / "metrics.json", edit)
    metrics = read_run(records).metrics
    assert metrics is not None
    text = Page("".join(smoothing(metrics))).text
    assert words in text
    assert ("not shown" in text.split(":")[0]) == ("not shown" in words)


def marked(run: Run) -> list[str]:
    assert run.metrics is not None
    html = methods_table(run.metrics.pooled, ("pooled",), "Example.", only=("psnr_db",))
    rows = re.findall(r"<tr>(.*?)</tr>", html)
    best = [row for row in rows if 'class="best"' in row]
    return [Page(row.split("</th>")[0]).text for row in best]


def test_a_best_cell_is_marked_only_where_intervals_are_apart(records: Path) -> None:
    def put(low: float, high: float) -> Callable[[Any], None]:
        def edit(metrics: Any) -> None:
            for table in metrics["pooled"].values():
                table["psnr_db"].update(value=20.0, low=19.5, high=20.5)
            metrics["pooled"]["z_median"]["psnr_db"].update(value=21.0, low=low, high=high)

        return edit

    change(records / "metrics.json", put(20.6, 21.4))
    assert marked(read_run(records)) == [METHODS["z_median"].label]
    change(records / "metrics.json", put(20.4, 21.6))
    assert marked(read_run(records)) == []


def test_a_run_that_left_only_its_record_still_gets_a_report(tmp_path: Path) -> None:
    record = example_record()
    write_json(tmp_path / "run.json", {key: record[key] for key in ("name", "phantom", "plan")})
    text = Page(write_report(tmp_path).read_text(encoding="utf-8")).text
    for sentence in (
        "This run is not complete",
        "There are no figures",
        "metrics.json holds no pooled figures",
        "No site has given a verdict",
        "There is no rounds.jsonl",
        "no volumes of held-out patients",
        "The band figures were not measured",
        "No times were recorded",
    ):
        assert sentence in text


def test_a_single_patient_has_no_intervals_and_the_page_says_so(records: Path) -> None:
    def edit(metrics: Any) -> None:
        metrics.pop("second_phantom")
        metrics.pop("cross_site")
        metrics["comparisons"]["sites"].clear()
        metrics["sites"].clear()
        for table in [*metrics["pooled"].values(), *metrics["comparisons"]["pooled"].values()]:
            for entry in table.values():
                entry.update(n=1, low=None, high=None)

    change(records / "metrics.json", edit)
    text = Page(write_report(records).read_text(encoding="utf-8")).text
    assert "One patient (n = 1): there are no intervals." in text
    assert "one patient: no interval, so nothing is shown" in text
    assert "no second phantom" in text


def test_the_timeline_names_who_was_refused_and_who_was_silent(records: Path) -> None:
    rounds = example_rounds()
    rounds[2].update(answered=[SITES[0]], counted={SITES[0]: 1.0})
    lines = "".join(json.dumps(record) + "\n" for record in rounds)
    (records / "rounds.jsonl").write_text(lines, encoding="utf-8")
    text = Page(rounds_table(read_run(records))).text
    assert text.count("refused: the update's norm is above the limit") == 1
    assert text.count("no answer") == 1


def test_the_report_says_who_was_clipped_and_where_the_run_went_back(records: Path) -> None:
    assert "norm (x median)" not in Page(render_report(records).decode()).text
    north, south = SITES
    rounds = example_rounds()
    for record in rounds[1:]:
        record["norm_ratios"] = {north: 1.0, south: 1.25}
    rounds[3] |= {"norm_ratios": {north: 1.0, south: 8.5}, "clipped": {south: 0.235294}}
    rounds[5]["fall"] = {
        "by_db": 3.25,
        "best_round": 2,
        "action": "go-back",
        "farthest": south,
        "left_out": south,
    }
    lines = "".join(json.dumps(record) + "\n" for record in rounds)
    (records / "rounds.jsonl").write_text(lines, encoding="utf-8")
    page = Page(render_report(records).decode())
    assert "1 of 6 rounds" in page.text
    assert page.text.count("never") == 1
    told = {key: shown for key, _, shown in page.numbers}
    assert told[f"rounds.jsonl#/3/norm_ratios/{_escaped(south)}"] == "8.50"
    assert told[f"rounds.jsonl#/3/clipped/{_escaped(south)}"] == "0.2353"
    assert "fell by 3.25 dB below round 2; back to the mixer that round 2 began with" in page.text
    assert f"left out from now on: {south}" in page.text
    loaded = load_records(records)
    assert all(repr(resolve(loaded, key)) == value for key, value, _ in page.numbers)


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def test_a_half_written_last_line_is_passed_over_and_said(records: Path) -> None:
    file = records / "rounds.jsonl"
    whole = file.read_text(encoding="utf-8")
    file.write_text(whole[:-20], encoding="utf-8")
    run = read_run(records)
    assert run.last_line_lost
    assert len(run.rounds) == len(example_rounds()) - 1
    file.write_text(whole.rstrip("\n"), encoding="utf-8")
    assert not read_run(records).last_line_lost
    assert len(read_run(records).rounds) == len(example_rounds())


def breakages() -> Iterator[tuple[str, Callable[[Path], object], str]]:
    yield "no record", lambda run: (run / "run.json").unlink(), "run.json"
    yield "no JSON", lambda run: (run / "metrics.json").write_text("{"), "metrics.json"
    yield (
        "a number that is none",
        lambda run: (run / "run.json").write_text(
            json.dumps(example_record()).replace("21.34", "NaN")
        ),
        "run.json",
    )
    yield (
        "an unknown metric",
        lambda run: change(
            run / "metrics.json", lambda data: data["pooled"]["federated"].update(x={"value": 1.0})
        ),
        "metrics.json",
    )
    yield (
        "a broken line in the middle",
        lambda run: (run / "rounds.jsonl").write_text('{"round"\n{"round": 1}\n'),
        "rounds.jsonl, line 1",
    )


@pytest.mark.parametrize(("name", "damage", "where"), list(breakages()))
def test_a_damaged_record_is_refused_by_name(
    records: Path, name: str, damage: Callable[[Path], object], where: str
) -> None:
    damage(records)
    with pytest.raises(DataError) as caught:
        write_report(records)
    assert caught.value.where == where, name
    check_four_parts(caught.value, records)
    assert not (records / "report.html").exists()


def check_four_parts(error: LiftError, folder: Path) -> None:
    assert error.what
    assert error.seen
    assert error.remedy
    assert str(folder) not in str(error)


@pytest.fixture
def patient(tmp_path: Path) -> PatientFolder:
    path = tmp_path / "synthesis" / SITES[0] / "example-000"
    write_example_patient(path, seed=1, sources=("t1",))
    return PatientFolder(SITES[0], "example-000", path, ())


def test_a_volume_that_cannot_be_shown_is_refused_by_its_relative_name(
    patient: PatientFolder, tmp_path: Path
) -> None:
    file = patient.path / "federated.nii.gz"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(VolumeError, match="damaged") as damaged:
        read_patient(patient)
    write_volume(file, np.zeros((3, 3, 3)))
    with pytest.raises(AffineError, match="grid") as misfit:
        read_patient(patient)
    write_volume(file, np.full(SHAPE, np.nan))
    with pytest.raises(VolumeError, match="finite") as not_finite:
        read_patient(patient)
    for caught in (damaged, misfit, not_finite):
        assert f"synthesis/{SITES[0]}/example-000/federated.nii.gz" in caught.value.what
        check_four_parts(caught.value, tmp_path)


def test_volumes_are_turned_to_right_anterior_superior(patient: PatientFolder) -> None:
    right_way = read_patient(patient)
    for file in patient.path.glob("*.nii.gz"):
        image = nib.load(file)
        codes = nib.orientations.axcodes2ornt(("S", "L", "P"))
        nib.save(
            image.as_reoriented(
                nib.orientations.ornt_transform(nib.io_orientation(image.affine), codes)
            ),
            file,
        )
    turned = read_patient(patient)
    np.testing.assert_array_equal(turned.target, right_way.target)
    np.testing.assert_array_equal(turned.mask, right_way.mask)
    assert turned.spacing_mm == SPACING_MM


@pytest.mark.parametrize(("plane", "axis"), [("axial", 2), ("coronal", 1), ("sagittal", 0)])
def test_a_profile_is_the_mean_of_every_slice_inside_the_mask(
    patient: PatientFolder, plane: Any, axis: int
) -> None:
    volumes = read_patient(patient)
    found = profile(patient, volumes, plane)
    federated = np.asarray(volumes.predictions["federated"], dtype=np.float64)
    wanted = []
    for index in range(SHAPE[axis]):
        inside = volumes.mask.take(index, axis)
        if inside.any():
            values = np.compress(inside.ravel(), federated.take(index, axis))
            wanted.append(values.mean() if len(values) >= 20 else np.nan)
    np.testing.assert_allclose(found.methods["federated"], wanted, rtol=1e-6)
    steps = {round(b - a, 6) for a, b in pairwise(found.depth_mm)}
    assert steps == {SPACING_MM[axis]}
    assert found.depth_mm[0] == 0


def pixels(run: Run, patient: PatientFolder) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with house_style():
        picture = mosaic(run, patient, read_patient(patient))
    return np.asarray(Image.open(io.BytesIO(picture.content)).convert("RGB"))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_plane_has_right_or_anterior_at_its_left_and_superior_or_anterior_on_top(
    axis: int,
) -> None:
    voxels = np.zeros((5, 6, 7), dtype=np.float32)
    # the corner that lies farthest right, anterior and superior
    voxels[-1, -1, -1] = 1.0
    everything = (slice(None), slice(None), slice(None))
    plane = _cut(voxels, everything, axis, voxels.shape[axis] - 1)
    assert plane.shape == {0: (7, 6), 1: (7, 5), 2: (6, 5)}[axis]
    assert plane[0, 0] == 1
    assert plane.sum() == 1


def test_only_the_title_of_a_mosaic_tells_a_phantom_from_a_patient(
    patient: PatientFolder, records: Path
) -> None:
    phantom = pixels(read_run(records), patient)
    change(records / "run.json", lambda record: record.update(phantom=False))
    real = pixels(read_run(records), patient)
    rows = np.flatnonzero((real != phantom).any(axis=(1, 2)))
    # the title's line: the first third of an inch
    assert rows.size > 0
    assert rows.max() < 110 / 3


def test_patients_are_shown_in_turn_and_the_rest_is_said(tmp_path: Path) -> None:
    write_example_run(tmp_path, patients=0)
    for site in SITES:
        for index in range(5):
            path = tmp_path / "synthesis" / site / f"example-{index:03d}"
            write_example_patient(path, seed=index, sources=("t1",))
    (tmp_path / "synthesis" / SITES[0] / "example-000" / "target.nii.gz").unlink()
    with house_style():
        pictures = held_out_pictures(read_run(tmp_path))
    assert [shown.site for shown in pictures.profiles] == [*SITES] * 4
    assert len(pictures.mosaics) == 8
    notes = Page("".join(pictures.notes)).text
    assert f"{SITES[0]}/example-000 lacks target" in notes
    assert "8 of 9 patients are shown" in notes


def test_text_is_readable_in_light_and_in_dark() -> None:
    css = (Path(__file__).parents[3] / "lift" / "report" / "report.css").read_text("utf-8")
    themes = [
        dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", part)) for part in css.split("@media")
    ]
    light, dark = themes[0], themes[1]
    assert light.keys() == dark.keys()
    for theme in (light, dark):
        for ink in ("ink", "quiet", "good", "bad", "open", "link"):
            for ground in ("page", "own"):
                assert contrast(theme[ink], theme[ground]) >= 4.5, (ink, ground)
        assert contrast(theme["good"], theme["good-back"]) >= 4.5
        assert contrast(theme["ink"], theme["raised"]) >= 7
        assert contrast(theme["banner-ink"], theme["banner"]) >= 7


def contrast(one: str, other: str) -> float:
    """Contrast ratio of WCAG 2.2."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return float(np.dot((0.2126, 0.7152, 0.0722), linear))

    brighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (brighter + 0.05) / (darker + 0.05)


def test_the_report_imports_no_torch() -> None:
    code = "import sys, lift.report.page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_large_volumes_keep_every_slice_and_become_coarser_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_example_run(tmp_path / "run", patients=1)
    path = folder / "synthesis" / SITES[0] / "example-000" / "target.nii.gz"
    volume = read_volume(path)
    coarse = volumes._coarser(volume, "axial", 2)
    x, y, z = volume.voxels.shape
    assert coarse.voxels.shape == (x // 2, y // 2, z)
    np.testing.assert_allclose(
        coarse.voxels[3, 5, 7], volume.voxels[6:8, 10:12, 7].mean(), rtol=1e-6
    )
    # a block's centre lies where the middle of its voxels lies
    middle = volume.affine @ [6.5, 10.5, 7, 1]
    np.testing.assert_allclose(coarse.affine @ [3, 5, 7, 1], middle, atol=1e-9)
    # without figures the page is made quickly; volumes are shown all the same
    for name in ("metrics.json", "rounds.jsonl"):
        (folder / name).unlink()
    whole = write_report(folder).read_text(encoding="utf-8")
    assert "means of" not in whole
    assert "too large for a report" not in whole
    monkeypatch.setattr(volumes, "MOST_BYTES", 60_000)
    small = write_report(folder).read_text(encoding="utf-8")
    assert re.search(r"means of [234] x [234] voxels of each slice", small)
    monkeypatch.setattr(volumes, "MOST_BYTES", 100)
    assert "too large for a report" in write_report(folder).read_text(encoding="utf-8")
