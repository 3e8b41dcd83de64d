"""Seeds follow from names, and from nothing else."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from lift.randomness import derive_seed

names = st.lists(st.text(max_size=6) | st.integers(-5, 5), max_size=4)


@given(st.integers(0, 2**63 - 1), names)
def test_a_seed_is_a_63_bit_number_that_depends_on_nothing_else(
    run: int, path: list[str | int]
) -> None:
    seed = derive_seed(run, *path)
    assert 0 <= seed < 2**63
    assert seed == derive_seed(run, *path)


@given(st.integers(0, 3), names, st.integers(0, 3), names)
def test_different_paths_give_different_seeds(
    run: int, path: list[str | int], other_run: int, other: list[str | int]
) -> None:
    same = (run, path) == (other_run, other)
    assert (derive_seed(run, *path) == derive_seed(other_run, *other)) == same


def test_a_separator_inside_a_name_starts_no_new_name() -> None:
    assert derive_seed(0, "a/str:b") != derive_seed(0, "a", "b")
    assert derive_seed(0, "a%2Fstr:b") != derive_seed(0, "a/str:b")
    assert derive_seed(0, "3") != derive_seed(0, 3)


def test_seeds_are_those_of_earlier_runs() -> None:
    digest = hashlib.sha256(b"7/str:round/int:3/str:site/str:north").digest()
    expected = int.from_bytes(digest, "big") >> (256 - 63)
    assert derive_seed(7, "round", 3, "site", "north") == expected
