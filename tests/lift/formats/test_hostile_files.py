"""Hostile bytes in every format: a volume or a refusal, in few steps and little memory.

Steps stand for time (tests/steps.py): they are the same on every machine, however busy it is. One
call into C is one step; what it works on is bounded by the file's size and by the memory.
tests/scale.py says how many damaged files are tried in all.
"""

from __future__ import annotations

import gzip
import struct
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import nibabel
import numpy as np
import pytest

from lift.errors import LiftError
from lift.volumes.formats.packed import GZIP
from lift.volumes.volume import Volume, read_volume
from tests.lift.formats.cases import (
    NAME,
    Example,
    examples,
    meta_text,
    nifti,
    nrrd_text,
    stored,
    voxels,
)
from tests.scale import FORMAT_CASES
from tests.steps import counted

LIMIT: Final = 256 << 10
MOST_STEPS: Final = 30_000
"""Whole files of these sizes take 3,800 at most."""
EXAMPLES: Final = examples(voxels())

WORDS: Final = [
    *("", "0", "-1", "1", "2", "0.0", "-0", "1e-45", "1e38", "1e39", "1e400", "nan", "inf", "-inf"),
    *("2147483648", "4294967295", "9223372036854775807", "-9223372036854775809", "9" * 5000),
    *("0 0 0", "-1 -1 -1", "1 1 1", "32 32 32", "33 33 33", "4 5", "4 5 6 7", "1 4 5 6"),
    *("4 5 6 1", "2147483647 2147483647 2147483647", "4294967296 4294967296 1", "nan nan nan"),
    *("0 0 0 0 0 0 0 0 0", "(0,0,0) (0,0,0) (0,0,0)", "(nan,0,0) (0,1,0) (0,0,1)", "none"),
    *("(1,0,0) (0,1,0)", "none none none", "(1e308,0,0) (0,1e308,0) (0,0,1e308)", "(", "()" * 999),
    *("LIST", "LOCAL", "LIST 2", "../a.raw", "/etc/passwd", "a%03d.raw 1 9 1", "a.nhdr", "a.mhd"),
    *("http://localhost/a.raw", "a\0.raw", "x" * 70_000, "True", "False", "Maybe", "raw", "gzip"),
    *("hex", "big", "little", "block", "MET_CHAR", "MET_DOUBLE", "MET_OTHER", "MET_STRING"),
    *("double", "uchar", "int64", "RAS", "scanner-xyz", "list list list", "%s%n", "\u00fc\u2028"),
]
NUMBERS: Final = [
    *(struct.pack(form, value) for form in ("<h", ">h") for value in (0, -1, 1, 32767, -32768)),
    *(struct.pack(form, value) for form in ("<i", ">i") for value in (0, -1, 1 << 30, -(1 << 31))),
    *(struct.pack(form, value) for form in ("<q", ">q") for value in (-1, 1 << 40, 1 << 62)),
    *(
        struct.pack(form, value)
        for form in ("<f", ">f", "<d", ">d")
        for value in (0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, 1e38, -1e38, 4e18)
    ),
]
EXTRA: Final = [
    *(b"\0", b"\n", b"\n\n", b" ", GZIP, bytes(5000), gzip.compress(b"") * 200),
    *(b"a" * 100_000, b"(" * 100_000, b" " * 100_000 + b"\n", gzip.compress(bytes(1 << 22))),
]
# dimensions, number format, offset of the voxels, scale factor, geometry: NIfTI-1, NIfTI-2, MGH
FIELDS: Final = {
    348: [0, 40, 42, 44, 46, 48, 70, 72, 76, 80, 84, 88, 108, 112, 116, 252, 254, 256, 280, 344],
    540: [0, 4, 12, 14, 16, 24, 32, 40, 48, 104, 112, 120, 168, 176, 184, 344, 348, 352, 400],
    284: [0, 4, 8, 12, 16, 20, 28, 30, 34, 38, 42, 46, 50, 54, 58, 78, 82, 86],
}


