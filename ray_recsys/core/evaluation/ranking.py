"""The rank of a held-out item among candidates, by counting instead of sorting.

rank = 1 + candidates with a higher score + tied candidates ordered before it. Tied items are in a pseudo-random order,
a function of (seed, user, item) alone. So a tie counts against the held-out item whenever that order says so, its
column in an array does not matter, and a constant scorer gets Hit@K = K / candidates in the mean, as Random does:
never 1, and not 0 either, which would make it look worse than it is. R lists, C candidates.

Source: for the bias from ties, Rendle et al.: Neural collaborative filtering vs. matrix factorization revisited, RecSys
    2020, and the published evaluation code that ranks the positive first; for random order as the fair one, McSherry,
    Najork: Computing information retrieval performance measures efficiently in the presence of tied scores, ECIR 2008.
"""

from dataclasses import dataclass

import numpy as np
import torch

from ray_recsys.core.arrays import Float32s, Int64s, UInt64s
from ray_recsys.core.counter_random import derive_key, derive_keys, random_bits
from ray_recsys.errors import StageError

_TIES = 11  # separates the order of ties from other random numbers under the same seed


@dataclass(frozen=True, slots=True)
class TieOrder:
    """The order of tied candidates: the one with the lower key comes first.

    Attributes:
        seed: Of the recipe.
        user_idx: Of each list, int64[R].
        item_idx: Of each candidate, int64[R, C]; None: column = item.
    """

    seed: int
    user_idx: Int64s
    item_idx: Int64s | None = None

    def keys(self, rows: Int64s, columns: Int64s) -> UInt64s:
        """Returns the key of each (row, column)."""
        items = columns if self.item_idx is None else self.item_idx[rows, columns]
        return random_bits(derive_keys(derive_key(self.seed, _TIES), self.user_idx[rows]), items)


def ranks_of(scores: Float32s, own: Int64s, order: TieOrder) -> Int64s:
    """Returns the rank of one candidate in each list, int64[R], from 1.

    Args:
        scores: float32[R, C]; -inf is not a candidate.
        own: Column of the held-out item in each row, int64[R]; its score is finite.
        order: Of ties.
    """
    own_scores = np.take_along_axis(scores, own[:, None], axis=1)
    ranks: Int64s = np.count_nonzero(scores > own_scores, axis=1) + np.int64(1)
    num_tied = np.count_nonzero(scores == own_scores, axis=1) - 1
    with_ties = np.flatnonzero(num_tied)
    if len(with_ties):
        rows, columns = np.nonzero(scores[with_ties] == own_scores[with_ties])
        own_keys = order.keys(with_ties, own[with_ties])
        before = order.keys(with_ties[rows], columns) < own_keys[rows]
        ranks[with_ties] += np.bincount(rows[before], minlength=len(with_ties))
    return ranks


def top_k(scores: Float32s, k: int, order: TieOrder | None = None) -> Int64s:
    """Returns the columns of each row's k highest scores, best first; int64[R, k].

    A row with fewer candidates ends with -1.

    Args:
        scores: float32[R, C]; -inf is not a candidate.
        k: At least 1.
        order: Of ties; None: the lower column first.
    """
    num_kept = min(k, scores.shape[1])
    asked = min(num_kept + 1, scores.shape[1])  # one more, to see a tie at the edge
    values, columns = (found.numpy() for found in torch.from_numpy(scores).topk(asked, dim=1))
    best = np.full((len(scores), k), -1, np.int64)
    best[:, :num_kept] = columns[:, :num_kept]
    best[:, :num_kept][np.isneginf(values[:, :num_kept])] = -1
    is_tied = (values[:, 1:] == values[:, :-1]) & ~np.isneginf(values[:, 1:])
    for row in np.flatnonzero(is_tied.any(axis=1)):
        edge = values[row, num_kept - 1]
        candidates = np.flatnonzero((scores[row] >= edge) & (scores[row] > -np.inf))
        keys = candidates if order is None else order.keys(np.full(len(candidates), row), candidates)
        ranked = candidates[np.lexsort((keys, -scores[row, candidates]))[:num_kept]]
        best[row, : len(ranked)] = ranked
    return best


def check_finite(scores: Float32s, user_idx: Int64s) -> None:
    """Checks the scores of users, [B, …].

    Raises:
        StageError: A score is NaN or infinite; names the first such user.
    """
    if np.isfinite(scores).all():
        return
    row, *_ = np.argwhere(~np.isfinite(scores))[0]
    value = scores[row][~np.isfinite(scores[row])][0]
    raise StageError(
        f"the model's score is {value} for an item of user index {user_idx[row]}: its weights have diverged",
        remedy="train again with a lower train.learning_rate",
    )
