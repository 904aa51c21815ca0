"""Item-based collaborative filtering: an item's score is the weighted sum of its similarities to the user's history.

score(u, j) = sum over i in history(u) and neighbours(j) of weight(u, i) x similarity(j, i), where neighbours(j) are the
N items most similar to j. Shapes: U users, I items, B users of a call, C candidates.

Source: Sarwar, Karypis, Konstan, Riedl: Item-based collaborative filtering recommendation algorithms, WWW 2001,
    section 3.2.1 (weighted sum; for implicit feedback it is not divided by the sum of similarities); `similarity` has
    the cosine and its corrections.
"""

from pathlib import Path

import numpy as np

from ray_recsys.config import ItemKNNRecipe, Recipe
from ray_recsys.core.arrays import Float32s, Int32s, Int64s, Integers
from ray_recsys.core.executor import Executor
from ray_recsys.core.models.contract import SparseFactors, UserFactors
from ray_recsys.core.models.files import Arrays, Header, save_model_files
from ray_recsys.core.models.neighbours import Neighbours
from ray_recsys.core.models.similarity import find_similar
from ray_recsys.core.models.sparse_rows import from_arrays, to_arrays, to_csr, weighted_rows
from ray_recsys.core.models.training_matrix import one_history, read_training_matrix, weigh_by_recency
from ray_recsys.core.prepared import PreparedSet


class ItemKNN:
    """A fitted model; a user's factors are the items of the history and their weights.

    Args:
        histories: Weighted training items of U users, oldest first.
        similar: The items most similar to each item, best first.
        recipe: Weights of a history that is folded in.
    """

    def __init__(self, histories: SparseFactors, similar: SparseFactors, recipe: ItemKNNRecipe) -> None:
        self._histories, self._similar, self._recipe = histories, similar, recipe
        self._items_similar_to = to_csr(similar, len(similar)).T.tocsr()

    @property
    def num_users(self) -> int:
        """U."""
        return len(self._histories)

    @property
    def num_items(self) -> int:
        """I."""
        return len(self._similar)

    def users(self, user_idx: Int64s) -> SparseFactors:
        """Returns the weighted histories of trained users."""
        return self._histories.take(user_idx)

    def fold_in(self, history: Int32s, user_idx: int | None = None) -> SparseFactors:  # noqa: ARG002 - contract
        """Returns the history, weighted; exactly a trained user's factors if it is that user's."""
        return weigh_by_recency(one_history(history), self._recipe)

    def scores(self, users: UserFactors, item_idx: Integers | None = None) -> Float32s:
        """Returns sums of similarities, float32[B, C]."""
        assert isinstance(users, SparseFactors)
        return weighted_rows(users, self._items_similar_to, item_idx)

    def recall_space(self) -> None:
        """Returns None: scores are no inner product of small vectors."""

    def neighbours(self, num_neighbours: int, executor: Executor) -> Neighbours:  # noqa: ARG002
        """Returns the most similar items by the similarity that scores use."""
        return _neighbours(self._similar, num_neighbours)

    def save(self, directory: Path) -> None:
        """Writes the histories, the similarities and the recipe."""
        header = {"name": self._recipe.name, "recipe": self._recipe.model_dump(mode="json")}
        arrays = to_arrays("histories", self._histories) | to_arrays("similar", self._similar)
        save_model_files(directory, header, arrays)


def fit(prepared: PreparedSet, recipe: Recipe, executor: Executor) -> ItemKNN:
    """Returns the model of the training interactions.

    Raises:
        ArtifactError: Weights by repetition of a set that was prepared without counting.
    """
    assert isinstance(recipe.model, ItemKNNRecipe)
    histories = read_training_matrix(prepared, weight_by_repetition=recipe.model.weight_by_repetition)
    binary = SparseFactors(histories.offsets, histories.idx, np.ones_like(histories.weights))
    items = to_csr(binary, prepared.manifest.num_items).T.tocsr()
    similar = find_similar(items, recipe.model, executor)
    return ItemKNN(weigh_by_recency(histories, recipe.model), similar, recipe.model)


def load(header: Header, arrays: Arrays) -> ItemKNN:
    """Returns the model that `ItemKNN.save` wrote."""
    recipe = ItemKNNRecipe.model_validate(header["recipe"])
    return ItemKNN(from_arrays("histories", arrays), from_arrays("similar", arrays), recipe)


def _neighbours(similar: SparseFactors, num_neighbours: int) -> Neighbours:
    """Returns the neighbours of every item from a list of the most similar ones, best first.

    A list that is too short is filled with the items of the lowest index that are missing from it; their score is 0.

    Args:
        similar: I rows, without the item itself.
        num_neighbours: At most this many; fewer in a smaller catalogue.
    """
    num_items = len(similar)
    num_kept = min(num_neighbours, num_items - 1)
    row_of = np.repeat(np.arange(num_items), np.diff(similar.offsets))
    rank = np.arange(len(similar.idx)) - similar.offsets[row_of]
    kept = rank < num_kept
    row_of, rank, idx = row_of[kept], rank[kept], similar.idx[kept]
    # Among the first num_kept + 1 items there are enough that are neither the item itself nor in its list.
    is_taken = np.zeros((num_items, num_kept + 1), np.bool_)
    is_taken[np.arange(num_kept + 1), np.arange(num_kept + 1)] = True
    is_low = idx <= num_kept
    is_taken[row_of[is_low], idx[is_low]] = True
    free = np.argsort(is_taken, axis=1, kind="stable")
    lengths = np.bincount(row_of, minlength=num_items)[:, None]
    columns = np.arange(num_kept)
    item_idx = np.take_along_axis(free, np.maximum(columns - lengths, 0), axis=1).astype(np.int32)
    item_idx[row_of, rank] = idx
    scores = np.zeros((num_items, num_kept), np.float32)
    scores[row_of, rank] = similar.weights[kept]
    return Neighbours(item_idx, scores)
