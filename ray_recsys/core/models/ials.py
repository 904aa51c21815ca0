"""iALS: matrix factorisation of all user-item pairs, solved exactly for one side at a time.

It minimises the sum over interactions of (<w_u, h_i> - 1)^2, plus unobserved_weight times the sum over all pairs of
<w_u, h_i>^2, plus l2 times the sum over users of (n_u + unobserved_weight x I)^nu |w_u|^2 and the same for items. With
the other side fixed, each row's vector is a least-squares solution, in which all pairs enter through one Gram matrix.
The last solve is of the users, so that folding in a trained user's history gives that user's vector. It may weigh the
squared errors of recent items more, while the item vectors were learned from all alike.

When to use: large sparse catalogues, where EASE's matrix does not fit. Trained without gradients, it has little to
tune.

Shapes: U users, I items, D width, L interactions of a row (padded), B users of a call, C candidates.

Source: Hu, Koren, Volinsky: Collaborative filtering for implicit feedback datasets, ICDM 2008, equations 4 and 5;
    Rendle, Krichene, Zhang, Koren: Revisiting the performance of iALS on item recommendation benchmarks, RecSys 2022,
    equations 1 to 4 (loss) and section 4 (frequency-scaled regularisation, init_std / sqrt(D)).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ray_recsys.config import IALSRecipe, Recipe
from ray_recsys.core.arrays import Float32s, Int32s, Int64s, Integers
from ray_recsys.core.counter_random import derive_key
from ray_recsys.core.executor import Executor, Shared
from ray_recsys.core.models.contract import DenseFactors, SparseFactors, UserFactors
from ray_recsys.core.models.files import Arrays, Header, save_model_files
from ray_recsys.core.models.inner_product import InnerProduct
from ray_recsys.core.models.sparse_rows import to_csr
from ray_recsys.core.models.training_matrix import one_history, read_training_matrix, weigh_by_recency
from ray_recsys.core.prepared import PreparedSet

BATCH_VALUES = 1 << 22  # gathered vectors of a batch of solves, float32: 16 MiB
BLOCK_ENTRIES = 1 << 22  # interactions of a task, unless one row alone has more


class IALS(InnerProduct):
    """A fitted model.

    Args:
        user_vectors: float32[U, D].
        item_vectors: float32[I, D].
        gram: float32[D, D], of the item vectors; kept so that a history is folded in with the bits of the last solve.
        recipe: How a history is folded in.
    """

    def __init__(self, user_vectors: Float32s, item_vectors: Float32s, gram: Float32s, recipe: IALSRecipe) -> None:
        super().__init__(user_vectors, item_vectors)
        self._gram, self._recipe = gram, recipe

    def fold_in(self, history: Int32s, user_idx: int | None = None) -> DenseFactors:  # noqa: ARG002 - contract
        """Returns the least-squares vector of a history; exactly a trained user's if it is that user's."""
        side = Side(self._items, self._gram, self._recipe)
        return DenseFactors(side.solve(weigh_by_recency(one_history(history), self._recipe)))

    def scores(self, users: UserFactors, item_idx: Integers | None = None) -> Float32s:
        """Returns inner products, float32[B, C]."""
        assert isinstance(users, DenseFactors)
        # One product of vectors per score: a matrix product's rounding would depend on the shape of the call.
        if item_idx is None:
            scores: Float32s = np.vecdot(users.values[:, None], self._items)
            return scores
        scores = np.empty(item_idx.shape, np.float32)
        for row, (user, items) in enumerate(zip(users.values, item_idx, strict=True)):
            scores[row] = np.vecdot(user, self._items[items])
        return scores

    def save(self, directory: Path) -> None:
        """Writes the vectors and the recipe."""
        header = {"name": self._recipe.name, "recipe": self._recipe.model_dump(mode="json")}
        arrays = {"user_vectors": self._users, "item_vectors": self._items, "gram": self._gram}
        save_model_files(directory, header, arrays)


def fit(prepared: PreparedSet, recipe: Recipe, executor: Executor) -> IALS:
    """Returns the model of the training interactions; its initial user vectors follow from the recipe's seed."""
    assert isinstance(recipe.model, IALSRecipe)
    histories = read_training_matrix(prepared)
    num_items = prepared.manifest.num_items
    audiences = _transposed(histories, num_items)
    rng = np.random.default_rng(derive_key(recipe.seed, 0x1A15))
    width = recipe.model.embedding_dim
    user_vectors = rng.standard_normal((len(histories), width), np.float32)
    user_vectors *= recipe.model.init_std / np.sqrt(width)
    for _ in range(recipe.model.epochs):
        users = Side.of(user_vectors, recipe.model)
        item_vectors = solve_blocks(users, audiences, executor, stage="solving the items of iALS")
        items = Side.of(item_vectors, recipe.model)
        user_vectors = solve_blocks(items, histories, executor, stage="solving the users of iALS")
    if recipe.model.recency_half_life is not None:
        weighed = weigh_by_recency(histories, recipe.model)
        user_vectors = solve_blocks(items, weighed, executor, stage="solving the users of iALS")
    return IALS(user_vectors, items.vectors, items.gram, recipe.model)


