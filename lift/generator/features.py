"""Features of one patient from the frozen generator, cached on the site's disk.

Training never runs the 2D network again. Taps pass through float16 whether they come from
the disk or were just computed, so a cache hit and a miss give the same bits; source and
prediction stay float32.

An entry is a folder of `.npy` files, written beside its final place and renamed: a crash
leaves no half entry, and of two processes that compute the same entry one wins and both
read it. Entries are memory-mapped, so training touches only the windows it draws.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lift.errors import DataError, DiskError
from lift.files import write_json
from lift.generator.base import SliceGenerator
from lift.generator.blocks import BLOCKS, generate_blocks, pooled_means
from lift.mixer.curves import apply_curves
from lift.strict_json import parse_json

if TYPE_CHECKING:
    # reads volumes; a server trains nothing and has none
    from lift.cohort.preprocessing import Prepared

logger = logging.getLogger(__name__)
Floats = NDArray[np.float32]
Box = tuple[slice, slice, slice]

_CARD: Final = "entry.json"
_LAYOUT: Final = 2
_UNFINISHED_S: Final = 86400.0


@dataclass(frozen=True)
class Features:
    """One patient's slices as a mixer needs them; arrays may be memory maps.

    Attributes:
        source: (z, n_source, h, w), float32.
        pred: the frozen generator's prediction, (z, 1, h, w), float32.
        target: (z, 1, h, w), float32, or None when there is none.
        mask: 0 or 1, (z, 1, h, w), uint8.
        taps: tap name -> (z, c, h / stride, w / stride), float16.
        pooled: tap name -> in-plane means by :func:`pooled_means`, (z, c), float32.
        slice_spacing_mm: through-plane spacing.
        curves: what brings `pred` to a contrast before a mixer, (f,), see `lift.mixer.curves`;
        None:
            nothing. It is never stored.
    """

    source: Floats
    pred: Floats
    target: Floats | None
    mask: NDArray[np.uint8]
    taps: Mapping[str, NDArray[np.float16]]
    pooled: Mapping[str, Floats]
    slice_spacing_mm: float
    curves: Tensor | None = None

    @property
    def depth(self) -> int:
        """Number of slices."""
        return int(self.pred.shape[0])

    def seen_with(self, curves: Tensor | None) -> Features:
        """The same patient under other curves."""
        return replace(self, curves=curves)

    def prediction(self, box: Box = (slice(None),) * 3) -> Floats:
        """What a mixer is given of `pred`: with the curves, (z, 1, h, w) of the box alone.

        Args:
            box: slices along depth, height and width.
        """
        z, y, x = box
        pred = self.pred[z, :, y, x]
        if self.curves is None:
            return pred
        # copies: torch must never hold a read-only memory map
        source, mask = (np.array(array[z, :, y, x]) for array in (self.source, self.mask))
        curved = apply_curves(
            torch.from_numpy(np.array(pred)),
            torch.from_numpy(source),
            torch.from_numpy(mask),
            self.curves,
        )
        return curved.numpy()


Person = Features | Sequence[Features]
"""What counts as one: a person with all examinations, or with the only one."""


def examinations(person: Person) -> Sequence[Features]:
    """All volumes of a person."""
    return [person] if isinstance(person, Features) else person


def compute_features(
    prepared: Prepared,
    generator: SliceGenerator,
    tap_names: tuple[str, ...],
    pooled_names: tuple[str, ...],
) -> Features:
    """All features of one patient, in memory."""
    wanted = tuple(sorted({*tap_names, *pooled_names}))
    preds: list[Tensor] = []
    taps: dict[str, list[Tensor]] = {name: [] for name in tap_names}
    pooled: dict[str, list[Tensor]] = {name: [] for name in pooled_names}
    mask = prepared.mask
    for start, block in generate_blocks(generator, prepared, wanted):
        preds.append(block.pred)
        for name in tap_names:
            taps[name].append(block.taps[name])
        for name in pooled_names:
            here = mask[start : start + len(block.pred)]
            pooled[name].append(pooled_means(generator, block, name, here))
    return Features(
        source=prepared.source,
        pred=torch.cat(preds).numpy(),
        target=prepared.target,
        mask=mask.astype(np.uint8),
        taps={name: torch.cat(parts).numpy() for name, parts in taps.items()},
        pooled={name: torch.cat(parts).numpy() for name, parts in pooled.items()},
        slice_spacing_mm=prepared.spacing_mm[0],
    )


def feature_key(
    volume_digests: tuple[str, ...],
    generator_fingerprint: str,
    preprocessing_digest: str,
    tap_names: tuple[str, ...],
    pooled_names: tuple[str, ...],
    *,
    precision: str,
) -> str:
    """The name of a cache entry: SHA-256 of everything that its content depends on."""
    parts = [
        _LAYOUT,
        BLOCKS,
        volume_digests,
        generator_fingerprint,
        preprocessing_digest,
        sorted(tap_names),
        sorted(pooled_names),
        # a GPU computes in half precision: its features are no others' (see `lift.device`)
        precision,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def files_name(digests: Iterable[str]) -> str:
    """One name for a patient's files as they are now: SHA-256 of their digests."""
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()


