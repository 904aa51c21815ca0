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
from typing import Self

import numpy as np
import scipy.sparse as sp

from ray_recsys.config import SimilarityRecipe
from ray_recsys.core.arrays import Float32s, Float64s, Int64s, ranks_in_rows
from ray_recsys.core.executor import Executor, Shared
from ray_recsys.core.models.contract import SparseFactors
from ray_recsys.core.models.sparse_rows import concatenate

BLOCK_BYTES = 256 << 20  # working memory of a block, unless one row alone needs more
_BYTES_PER_ENTRY = 48  # of a block: index and product of the sparse result, similarity, sort key, order, and copies


@dataclass(frozen=True, slots=True)
class Queries:
    """Rows whose most similar rows are searched.

    Attributes:
        rows: [B, F], non-negative.
        factors: float64[B]; what each row's length contributes to the denominator.
    """

    rows: sp.csr_array
    factors: Float64s

    @classmethod
    def of(cls, rows: sp.csr_array, recipe: SimilarityRecipe) -> Self:
        """Returns the rows and |row|^2(1 - alpha)."""
        return cls(rows, _squared_lengths(rows) ** (1 - recipe.alpha))

    def __getitem__(self, part: slice) -> "Queries":
        return Queries(self.rows[part], self.factors[part])


@dataclass(frozen=True, slots=True)
class Comparable:
    """Rows that queries are compared with.

    Attributes:
        columns: [F, K], non-negative: the rows, transposed.
        factors: float64[K]; what each row's length contributes to the denominator.
        recipe: How similarity is computed, and how many are kept.
    """

    columns: sp.csr_array
    factors: Float64s
    recipe: SimilarityRecipe

    @classmethod
    def of(cls, rows: sp.csr_array, recipe: SimilarityRecipe) -> Self:
        """Returns the rows, transposed, and |row|^2 alpha."""
        return cls(rows.T.tocsr(), _squared_lengths(rows) ** recipe.alpha, recipe)

    def most_similar(self, queries: Queries, *, first: int | None = None) -> SparseFactors:
        """Returns the rows most similar to each query, best first, ties by index; similarities of 0 are left out.

        Args:
            queries: B of them.
            first: The queries belong to the rows first..first + B - 1, and none of these is its own neighbour; None:
                they belong to no row.
        """
        products = queries.rows @ self.columns
        products.sort_indices()
        query_of = np.repeat(np.arange(len(queries.factors)), np.diff(products.indptr))
        similarity = products.data.astype(np.float64)
        similarity /= queries.factors[query_of] * self.factors[products.indices] + self.recipe.shrinkage
        if self.recipe.significance:
            common = _ones(queries.rows) @ _ones(self.columns)
            common.sort_indices()
            similarity *= np.minimum(common.data.astype(np.float64) / self.recipe.significance, 1)
        is_other = similarity > 0
        if first is not None:
            is_other &= products.indices != query_of + first
        return _best_of_rows(
            query_of[is_other],
            products.indices[is_other],
            similarity[is_other].astype(np.float32),
            num_rows=len(queries.factors),
            num_kept=self.recipe.num_neighbours,
        )


def find_similar(
    rows: sp.csr_array, recipe: SimilarityRecipe, executor: Executor, *, queries: sp.csr_array | None = None
) -> SparseFactors:
    """Returns the rows most similar to each row, best first, ties by index; the same for any blocks.

    Args:
        rows: [K, F], non-negative.
        recipe: How similarity is computed, and how many are kept.
        executor: Runs the blocks, if there is more than one.
        queries: [K, F]; the row to compare with the others, if that is not the row itself.
    """
    comparable = Comparable.of(rows, recipe)
    scaled = Queries.of(rows if queries is None else queries, recipe)
    bounds = _block_bounds(scaled.rows, comparable.columns)
    if len(bounds) == 2:
        return comparable.most_similar(scaled, first=0)
    task = _Block(executor.share((comparable, scaled)), bounds)
    found = dict(executor.map(task, len(bounds) - 1, stage="comparing rows of the training matrix"))
    return concatenate([found[block] for block in range(len(bounds) - 1)])


@dataclass(frozen=True, slots=True)
class _Block:
    """The task of one block of rows."""

    shared: Shared[tuple[Comparable, Queries]]
    bounds: Int64s

    def __call__(self, block: int) -> tuple[int, SparseFactors]:
        comparable, queries = self.shared.get()
        first, last = (int(bound) for bound in self.bounds[block : block + 2])
        return block, comparable.most_similar(queries[first:last], first=first)


def _squared_lengths(rows: sp.csr_array) -> Float64s:
    """Returns the sum of the squares of each row, float64[K]; for rows of 0 and 1 their number of ones."""
    row_of = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
    squares = rows.data.astype(np.float64) ** 2
    return np.bincount(row_of, weights=squares, minlength=rows.shape[0]).astype(np.float64)


def _block_bounds(queries: sp.csr_array, columns: sp.csr_array) -> Int64s:
    """Returns the first row of each block, and the number of rows: bounded by the most entries that a row can get."""
    num_rows = queries.shape[0]
    rows_of_feature = np.diff(columns.indptr).astype(np.float64)
    entries = np.minimum(_ones(queries) @ rows_of_feature, num_rows)
    ends = np.cumsum(entries * _BYTES_PER_ENTRY)
    bounds = [0]
    while bounds[-1] < num_rows:
        begin = ends[bounds[-1] - 1] if bounds[-1] else 0.0
        bounds.append(max(bounds[-1] + 1, int(np.searchsorted(ends, begin + BLOCK_BYTES, side="right"))))
    return np.array(bounds)


def _ones(rows: sp.csr_array) -> sp.csr_array:
    return sp.csr_array((np.ones_like(rows.data), rows.indices, rows.indptr), shape=rows.shape)


def _best_of_rows(row_of: Int64s, idx: Int64s, similarity: Float32s, *, num_rows: int, num_kept: int) -> SparseFactors:
    """Returns the best entries of each row; the entries come by row, and in a row by index."""
    # The bits of positive floats rise with them; a stable sort leaves ties in order of index.
    key = (row_of.astype(np.uint64) << np.uint64(32)) | (np.uint64(0xFFFFFFFF) - similarity.view(np.uint32))
    order = np.argsort(key, kind="stable")
    lengths = np.bincount(row_of, minlength=num_rows)
    order = order[ranks_in_rows(lengths) < num_kept]
    offsets = np.concatenate([[0], np.cumsum(np.minimum(lengths, num_kept))])
    return SparseFactors(offsets, idx[order].astype(np.int32), similarity[order])
