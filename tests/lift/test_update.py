from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lift.errors import NonFiniteUpdateError
from lift.mixer.update import add, check_same_form, difference, norm


@given(seed=st.integers(0, 2**16))
def test_adding_the_difference_gives_the_new_values(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    old = {"a": torch.randn(3, 2, generator=rng), "b": torch.randn(4, generator=rng)}
    new = {name: tensor + torch.randn(tensor.shape, generator=rng) for name, tensor in old.items()}
    for name, tensor in add(old, difference(new, old)).items():
        assert torch.allclose(tensor, new[name], atol=1e-6)


def test_the_norm_is_joint_over_all_tensors() -> None:
    assert norm({"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([0.0, 4.0])}) == 5.0


def test_a_diverged_mixer_gives_no_update() -> None:
    old = {"a": torch.zeros(2)}
    with pytest.raises(NonFiniteUpdateError):
        difference({"a": torch.tensor([0.0, float("nan")])}, old)


@pytest.mark.parametrize("other", [{"b": torch.zeros(2)}, {"a": torch.zeros(3)}])
def test_values_of_another_form_are_refused(other: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="differ"):
        check_same_form({"a": torch.zeros(2)}, other)
