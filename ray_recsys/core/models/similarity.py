"""Most similar rows of a sparse matrix: cosine with shrinkage, in blocks of bounded memory.

The full matrix of similarities is never held: a block of rows is multiplied with the transposed matrix, and its best
entries are kept. Item-based CF compares the columns of the training matrix, user-based CF its rows.

Shapes: K rows, F features, n entries.

Source: Deshpande, Karypis: Item-based top-N recommendation algorithms, TOIS 2004, section 4 (cosine, top N);
    Bell, Koren: Improved neighborhood-based collaborative filtering, KDD Cup 2007, section 2.2 (shrinkage);
    Herlocker, Konstan, Borchers, Riedl: An algorithmic framework for performing collaborative filtering, SIGIR 1999,
    section 5.2 (significance weighting);
    Aiolli: Efficient top-N recommendation for very large scale binary rated datasets, RecSys 2013, section 3
    (asymmetric cosine).
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from ray_recsys.config import SimilarityRecipe
from ray_recsys.core.arrays import Float32s, Float64s, Int64s
from ray_recsys.core.executor import Executor, Shared
from ray_recsys.core.models.contract import SparseFactors
from ray_recsys.core.models.sparse_rows import concatenate

_BLOCK_BYTES = 256 << 20
_BYTES_PER_ENTRY = 48  # of a block: index and product of the sparse result, similarity, sort key, order, and copies


@dataclass(frozen=True)
class Comparable:
    """Rows that others are compared with.

    Attributes:
        rows: [K, F], non-negative.
    """

    rows: sp.csr_array

    @cached_property
    def columns(self) -> sp.csr_array:
        """The rows transposed, [F, K]."""
        return self.rows.T.tocsr()

    @cached_property
    def squared_lengths(self) -> Float64s:
        """float64[K]; for rows of 0 and 1 their number of ones."""
        return squared_lengths(self.rows)

    def most_similar(self, queries: sp.csr_array, recipe: SimilarityRecipe, *, first: int | None) -> SparseFactors:
        """Returns the rows most similar to each query, best first, ties by index; similarities of 0 are left out.

        Args:
            queries: [B, F], non-negative.
            recipe: How similarity is computed, and how many are kept.
            first: The queries are the rows first..first + B - 1, none of which is similar to itself; None: they are
                not among the rows.
        """
        products = queries @ self.columns
        products.sort_indices()
        query_of = np.repeat(np.arange(len(products.indptr) - 1), np.diff(products.indptr))
        lengths: Float64s = squared_lengths(queries)[query_of] ** (1 - recipe.alpha)
        lengths *= self.squared_lengths[products.indices] ** recipe.alpha
        similarity = products.data.astype(np.float64)
        similarity /= lengths + recipe.shrinkage
        if recipe.significance:
            common = _ones(queries) @ _ones(self.columns)
            common.sort_indices()
            similarity *= np.minimum(common.data / recipe.significance, 1)
        is_other = similarity > 0
        if first is not None:
            is_other &= products.indices != query_of + first
        return _best_of_rows(
            query_of[is_other],
            products.indices[is_other],
            similarity[is_other].astype(np.float32),
            num_rows=queries.shape[0],
            num_kept=recipe.num_neighbours,
        )


def squared_lengths(rows: sp.csr_array) -> Float64s:
    """Returns the sum of the squares of each row, float64[K]."""
    squares: Float64s = np.bincount(
        np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr)),
        weights=rows.data.astype(np.float64) ** 2,
        minlength=rows.shape[0],
    )
    return squares


def find_similar(
    rows: sp.csr_array,
    recipe: SimilarityRecipe,
    executor: Executor,
    *,
    queries: sp.csr_array | None = None,
    block_bytes: int = _BLOCK_BYTES,
) -> SparseFactors:
    """Returns the rows most similar to each row, best first, ties by index; the same for any blocks.

    Args:
        rows: [K, F], non-negative.
        recipe: How similarity is computed, and how many are kept.
        executor: Runs the blocks, if there is more than one.
        queries: [K, F]; what each row looks for in the others, if that is not the row itself.
        block_bytes: Working memory of a block, unless one row alone needs more.
    """
    comparable = Comparable(rows)
    queries = rows if queries is None else queries
    bounds = _block_bounds(queries, comparable.columns, block_bytes)
    if len(bounds) == 2:
        return comparable.most_similar(queries, recipe, first=0)
    task = _Block(executor.share((comparable, queries)), bounds, recipe)
    found = dict(executor.map(task, len(bounds) - 1, stage="comparing rows of the training matrix"))
    return concatenate([found[block] for block in range(len(bounds) - 1)])


@dataclass(frozen=True, slots=True)
class _Block:
    """The task of one block of rows."""

    shared: Shared[tuple[Comparable, sp.csr_array]]
    bounds: Int64s
    recipe: SimilarityRecipe

    def __call__(self, block: int) -> tuple[int, SparseFactors]:
        comparable, queries = self.shared.get()
        first, last = (int(bound) for bound in self.bounds[block : block + 2])
        return block, comparable.most_similar(queries[first:last], self.recipe, first=first)


def _block_bounds(queries: sp.csr_array, columns: sp.csr_array, block_bytes: int) -> Int64s:
    """Returns the first row of each block, and the number of rows: bounded by the most entries that a row can get."""
    num_rows = queries.shape[0]
    rows_of_feature = np.diff(columns.indptr).astype(np.float64)
    entries = np.minimum(_ones(queries) @ rows_of_feature, num_rows)
    ends = np.cumsum(entries * _BYTES_PER_ENTRY)
    bounds = [0]
    while bounds[-1] < num_rows:
        begin = ends[bounds[-1] - 1] if bounds[-1] else 0.0
        bounds.append(max(bounds[-1] + 1, int(np.searchsorted(ends, begin + block_bytes, side="right"))))
    return np.array(bounds)


def _ones(rows: sp.csr_array) -> sp.csr_array:
    return sp.csr_array((np.ones_like(rows.data), rows.indices, rows.indptr), shape=rows.shape)


def _best_of_rows(row_of: Int64s, idx: Int64s, similarity: Float32s, *, num_rows: int, num_kept: int) -> SparseFactors:
    """Returns the best entries of each row; the entries come by row, and in a row by index."""
    # The bits of positive floats rise with them; a stable sort leaves ties in order of index.
    key = (row_of.astype(np.uint64) << np.uint64(32)) | (np.uint64(0xFFFFFFFF) - similarity.view(np.uint32))
    order = np.argsort(key, kind="stable")
    lengths = np.bincount(row_of, minlength=num_rows)
    rank = np.arange(len(row_of)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    order = order[rank < num_kept]
    offsets = np.concatenate([[0], np.cumsum(np.minimum(lengths, num_kept))])
    return SparseFactors(offsets, idx[order].astype(np.int32), similarity[order])