class FeatureCache:
    """Entries on disk under one folder, at most `largest_gb` in all.

    Each entry names its owner, a site, and the files that it is of: those of no current patient
    go by :meth:`forget_all_but`.

    When the cap would be passed, the entries that were used longest ago go first; entries
    that this run uses are never removed. Several processes may share the folder.
    """

    def __init__(self, folder: Path, *, largest_gb: float) -> None:
        self._folder = folder
        self._largest_bytes = int(largest_gb * 1e9)
        self._in_use: set[str] = set()

    def read(self, key: str) -> Features | None:
        """The entry as memory maps, or None when it is absent or damaged (then it is removed)."""
        entry = self._folder / key
        if not (entry / _CARD).is_file():
            return None
        try:
            features = _read_entry(entry)
        except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError):
            logger.warning("event=cache_entry_damaged entry=%s", key[:12])
            shutil.rmtree(entry, ignore_errors=True)
            return None
        self._in_use.add(key)
        # the time of last use decides what is removed first; another process may have removed
        # the entry since: the maps stay valid
        with suppress(OSError):
            os.utime(entry / _CARD, (time.time(), time.time()))
        return features

    def write(self, key: str, features: Features, *, owner: str, files: str) -> Features:
        """Store one entry and return it as it will be read from now on.

        Args:
            key: its name.
            features: its content.
            owner: the site whose patient it is.
            files: see :func:`files_name`.

        Raises:
            DataError: this run alone needs more than the cap.
            DiskError: the disk refuses.
        """
        arrays = _arrays(features)
        self._make_room(sum(array.nbytes for array in arrays.values()))
        temporary = self._folder / f".{key[:16]}.{secrets.token_hex(4)}.part"
        try:
            temporary.mkdir(parents=True)
            for name, array in arrays.items():
                np.save(temporary / f"{name}.npy", array, allow_pickle=False)
            shapes = {n: [str(a.dtype), list(a.shape)] for n, a in arrays.items()}
            card = {
                "arrays": shapes,
                "slice_spacing_mm": features.slice_spacing_mm,
                "owner": owner,
                "files": files,
            }
            write_json(temporary / _CARD, card)
            _place(temporary, self._folder / key)
        except OSError as error:
            raise DiskError(
                "cannot write to the feature cache",
                where="cache.folder",
                # numpy says how many bytes of an array found no room, without an error number
                seen=error.strerror or f"no room for an array: {error}",
                remedy="Free disk space or name another cache.folder, then run again: "
                "finished entries are kept.",
            ) from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        stored = self.read(key)
        if stored is None:  # pragma: no cover  # removed by another process at this very moment
            return features
        return stored

    def forget_all_but(self, files: Collection[str], *, owner: str | None) -> int:
        """Remove the entries of files that no longer exist. Return how many were removed.

        An entry that names no owner comes from an earlier version, which this one cannot use.

        Args:
            files: by :func:`files_name`, those of every patient that is there.
            owner: whose entries are looked at, where sites share the folder; None: all.
        """
        self._remove_unfinished()
        stale = self.stale(files, owner=owner)
        for entry in stale:
            shutil.rmtree(entry, ignore_errors=True)
        if stale:
            logger.info("event=cache_entries_forgotten entries=%d", len(stale))
        return len(stale)

    def stale(self, files: Collection[str], *, owner: str | None) -> list[Path]:
        """The entries that :meth:`forget_all_but` removes."""
        found = []
        for card in sorted(self._folder.glob(f"*/{_CARD}")):
            if card.parent.name.startswith("."):
                continue
            found_owner, found_files = _belongs(card)
            others = owner is not None and found_owner not in {owner, None}
            if not others and (found_owner is None or found_files not in files):
                found.append(card.parent)
        return found

    def _make_room(self, needed: int) -> None:
        self._remove_unfinished()
        entries = []
        for card in self._folder.glob(f"*/{_CARD}"):
            if card.parent.name.startswith("."):
                continue
            # another process may remove the entry at this very moment
            with suppress(OSError):
                size = sum(part.stat().st_size for part in card.parent.iterdir())
                entries.append((card.stat().st_mtime, card.parent, size))
        total = sum(size for *_, size in entries) + needed
        for _, entry, size in sorted(entries):
            if total <= self._largest_bytes:
                return
            if entry.name not in self._in_use:
                shutil.rmtree(entry, ignore_errors=True)
                total -= size
        if total > self._largest_bytes:
            raise DataError(
                "the feature cache is too small for this run",
                where="cache.largest_gb",
                seen=f"{total / 1e9:.2f} GB are needed so far; {self._largest_bytes / 1e9:.2f} GB "
                "are allowed",
                remedy="Raise cache.largest_gb or train with fewer patients; nothing is lost.",
            )

    def _remove_unfinished(self) -> None:
        """Remove what crashed writers left; a younger folder may still be written to."""
        for folder in self._folder.glob(".*.part"):
            with suppress(OSError):
                if time.time() - folder.stat().st_mtime > _UNFINISHED_S:
                    shutil.rmtree(folder, ignore_errors=True)


