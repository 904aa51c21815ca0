"""Trained models that score an item by what each item of the user's history adds to it: all but fitting and similarity.

Shapes: U users, I items, B users of a call, C candidates of each.
"""

from pathlib import Path

import scipy.sparse as sp

from ray_recsys.config import EASERecipe, ItemKNNRecipe
from ray_recsys.core.arrays import Float32s, Int32s, Int64s, Integers
from ray_recsys.core.models.contract import SparseFactors, UserFactors
from ray_recsys.core.models.files import Arrays, save_model_files
from ray_recsys.core.models.sparse_rows import to_arrays, weighted_rows
from ray_recsys.core.models.training_matrix import one_history, weigh_by_recency


class ItemToItem:
    """A user's factors are the items of the history and their weights.

    Args:
        histories: Weighted training items of U users, oldest first.
        added: [I, I]; row i is what item i of a history adds to every item's score.
        recipe: Weights of a history that is folded in.
    """

    def __init__(
        self, histories: SparseFactors, added: sp.csr_array | Float32s, recipe: EASERecipe | ItemKNNRecipe
    ) -> None:
        self._histories, self._added, self._recipe = histories, added, recipe

    @property
    def num_users(self) -> int:
        """U."""
        return len(self._histories)

    @property
    def num_items(self) -> int:
        """I."""
        return int(self._added.shape[0])

    def users(self, user_idx: Int64s) -> SparseFactors:
        """Returns the weighted histories of trained users."""
        return self._histories.take(user_idx)

    def fold_in(self, history: Int32s, user_idx: int | None = None) -> SparseFactors:  # noqa: ARG002 - contract
        """Returns the history, weighted; exactly a trained user's factors if it is that user's."""
        return weigh_by_recency(one_history(history), self._recipe)

    def scores(self, users: UserFactors, item_idx: Integers | None = None) -> Float32s:
        """Returns the weighted sums, float32[B, C]."""
        assert isinstance(users, SparseFactors)
        return weighted_rows(users, self._added, item_idx)

    def recall_space(self) -> None:
        """Returns None: scores are no inner product of small vectors."""

    def _save(self, directory: Path, arrays: Arrays) -> None:
        """Writes the histories, the recipe and the arrays of the model."""
        header = {"name": self._recipe.name, "recipe": self._recipe.model_dump(mode="json")}
        save_model_files(directory, header, {**to_arrays("histories", self._histories), **arrays})
