"""Hostile bytes in DICOM: a volume or a refusal, in few steps and little memory."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as Items

from lift.errors import LiftError, VolumeError
from lift.volumes.volume import Volume, read_volume
from tests import wording
from tests.lift.formats.cases import voxels
from tests.lift.formats.dicom_cases import enhanced, header, series, to_bytes, write
from tests.lift.formats.test_hostile_files import (
    LIMIT,
    attempt,
    tracing,
    with_other_bytes,
)
from tests.lift.formats.test_hostile_files import check_harmless as check_costs
from tests.lift.formats.test_packed_pixels import packed as packed_frames
from tests.scale import FORMAT_CASES

MOST_STEPS: Final = 600_000
"""For a whole series; those of these sizes take 132,000 at most."""


def packed(content: bytes) -> bytes:
    """A slice in RLE."""
    dataset = pydicom.dcmread(BytesIO(content))
    dataset.compress(uid.RLELossless)
    stream = BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


EXAMPLES: Final = {
    "dicom": series(),
    "dicom-implicit": series(syntax=uid.ImplicitVRLittleEndian),
    "dicom-big": series(syntax=uid.ExplicitVRBigEndian),
    "dicom-ct": series(modality="CT"),
    "dicom-rle": [packed(content) for content in series()],
    "enhanced": [enhanced()],
    "dicom-jpeg": packed_frames("u2", uid.JPEGLosslessSV1),
    "dicom-jpeg-ls": packed_frames("i2", uid.JPEGLSLossless),
    "dicom-jpeg-2000": packed_frames("i12", uid.JPEG2000Lossless),
}
# tags of what a reader looks at, and what may stand there
TAGS: Final = [
    *((0x0028, element) for element in (2, 4, 8, 16, 17, 48, 256, 257, 258, 259, 0x1052, 0x1053)),
    *((0x0020, element) for element in (0x0D, 0x0E, 0x32, 0x37)),
    *((0x0018, element) for element in (0x50, 0x88)),
    *((0x0008, element) for element in (5, 8, 0x16, 0x60)),
    *((0x0002, element) for element in (0, 2, 0x10)),
    *((0x5200, element) for element in (0x9229, 0x9230)),
    (0x7FE0, 0x10),
]
LENGTHS: Final = [0, 1, 2, 3, 0xFFFE, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF]
VALUES: Final = [
    *(b"", b"0", b"-1", b"nan", b"inf", b"1e400", b"65535", b"1\\2", b"\\" * 500, b"A" * 3000),
    *(bytes(2), b"\xff\xff", b"\xff\x7f", b"\0\x80", bytes(8), b"\xff" * 8),
    *(str(kind).encode() for kind in (uid.RTPlanStorage, uid.JPEG2000, uid.RLELossless)),
]


@pytest.fixture(scope="module")
def _read_before(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is made once, at the first use, is no file's cost."""
    for name, files in EXAMPLES.items():
        read_volume(write(files, tmp_path_factory.mktemp(name)))


