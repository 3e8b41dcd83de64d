"""The public Python interface: its ten lines run as they stand, and it is quick to import."""

from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path

import pytest

import lift
from lift import api
from lift.errors import ConfigError, DataError, GeneratorError


def test_the_ten_lines_of_the_documentation_train_and_apply_a_mixer() -> None:
    found = doctest.testmod(api, optionflags=doctest.ELLIPSIS, raise_on_error=False)
    assert found.attempted >= 10
    assert found.failed == 0


def test_importing_the_package_imports_no_torch() -> None:
    script = "import lift, sys; assert 'torch' not in sys.modules; print(lift.__version__)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == lift.__version__


def test_every_public_name_is_there_and_no_other() -> None:
    assert all(getattr(lift, name) is not None for name in lift.__all__)
    assert set(lift.__all__) <= set(dir(lift))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = lift.no_such_name


def test_a_plan_says_what_is_wrong_with_a_key() -> None:
    generator = lift.load_generator("phantom-t1n-t1c-t2w-t2f")
    with pytest.raises(ConfigError, match="stepz"):
        lift.make_plan(generator, training={"stepz": 4})
    with pytest.raises(ConfigError, match="bundle makes"):
        lift.make_plan(generator, task={"source": ["mr"], "target": "ct"})


def test_a_bundle_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(GeneratorError, match="no-such-bundle"):
        lift.load_generator("no-such-bundle")


def test_a_cohort_without_patients_is_refused(tmp_path: Path) -> None:
    generator = lift.load_generator("phantom-t1n-t1c-t2w-t2f")
    (tmp_path / "scans").mkdir()
    with pytest.raises(DataError):
        lift.open_cohort(
            tmp_path / "scans", lift.make_plan(generator), generator, folder=tmp_path / "work"
        )


def test_a_plan_of_another_generator_is_refused(tmp_path: Path) -> None:
    generator = lift.load_generator("phantom-t1n-t1c-t2w-t2f")
    plan = lift.make_plan(generator).model_copy(update={"generator_fingerprint": "b" * 64})
    with pytest.raises(GeneratorError, match="make_plan"):
        lift.open_cohort(tmp_path, plan, generator, folder=tmp_path / "work")