@pytest.fixture(scope="module")
def _used_before(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is made once, at the first use, is no file's cost."""
    for name, example in EXAMPLES.items():
        read_volume(example.write(tmp_path_factory.mktemp(name)))


@contextmanager
def tracing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small volumes are large, and memory is counted."""
    monkeypatch.setattr("lift.volumes.formats.checks.LARGEST_VOLUME_BYTES", LIMIT)
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.fixture
def _small_limit(_used_before: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with tracing(monkeypatch):
        yield


def attempt(path: Path, *, most_steps: int = MOST_STEPS) -> tuple[Volume | LiftError, int]:
    """A volume or a refusal, and the most bytes it held; any other exception goes through."""
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    outcome, _ = counted(lambda: read_volume(path, root=path.parent), most=most_steps)
    peak_bytes = tracemalloc.get_traced_memory()[1] - before
    if isinstance(outcome, LiftError):
        outcome = outcome.with_traceback(None)
    elif isinstance(outcome, Exception):
        raise outcome
    return outcome, peak_bytes


def check_harmless(path: Path, *, most_steps: int = MOST_STEPS) -> Volume | LiftError:
    """The outcome, which says no more than it may and cost no more than it may."""
    outcome, peak_bytes = attempt(path, most_steps=most_steps)
    if peak_bytes > 2 * LIMIT:
        # Python's own tables (of interned names, say) grow now and then, in large steps and in
        # nobody's favour; what the file costs, it costs again
        outcome, peak_bytes = attempt(path, most_steps=most_steps)
    if isinstance(outcome, LiftError):
        assert all((outcome.what, outcome.where, outcome.seen, outcome.remedy))
        assert NAME not in str(outcome)
        assert len(str(outcome)) < 1000
    else:
        assert outcome.voxels.ndim == 3
        assert np.isfinite(outcome.voxels).all()
        assert np.isfinite(outcome.affine).all()
        assert np.linalg.det(outcome.affine[:3, :3]) != 0
        assert NAME.encode() not in outcome.grid.header.binaryblock
    assert peak_bytes <= 2 * LIMIT
    return outcome


def damaged(example: Example, rng: np.random.Generator) -> dict[str, bytes]:
    """The example's files, one of them damaged in one of many ways."""
    files = dict(example.files)
    name = str(rng.choice(sorted(files)))
    if rng.random() < 0.6:
        name = example.header or example.path
    content = files[name]
    inside = content.startswith(GZIP) and rng.random() < 0.7
    if inside:
        content = gzip.decompress(content)
    ways = [_cut, _flipped, _longer]
    if name == (example.header or example.path):
        ways += [_other_word, _other_lines] * 3 if example.text else [_other_number] * 6
    content = ways[rng.integers(len(ways))](content, rng)
    files[name] = gzip.compress(content, mtime=0) if inside else content
    return files


def with_other_bytes(content: bytes, rng: np.random.Generator) -> bytes:
    """Cut off, with flipped bits, or with something put in."""
    ways = (_cut, _flipped, _longer)
    return ways[rng.integers(len(ways))](content, rng)


def _cut(content: bytes, rng: np.random.Generator) -> bytes:
    end = len(content)
    lengths = [0, 1, 2, 4, 8, 16, 64, 283, 284, 285, 347, 348, 349, 352, 353, 539, 540, 544]
    lengths += [end - 1, end - 2, end - 8, end // 2, int(rng.integers(end + 1))]
    return content[: max(0, int(rng.choice(lengths)))]


def _flipped(content: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(content)
    # the header more often than the voxels
    end = len(content) if rng.random() < 0.4 else min(len(content), 400)
    for place in rng.integers(end, size=rng.integers(1, 9)):
        changed[place] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _longer(content: bytes, rng: np.random.Generator) -> bytes:
    place = int(rng.choice([0, len(content), int(rng.integers(len(content) + 1))]))
    extra = [*EXTRA, rng.bytes(7)]
    return content[:place] + extra[rng.integers(len(extra))] + content[place:]


def _other_number(content: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(content)
    size = 284 if content[:4] == b"\0\0\0\1" else 540 if content[4:7] == b"n+2" else 348
    for _ in range(int(rng.integers(1, 4))):
        places = FIELDS[size] if rng.random() < 0.8 else list(range(size))
        place = int(rng.choice(places))
        number = NUMBERS[rng.integers(len(NUMBERS))]
        changed[place : place + len(number)] = number
    return bytes(changed)


def _other_word(content: bytes, rng: np.random.Generator) -> bytes:
    lines = content.split(b"\n")
    fields = [i for i, line in enumerate(lines[:16]) if b": " in line or b" = " in line]
    if not fields:
        return content
    place = int(rng.choice(fields))
    mark = b": " if b": " in lines[place] else b" = "
    word = WORDS[rng.integers(len(WORDS))].encode()
    lines[place] = lines[place].split(mark)[0] + mark + word
    return b"\n".join(lines)


def _other_lines(content: bytes, rng: np.random.Generator) -> bytes:
    lines = content.split(b"\n")
    place = int(rng.integers(min(14, len(lines))))
    extra = [b"", b"\r", b"=", b":", b":=", b"# \xff", b"byte skip: 1", b"line skip: 1", b"\0"]
    extra += [b"HeaderSize = 1", b"CompressedData = True", b"data file: a.raw", b"Offset: 0 0 0"]
    match rng.integers(3):
        case 0:
            del lines[place]
        case 1:
            lines.insert(place, lines[int(rng.integers(len(lines)))])
        case _:
            lines.insert(place, extra[rng.integers(len(extra))])
    return b"\n".join(lines)


@pytest.mark.fuzz
@pytest.mark.usefixtures("_small_limit")
@pytest.mark.parametrize("name", EXAMPLES)
def test_damaged_files_are_volumes_or_refusals(tmp_path: Path, name: str) -> None:
    example = EXAMPLES[name]
    outcomes = {"read": 0, "refused": 0}
    for case in range(max(1, FORMAT_CASES // len(EXAMPLES))):
        rng = np.random.default_rng([zlib.crc32(name.encode()), case])
        for file, content in damaged(example, rng).items():
            (tmp_path / file).write_bytes(content)
        try:
            outcome = check_harmless(tmp_path / example.path)
        except Exception as error:
            raise AssertionError(f"case {case} of {name}") from error
        outcomes["refused" if isinstance(outcome, LiftError) else "read"] += 1
    # damage that is always or never seen would try nothing
    assert FORMAT_CASES < 300 or min(outcomes.values()) > 0


@pytest.mark.usefixtures("_small_limit")
@pytest.mark.parametrize("name", EXAMPLES)
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, name: str) -> None:
    example = EXAMPLES[name]
    path = example.write(tmp_path)
    for file, content in example.files.items():
        end = len(content)
        if file.endswith((".nhdr", ".mhd")):
            # what comes after the other file's name is no part of the volume
            other = next(other for other in example.files if other != file).encode()
            end = content.index(other) + len(other)
        elif file.endswith(".mgh"):
            # nor is MGH's footer
            end = 284 + voxels().nbytes
        # the last 8 bytes are gzip's own
        for place in [*range(0, end, 61), *range(end - 9, end)]:
            (tmp_path / file).write_bytes(content[:place])
            assert isinstance(check_harmless(path), LiftError)
        example.write(tmp_path)


@pytest.mark.usefixtures("_small_limit")
def test_what_unpacks_to_far_more_than_it_claims_is_refused_early(tmp_path: Path) -> None:
    zeros = bytes(16 << 20)
    bomb, zbomb = gzip.compress(zeros, 9), zlib.compress(zeros, 9)
    compressed = {"CompressedData": "True"}
    affine = np.eye(4)
    little = nifti(voxels(), affine)
    late = bytearray(little.to_bytes())
    late[108:112] = struct.pack("<f", 900_000)
    mgh = nibabel.MGHImage(voxels(), affine).to_bytes()
    claims = {"sizes": "32 32 32", "encoding": "gzip"}
    files = {
        "a.nii.gz": gzip.compress(little.to_bytes() + zeros, 9),
        "b.nii.gz": gzip.compress(bytes(late) + zeros[: 1 << 20]),
        "a.mgz": gzip.compress(mgh + zeros, 9),
        "a.nrrd": nrrd_text({"encoding": "gzip"}) + bomb,
        "b.nrrd": nrrd_text({"encoding": "gzip", "byte skip": str(15 << 20)}) + bomb,
        "a.mha": meta_text(compressed) + zbomb,
        "b.mha": meta_text(compressed) + bomb,
        "c.nii.gz": bomb,
        "d.nii.gz": gzip.compress(bomb),
        # claims of much in a file of little
        "c.nrrd": nrrd_text(claims) + gzip.compress(b"")[:10],
        "d.nrrd": nrrd_text({**claims, "sizes": "99999 99999 99999"}) + bomb,
        "c.mha": meta_text({**compressed, "DimSize": "32 32 32"}) + zlib.compress(b"12"),
        # members without content
        "e.nrrd": nrrd_text({"encoding": "gzip"}) + gzip.compress(b"") * 10_000,
        "e.nii.gz": gzip.compress(b"") * 10_000,
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        assert isinstance(check_harmless(tmp_path / name), LiftError)


@pytest.fixture(scope="module")
def large() -> dict[str, Example]:
    """A volume of nearly 2 MiB in every format, and one with a scale factor."""
    data = voxels("<f8", (63, 63, 63))
    image = nifti(data, np.eye(4))
    image.header.set_slope_inter(2.5, -1)
    return {**examples(data), "scaled": Example("a.nii", {"a.nii": image.to_bytes()})}


@pytest.mark.usefixtures("_used_before")
@pytest.mark.parametrize("name", [*EXAMPLES, "scaled"])
def test_a_volume_at_the_limit_is_in_memory_twice_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, large: dict[str, Example]
) -> None:
    limit = 2 << 20
    monkeypatch.setattr("lift.volumes.formats.checks.LARGEST_VOLUME_BYTES", limit)
    assert 0.95 * limit < 63**3 * 8 < limit
    path = large[name].write(tmp_path)
    tracemalloc.start()
    try:
        outcome, peak_bytes = attempt(path)
    finally:
        tracemalloc.stop()
    assert isinstance(outcome, Volume)
    assert peak_bytes <= 2 * limit


@pytest.mark.usefixtures("_small_limit")
def test_a_file_larger_than_any_volume_is_not_read(tmp_path: Path) -> None:
    raw = stored(voxels())
    header: dict[str, Any] = {"data file": "a.raw", "byte skip": "-1"}
    (tmp_path / "a.nhdr").write_bytes(nrrd_text(header))
    with (tmp_path / "a.raw").open("wb") as stream:
        stream.truncate(1 << 40)
    outcome = check_harmless(tmp_path / "a.nhdr")
    assert isinstance(outcome, LiftError)
    assert "larger than" in outcome.seen
    (tmp_path / "a.raw").write_bytes(raw)
    assert isinstance(check_harmless(tmp_path / "a.nhdr"), Volume)


def test_no_memory_is_asked_for_what_so_few_packed_bytes_cannot_hold(tmp_path: Path) -> None:
    # below the limit, and yet impossible
    text = nrrd_text({"encoding": "gzip", "sizes": "500 500 500"})
    (tmp_path / "a.nrrd").write_bytes(text + gzip.compress(bytes(1000)))
    content = bytearray(EXAMPLES["nifti1"].files["a.nii"])
    content[42:48] = struct.pack("<3h", 500, 500, 500)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(bytes(content)))
    for name in ("a.nrrd", "a.nii.gz"):
        tracemalloc.start()
        try:
            outcome, peak_bytes = attempt(tmp_path / name)
        finally:
            tracemalloc.stop()
        assert isinstance(outcome, LiftError)
        assert "compressed bytes cannot hold" in outcome.seen
        assert peak_bytes < 1 << 20


@pytest.mark.usefixtures("_small_limit")
@pytest.mark.parametrize("value", [-1.0, -16.0, -353.0, np.nan, np.inf, -np.inf, 1e38, -1e38, 4e18])
@pytest.mark.parametrize("name", ["nifti1", "nifti1-gz", "pair", "pair-gz"])
def test_voxels_that_start_nowhere_are_refused(tmp_path: Path, name: str, value: float) -> None:
    example = EXAMPLES[name]
    path = example.write(tmp_path)
    header = example.header or example.path
    packed = header.endswith(".gz")
    content = example.files[header]
    changed = bytearray(gzip.decompress(content) if packed else content)
    changed[108:112] = struct.pack("<f", value)
    (tmp_path / header).write_bytes(gzip.compress(bytes(changed)) if packed else bytes(changed))
    assert isinstance(check_harmless(path), LiftError)


@pytest.mark.usefixtures("_small_limit")
def test_the_packed_header_of_a_pair_is_read_to_its_checksum(tmp_path: Path) -> None:
    example = EXAMPLES["pair-gz"]
    path = example.write(tmp_path)
    header = gzip.decompress(example.files["a.hdr.gz"]) + np.random.default_rng(1).bytes(5000)
    (tmp_path / "a.hdr.gz").write_bytes(gzip.compress(header))
    assert isinstance(check_harmless(path), Volume)
    (tmp_path / "a.hdr.gz").write_bytes(gzip.compress(header)[:-1])
    assert isinstance(check_harmless(path), LiftError)