@pytest.fixture
def _small(_read_before: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with tracing(monkeypatch):
        yield


def check_harmless(path: Path) -> Volume | LiftError:
    return check_costs(path, most_steps=MOST_STEPS)


def other_element(content: bytes, rng: np.random.Generator) -> bytes:
    """Another length or another value of one element that a reader looks at."""
    big = rng.random() < 0.2
    group, element = TAGS[rng.integers(len(TAGS))]
    mark = struct.pack(">HH" if big else "<HH", group, element)
    place = content.find(mark, 132)
    if place < 0:
        return with_other_bytes(content, rng)
    changed = bytearray(content)
    if rng.random() < 0.5:
        at = place + int(rng.choice([4, 6, 8]))
        length = int(rng.choice(LENGTHS))
        form = "<I" if rng.random() < 0.5 else "<H"
        number = struct.pack(form, length & (0xFFFFFFFF if form == "<I" else 0xFFFF))
        changed[at : at + len(number)] = number
    else:
        at = place + int(rng.choice([8, 12]))
        value = VALUES[rng.integers(len(VALUES))]
        if rng.random() < 0.5:
            changed[at : at + len(value)] = value
        else:
            changed[at:at] = value
    return bytes(changed)


@pytest.mark.fuzz
@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("name", EXAMPLES)
def test_damaged_files_are_volumes_or_refusals(tmp_path: Path, name: str) -> None:
    files = EXAMPLES[name]
    outcomes = {"read": 0, "refused": 0}
    folder = write(files, tmp_path / "series", seed=3)
    paths = sorted(folder.iterdir())
    whole = {path: path.read_bytes() for path in paths}
    for case in range(max(1, FORMAT_CASES // 48)):
        rng = np.random.default_rng([zlib.crc32(name.encode()), case])
        path = paths[rng.integers(len(paths))]
        change = other_element if rng.random() < 0.6 else with_other_bytes
        path.write_bytes(change(whole[path], rng))
        try:
            # a multi-frame file also by itself
            alone = len(paths) == 1 and rng.random() < 0.5
            outcome = check_harmless(path if alone else folder)
        except Exception as error:
            raise AssertionError(f"case {case} of {name}") from error
        finally:
            path.write_bytes(whole[path])
        outcomes["refused" if isinstance(outcome, LiftError) else "read"] += 1
    assert FORMAT_CASES < 300 or min(outcomes.values()) > 0


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("name", ["dicom", "enhanced"])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, name: str) -> None:
    folder = write(EXAMPLES[name], tmp_path / "series")
    path = sorted(folder.iterdir())[-1]
    content = path.read_bytes()
    for place in [*range(0, len(content), 37), *range(len(content) - 9, len(content))]:
        path.write_bytes(content[:place])
        assert isinstance(check_harmless(folder), LiftError)


@pytest.mark.usefixtures("_small")
def test_sequences_within_sequences_are_refused(tmp_path: Path) -> None:
    # items of undefined length, one within the other, far deeper than any parser goes
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    open_one = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + item
    plain = series()
    place = plain[0].index(struct.pack("<HH", 0x0010, 0x0010))
    hostile = plain[0][:place] + open_one * 5000 + plain[0][place:]
    folder = write([hostile, *plain[1:]], tmp_path / "deep")
    outcome, peak_bytes = attempt(folder, most_steps=MOST_STEPS)
    assert isinstance(outcome, LiftError)
    # what Python's own limit of depth lets happen, however deep the file is
    assert peak_bytes < 4 << 20


@pytest.mark.usefixtures("_read_before")
def test_a_header_of_empty_items_is_refused_at_once(tmp_path: Path) -> None:
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0)
    items = item * 500_000
    many = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, len(items)) + items
    plain = series()
    place = plain[0].index(struct.pack("<HH", 0x0010, 0x0010))
    folder = write([plain[0][:place] + many + plain[0][place:], *plain[1:]], tmp_path / "many")
    outcome, _ = attempt(folder, most_steps=MOST_STEPS)
    assert isinstance(outcome, VolumeError)
    assert "more items than any" in outcome.seen


@pytest.mark.usefixtures("_read_before")
def test_an_rle_slice_that_unpacks_to_far_more_is_refused(tmp_path: Path) -> None:
    folder = write(EXAMPLES["dicom-rle"], tmp_path / "rle")
    path = max(folder.iterdir())
    dataset = pydicom.dcmread(path)
    header = struct.pack("<16I", 1, 64, *[0] * 14)
    # 128 zeros of each two bytes
    dataset.PixelData = encapsulate([header + b"\x81\x00" * (1 << 20)])
    dataset["PixelData"].VR = "OB"
    dataset.save_as(path, enforce_file_format=True)
    tracemalloc.start()
    try:
        with pytest.raises(VolumeError) as caught:
            read_volume(folder)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert f"more pixels than {wording.HEADER_CLAIMS}" in caught.value.seen
    assert peak < 16 << 20


@pytest.mark.usefixtures("_small")
def test_a_deflated_bomb_is_not_unpacked(tmp_path: Path) -> None:
    plain = to_bytes(header(voxels(), "MR"))
    meta = plain.index(struct.pack("<HH", 0x0008, 0x0008))
    old = str(uid.ExplicitVRLittleEndian).encode()
    new = str(uid.DeflatedExplicitVRLittleEndian).encode()
    start = plain[:meta].replace(old + bytes(len(old) % 2), new)
    start = start.replace(b"UI" + struct.pack("<H", 20) + new, b"UI" + struct.pack("<H", 22) + new)
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = squeeze.compress(plain[meta:] + bytes(64 << 20)) + squeeze.flush()
    folder = write([start + bomb] * 2, tmp_path / "bomb")
    outcome = check_harmless(folder)
    assert isinstance(outcome, LiftError)
    assert "deflated" in outcome.seen


@pytest.mark.usefixtures("_small")
def test_claims_of_many_frames_ask_for_no_memory(tmp_path: Path) -> None:
    def many(dataset: Dataset) -> None:
        dataset.NumberOfFrames = 60_000
        frame = dataset.PerFrameFunctionalGroupsSequence[0]
        dataset.PerFrameFunctionalGroupsSequence = Items([frame] * 3)

    (tmp_path / "a.dcm").write_bytes(enhanced(change=many))
    outcome = check_harmless(tmp_path / "a.dcm")
    assert isinstance(outcome, LiftError)
    assert "60000 frames and describes 3" in outcome.seen


@pytest.mark.usefixtures("_small")
def test_a_large_claim_in_a_small_file_is_refused(tmp_path: Path) -> None:
    def wide(_: int, dataset: Dataset) -> None:
        dataset.Rows = dataset.Columns = 65_535

    folder = write(series(change=wide), tmp_path / "wide")
    assert isinstance(check_harmless(folder), LiftError)
    assert LIMIT < 65_535**2
