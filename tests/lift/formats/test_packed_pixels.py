"""JPEG Lossless, JPEG-LS and JPEG 2000: the voxels of the same series unpacked, or a refusal."""

from __future__ import annotations

import base64
import json
import struct
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder

from lift.errors import VolumeError
from lift.volumes.formats.codestreams import claim_of
from lift.volumes.volume import read_volume
from tests.lift.formats.cases import decoded
from tests.lift.formats.dicom_cases import enhanced, series, write
from tests.lift.formats.make_packed_frames import KINDS, PLACE, packed_voxels, stored_as

FRAMES: Final = {
    kind: {syntax: [base64.b64decode(one) for one in found] for syntax, found in of.items()}
    for kind, of in json.loads(PLACE.read_text(encoding="utf-8")).items()
}
WITHOUT_LOSS: Final = (
    *(uid.JPEGLossless, uid.JPEGLosslessSV1, uid.JPEGLSLossless, uid.JPEG2000Lossless),
)


def saved(dataset: Dataset, syntax: str, frames: list[bytes]) -> bytes:
    dataset.file_meta.TransferSyntaxUID = uid.UID(syntax)
    dataset.PixelData = encapsulate(frames)
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    stream = BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def packed(kind: str, syntax: str, *, said: str = "", change: Any = None) -> list[bytes]:
    """The files of a series whose frames are packed; `said` is the syntax that they claim."""
    files = []
    for index, content in enumerate(series(packed_voxels(kind), change=partial(stored_as, kind))):
        dataset = pydicom.dcmread(BytesIO(content))
        frame = FRAMES[kind][syntax][index]
        if change is not None:
            frame = change(dataset, frame)
        files.append(saved(dataset, said or syntax, [frame]))
    return files


def refused(path: Path) -> str:
    with pytest.raises(VolumeError) as caught:
        read_volume(path, root=path.parent)
    assert all((caught.value.what, caught.value.where, caught.value.remedy))
    return caught.value.seen


