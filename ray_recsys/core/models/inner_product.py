"""Trained models whose score is the inner product of a user's row and an item's: all but fold-in and files.

Shapes: B users of a call, C candidates of each, W width of the rows, U users, I items.
"""

import numpy as np

from ray_recsys.core.arrays import Float32s, Int64s, Integers
from ray_recsys.core.executor import Executor
from ray_recsys.core.models.contract import DenseFactors, RecallSpace, UserFactors
from ray_recsys.core.models.neighbours import Neighbours, nearest_by_cosine


class InnerProduct:
    """Scores by inner products.

    Args:
        user_rows: float32[U, W].
        item_rows: float32[I, W].
        num_constants: Last columns of the rows that hold biases or ones; the cosine of items leaves them out.
    """

    def __init__(self, user_rows: Float32s, item_rows: Float32s, num_constants: int = 0) -> None:
        self._users, self._items, self._num_constants = user_rows, item_rows, num_constants

    @property
    def num_users(self) -> int:
        """U."""
        return len(self._users)

    @property
    def num_items(self) -> int:
        """I."""
        return len(self._items)

    def users(self, user_idx: Int64s) -> DenseFactors:
        """Returns the rows of trained users."""
        return DenseFactors(self._users[user_idx])

    def scores(self, users: UserFactors, item_idx: Integers | None = None) -> Float32s:
        """Returns the scores of each user's items, float32[B, C]."""
        assert isinstance(users, DenseFactors)
        if item_idx is None:
            catalogue: Float32s = users.values @ self._items.T
            return catalogue
        scores: Float32s = np.einsum("bw,bcw->bc", users.values, self._items[item_idx])
        return scores

    def recall_space(self) -> RecallSpace:
        """Returns the item rows: the inner product is the score."""
        return RecallSpace(self._items)

    def neighbours(self, num_neighbours: int, executor: Executor) -> Neighbours:
        """Returns the items most similar by the cosine of their vectors."""
        return nearest_by_cosine(self._items[:, : self._items.shape[1] - self._num_constants], num_neighbours, executor)
