"""EASE: the linear model of item-to-item weights that best reconstructs the training matrix, in closed form.

score(u, j) = sum over i in history(u) of weight(u, i) x B[i, j], where B minimises |X - XB|^2 + l2 |B|^2 with a zero
diagonal. Its cost is one inversion of an I x I matrix. Shapes: U users, I items, B users of a call, C candidates.

When to use: up to some ten thousand items, since it inverts an items × items matrix; then it is hard to beat.

Source: Steck: Embarrassingly shallow autoencoders for sparse data, WWW 2019, equation 8: with P = (X'X + l2)^-1,
    B[i, j] = -P[i, j] / P[j, j].
"""

from pathlib import Path

import numpy as np
import scipy.sparse as sp
from scipy.linalg import lapack

from ray_recsys.config import EASERecipe, Recipe
from ray_recsys.core.arrays import Float32s, Float64s
from ray_recsys.core.executor import Executor
from ray_recsys.core.models.contract import SparseFactors
from ray_recsys.core.models.files import Arrays, Header
from ray_recsys.core.models.item_to_item import ItemToItem
from ray_recsys.core.models.neighbours import Neighbours, block_bounds, join_blocks, top_of_block
from ray_recsys.core.models.sparse_rows import from_arrays, to_csr
from ray_recsys.core.models.training_matrix import read_training_matrix, unweighted, weigh_by_recency
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.errors import InputError

_BYTES_PER_PAIR = 16  # of items: the matrix that is inverted in place in float64, its block of rows, the float32 result
_BLOCK_ROWS = 256


class EASE(ItemToItem):
    """A fitted model.

    Args:
        histories: Weighted training items of U users, oldest first.
        item_weights: float32[I, I]; row i is what item i of a history adds to every item's score.
        recipe: Weights of a history that is folded in.
    """

    def __init__(self, histories: SparseFactors, item_weights: Float32s, recipe: EASERecipe) -> None:
        super().__init__(histories, item_weights, recipe)
        self._item_weights = item_weights

    def neighbours(self, num_neighbours: int, executor: Executor) -> Neighbours:  # noqa: ARG002
        """Returns the items that an item adds most to: what a history of that item alone recommends."""
        blocks = [
            top_of_block(self._item_weights[start:stop].copy(), start, num_neighbours)
            for start, stop in block_bounds(self.num_items)
        ]
        return join_blocks(blocks)

    def save(self, directory: Path) -> None:
        """Writes the histories, the item weights and the recipe."""
        self._save(directory, {"item_weights": self._item_weights})


def fit(prepared: PreparedSet, recipe: Recipe, executor: Executor) -> EASE:  # noqa: ARG001
    """Returns the model of the training interactions; one process inverts the matrix.

    Raises:
        ArtifactError: Weights by repetition of a set that was prepared without counting.
        InputError: The catalogue's matrices need more memory than the recipe allows.
    """
    assert isinstance(recipe.model, EASERecipe)
    num_items = prepared.manifest.num_items
    _check_memory(num_items, recipe.model.max_memory_gb)
    histories = read_training_matrix(prepared, weight_by_repetition=recipe.model.weight_by_repetition)
    weights = item_weights(to_csr(unweighted(histories), num_items), recipe.model.l2)
    return EASE(weigh_by_recency(histories, recipe.model), weights, recipe.model)


def load(header: Header, arrays: Arrays) -> EASE:
    """Returns the model that `EASE.save` wrote."""
    recipe = EASERecipe.model_validate(header["recipe"])
    return EASE(from_arrays("histories", arrays), arrays["item_weights"], recipe)


def _check_memory(num_items: int, max_memory_gb: float) -> None:
    needed_gb = num_items**2 * _BYTES_PER_PAIR / 1e9
    if needed_gb > max_memory_gb:
        raise InputError(
            f"EASE of {num_items:,} items needs {needed_gb:.1f} GB of memory; "
            f"model.max_memory_gb = {max_memory_gb:g} allows less",
            remedy="raise it where there is as much, drop rare items with prepare.min_interactions_per_item, "
            "or use model.name = 'item_knn' or 'ials'",
        )


def item_weights(matrix: sp.csr_array, l2: float) -> Float32s:
    """Returns B, float32[I, I]."""
    inverse = inverse_in_place(_gram(matrix, l2))
    diagonal = np.diag(inverse).copy()
    weights = np.empty(inverse.shape, np.float32)
    for start in range(0, len(weights), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        weights[block] = -inverse[block] / diagonal
    np.fill_diagonal(weights, 0)
    return weights


def _gram(matrix: sp.csr_array, l2: float) -> Float64s:
    """Returns X'X + l2, float64[I, I], from blocks of its rows."""
    num_items = matrix.shape[1]
    columns = matrix.T.tocsr()
    gram = np.empty((num_items, num_items))
    for start in range(0, num_items, _BLOCK_ROWS):
        gram[start : start + _BLOCK_ROWS] = (columns[start : start + _BLOCK_ROWS] @ matrix).toarray()
    gram[np.diag_indices(num_items)] += l2
    return gram


def inverse_in_place(matrix: Float64s) -> Float64s:
    """Returns the inverse of a symmetric positive definite matrix, in its memory."""
    # The transpose of a symmetric matrix is the same matrix in the column order that LAPACK takes without a copy.
    factor, failed = lapack.dpotrf(matrix.T, lower=1, overwrite_a=1, clean=0)
    assert not failed, f"l2 > 0 makes the matrix positive definite; dpotrf says {failed}"
    inverse, failed = lapack.dpotri(factor, lower=1, overwrite_c=1)
    assert not failed, f"a Cholesky factor has a positive diagonal; dpotri says {failed}"
    for start in range(0, len(inverse), _BLOCK_ROWS):
        stop = start + _BLOCK_ROWS
        square = np.tril(inverse[start:stop, start:stop])
        inverse[start:stop, start:stop] = square + np.tril(square, -1).T
        inverse[start:stop, stop:] = inverse[stop:, start:stop].T
    symmetric: Float64s = inverse
    return symmetric
