"""Batches whose rows belong to patients: joined, taken apart, and invented for a trial."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from lift.mixer.base import Mixer, MixerInputs
from lift.tasks.paired.windows import Batch

PatientWindows = Sequence[Batch]
"""All windows of one patient, from any number of volumes; every row is one window."""

RowLosses = Callable[[Mixer, Batch], Tensor]
"""The loss of each row of a batch, (rows,), each from its own row alone."""


def row_count(windows: PatientWindows) -> int:
    """The number of a patient's windows."""
    return sum(len(batch.target) for batch in windows)


def form(batch: Batch) -> Hashable:
    """What batches must share to be joined: all shapes but the rows and the pooled depth."""
    inputs = batch.inputs
    images = {"target": batch.target, "source": inputs.source, "pred": inputs.pred}
    shapes = [(name, tensor.shape[1:]) for name, tensor in (*images.items(), *inputs.taps.items())]
    pooled = [(name, tensor.shape[2:]) for name, tensor in inputs.pooled.items()]
    return tuple(sorted(shapes)), tuple(sorted(pooled))


def join_batches(batches: Sequence[Batch]) -> Batch:
    """One batch of the rows of several, in their order; the form of all must be the same.

    Pooled features are padded to the longest volume, which changes no row's result.
    """
    inputs = [batch.inputs for batch in batches]
    longest = max((len(rows[0]) for each in inputs for rows in each.pooled.values()), default=0)
    depths = [each.pooled_depth for each in inputs if each.pooled_depth is not None]

    def joined(select: Callable[[MixerInputs], Tensor]) -> Tensor:
        return torch.cat([select(each) for each in inputs])

    def pooled(name: str) -> Tensor:
        rows = [each.pooled[name] for each in inputs]
        return torch.cat([pad(row, (0, 0, 0, longest - row.shape[1])) for row in rows])

    return Batch(
        MixerInputs(
            source=joined(lambda each: each.source),
            pred=joined(lambda each: each.pred),
            mask=joined(lambda each: each.mask),
            depth=joined(lambda each: each.depth),
            start=joined(lambda each: each.start),
            slice_spacing_mm=joined(lambda each: each.slice_spacing_mm),
            taps={name: torch.cat([each.taps[name] for each in inputs]) for name in inputs[0].taps},
            pooled={name: pooled(name) for name in inputs[0].pooled},
            pooled_depth=torch.cat(depths) if depths else None,
        ),
        torch.cat([batch.target for batch in batches]),
    )


def joined_windows(windows: PatientWindows, rows: int) -> Iterator[Batch]:
    """One patient's windows in as few batches as their forms and `rows` by batch allow.

    A batch that has more rows by itself stays as it is.
    """
    waiting: dict[Hashable, list[Batch]] = {}
    for batch in windows:
        same = waiting.setdefault(form(batch), [])
        if same and row_count(same) + len(batch.target) > rows:
            yield join_batches(same)
            same.clear()
        same.append(batch)
    for same in waiting.values():
        yield join_batches(same)


def one_row(batch: Batch, row: int) -> Batch:
    """A batch of one row of `batch`."""
    here = slice(row, row + 1)
    inputs = batch.inputs
    total = inputs.pooled_depth
    return Batch(
        MixerInputs(
            source=inputs.source[here],
            pred=inputs.pred[here],
            mask=inputs.mask[here],
            depth=inputs.depth[here],
            start=inputs.start[here],
            slice_spacing_mm=inputs.slice_spacing_mm[here],
            taps={name: tap[here] for name, tap in inputs.taps.items()},
            pooled={name: vectors[here] for name, vectors in inputs.pooled.items()},
            pooled_depth=None if total is None else total[here],
        ),
        batch.target[here],
    )


def invented_batch(like: Batch, rows: int) -> Batch:
    """Random windows with the shapes of `like` and nothing else of it; always the same ones.

    The second row lacks its last slice (where there are two), so that padding takes part.
    """
    random = torch.Generator().manual_seed(0)
    given = like.inputs
    device = given.pred.device

    def noise(tensor: Tensor) -> Tensor:
        return torch.rand(rows, *tensor.shape[1:], generator=random).to(device)

    def noises(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: noise(tensors[name]) for name in sorted(tensors)}

    slices = given.pred.shape[1]
    depth = torch.full((rows,), slices)
    depth[1:2] = max(1, slices - 1)
    is_valid = (torch.arange(slices) < depth[:, None])[..., None, None, None]
    mask = is_valid.to(given.pred).expand(rows, *given.pred.shape[1:]).contiguous()
    longest = max((vectors.shape[1] for vectors in given.pooled.values()), default=0)
    inputs = dataclasses.replace(
        given,
        source=noise(given.source),
        pred=noise(given.pred),
        mask=mask,
        depth=depth,
        start=torch.zeros_like(depth, device=device),
        slice_spacing_mm=torch.full((rows,), 2.0, device=device),
        taps=noises(given.taps),
        pooled=noises(given.pooled),
        pooled_depth=torch.full_like(depth, longest, device=device) if given.pooled else None,
    )
    return Batch(inputs, noise(like.target))