@pytest.mark.parametrize("syntax", WITHOUT_LOSS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_series_has_the_voxels_of_the_plain_one(
    tmp_path: Path, kind: str, syntax: str
) -> None:
    found = decoded(write(packed(kind, syntax), tmp_path / "s"))
    np.testing.assert_array_equal(found.data, packed_voxels(kind))
    plain = series(packed_voxels(kind), change=partial(stored_as, kind))
    np.testing.assert_array_equal(found.data, decoded(write(plain, tmp_path / "p")).data)


@pytest.mark.parametrize(
    ("syntax", "said"),
    [(uid.JPEGLSLossless, uid.JPEGLSNearLossless), (uid.JPEG2000Lossless, uid.JPEG2000)],
)
def test_a_syntax_that_allows_loss_is_read_where_nothing_was_lost(
    tmp_path: Path, syntax: str, said: str
) -> None:
    found = decoded(write(packed("i2", syntax, said=said), tmp_path / "s"))
    np.testing.assert_array_equal(found.data, packed_voxels("i2"))


def test_pixels_that_lost_something_are_refused(tmp_path: Path) -> None:
    def off_by_two(_: Dataset, frame: bytes) -> bytes:
        place = frame.index(b"\xff\xda") + 7
        return frame[:place] + b"\2" + frame[place + 1 :]

    near = packed("u2", uid.JPEGLSLossless, said=uid.JPEGLSNearLossless, change=off_by_two)
    assert "compressed with loss" in refused(write(near, tmp_path / "near"))

    def irreversible(_: Dataset, frame: bytes) -> bytes:
        place = frame.index(b"\xff\x52") + 13
        return frame[:place] + b"\0" + frame[place + 1 :]

    files = packed("u2", uid.JPEG2000Lossless, said=uid.JPEG2000, change=irreversible)
    assert "compressed with loss" in refused(write(files, tmp_path / "wavelet"))

    def once(dataset: Dataset, frame: bytes) -> bytes:
        dataset.LossyImageCompression = "01"
        return frame

    files = packed("u2", uid.JPEG2000Lossless, change=once)
    assert "with loss once" in refused(write(files, tmp_path / "once"))


@pytest.mark.parametrize("syntax", WITHOUT_LOSS)
def test_a_multi_frame_file_is_unpacked_frame_by_frame(tmp_path: Path, syntax: str) -> None:
    dataset = pydicom.dcmread(BytesIO(enhanced(packed_voxels("i2"))))
    frames = FRAMES["i2"][syntax]
    path = tmp_path / "a.dcm"
    path.write_bytes(saved(dataset, syntax, frames))
    np.testing.assert_array_equal(decoded(path).data, packed_voxels("i2"))
    for wrong in (frames[:-1], [*frames, frames[0]]):
        dataset = pydicom.dcmread(BytesIO(enhanced(packed_voxels("i2"))))
        path.write_bytes(saved(dataset, syntax, wrong))
        assert refused(path)


def other_size(syntax: str, frame: bytes, rows: int, columns: int) -> bytes:
    """The same frame, with other sizes in its own header."""
    changed = bytearray(frame)
    if syntax == uid.JPEG2000Lossless:
        struct.pack_into(">2I", changed, 8, columns, rows)
        struct.pack_into(">2I", changed, 24, columns, rows)
    else:
        place = next(frame.index(mark) for mark in (b"\xff\xc3", b"\xff\xf7") if mark in frame)
        struct.pack_into(">2H", changed, place + 5, rows, columns)
    return bytes(changed)


@pytest.mark.parametrize("syntax", WITHOUT_LOSS)
@pytest.mark.parametrize("size", [(60_000, 60_000), (40, 40), (36, 40), (0, 0)])
def test_what_a_frame_claims_is_checked_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, syntax: str, size: tuple[int, int]
) -> None:
    def decoder(_: str) -> None:
        raise AssertionError("a decoder was asked")

    monkeypatch.setattr("lift.volumes.formats.dicom_image.get_decoder", decoder)

    def change(_: Dataset, frame: bytes) -> bytes:
        return other_size(syntax, frame, *size)

    seen = refused(write(packed("u2", syntax, change=change), tmp_path / "s"))
    assert f"its compressed pixels are {size[1]} x {size[0]} with 1 channels" in seen


@pytest.mark.parametrize("syntax", WITHOUT_LOSS)
def test_damaged_frames_are_refused_or_of_the_right_size(tmp_path: Path, syntax: str) -> None:
    rng = np.random.default_rng(7)
    outcomes = set()
    for number in range(60):

        def change(_: Dataset, frame: bytes) -> bytes:
            damaged = bytearray(frame)
            for _change in range(rng.integers(1, 4)):
                damaged[int(rng.integers(len(damaged)))] = int(rng.integers(256))
            return bytes(damaged[: int(rng.integers(1, len(damaged) + 40))])

        folder = write(packed("u2", syntax, change=change), tmp_path / str(number))
        try:
            outcomes.add(read_volume(folder).voxels.size)
        except VolumeError:
            outcomes.add(0)
    assert outcomes <= {0, packed_voxels("u2").size}
    assert 0 in outcomes


@pytest.mark.parametrize(
    "stored", [b"", b"\xff\xd8", b"\xff\xd8\xff", bytes(99), b"\xff\xd8" + bytes(9)]
)
def test_bytes_that_are_no_codestream_claim_nothing(stored: bytes) -> None:
    assert claim_of(stored) is None
    for of in FRAMES["u2"].values():
        for end in range(0, 40, 3):
            claim = claim_of(of[0][:end])
            assert claim is None or claim.rows == 40


def test_a_decoder_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = get_decoder(uid.JPEGLossless)
    monkeypatch.setattr(decoder, "_available", {})
    folder = write(packed(next(iter(KINDS)), uid.JPEGLossless), tmp_path)
    with pytest.raises(VolumeError) as caught:
        read_volume(folder, root=folder.parent)
    assert "not installed" in caught.value.seen
    assert "extra `jpeg`" in caught.value.remedy
