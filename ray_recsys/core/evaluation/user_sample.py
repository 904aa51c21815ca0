"""A sample of users as a function of their indices and the seed: the same in every process and for every model."""

import numpy as np

from ray_recsys.core.arrays import Bools, Int64s
from ray_recsys.core.counter_random import derive_key, derive_keys

_CHOICE = 5  # separates the choice of users from other random numbers under the same seed


def choose_users(user_idx: Int64s, share: float, seed: int) -> Bools:
    """Returns which users are in a sample of about `share` of all, bool[B].

    Args:
        user_idx: int64[B].
        share: From 1 on, every user is chosen.
        seed: Of the recipe.
    """
    if share >= 1.0:
        return np.ones(len(user_idx), np.bool_)
    return derive_keys(derive_key(seed, _CHOICE), user_idx) < np.uint64(share * 2.0**64)
