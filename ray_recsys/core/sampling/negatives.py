"""Negatives: items drawn for a positive among those that its user does not have.

A draw is a pure function of (seed, epoch, user_idx, position, j), the same in any process, order or batch.
Letters: B positives, N negatives, I items.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_recsys.config import Recipe
from ray_recsys.core.arrays import Float64s, Int32s, Int64s, UInt64s
from ray_recsys.core.counter_random import derive_key, derive_keys, random_bits, scale_to, scale_to_each
from ray_recsys.core.sampling.excluded import ExcludedItems

NEGATIVES = 1  # separates these streams from those of shuffles with the same seed
NUM_ATTEMPTS = 4
ATTEMPT_STRIDE = 1 << 32
_TOTAL_WEIGHT = 2.0**48


@dataclass(frozen=True, slots=True)
class NegativeSampler:
    """Draws `num_negatives` items per positive, with replacement, uniformly or by `popularity`.

    Rejection sampling: an item that its user has is drawn again, up to 4 times in all; the last draw is made directly
    from the user's allowed items. Both ways give the same distribution, and users who have almost the whole catalogue
    cost no more than others.
    """

    num_items: int
    num_negatives: int
    seed: int
    popularity: "PopularityDraw | None" = field(default=None, repr=False)

    @classmethod
    def from_recipe(cls, recipe: Recipe, item_counts: Int64s) -> "NegativeSampler":
        """Returns the recipe's sampler for a catalogue with the given numbers of training interactions, int64[I]."""
        by_popularity = recipe.feed.negatives == "popularity"
        popularity = PopularityDraw(item_counts, recipe.feed.popularity_alpha) if by_popularity else None
        return cls(len(item_counts), recipe.feed.num_negatives, recipe.seed, popularity)

    def draw(
        self,
        epoch: int,
        user_idx: npt.NDArray[Any],
        position: npt.NDArray[Any],
        excluded: ExcludedItems,
        rows: npt.NDArray[Any],
    ) -> Int32s:
        """Returns the negatives of B positives, int32[B, N].

        Args:
            epoch: Counted from 1.
            user_idx: User of each positive.
            position: Position of each positive in its user's training history.
            excluded: Items that may not be drawn.
            rows: Row of each positive's user in `excluded`; each must allow at least one item.
        """
        epoch_key = derive_key(self.seed, NEGATIVES, epoch)
        keys = derive_keys(derive_keys(epoch_key, user_idx), position)
        items = self._propose(keys[:, None], np.arange(self.num_negatives))
        flat = items.reshape(-1)
        suspects = np.flatnonzero(excluded.may_contain(rows[:, None], items))
        for attempt in range(1, NUM_ATTEMPTS + 1):
            positives, negatives = np.divmod(suspects, self.num_negatives)
            is_hit = excluded.contains(rows[positives], flat[suspects])
            suspects, positives, negatives = suspects[is_hit], positives[is_hit], negatives[is_hit]
            if not len(suspects):
                break
            counters = negatives + attempt * ATTEMPT_STRIDE
            if attempt < NUM_ATTEMPTS:
                flat[suspects] = self._propose(keys[positives], counters)
            else:
                flat[suspects] = self._draw_allowed(keys[positives], counters, excluded, rows[positives])
        return items

    def _propose(self, keys: UInt64s, counters: npt.NDArray[Any]) -> Int32s:
        bits = random_bits(keys, counters)
        if self.popularity is not None:
            return self.popularity.items(bits)
        return scale_to(bits, self.num_items).astype(np.int32)

    def _draw_allowed(
        self, keys: UInt64s, counters: npt.NDArray[Any], excluded: ExcludedItems, rows: npt.NDArray[Any]
    ) -> Int32s:
        bits = random_bits(keys, counters)
        if self.popularity is not None:
            return self.popularity.allowed_items(bits, excluded, rows)
        ranks = scale_to_each(bits, excluded.num_allowed(rows).astype(np.uint64)).astype(np.int64)
        return excluded.nth_allowed(rows, ranks).astype(np.int32)


