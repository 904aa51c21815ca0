"""Items drawn with probability proportional to (training interactions)^alpha, from given random bits.

Weights are whole numbers, so that sums and remainders are exact. Knows nothing of keys, epochs or positives. I items.

Source: Mikolov et al.: Distributed representations of words and phrases, NIPS 2013, section 2.2 (alpha = 3/4);
    Walker: An efficient method for generating discrete random variables, ACM TOMS 3(3), 1977 (alias table).
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from ray_recsys.core.arrays import Float64s, Int32s, Int64s, UInt64s
from ray_recsys.core.counter_random import scale_to, scale_to_each
from ray_recsys.core.sampling.excluded import ExcludedItems

_TOTAL_WEIGHT = 2.0**48


class PopularityDraw:
    """An alias table over the catalogue for whole draws, and cumulated weights for draws among the allowed items.

    An item without training interactions counts as one with a single interaction: every item can be drawn.
    """

    def __init__(self, item_counts: Int64s, alpha: float) -> None:
        shares = np.maximum(item_counts, 1).astype(np.float64) ** alpha
        weights = np.maximum(np.rint(shares / shares.sum() * _TOTAL_WEIGHT), 1).astype(np.int64)
        self._cumulated = np.concatenate([[0], np.cumsum(weights)])
        """Weight of all items before item i; int64[I + 1]."""
        self._keep, self._alias = alias_table(weights / weights.sum() * len(weights))

    def items(self, bits: UInt64s) -> Int32s:
        """Returns an item for each 64 random bits, int32, same shape."""
        coins = (bits & np.uint64(0xFFFFFF)) * 2.0**-24
        slots = scale_to(bits, len(self._keep)).astype(np.int64)
        return np.where(coins < self._keep[slots], slots, self._alias[slots]).astype(np.int32)

    def allowed_items(self, bits: UInt64s, excluded: ExcludedItems, rows: npt.NDArray[Any]) -> Int32s:
        """Returns an item for each 64 random bits among those allowed for its row, int32[B]."""
        starts, lengths = excluded.offsets[rows], np.diff(excluded.offsets)[rows]
        pair = np.repeat(np.arange(len(rows)), lengths)
        first = np.cumsum(lengths) - lengths
        items = excluded.items[np.arange(len(pair)) - first[pair] + starts[pair]]
        weights = self._cumulated[items + 1] - self._cumulated[items]
        before = _cumulate_within(weights, pair, first)
        taken = np.zeros(len(rows), np.int64)
        np.add.at(taken, pair, weights)
        allowed = (self._cumulated[-1] - taken).astype(np.uint64)
        targets = scale_to_each(bits, allowed).astype(np.int64)
        # Allowed weight before an excluded item <= target: the item's own weight has to be stepped over.
        is_before = self._cumulated[items] - before <= targets[pair]
        np.add.at(targets, pair[is_before], weights[is_before])
        return (np.searchsorted(self._cumulated, targets, side="right") - 1).astype(np.int32)


def _cumulate_within(weights: Int64s, pair: Int64s, first: Int64s) -> Int64s:
    """Returns the sum of the weights before each one within its pair."""
    before = np.cumsum(weights) - weights
    return before - before[first[pair]] if len(before) else before


def alias_table(expected: Float64s) -> tuple[Float64s, Int32s]:
    """Returns (keep, alias) for expected visits of mean 1 a slot: slot i yields i with keep[i], else alias[i].

    Vectorised: slots below 1 are filled by those above 1 in order; slot i's donor is the first whose surplus, summed
    over the donors so far, exceeds the deficits summed before i. A donor's own last rest is filled by the next donor.
    """
    keep = np.minimum(expected, 1.0)
    alias = np.arange(len(expected), dtype=np.int32)
    poor, rich = np.flatnonzero(expected < 1), np.flatnonzero(expected >= 1)
    deficits, surpluses = np.cumsum(1 - expected[poor]), np.cumsum(expected[rich] - 1)
    if not len(poor):
        return keep, alias
    donors = np.searchsorted(surpluses, np.concatenate([[0.0], deficits[:-1]]), side="right")
    alias[poor] = rich[np.minimum(donors, len(rich) - 1)]
    filled = np.searchsorted(deficits, surpluses[:-1], side="left")  # the poor slot on which a donor runs dry
    overdrawn = deficits[np.minimum(filled, len(poor) - 1)] - surpluses[:-1]
    keep[rich[:-1]] = np.clip(1 - overdrawn, 0, 1)
    alias[rich[:-1]] = rich[1:]
    return keep, alias
