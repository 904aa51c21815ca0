"""Popularity: an item's score is its number of training interactions, recent or all, the same for every user.

When to use: as a baseline, and where users are anonymous; with a half-life where tastes or catalogue change.

Shapes: B users, C candidates, I items.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ray_recsys.config import PopularityRecipe, Recipe
from ray_recsys.core.arrays import Float32s, Float64s, Int32s, Int64s, Integers
from ray_recsys.core.executor import Executor, map_in_order
from ray_recsys.core.models.contract import DenseFactors, RecallSpace, UserFactors
from ray_recsys.core.models.files import Arrays, Header, save_model_files
from ray_recsys.core.models.neighbours import Neighbours
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.errors import DataError

_SECONDS_PER_DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class Popularity:
    """The model; users have factors of width 0.

    Attributes:
        num_users: U.
        item_scores: float32[I].
    """

    num_users: int
    item_scores: Float32s

    @property
    def num_items(self) -> int:
        """I."""
        return len(self.item_scores)

    def users(self, user_idx: Int64s) -> UserFactors:
        """Returns factors of width 0."""
        return DenseFactors(np.zeros((len(user_idx), 0), np.float32))

    def fold_in(self, history: Int32s, user_idx: int | None = None) -> UserFactors | None:  # noqa: ARG002 - contract
        """Returns factors of width 0: every user gets the same scores."""
        return DenseFactors(np.zeros((1, 0), np.float32))

    def scores(self, users: UserFactors, item_idx: Integers | None = None) -> Float32s:
        """Returns the popularity of each item, float32[B, C]."""
        if item_idx is None:
            return np.tile(self.item_scores, (len(users), 1))
        scores: Float32s = self.item_scores[item_idx]
        return scores

    def recall_space(self) -> RecallSpace | None:
        """Returns None: there is nothing to search for."""
        return None

    def neighbours(self, num_neighbours: int, executor: Executor) -> Neighbours | None:  # noqa: ARG002 - contract
        """Returns None: items are not compared."""
        return None

    def save(self, directory: Path) -> None:
        """Writes the model's files."""
        header = {"name": "popularity", "num_users": self.num_users}
        save_model_files(directory, header, {"item_scores": self.item_scores})


def popularity_of(item_counts: Int64s | Float64s, num_users: int) -> Popularity:
    """Returns the model of training counts, whole or decayed, [I]."""
    # Ranks among the distinct counts order items as the counts do, and float32 keeps them apart.
    return Popularity(num_users, np.unique(item_counts, return_inverse=True)[1].astype(np.float32))


def fit(prepared: PreparedSet, recipe: Recipe, executor: Executor) -> Popularity:
    """Counts the training interactions of each item, decayed by their age if the recipe says so.

    Raises:
        DataError: A half-life for data without times.
    """
    assert isinstance(recipe.model, PopularityRecipe)
    if recipe.model.half_life_days is None:
        return popularity_of(prepared.item_counts(), prepared.manifest.num_users)
    return recent_popularity_of(prepared, recipe.model.half_life_days, executor)


def recent_popularity_of(prepared: PreparedSet, half_life_days: float, executor: Executor) -> Popularity:
    """Returns the model of decayed training counts; see `PopularityRecipe.half_life_days`.

    Raises:
        DataError: The data have no times.
    """
    task, num_parts = partial(_decayed_counts, prepared, half_life_days), len(prepared.manifest.partitions)
    parts = map_in_order(executor, task, num_parts, stage=f"counting recent interactions of {prepared.location}")
    latest_s = max((part_latest_s for part_latest_s, _, _ in parts), default=0)
    counts = np.zeros(prepared.manifest.num_items)
    for part_latest_s, items, part_counts in parts:
        counts[items] += part_counts * _decay(latest_s - part_latest_s, half_life_days)
    return popularity_of(counts, prepared.manifest.num_users)


def _decayed_counts(prepared: PreparedSet, half_life_days: float, partition: int) -> tuple[int, Int64s, Float64s]:
    """Returns a partition's latest second, its items, and their counts decayed by the age at that second."""
    training = prepared.read_partition(partition).training
    if training.timestamp_s is None:
        raise DataError(
            f"model.half_life_days = {half_life_days:g}: {prepared.location} has no times",
            remedy="leave it out, or prepare the log with input.timestamp_column",
        )
    latest_s = int(training.timestamp_s.max(initial=0))
    items, rows = np.unique(training.item_idx, return_inverse=True)
    weights = _decay(latest_s - training.timestamp_s, half_life_days)
    return latest_s, items.astype(np.int64), np.bincount(rows, weights=weights, minlength=len(items)).astype(np.float64)


def _decay(age_s: Int64s | int, half_life_days: float) -> Float64s:
    decay: Float64s = np.exp2(-np.asarray(age_s, np.float64) / (_SECONDS_PER_DAY * half_life_days))
    return decay


def load(header: Header, arrays: Arrays) -> Popularity:
    """Reads the model back."""
    return Popularity(int(header["num_users"]), arrays["item_scores"])