class PopularityDraw:
    """Draws items with probability proportional to (training interactions)^alpha, from given random bits.

    An alias table serves draws from the catalogue, cumulative weights serve draws among a user's allowed items. Weights
    are integers, so that sums and differences are exact. An item without training interactions counts as having one.

    Source: Mikolov et al.: Distributed representations of words and phrases, NIPS 2013, section 2.2 (alpha = 3/4);
        Walker: An efficient method for generating discrete random variables, ACM TOMS 3(3), 1977 (alias table).
    """

    def __init__(self, item_counts: Int64s, alpha: float) -> None:
        shares = np.maximum(item_counts, 1).astype(np.float64) ** alpha
        weights = np.maximum(np.rint(shares / shares.sum() * _TOTAL_WEIGHT), 1).astype(np.int64)
        self._cumulative = np.concatenate([[0], np.cumsum(weights)])
        """Total weight of the items before item i; int64[I + 1]."""
        self._keep, self._alias = alias_table(weights / weights.sum() * len(weights))

    def items(self, bits: UInt64s) -> Int32s:
        """Returns an item for each 64 random bits, int32 of the same shape."""
        coins = (bits & np.uint64(0xFFFFFF)) * 2.0**-24
        slots = scale_to(bits, len(self._keep)).astype(np.int64)
        return np.where(coins < self._keep[slots], slots, self._alias[slots]).astype(np.int32)

    def allowed_items(self, bits: UInt64s, excluded: ExcludedItems, rows: npt.NDArray[Any]) -> Int32s:
        """Returns an item allowed for its row for each 64 random bits, int32[B]."""
        starts, lengths = excluded.offsets[rows], np.diff(excluded.offsets)[rows]
        pair = np.repeat(np.arange(len(rows)), lengths)
        first = np.cumsum(lengths) - lengths
        items = excluded.items[np.arange(len(pair)) - first[pair] + starts[pair]]
        weights = self._cumulative[items + 1] - self._cumulative[items]
        before = _cumulate_within(weights, pair, first)
        taken = np.zeros(len(rows), np.int64)
        np.add.at(taken, pair, weights)
        allowed = (self._cumulative[-1] - taken).astype(np.uint64)
        targets = scale_to_each(bits, allowed).astype(np.int64)
        # An excluded item with at most the target's allowed weight before it is skipped: its own weight is added.
        is_before = self._cumulative[items] - before <= targets[pair]
        np.add.at(targets, pair[is_before], weights[is_before])
        return (np.searchsorted(self._cumulative, targets, side="right") - 1).astype(np.int32)


def _cumulate_within(weights: Int64s, pair: Int64s, first: Int64s) -> Int64s:
    """Returns the total of the weights before each one within its pair."""
    before = np.cumsum(weights) - weights
    return before - before[first[pair]] if len(before) else before


def alias_table(expected: Float64s) -> tuple[Float64s, Int32s]:
    """Returns (keep, alias) for expected draws with mean 1: slot i yields i with probability keep[i], else alias[i].

    Vectorized: slots below 1 are filled by those above 1, in order; slot i's donor is the first whose cumulative
    surplus exceeds the cumulative deficit before i. What a donor lacks in the end is filled by the next donor.
    """
    keep = np.minimum(expected, 1.0)
    alias = np.arange(len(expected), dtype=np.int32)
    poor, rich = np.flatnonzero(expected < 1), np.flatnonzero(expected >= 1)
    deficits, surpluses = np.cumsum(1 - expected[poor]), np.cumsum(expected[rich] - 1)
    if not len(poor):
        return keep, alias
    donors = np.searchsorted(surpluses, np.concatenate([[0.0], deficits[:-1]]), side="right")
    alias[poor] = rich[np.minimum(donors, len(rich) - 1)]
    filled = np.searchsorted(deficits, surpluses[:-1], side="left")  # the poor slot that exhausts a donor
    overdrawn = deficits[np.minimum(filled, len(poor) - 1)] - surpluses[:-1]
    keep[rich[:-1]] = np.clip(1 - overdrawn, 0, 1)
    alias[rich[:-1]] = rich[1:]
    return keep, alias
