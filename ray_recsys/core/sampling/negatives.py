"""Negatives: items drawn for a positive among those that its user does not have.

A draw is a pure function of (seed, epoch, user_idx, position, j): the same in any process, order or company. Knows
nothing of files, batches or weights. B positives, N negatives, I items.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_recsys.config import Recipe
from ray_recsys.core.arrays import Int32s, Int64s, UInt64s
from ray_recsys.core.counter_random import derive_key, derive_keys, random_bits, scale_to, scale_to_each
from ray_recsys.core.sampling.excluded import ExcludedItems
from ray_recsys.core.sampling.popularity_draw import PopularityDraw

_PURPOSE = 1  # keeps these streams apart from those of shuffles under the same seed
_NUM_ATTEMPTS = 4
_ATTEMPT_STRIDE = 1 << 32


@dataclass(frozen=True, slots=True)
class NegativeSampler:
    """Draws `num_negatives` items per positive, with replacement, uniformly or by `popularity`.

    A drawn item that its user has is drawn anew, up to 4 times in all; what is still rejected then is drawn directly
    from the user's allowed items. Both ways give the same distribution, so a user who has all but m items costs no
    more than any other and gets only those m.
    """

    num_items: int
    num_negatives: int
    seed: int
    popularity: PopularityDraw | None = field(default=None, repr=False)

    @classmethod
    def from_recipe(cls, recipe: Recipe, item_counts: Int64s) -> "NegativeSampler":
        """Returns the sampler of a recipe over a catalogue with the given training counts, int64[I]."""
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
            user_idx: Of each positive's user.
            position: Place of each positive in its user's training history.
            excluded: Items that the users may not get.
            rows: Row of each positive's user in `excluded`; each must allow at least one item.
        """
        epoch_key = derive_key(self.seed, _PURPOSE, epoch)
        keys = derive_keys(derive_keys(epoch_key, user_idx), position)
        items = self._propose(keys[:, None], np.arange(self.num_negatives))
        flat = items.reshape(-1)
        suspects = np.flatnonzero(excluded.may_contain(rows[:, None], items))
        for attempt in range(1, _NUM_ATTEMPTS + 1):
            positives, negatives = np.divmod(suspects, self.num_negatives)
            is_hit = excluded.contains(rows[positives], flat[suspects])
            suspects, positives, negatives = suspects[is_hit], positives[is_hit], negatives[is_hit]
            if not len(suspects):
                break
            counters = negatives + attempt * _ATTEMPT_STRIDE
            if attempt < _NUM_ATTEMPTS:
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