def _belongs(card: Path) -> tuple[str | None, str | None]:
    """Owner and files of an entry; None where it does not say, or cannot be read."""
    try:
        told = parse_json(card.read_bytes())
        return str(told["owner"]), str(told["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return None, None


def _place(temporary: Path, entry: Path) -> None:
    """Give a finished folder its name, unless another process was first with the same bytes."""
    try:
        temporary.rename(entry)
    except OSError:
        if (entry / _CARD).is_file():
            return
        # without a card it is what an interrupted removal left
        shutil.rmtree(entry, ignore_errors=True)
        temporary.rename(entry)


def _arrays(features: Features) -> dict[str, NDArray[np.generic]]:
    arrays: dict[str, NDArray[np.generic]] = {
        "source": features.source,
        "pred": features.pred,
        "mask": features.mask,
    }
    if features.target is not None:
        arrays["target"] = features.target
    arrays |= {f"tap-{name}": tap for name, tap in features.taps.items()}
    arrays |= {f"pooled-{name}": vectors for name, vectors in features.pooled.items()}
    return arrays


def _read_entry(entry: Path) -> Features:
    card = parse_json((entry / _CARD).read_text(encoding="utf-8"))
    arrays: dict[str, NDArray[Any]] = {}
    for name, (dtype, shape) in card["arrays"].items():
        array = np.load(entry / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        if str(array.dtype) != dtype or list(array.shape) != shape:
            raise ValueError(name)
        arrays[name] = array
    return Features(
        source=arrays["source"],
        pred=arrays["pred"],
        target=arrays.get("target"),
        mask=arrays["mask"],
        taps={n.removeprefix("tap-"): a for n, a in arrays.items() if n.startswith("tap-")},
        pooled={n.removeprefix("pooled-"): a for n, a in arrays.items() if n.startswith("pooled-")},
        slice_spacing_mm=float(card["slice_spacing_mm"]),
    )
