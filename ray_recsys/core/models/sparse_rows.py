"""Operations on sparse rows: joining, files, and scores as weighted sums of a matrix's rows.

Shapes: U and K rows of matrices, I items, B users of a call, C candidates of each.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import scipy.sparse as sp

from ray_recsys.core.arrays import Float32s, Integers
from ray_recsys.core.models.contract import SparseFactors

MAX_SCORES = 1 << 24  # float32: 64 MiB


def concatenate(blocks: list[SparseFactors]) -> SparseFactors:
    """Returns the rows of consecutive blocks as one."""
    lengths = np.concatenate([np.diff(block.offsets) for block in blocks])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return SparseFactors(offsets, np.concatenate([b.idx for b in blocks]), np.concatenate([b.weights for b in blocks]))


def to_csr(factors: SparseFactors, num_columns: int) -> sp.csr_array:
    """Returns the factors as a scipy matrix that shares their arrays; a row keeps the order of its entries."""
    return sp.csr_array((factors.weights, factors.idx, factors.offsets), shape=(len(factors), num_columns))


def weighted_rows(users: SparseFactors, rows: sp.csr_array | Float32s, item_idx: Integers | None) -> Float32s:
    """Returns each user's weighted sum of a matrix's rows.

    It is added up in the order of the user's entries, by loops of scipy that handle one user after the other, so that
    a user's result does not depend on the others of the call.

    Args:
        users: B users' weights of K rows.
        rows: [K, I], sparse or dense.
        item_idx: The columns to return of each user, [B, C]; None: all.

    Returns:
        float32[B, C], or float32[B, I].
    """
    if item_idx is None:
        return _weighted_rows(users, rows)
    scores = np.empty(item_idx.shape, np.float32)
    for part in _parts(len(users), int(rows.shape[1])):
        scores[part] = np.take_along_axis(_weighted_rows(users.take(part), rows), item_idx[part], axis=1)
    return scores


def _weighted_rows(users: SparseFactors, rows: sp.csr_array | Float32s) -> Float32s:
    summed = to_csr(users, int(rows.shape[0])) @ rows
    dense: Float32s = summed.toarray() if sp.issparse(summed) else summed
    return dense


def _parts(num_users: int, num_items: int) -> Iterator[slice]:
    """Yields slices of users whose scores of all items fit the working memory."""
    size = max(1, MAX_SCORES // num_items)
    for start in range(0, num_users, size):
        yield slice(start, start + size)


def to_arrays(name: str, factors: SparseFactors) -> dict[str, np.ndarray]:
    """Returns the factors' arrays under the names that `from_arrays` reads."""
    return {f"{name}.offsets": factors.offsets, f"{name}.idx": factors.idx, f"{name}.weights": factors.weights}


def from_arrays(name: str, arrays: Mapping[str, np.ndarray]) -> SparseFactors:
    """Returns factors from the arrays of a file."""
    return SparseFactors(arrays[f"{name}.offsets"], arrays[f"{name}.idx"], arrays[f"{name}.weights"])
