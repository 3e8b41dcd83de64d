"""The viewer outside a browser: volumes as files, the page's rules, the build, the server."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import json
import re
from dataclasses import replace
from html import unescape
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hatch_build
from lift.errors import VolumeError
from lift.viewer.embedded import ViewerSet, content_policy, is_built, viewers
from lift.viewer.page import standalone_page
from lift.viewer.served import make_app
from lift.viewer.volumes import COARSE, FINE, ViewerVolume, viewer_volume
from lift.volumes.volume import Volume, read_volume
from tests.end_to_end.tiny_run import check_refusal, run_here

SHAPE = (12, 10, 6)
PATH = "fade"
HOSTILE = "</script><script>alert('x')</script>\u202e" + "A" * 300


@pytest.fixture
def path(tmp_path: Path) -> Path:
    voxels = np.random.default_rng(3).normal(100, 40, SHAPE).astype(np.float32)
    affine = np.diag([1.0, 2.0, 4.0, 1.0])
    affine[:3, 3] = (-5, 6, 7)
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = b"SECRET NAME"
    nib.save(image, tmp_path / "volume.nii.gz")
    return tmp_path / "volume.nii.gz"


@pytest.fixture
def volume(path: Path) -> Volume:
    return read_volume(path)


def opened(shown: ViewerVolume) -> Any:
    return nib.Nifti1Image.from_bytes(shown.nifti)


@pytest.mark.parametrize("levels", [COARSE, FINE])
def test_a_shown_volume_is_the_volume_to_half_a_step_and_at_its_place(
    volume: Volume, levels: int
) -> None:
    shown = viewer_volume("a", volume, levels=levels)
    image = opened(shown)
    step = (float(volume.voxels.max()) - float(volume.voxels.min())) / levels
    assert np.abs(image.get_fdata() - volume.voxels).max() <= step / 2 * 1.01
    np.testing.assert_allclose(image.affine, volume.affine, atol=1e-5)
    assert image.header.get_data_dtype() == np.int16
    assert len(np.unique(np.asarray(image.dataobj.get_unscaled()))) <= levels + 1
    assert gzip.decompress(shown.packed()) == shown.nifti


def test_nothing_of_a_header_but_its_grid_is_shown(volume: Volume) -> None:
    assert b"SECRET" not in viewer_volume("a", volume).nifti


@pytest.mark.parametrize("value", [0.0, -7.5, 1e6])
def test_a_flat_volume_keeps_its_value(volume: Volume, value: float) -> None:
    flat = replace(volume, voxels=np.full(SHAPE, value, np.float32))
    assert np.allclose(opened(viewer_volume("a", flat)).get_fdata(), value)


@pytest.mark.parametrize("shape", [(2049, 1, 1), (800, 800, 700)])
def test_what_no_browser_can_draw_is_refused_before_it_is_copied(
    volume: Volume, shape: tuple[int, int, int]
) -> None:
    huge = replace(volume, voxels=np.broadcast_to(np.float32(0), shape))
    with pytest.raises(VolumeError, match="cannot show volume 'a'"):
        viewer_volume("a", huge)


def test_a_ct_is_known_by_its_values(volume: Volume) -> None:
    assert not viewer_volume("a", volume).hounsfield
    ct = replace(volume, voxels=volume.voxels * 30 - 3000)
    assert viewer_volume("a", ct).hounsfield


def test_the_same_volume_gives_the_same_page(volume: Volume) -> None:
    shown = viewer_volume("a", volume)
    assert standalone_page([shown], "label") == standalone_page([shown], "label")


def test_a_page_allows_its_own_script_alone_and_asks_nobody(volume: Volume) -> None:
    page = standalone_page([viewer_volume("a", volume)], "label").decode()
    policy = unescape(
        re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)[0]
    )
    assert "default-src 'none'" in policy
    assert content_policy() in policy
    assert not re.search(r"unsafe-eval|\*|https?:|'self'", policy)
    scripts = re.findall(r'<script type="module">(.*?)</script>', page, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    assert re.findall(r"'sha256-([^']+)'", policy) == digests
    for name in ("viewer.js", "embedded.js", "served.js"):
        script = (files("lift.viewer") / name).read_text(encoding="utf-8")
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script
        )
        assert not re.search(r"https?://", script)


def test_hostile_labels_stay_text(volume: Volume) -> None:
    shown = viewer_volume(HOSTILE, volume)
    page = viewers([ViewerSet(HOSTILE, (shown,), phantom=True)])
    assert "<script>alert" not in page
    held = json.loads(unescape(re.findall(r'data-volumes="([^"]+)"', page)[0]))
    assert held["volumes"][0]["label"] == HOSTILE
    assert held["phantom"] is True


def test_the_built_script_is_the_pinned_one_with_its_class_exported() -> None:
    assert is_built(), "the project was not installed: `pip install .` builds the viewer"
    script = (files("lift.viewer") / "niivue.js").read_text(encoding="utf-8")
    assert hashlib.sha256(script.encode()).hexdigest() == hatch_build.SCRIPT_SHA256
    (exported,) = re.findall(r"export\{(\w+) as Niivue\};\s*$", script)
    # what viewer.js asks of NiiVue's class
    for name in (
        "attachToCanvas",
        "loadFromArrayBuffer",
        "setSliceType",
        "addColormap",
        "setColormap",
        "setInterpolation",
        "updateGLVolume",
        "drawScene",
        "createOnLocationChange",
        "moveCrosshairInVox",
        "mm2frac",
        "frac2mm",
        "resizeListener",
    ):
        assert re.search(rf"[;}}{{]\s*(?:async )?{name}\(", script), name
    assert re.search(rf"class {exported}\b|{exported}=class", script)
    assert "BSD 2-Clause" in (files("lift.viewer") / "niivue.LICENSE").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "source",
    [
        "export{a as default};",
        '"Creating new Niivue instance");let B=1,C=f(B);v=new t2(C)',
        '"Creating new Niivue instance");let B=1,C=f(B);v=new t2(C)export{a as default};more()',
    ],
)
def test_an_unknown_bundle_stops_the_build(source: str) -> None:
    with pytest.raises(RuntimeError, match="cannot find"):
        hatch_build.with_class_exported(source)


def test_a_build_without_the_package_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hatch_build, "find_spec", lambda _: None)
    with pytest.raises(RuntimeError, match=r"ipyniivue==2\.4\.4"):
        hatch_build.make_viewer(tmp_path)
    # what is there already is enough
    here = Path(hatch_build.__file__).parent
    hatch_build.make_viewer(here)


@given(token=st.text("abcdef", min_size=1, max_size=8).filter(lambda text: text != PATH))
def test_without_the_token_the_server_gives_nothing(token: str) -> None:
    shown = ViewerVolume("a", b"volume", hounsfield=False)
    assert asyncio.run(statuses(make_app([shown], "label", PATH), token)) == {404}


async def statuses(app: Any, token: str, host: str = "127.0.0.1:9") -> set[int]:
    transport = httpx.ASGITransport(app=app)
    names = ("", "page.css", "served.js", "viewer.js", "niivue.js", "volumes.json", "volume/0")
    async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
        answers = [await client.get(f"/{token}/{name}") for name in names]
        answers += [await client.get("/")] if token != PATH else []
    for answer in answers:
        if answer.status_code == 200:
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert answer.headers["cache-control"] == "no-store"
    return {answer.status_code for answer in answers}


def test_the_server_gives_its_seven_files_to_this_machine_alone() -> None:
    app = make_app([ViewerVolume("a", b"volume", hounsfield=False)], "label", PATH)
    assert asyncio.run(statuses(app, PATH)) == {200}
    assert asyncio.run(statuses(app, PATH, host="evil.example")) == {400}


def test_lift_view_writes_a_file_and_names_a_bad_volume(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "view.html"
    done = run_here("lift", "view", path, path, "--output", out, "--label", HOSTILE)
    assert done.code == 0, done.stderr
    assert done.stdout == f"page: {out}\n"
    page = out.read_text(encoding="utf-8")
    assert page.count('class="viewer"') == 1
    assert "<script>alert" not in page
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(b"nothing")
    check_refusal(run_here("lift", "view", path, bad, "--output", out), 3, names=["bad.nii.gz"])
