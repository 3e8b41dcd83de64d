"""One Hypothesis profile, one thread, what is dear to make, and the folder of real volumes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from lift.process import prepare_process

# before torch and numpy are loaded, and for processes that tests start: workers share the cores,
# and sums of one thread have the same bits on every machine of a kind
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
# as every process of ours
prepare_process()

import torch  # noqa: E402

if TYPE_CHECKING:
    from lift.tasks.unconditional.decoder import FrozenDecoder
    from tests.end_to_end.tiny_run import TinyRun

settings.register_profile(
    "lift",
    derandomize=True,
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("lift")
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real volumes; its absence is said plainly, never passed over."""
    folder = Path(os.environ.get("LIFT_TEST_DATA") or "../shared/data")
    if not folder.is_dir():
        pytest.skip(f"REAL DATA ABSENT: '{folder}' is no folder; set LIFT_TEST_DATA to test on it")
    return folder


@pytest.fixture(scope="session")
def decoder_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny slice decoder's bundle, made once; its public volumes lie beside it, in `public`."""
    # imported here: tests that need no decoder need not wait for torch's networks
    from tests.lift.unconditional.tiny_decoder import make_decoder

    return make_decoder(tmp_path_factory.mktemp("decoder"))


@pytest.fixture(scope="session")
def decoder(decoder_bundle: Path) -> FrozenDecoder:
    """The frozen decoder of the bundle."""
    from tests.lift.unconditional.tiny_decoder import tiny_decoder

    return tiny_decoder(decoder_bundle)


@pytest.fixture(scope="session")
def pca_bundle(decoder_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a PCA decoder of the same public volumes, with as many latents."""
    from tests.lift.unconditional.tiny_decoder import make_pca

    return make_pca(decoder_bundle.parent / "public", tmp_path_factory.mktemp("pca"))


@pytest.fixture(scope="session")
def pca(pca_bundle: Path) -> FrozenDecoder:
    """The frozen PCA decoder of the bundle."""
    from tests.lift.unconditional.tiny_decoder import tiny_decoder

    return tiny_decoder(pca_bundle)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """Volumes, bundle and settings that no test changes; results go into folders of their own."""
    from tests.end_to_end.tiny_run import make_tiny_run

    return make_tiny_run(tmp_path_factory.mktemp("tiny"))
