"""The Random baseline, which every model is shown beside; the other baseline is `core.models.popularity`.

Shapes: B users, C candidates, I items.
"""

import numpy as np

from ray_recsys.core.arrays import Float32s, Int32s, Int64s, Integers, UInt64s
from ray_recsys.core.counter_random import derive_key, derive_keys, random_bits
from ray_recsys.core.models.contract import SparseFactors, UserFactors

_SCORES = 13  # separates these scores from other random numbers under the same seed


class Random:
    """Scores uniform in [0, 1), a pure function of (seed, user_idx, item_idx).

    Args:
        num_items: I.
        seed: Of the recipe.
    """

    def __init__(self, num_items: int, seed: int) -> None:
        self._num_items = num_items
        self._key = derive_key(seed, _SCORES)

    def users(self, user_idx: Int64s) -> UserFactors:
        """Returns the users' indices, as one entry each."""
        offsets = np.arange(len(user_idx) + 1)
        return SparseFactors(offsets, user_idx.astype(np.int32), np.ones(len(user_idx), np.float32))

    def scores(self, users: UserFactors, item_idx: Integers | None = None) -> Float32s:
        """Returns the scores of each user's items, float32[B, C]."""
        assert isinstance(users, SparseFactors)
        items = np.arange(self._num_items)[None, :] if item_idx is None else item_idx
        return _to_unit(random_bits(_user_keys(self._key, users.idx)[:, None], items))


def _user_keys(key: int, user_idx: Int32s) -> UInt64s:
    return derive_keys(key, user_idx.astype(np.int64))


def _to_unit(bits: UInt64s) -> Float32s:
    return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
