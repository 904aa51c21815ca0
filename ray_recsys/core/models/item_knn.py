"""Item-based collaborative filtering: an item's score is the weighted sum of its similarities to the user's history.

score(u, j) = sum over i in history(u) and neighbours(j) of weight(u, i) x similarity(j, i), where neighbours(j) are the
N items most similar to j. Shapes: U users, I items, B users of a call, C candidates.

When to use: as the first model to ship. It is fitted in seconds, explains itself and serves new users from their
histories.

Source: Sarwar, Karypis, Konstan, Riedl: Item-based collaborative filtering recommendation algorithms, WWW 2001,
    section 3.2.1 (weighted sum; for implicit feedback it is not divided by the sum of similarities); `similarity` has
    the cosine and its corrections.
"""

from pathlib import Path

import numpy as np

from ray_recsys.config import ItemKNNRecipe, Recipe
from ray_recsys.core.arrays import ranks_in_rows
from ray_recsys.core.executor import Executor
from ray_recsys.core.models.contract import SparseFactors
from ray_recsys.core.models.files import Arrays, Header
from ray_recsys.core.models.item_to_item import ItemToItem
from ray_recsys.core.models.neighbours import Neighbours
from ray_recsys.core.models.similarity import find_similar
from ray_recsys.core.models.sparse_rows import from_arrays, to_arrays, to_csr
from ray_recsys.core.models.training_matrix import read_training_matrix, unweighted, weigh_by_recency
from ray_recsys.core.prepared import PreparedSet


class ItemKNN(ItemToItem):
    """A fitted model.

    Args:
        histories: Weighted training items of U users, oldest first.
        similar: The items most similar to each item, best first.
        recipe: Weights of a history that is folded in.
    """

    def __init__(self, histories: SparseFactors, similar: SparseFactors, recipe: ItemKNNRecipe) -> None:
        super().__init__(histories, to_csr(similar, len(similar)).T.tocsr(), recipe)
        self._similar = similar

    def neighbours(self, num_neighbours: int, executor: Executor) -> Neighbours:  # noqa: ARG002
        """Returns the most similar items by the similarity that scores use."""
        return _neighbours(self._similar, num_neighbours)

    def save(self, directory: Path) -> None:
        """Writes the histories, the similarities and the recipe."""
        self._save(directory, to_arrays("similar", self._similar))


def fit(prepared: PreparedSet, recipe: Recipe, executor: Executor) -> ItemKNN:
    """Returns the model of the training interactions.

    Raises:
        ArtifactError: Weights by repetition of a set that was prepared without counting.
    """
    assert isinstance(recipe.model, ItemKNNRecipe)
    histories = read_training_matrix(prepared, weight_by_repetition=recipe.model.weight_by_repetition)
    items = to_csr(unweighted(histories), prepared.manifest.num_items).T.tocsr()
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
    lengths = np.diff(similar.offsets)
    row_of, rank = np.repeat(np.arange(num_items), lengths), ranks_in_rows(lengths)
    kept = rank < num_kept
    row_of, rank, idx = row_of[kept], rank[kept], similar.idx[kept]
    # Among the first num_kept + 1 items there are enough that are neither the item itself nor in its list.
    is_taken = np.zeros((num_items, num_kept + 1), np.bool_)
    is_taken[np.arange(num_kept + 1), np.arange(num_kept + 1)] = True
    is_low = idx <= num_kept
    is_taken[row_of[is_low], idx[is_low]] = True
    free = np.argsort(is_taken, axis=1, kind="stable")
    columns = np.arange(num_kept)
    num_listed = np.minimum(lengths, num_kept)[:, None]
    item_idx = np.take_along_axis(free, np.maximum(columns - num_listed, 0), axis=1).astype(np.int32)
    item_idx[row_of, rank] = idx
    scores = np.zeros((num_items, num_kept), np.float32)
    scores[row_of, rank] = similar.weights[kept]
    return Neighbours(item_idx, scores)
