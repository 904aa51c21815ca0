"""Popularity and Random: the scorers that every model is shown beside.

They know training counts and a seed, nothing of users. B users, C candidates, I items.
"""

import numpy as np
import numpy.typing as npt

from ray_recsys.core.arrays import Float32s, Int64s, UInt64s
from ray_recsys.core.counter_random import derive_key, derive_keys, random_bits

_PURPOSE = 13  # keeps these scores apart from other random numbers under the same seed


class Popularity:
    """Scores an item by its number of training interactions, the same for every user.

    Args:
        item_counts: Training interactions of each item, int64[I].
    """

    def __init__(self, item_counts: Int64s) -> None:
        # Places among the distinct counts order items as the counts do, and float32 keeps them apart.
        self._scores = np.unique(item_counts, return_inverse=True)[1].astype(np.float32)

    def score_catalogue(self, user_idx: Int64s) -> Float32s:
        """Returns the scores of every item for each user, float32[B, I]."""
        return np.tile(self._scores, (len(user_idx), 1))

    def score_pairs(self, user_idx: Int64s, item_idx: npt.NDArray[np.integer]) -> Float32s:  # noqa: ARG002 - protocol
        """Returns the scores of each user with its own items, float32[B, C]."""
        scores: Float32s = self._scores[item_idx]
        return scores


class Random:
    """Scores uniform in [0, 1), a pure function of (seed, user_idx, item_idx).

    Args:
        num_items: I.
        seed: Of the recipe.
    """

    def __init__(self, num_items: int, seed: int) -> None:
        self._num_items = num_items
        self._key = derive_key(seed, _PURPOSE)

    def score_catalogue(self, user_idx: Int64s) -> Float32s:
        """Returns the scores of every item for each user, float32[B, I]."""
        return self.score_pairs(user_idx, np.arange(self._num_items)[None, :])

    def score_pairs(self, user_idx: Int64s, item_idx: npt.NDArray[np.integer]) -> Float32s:
        """Returns the scores of each user with its own items, float32[B, C]."""
        return _to_unit(random_bits(derive_keys(self._key, user_idx)[:, None], item_idx))


def _to_unit(bits: UInt64s) -> Float32s:
    return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
