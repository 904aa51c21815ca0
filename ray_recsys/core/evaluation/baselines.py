"""Baselines: Random, and the mean rating for models that predict ratings.

The third baseline, Popularity, is `core.models.popularity`.

Shapes: B users, C candidates, U users and I items of the training data.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from ray_recsys.core.arrays import Float32s, Float64s, Int32s, Int64s, Integers, UInt64s
from ray_recsys.core.counter_random import derive_key, derive_keys, random_bits
from ray_recsys.core.executor import Executor, Shared, map_in_order
from ray_recsys.core.models.contract import DenseFactors, SparseFactors, UserFactors
from ray_recsys.core.prepared import PreparedSet

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


_ITEM_DAMPING, _USER_DAMPING = 25.0, 10.0


@dataclass(frozen=True, slots=True)
class MeanRating:
    """Predicts global mean + item bias + user bias; each bias is a mean of residuals that is damped towards 0.

    Source: Koren: Factor in the neighbors: scalable and accurate collaborative filtering, TKDD 4(1), 2010, section 2.1,
        the decoupled estimates, with its constants 25 and 10.

    Attributes:
        user_ratings: Global mean + bias of each user, float32[U].
        item_biases: float32[I].
    """

    user_ratings: Float32s
    item_biases: Float32s

    def users(self, user_idx: Int64s) -> UserFactors:
        """Returns the users' mean ratings, float32[B, 1]."""
        return DenseFactors(self.user_ratings[user_idx][:, None])

    def scores(self, users: UserFactors, item_idx: Integers | None = None) -> Float32s:
        """Returns the predicted ratings of each user's items, float32[B, C]."""
        assert isinstance(users, DenseFactors)
        biases = self.item_biases if item_idx is None else self.item_biases[item_idx]
        scores: Float32s = users.values + biases
        return scores


def fit_mean_rating(prepared: PreparedSet, executor: Executor) -> MeanRating:
    """Returns the mean rating of a prepared set's training interactions, which must have ratings."""
    stage, num_parts = f"averaging the ratings of {prepared.location}", len(prepared.manifest.partitions)
    sums, counts = np.zeros(prepared.manifest.num_items), np.zeros(prepared.manifest.num_items)
    for items, part_sums, part_counts in map_in_order(executor, partial(_item_sums, prepared), num_parts, stage=stage):
        sums[items] += part_sums
        counts[items] += part_counts
    mean = sums.sum() / max(1.0, counts.sum())
    item_biases = (sums - mean * counts) / (_ITEM_DAMPING + counts)
    task = partial(_user_biases, prepared, mean, executor.share(item_biases))
    biases = np.concatenate(map_in_order(executor, task, num_parts, stage=stage))
    return MeanRating((mean + biases).astype(np.float32), item_biases.astype(np.float32))


def _item_sums(prepared: PreparedSet, partition: int) -> tuple[Int64s, Float64s, Int64s]:
    training = prepared.read_partition(partition).training
    assert training.rating is not None
    items, rows, counts = np.unique(training.item_idx, return_inverse=True, return_counts=True)
    sums = np.bincount(rows, weights=training.rating, minlength=len(items)).astype(np.float64)
    return items.astype(np.int64), sums, counts.astype(np.int64)


def _user_biases(prepared: PreparedSet, mean: float, item_biases: Shared[Float64s], partition: int) -> Float64s:
    training = prepared.read_partition(partition).training
    assert training.rating is not None
    residuals = training.rating - mean - item_biases.get()[training.item_idx]
    sums = np.bincount(training.rows(), weights=residuals, minlength=training.num_users)
    biases: Float64s = sums / (_USER_DAMPING + training.lengths)
    return biases
