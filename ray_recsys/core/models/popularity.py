"""Popularity: an item's score is its number of training interactions, the same for every user.

Shapes: B users, C candidates, I items.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ray_recsys.config import PopularityRecipe, Recipe
from ray_recsys.core.arrays import Float32s, Int32s, Int64s, Integers
from ray_recsys.core.executor import Executor
from ray_recsys.core.models.contract import DenseFactors, RecallSpace, UserFactors
from ray_recsys.core.models.files import Arrays, Header, save_model_files
from ray_recsys.core.models.neighbours import Neighbours
from ray_recsys.core.prepared import PreparedSet


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


def popularity_of(item_counts: Int64s, num_users: int) -> Popularity:
    """Returns the model of training counts, int64[I]."""
    # Ranks among the distinct counts order items as the counts do, and float32 keeps them apart.
    return Popularity(num_users, np.unique(item_counts, return_inverse=True)[1].astype(np.float32))


def fit(prepared: PreparedSet, recipe: Recipe, executor: Executor) -> Popularity:  # noqa: ARG001 - contract
    """Counts the training interactions of each item."""
    assert isinstance(recipe.model, PopularityRecipe)
    return popularity_of(prepared.item_counts(), prepared.manifest.num_users)


def load(header: Header, arrays: Arrays) -> Popularity:
    """Reads the model back."""
    return Popularity(int(header["num_users"]), arrays["item_scores"])