def load(header: Header, arrays: Arrays) -> IALS:
    """Returns the model that `IALS.save` wrote."""
    recipe = IALSRecipe.model_validate(header["recipe"])
    return IALS(arrays["user_vectors"], arrays["item_vectors"], arrays["gram"], recipe)


@dataclass(frozen=True, slots=True)
class Side:
    """The side that is fixed while the other is solved.

    Attributes:
        vectors: float32[K, D].
        gram: Sum of their outer products, float32[D, D].
    """

    vectors: Float32s
    gram: Float32s
    recipe: IALSRecipe

    @classmethod
    def of(cls, vectors: Float32s, recipe: IALSRecipe) -> "Side":
        """Returns the side of the vectors."""
        return cls(vectors, vectors.T @ vectors, recipe)

    def solve(self, rows: SparseFactors) -> Float32s:
        """Returns the least-squares vectors of rows, float32[B, D]; one depends on its row alone.

        Args:
            rows: Indices of vectors that each row interacted with, and the weights of these interactions.
        """
        solved = np.empty((len(rows), self.vectors.shape[1]), np.float32)
        for members, padded in _batches(rows, self.vectors.shape[1]):
            solved[members] = self._solve(rows.take(members), padded)
        return solved

    def _solve(self, rows: SparseFactors, padded: int) -> Float32s:
        """Returns the vectors of rows of at most `padded` interactions."""
        # Every matrix of the stack is multiplied and solved separately, with a shape that follows from its own row.
        lengths, width = np.diff(rows.offsets), self.vectors.shape[1]
        is_entry = np.arange(padded) < lengths[:, None]
        vectors_BLD = np.zeros((len(rows), padded, width), np.float32)
        vectors_BLD[is_entry] = self.vectors[rows.idx]
        weights_BL = np.zeros((len(rows), padded), np.float32)
        weights_BL[is_entry] = rows.weights
        weighted_BDL = (vectors_BLD * weights_BL[:, :, None]).transpose(0, 2, 1)
        left_BDD = np.matmul(weighted_BDL, vectors_BLD)
        left_BDD += np.float32(self.recipe.unobserved_weight) * self.gram
        diagonal = np.arange(width)
        left_BDD[:, diagonal, diagonal] += self._regularisation(lengths)[:, None]
        right_BD1 = weighted_BDL.sum(axis=2)[:, :, None]
        solved: Float32s = np.linalg.solve(left_BDD, right_BD1)[:, :, 0]
        return solved

    def _regularisation(self, lengths: Int64s) -> Float32s:
        frequency = lengths + self.recipe.unobserved_weight * len(self.vectors)
        return (self.recipe.l2 * frequency**self.recipe.nu).astype(np.float32)


def solve_blocks(side: Side, rows: SparseFactors, executor: Executor, *, stage: str) -> Float32s:
    """Returns the least-squares vectors of rows, block by block; the same for any blocks.

    Args:
        side: Fixed.
        rows: Of the side that is solved.
        executor: Runs the blocks, if there is more than one.
        stage: For errors.
    """
    ends = np.arange(BLOCK_ENTRIES, rows.offsets[-1], BLOCK_ENTRIES)
    bounds = np.unique(np.concatenate([[0], np.searchsorted(rows.offsets, ends), [len(rows)]]))
    if len(bounds) == 2:
        return side.solve(rows)
    solved = dict(executor.map(_Block(executor.share((side, rows)), bounds), len(bounds) - 1, stage=stage))
    return np.concatenate([solved[block] for block in range(len(bounds) - 1)])


@dataclass(frozen=True, slots=True)
class _Block:
    """The task of one block of rows."""

    shared: Shared[tuple[Side, SparseFactors]]
    bounds: Int64s

    def __call__(self, block: int) -> tuple[int, Float32s]:
        side, rows = self.shared.get()
        first, last = (int(bound) for bound in self.bounds[block : block + 2])
        return block, side.solve(rows.take(slice(first, last)))


def _batches(rows: SparseFactors, width: int) -> Iterator[tuple[Int64s, int]]:
    """Yields rows of similar length and the length that they are padded to, which follows from a row's own length."""
    lengths = np.diff(rows.offsets)
    # Eight steps from each power of two to the next: at most an eighth is padding.
    step = np.exp2(np.maximum(np.floor(np.log2(np.maximum(lengths, 1))) - 3, 0)).astype(np.int64)
    padded = np.maximum(-(-lengths // step) * step, 1)
    for length in np.unique(padded):
        members = np.flatnonzero(padded == length)
        size = max(1, BATCH_VALUES // ((int(length) + width) * width))
        for start in range(0, len(members), size):
            yield members[start : start + size], int(length)


def _transposed(histories: SparseFactors, num_items: int) -> SparseFactors:
    """Returns the users of each item, by index."""
    columns = to_csr(histories, num_items).T.tocsr()
    return SparseFactors(columns.indptr.astype(np.int64), columns.indices.astype(np.int32), columns.data)
