"""The tiny decoder is made once; a test that damages it works on a copy."""

from __future__ import annotations

from pathlib import Path

import pytest

from lift.unconditional.decoder import FrozenDecoder
from tests.lift.unconditional.tiny_decoder import make_decoder, tiny_decoder


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle's folder; its public volumes lie beside it, in `public`."""
    return make_decoder(tmp_path_factory.mktemp("decoder"))


@pytest.fixture(scope="session")
def decoder(bundle: Path) -> FrozenDecoder:
    """The frozen decoder."""
    return tiny_decoder(bundle)
