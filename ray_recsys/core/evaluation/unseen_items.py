"""Distinct items drawn from those that a user has not seen, for the sampled protocol.

A draw is a pure function of (seed, user_idx, held-out item_idx): every model gets the same candidates, wherever it is
evaluated. R lists, N items in each.

Source: distinct draws: Floyd, in Bentley, Floyd: Programming pearls: a sample of brilliance, CACM 30(9), 1987.
"""

import numpy as np

from ray_recsys.core.arrays import Bools, Int64s
from ray_recsys.core.counter_random import derive_key, derive_keys, random_bits, scale_to_each
from ray_recsys.core.sampling.excluded import ExcludedItems

_DRAWS = 12  # separates these draws from training's negatives under the same seed


def draw_unseen(
    user_idx: Int64s, held_out_item_idx: Int64s, excluded: ExcludedItems, rows: Int64s, *, num_drawn: int, seed: int
) -> tuple[Int64s, Bools]:
    """Returns N distinct allowed items for each list, int64[R, N], and which of them were drawn, bool[R, N].

    A user with m < N allowed items gets those m; the other entries are undefined.

    Args:
        user_idx: Of each list, int64[R].
        held_out_item_idx: Of each list, int64[R].
        excluded: Items that may not be drawn: all that the user has seen, and the held-out ones.
        rows: Row of each list's user in `excluded`, int64[R].
        num_drawn: N.
        seed: Of the recipe.
    """
    keys = derive_keys(derive_keys(derive_key(seed, _DRAWS), user_idx), held_out_item_idx)
    bits = random_bits(keys[:, None], np.arange(num_drawn))
    num_allowed = excluded.num_allowed(rows)
    ranks = np.full((len(rows), num_drawn), -1, np.int64)
    for column in range(num_drawn):
        highest = num_allowed - num_drawn + column
        bounds = np.maximum(highest + 1, 1).astype(np.uint64)
        drawn = scale_to_each(bits[:, column], bounds).astype(np.int64)
        is_taken = (ranks[:, :column] == drawn[:, None]).any(axis=1)
        ranks[:, column] = np.where(is_taken, highest, drawn)
        ranks[highest < 0, column] = -1
    is_drawn = ranks >= 0
    items = excluded.nth_allowed(np.repeat(rows, num_drawn), np.maximum(ranks, 0).reshape(-1)).reshape(ranks.shape)
    return np.where(is_drawn, items, 0), is_drawn
