"""The verdict of a hospital: which of two generated sets is harder to tell from real ones.

Both sets are told from the same real volumes by their content (`lift.metrics.judge`), and the two
AUCs are compared. The sets are **paired**: volume i of both comes from the same random numbers.
So chance is known exactly: were the second set no other than the first, a pair could be swapped
and nobody would see it. Random pairs are swapped many times, and the difference of the two AUCs is
set beside those that come out.

The verdict on the second set:

- `helped`: its AUC lies at least .05 lower, and swapped pairs lie as low in 2% of cases at most;
- `harmed`: at least .05 higher, and swapped pairs as high in 2% of cases at most;
- `undecided` otherwise, and always with fewer than ten real volumes.

An AUC below .5 counts as .5: sets that cannot be told apart are equally good. Where the first set
is always told, nothing can be told better, and the second is never `harmed`.

Chance alone gives `helped` in 2% of cases at most, and `harmed` in as many: the swaps are exact
for pairs that could be swapped, whatever the number of volumes. Measured on thumbnails of phantoms
with ten real volumes, 200 draws each: both sets of one source 0.5% and 1.5%; nearly the same set
1% and 0.5%; both equally wrong 1% and 0%. Ten volumes see little: stripes of half to once the
spread of real volumes were `harmed` in 11 and 12 of 20 draws, a mended shift `helped` in 13.

Source: Lopez-Paz and Oquab 2017, arXiv:1610.06545 (the test); Pesarin 2001 (paired permutation).
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist

from lift.guard import Verdict
from lift.metrics.classifier import Indices, classifier_auc
from lift.metrics.judge import LEAST_SPREAD
from lift.metrics.synthrad import Floats
from lift.randomness import derive_seed

FEWEST_JUDGED: Final = 10
"""Real volumes below which there is no verdict: two in each of five folds."""

MOST_JUDGED: Final = 60
"""More would take longer and change little."""

LEAST_DIFFERENCE: Final = 0.05
"""Of two AUCs; what is less is no difference, however sure."""

_SWAPS: Final = 99
_AS_FAR: Final = 0.02
_REPEATS: Final = 2


def closer_verdict(real: Floats, first: Floats, second: Floats, *, seed: int) -> Verdict:
    """Whether the second set is harder (`helped`) or easier (`harmed`) to tell than the first.

    Args:
        real: thumbnails (`lift.metrics.descriptors.thumbnail`), (n, d).
        first: of generated volumes, (n, d).
        second: of volumes from the same random numbers, in the same order, (n, d).
        seed: of folds and swaps.

    Raises:
        ValueError: the sets are not equally large.
    """
    if not len(real) == len(first) == len(second):
        raise ValueError(f"sets of {len(real)}, {len(first)} and {len(second)} volumes")
    n = len(real)
    if n < FEWEST_JUDGED:
        return "undecided"
    rows = np.concatenate([real, first, second])
    distances = cdist(rows, rows)
    pair = np.arange(n)

    def told(chosen: Indices) -> float:
        """How well the generated rows `chosen` are told from the real ones, .5 at least."""
        index = np.concatenate([pair, n + chosen])
        found = classifier_auc(
            rows[:n],
            rows[n + chosen],
            seed=derive_seed(seed, "folds"),
            least_spread=LEAST_SPREAD["auc_content"],
            distances=distances[np.ix_(index, index)],
            repeats=_REPEATS,
            fewest=FEWEST_JUDGED,
        )
        return 0.5 if found is None else max(found.value, 0.5)

    def difference(swapped: npt.NDArray[np.bool_]) -> float:
        return told(np.where(swapped, pair, pair + n)) - told(np.where(swapped, pair + n, pair))

    seen = difference(np.zeros(n, dtype=np.bool_))
    if abs(seen) < LEAST_DIFFERENCE:
        return "undecided"
    rng = np.random.default_rng(derive_seed(seed, "swaps"))
    as_far = 1  # the sets as they are count too: the test is exact
    for _ in range(_SWAPS):
        found = difference(rng.random(n) < 0.5)
        as_far += found <= seen if seen < 0 else found >= seen
        if as_far > _AS_FAR * (_SWAPS + 1):
            return "undecided"
    return "helped" if seen < 0 else "harmed"
