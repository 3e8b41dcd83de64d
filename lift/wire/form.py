"""The form of an answer: which tensors it holds, with which number format and shape."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import safetensors.numpy

from lift.protocol.messages import Kind
from lift.wire.groups import PURPOSES, Group

_NAME_SHOWN = 40


@dataclass(frozen=True)
class TensorForm:
    """Number format (numpy's name) and shape of one tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def numbers(self) -> int:
        """How many numbers the tensor holds."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor."""
        return self.numbers * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Part:
    """Tensors of one answer that travel together.

    Attributes:
        group: what they are.
        tensors: name -> form.
        optional: a site may leave all of them out, as one with too few patients does.
    """

    group: Group
    tensors: Mapping[str, TensorForm]
    optional: bool = False


@dataclass(frozen=True)
class Offence:
    """What keeps an answer from having its form.

    Attributes:
        tensor: the first tensor that offends; at most 40 characters of a name.
        seen: in words, against what is needed.
    """

    tensor: str
    seen: str


@dataclass(frozen=True)
class AnswerForm:
    """Every tensor that one kind of answer may hold under a plan; nothing else may travel."""

    kind: Kind
    parts: tuple[Part, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensors when every part is sent."""
        return sum(form.size_bytes for part in self.parts for form in part.tensors.values())

    @cached_property
    def room_bytes(self) -> int:
        """Bytes of the encoded tensors when every part is sent: what an answer takes always."""
        forms = {name: form for part in self.parts for name, form in part.tensors.items()}
        whole = {name: np.zeros(forms[name].shape, forms[name].dtype) for name in sorted(forms)}
        return len(safetensors.numpy.save(whole))

    def offence(self, tensors: Mapping[str, np.ndarray]) -> Offence | None:
        """The first thing in which these tensors differ from the form; None where they fit."""
        known: dict[str, TensorForm] = {}
        for part in self.parts:
            known |= part.tensors
            here = [name for name in part.tensors if name in tensors]
            if len(here) < len(part.tensors) and (here or not part.optional):
                name = min(set(part.tensors) - set(here))
                return Offence(name, "it is missing")
        for name in sorted(tensors):
            if name not in known:
                return Offence(repr(name[:_NAME_SHOWN]), "the answer has no such tensor")
            form, tensor = known[name], tensors[name]
            if tensor.dtype.name != form.dtype:
                return Offence(name, f"it is {tensor.dtype.name}; {form.dtype} is needed")
            if tuple(tensor.shape) != form.shape:
                return Offence(name, f"it has the shape {tensor.shape}; {form.shape} is needed")
        return None

    def purpose(self, tensors: Mapping[str, np.ndarray]) -> str:
        """Why an answer with these tensors leaves, for the journal."""
        sent = [p.group.purpose for p in self.parts if any(name in tensors for name in p.tensors)]
        return " ".join([PURPOSES[self.kind], *sent])


def whole_numbers(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, TensorForm]:
    """Tensors of sums in fixed point, by name."""
    return {name: TensorForm("int64", shape) for name, shape in shapes.items()}
